//! Apache Kafka in KRaft mode: every node is a broker, and the first three vote as well.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::child::{self, Program};
use crate::data_dir::DataDir;
use crate::fetch::Parts;
use crate::layout::Layout;
use crate::probe::Probe;
use crate::supervise::{Kind, Spec};

const LOGGING: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders>
    <Console name="log"><PatternLayout pattern="%d{ISO8601} %-5p %m (%c{1})%n"/></Console>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="log"/></Root>
    <Logger name="state.change.logger" level="WARN"/>
    <Logger name="org.apache.kafka.common.config" level="WARN"/>
  </Loggers>
</Configuration>
"#;

/// Writes every node's configuration, formats the ones that are new, and says how to start them.
pub fn prepare(layout: &Layout, data: &DataDir, parts: &Parts) -> Result<Vec<Spec>> {
    let dir = data.path.join("kafka");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    fs::write(dir.join("log4j2.xml"), LOGGING).context("writing Kafka's logging configuration")?;
    let java = child::find("java")?;
    let class_path = parts.kafka_class_path()?;
    let mut formatting = Vec::new();
    let mut specs = Vec::new();
    for id in 1..=layout.brokers {
        let file = dir.join(format!("server-{id}.properties"));
        fs::write(&file, render(&properties(layout, id))).with_context(|| format!("writing {}", file.display()))?;
        let name = format!("kafka-{id}");
        let program = |name: &str, jvm: &[&str], main: &[&str]| {
            let tmp = format!("-Djava.io.tmpdir={}", data.tmp().display());
            let mut args = vec!["-Dlog4j2.configurationFile=kafka/log4j2.xml", &tmp];
            args.extend(["-Djava.net.preferIPv4Stack=true", "-cp", &class_path]);
            let args = jvm.iter().chain(&args).chain(main).map(|arg| (*arg).into());
            Program {
                path: java.clone(),
                args: args.collect(),
                env: Vec::new(),
                dir: data.path.clone(),
                log: data.log(name),
            }
        };
        let config = format!("kafka/server-{id}.properties");
        let storage = data.path.join(log_dir(id));
        if !storage.join("meta.properties").exists() {
            clear(&storage)?;
            let cluster = data.kafka_cluster_id.as_str();
            let tool = "kafka.tools.StorageTool";
            formatting.push(program(
                "kafka-format",
                &["-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"],
                &[tool, "format", "-t", cluster, "-c", &config],
            ));
        }
        specs.push(Spec {
            kind: Kind::Kafka,
            program: program(&name, JVM, &["kafka.Kafka", &config]),
            name,
            ready: Probe::Kafka(layout.broker(id)),
        });
    }
    format(&formatting)?;
    Ok(specs)
}

/// The collector's settings are those of Kafka's own start script.
const JVM: &[&str] = &[
    "-Xmx512m",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExitOnOutOfMemoryError",
];

fn format(programs: &[Program]) -> Result<()> {
    let mut running = Vec::new();
    for program in programs {
        running.push((program.start()?, program));
    }
    for (child, program) in running {
        child::wait_for(child, program, Duration::from_secs(60)).context("formatting Kafka's storage")?;
    }
    Ok(())
}

