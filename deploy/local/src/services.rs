//! The three services of Millrace, configured by the variables that their README documents.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::child::{self, Program};
use crate::data_dir::DataDir;
use crate::layout::{Layout, ServicePorts};
use crate::probe::Probe;
use crate::supervise::{Kind, Spec};

/// How to start every instance of every service.
pub fn prepare(layout: &Layout, data: &DataDir) -> Result<Vec<Spec>> {
    let mut specs = Vec::new();
    let secrets = secrets(data, |key| std::env::var(key).ok())?;
    for i in 0..layout.instances {
        for (service, ports) in [
            ("command-service", layout.command_service(i)),
            ("query-service", layout.query_service(i)),
            ("projector-service", layout.projector_service(i)),
        ] {
            let name = if layout.instances == 1 { service.to_owned() } else { format!("{service}-{}", i + 1) };
            specs.push(Spec {
                kind: Kind::Service,
                program: Program {
                    path: binary(service)?,
                    args: Vec::new(),
                    env: environment(layout, ports, i).into_iter().chain(secrets.clone()).collect(),
                    dir: data.path.clone(),
                    log: data.log(&name),
                },
                name,
                ready: Probe::Http(format!("http://127.0.0.1:{}/health/ready", ports.ops)),
            });
        }
    }
    Ok(specs)
}

/// Has each service check its settings, so that a mistake is told before anything is started.
pub fn check(specs: &[Spec]) -> Result<()> {
    let mut checked = HashSet::new();
    for Spec { program, .. } in specs.iter().filter(|spec| checked.insert(&spec.program.path)) {
        let mut command = Command::new(&program.path);
        command.arg("--check-config").envs(program.env.iter().cloned()).current_dir(&program.dir);
        let output = command.output().with_context(|| format!("starting {}", program.path.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} refuses its settings:\n{}", program.path.display(), said.trim_end());
    }
    Ok(())
}

/// The services are built into the folder where this program lies.
fn binary(service: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program's own folder")?;
    let path = own.with_file_name(service);
    ensure!(
        child::is_executable(&path),
        "{} is missing: build it with 'cargo build --release -p {service}' (deploy/local/run \
         does), or start without the services by --infra-only",
        path.display()
    );
    Ok(path)
}

/// Where the infrastructure and the query service are, for services and for `<data>/env`.
fn addresses(layout: &Layout) -> BTreeMap<String, String> {
    let addresses = [
        ("MILLRACE_KAFKA_BOOTSTRAP", layout.kafka_bootstrap()),
        ("MILLRACE_REGISTRY_URL", layout.registry_url()),
        ("MILLRACE_REDIS_URL", layout.redis_url()),
        ("MILLRACE_QUERY_URL", layout.query_url()),
    ];
    let cluster = layout.redis_cluster.then(|| ("MILLRACE_REDIS_CLUSTER", "true".to_owned()));
    addresses.into_iter().chain(cluster).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// What an instance is told. Other `MILLRACE_` variables reach it from this process's environment.
fn environment(layout: &Layout, ports: ServicePorts, i: u16) -> BTreeMap<String, String> {
    let listener = |port| format!("127.0.0.1:{port}");
    let mut variables = addresses(layout);
    let mut set = |key: &str, value| variables.insert(key.to_owned(), value);
    if let Some(http) = ports.http {
        set("MILLRACE_HTTP_ADDR", listener(http));
    }
    set("MILLRACE_OPS_ADDR", listener(ports.ops));
    set("MILLRACE_INSTANCE_ID", format!("local-{}", i + 1));
    // The output goes to files.
    set("NO_COLOR", "1".to_owned());
    variables
}

/// Those of the data folder, unless this process's environment, which `get` reads, has others: they would contradict them.
fn secrets(data: &DataDir, get: impl Fn(&str) -> Option<String>) -> Result<BTreeMap<String, String>> {
    data.secrets(|file| get(file).is_none() && get(file.trim_end_matches("_FILE")).is_none())
}

/// The contents of `<data>/env`. `get` reads this process's environment, which the services share.
pub fn env_file(
    layout: &Layout,
    data: &DataDir,
    get: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>> {
    let mut variables = shared(layout, &get);
    variables.extend(secrets(data, get)?);
    Ok(variables)
}

fn shared(layout: &Layout, get: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
    let mut variables = addresses(layout);
    for (key, default) in [("MILLRACE_TOPIC_PREFIX", ""), ("MILLRACE_PARTITIONS", "12")] {
        let value = get(key).unwrap_or_else(|| default.to_owned());
        variables.insert(key.to_owned(), value);
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout =
        Layout { offset: 10, brokers: 1, instances: 2, redis_cluster: false, infra_only: false, proxied: false };

    #[test]
    fn every_instance_has_its_own_listeners_and_name() {
        let second = environment(&LAYOUT, LAYOUT.command_service(1), 1);
        assert_eq!(second["MILLRACE_HTTP_ADDR"], "127.0.0.1:8190");
        assert_eq!(second["MILLRACE_OPS_ADDR"], "127.0.0.1:9190");
        assert_eq!(second["MILLRACE_INSTANCE_ID"], "local-2");
        assert_eq!(second["MILLRACE_QUERY_URL"], "http://127.0.0.1:8091");
        let projector = environment(&LAYOUT, LAYOUT.projector_service(0), 0);
        assert!(!projector.contains_key("MILLRACE_HTTP_ADDR"));
    }

    #[test]
    fn the_env_file_names_what_the_services_were_told() {
        let set = |key: &str| (key == "MILLRACE_PARTITIONS").then(|| "4".to_owned());
        let variables = shared(&LAYOUT, set);
        let lines: Vec<_> = variables.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            lines,
            [
                "MILLRACE_KAFKA_BOOTSTRAP=127.0.0.1:9102",
                "MILLRACE_PARTITIONS=4",
                "MILLRACE_QUERY_URL=http://127.0.0.1:8091",
                "MILLRACE_REDIS_URL=redis://127.0.0.1:6389",
                "MILLRACE_REGISTRY_URL=http://127.0.0.1:8100/apis/ccompat/v7",
                "MILLRACE_TOPIC_PREFIX=",
            ]
        );
    }
}
