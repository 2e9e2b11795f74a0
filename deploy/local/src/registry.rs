//! Apicurio Registry, which keeps its schemas in Kafka and speaks Confluent's API.

use anyhow::Result;

use crate::child::{self, Program};
use crate::data_dir::DataDir;
use crate::fetch::Parts;
use crate::layout::Layout;
use crate::probe::Probe;
use crate::supervise::{Kind, Spec};

/// How to start the registry.
pub fn prepare(layout: &Layout, data: &DataDir, parts: &Parts) -> Result<Spec> {
    let jar = parts.registry_dir().join("apicurio-registry-app-3.0.9-runner.jar");
    let properties = [
        ("java.io.tmpdir", data.tmp().display().to_string()),
        ("java.net.preferIPv4Stack", "true".to_owned()),
        ("quarkus.http.host", "127.0.0.1".to_owned()),
        ("quarkus.http.port", layout.registry().to_string()),
        ("quarkus.http.access-log.enabled", "false".to_owned()),
        ("apicurio.storage.kind", "kafkasql".to_owned()),
        ("apicurio.kafkasql.bootstrap.servers", layout.kafka_bootstrap()),
        // By Kafka's default its schemas would be gone after a week.
        ("apicurio.kafkasql.topic.retention.ms", "-1".to_owned()),
        // Also how long it waits at start for a snapshot of itself; by default, 5 s in vain.
        ("apicurio.kafkasql.consumer.poll.timeout", "1000".to_owned()),
    ];
    let mut args: Vec<_> = JVM.iter().map(|flag| (*flag).to_owned()).collect();
    args.extend(properties.map(|(key, value)| format!("-D{key}={value}")));
    args.extend(["-jar".to_owned(), jar.display().to_string()]);
    Ok(Spec {
        name: "registry".to_owned(),
        kind: Kind::Registry,
        program: Program {
            path: child::find("java")?,
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            dir: data.path.clone(),
            log: data.log("registry"),
        },
        ready: Probe::Http(format!("{}/subjects", layout.registry_url())),
    })
}

/// It is asked rarely, so a quick start is worth more than quick code.
const JVM: &[&str] = &["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