/// Formatting that was cut short leaves files that the next attempt would refuse.
fn clear(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Relative to the data folder, where the broker runs: no path has to be escaped.
fn log_dir(id: u16) -> String {
    format!("kafka/{id}")
}

/// The configuration of the node `id` (from 1).
fn properties(layout: &Layout, id: u16) -> BTreeMap<&'static str, String> {
    let replication = layout.brokers.min(3);
    let in_sync = if replication == 3 { 2 } else { 1 };
    let votes = id <= layout.controllers();
    let broker = format!("PLAINTEXT://127.0.0.1:{}", layout.broker(id));
    let controller = format!("CONTROLLER://127.0.0.1:{}", layout.controller(id));
    let voters: Vec<_> =
        (1..=layout.controllers()).map(|id| format!("{id}@127.0.0.1:{}", layout.controller(id))).collect();
    let (roles, listeners) =
        if votes { ("broker,controller", format!("{broker},{controller}")) } else { ("broker", broker.clone()) };
    let (mut listeners, mut advertised) = (listeners, broker);
    if layout.proxied {
        listeners += &format!(",PROXIED://127.0.0.1:{}", layout.behind_proxy(id));
        advertised += &format!(",PROXIED://127.0.0.1:{}", layout.proxy(id));
    }
    let mut properties = BTreeMap::from([
        ("node.id", id.to_string()),
        ("process.roles", roles.to_owned()),
        ("controller.quorum.voters", voters.join(",")),
        ("controller.listener.names", "CONTROLLER".to_owned()),
        ("inter.broker.listener.name", "PLAINTEXT".to_owned()),
        ("listeners", listeners),
        ("advertised.listeners", advertised),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT".to_owned()),
        ("log.dirs", log_dir(id)),
    ]);
    for key in [
        "default.replication.factor",
        "offsets.topic.replication.factor",
        "transaction.state.log.replication.factor",
        "share.coordinator.state.topic.replication.factor",
    ] {
        properties.insert(key, replication.to_string());
    }
    for key in ["min.insync.replicas", "transaction.state.log.min.isr", "share.coordinator.state.topic.min.isr"] {
        properties.insert(key, in_sync.to_string());
    }
    properties.extend(COMMON.iter().map(|(key, value)| (*key, (*value).to_owned())));
    properties
}

/// What differs from Kafka's defaults on every node.
const COMMON: &[(&str, &str)] = &[
    // Topics are made on purpose, with their settings.
    ("auto.create.topics.enable", "false"),
    // Fewer partitions of the internal topics: a quicker start.
    ("offsets.topic.num.partitions", "8"),
    ("transaction.state.log.num.partitions", "8"),
    ("share.coordinator.state.topic.num.partitions", "1"),
    // A first consumer gets its partitions at once.
    ("group.initial.rebalance.delay.ms", "0"),
    // Tests of take-over use sessions of a second.
    ("group.min.session.timeout.ms", "500"),
    ("group.consumer.min.session.timeout.ms", "500"),
    ("group.consumer.min.heartbeat.interval.ms", "100"),
    // A dead writer's transaction is aborted soon after its time-out.
    ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "1000"),
    // The default of 128 MiB is a quarter of this heap.
    ("log.cleaner.dedupe.buffer.size", "33554432"),
];

fn render(properties: &BTreeMap<&str, String>) -> String {
    properties.iter().map(|(key, value)| format!("{key}={value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(brokers: u16) -> Layout {
        Layout { offset: 1000, brokers, instances: 1, redis_cluster: false, infra_only: true, proxied: false }
    }

    #[test]
    fn one_broker_keeps_one_copy() {
        let text = render(&properties(&layout(1), 1));
        for line in [
            "process.roles=broker,controller",
            "controller.quorum.voters=1@127.0.0.1:20092",
            "listeners=PLAINTEXT://127.0.0.1:10092,CONTROLLER://127.0.0.1:20092",
            "offsets.topic.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "min.insync.replicas=1",
            "log.dirs=kafka/1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn three_brokers_keep_three_copies_and_write_to_two() {
        let third = properties(&layout(3), 3);
        assert_eq!(third["default.replication.factor"], "3");
        assert_eq!(third["transaction.state.log.min.isr"], "2");
        assert_eq!(third["min.insync.replicas"], "2");
        assert_eq!(third["advertised.listeners"], "PLAINTEXT://127.0.0.1:10096");
        assert_eq!(third["controller.quorum.voters"].split(',').count(), 3);
    }

    #[test]
    fn clients_behind_a_proxy_are_sent_to_it() {
        let third = properties(&Layout { proxied: true, ..layout(3) }, 3);
        assert_eq!(third["advertised.listeners"], "PLAINTEXT://127.0.0.1:10096,PROXIED://127.0.0.1:10197");
        assert!(third["listeners"].ends_with(",PROXIED://127.0.0.1:10097"), "{}", third["listeners"]);
    }

    #[test]
    fn a_fourth_broker_does_not_vote() {
        let fourth = properties(&layout(4), 4);
        assert_eq!(fourth["process.roles"], "broker");
        assert_eq!(fourth["listeners"], "PLAINTEXT://127.0.0.1:10098");
        assert_eq!(fourth["default.replication.factor"], "3");
    }
}
