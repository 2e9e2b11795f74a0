//! Kafka, the registry and Redis: whether they understand what they are told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use millrace_tests::{
    eventually,
    process::{self, Process, binary, free_port},
};

use crate::{compose::Compose, scratch, text};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program to its end, which must be a good one, and returns what it said.
fn said(command: Command) -> String {
    let what = format!("{command:?}");
    let output = process::run(command, LIMIT);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}\n{out}\n{err}");
    out.into_owned()
}

/// A program of Kafka's.
fn kafka(class: &str) -> Command {
    let mut fetch = process::command(binary("millrace-local"));
    fetch.arg("fetch");
    let ready = said(fetch);
    let parts = ready.trim().strip_prefix("ready in ").unwrap_or_else(|| panic!("{ready}"));
    let mut java = process::command("java");
    java.args(["-XX:TieredStopAtLevel=1", "-cp"]).arg(PathBuf::from(parts).join("kafka/*")).arg(class);
    java
}

/// Where Kafka listens, and where it sends those who come.
pub struct KafkaListener {
    pub port: u16,
    pub advertised: String,
}

/// Those for clients.
pub fn kafka_listeners(compose: &Compose) -> impl Iterator<Item = KafkaListener> {
    let environment = &compose.service("kafka").environment;
    let split = |name: &str| -> BTreeMap<String, String> {
        let listeners = environment[name].split(',').filter_map(|listener| listener.split_once("://"));
        listeners.map(|(name, address)| (name.to_owned(), address.to_owned())).collect()
    };
    let listeners = split("KAFKA_LISTENERS");
    split("KAFKA_ADVERTISED_LISTENERS").into_iter().map(move |(name, advertised)| {
        let port = listeners[&name].strip_prefix(':').and_then(|port| port.parse().ok());
        KafkaListener { port: port.unwrap_or_else(|| panic!("{name} is not reached from outside")), advertised }
    })
}

#[test]
fn kafka_sends_everybody_where_it_listens() {
    let compose = Compose::open();
    let kafka = compose.service("kafka");
    let check = kafka.healthcheck.as_ref().expect("it has a health check").test.join(" ");
    for KafkaListener { port, advertised } in kafka_listeners(&compose) {
        match advertised.split_once(':').expect("host and port") {
            ("kafka", inside) => {
                assert_eq!(inside, port.to_string());
                assert!(check.contains(&format!(" {advertised} ")), "the health check asks elsewhere: {check}");
            }
            ("127.0.0.1", outside) => {
                let mut published = kafka.published().into_iter();
                assert!(published.any(|p| p.port.to_string() == outside && p.container_port == port), "{advertised}");
            }
            _ => panic!("{advertised} is neither for containers nor for this machine"),
        }
    }
}

#[test]
fn kafka_keeps_its_data_in_a_volume() {
    let compose = Compose::open();
    let kafka = compose.service("kafka");
    assert_eq!(kafka.volumes, [format!("kafka:{}", kafka.environment["KAFKA_LOG_DIRS"])]);
}

/// As in the image, where both are longer.
const LOG4J: &str = r#"
Configuration:
  Loggers:
    Root: {level: INFO, AppenderRef: []}
    Logger: []
"#;

#[test]
fn kafka_understands_its_settings() {
    let dir = scratch("kafka");
    for folder in ["image", "mounted", "made"] {
        fs::create_dir(dir.join(folder)).expect("the scratch folder is empty");
    }
    for (name, content) in [("server.properties", ""), ("log4j2.yaml", LOG4J), ("tools-log4j2.yaml", LOG4J)] {
        fs::write(dir.join("image").join(name), content).expect("the scratch folder can be written");
    }
    // What the image runs before it starts the broker: writes the configuration, judges it and formats the storage.
    let mut setup = kafka("kafka.docker.KafkaDockerWrapper");
    setup.args(["setup", "--default-configs-dir", "image", "--mounted-configs-dir", "mounted"]);
    setup.args(["--final-configs-dir", "made"]).current_dir(&dir);
    let compose = Compose::open();
    setup.envs(&compose.service("kafka").environment);
    setup.env("KAFKA_LOG_DIRS", dir.join("data")).env("CLUSTER_ID", "5L6g3nShT-eMCtK--X86sw");
    said(setup);

    let names = said(kafka("kafka.server.KafkaConfig"));
    let made = fs::read_to_string(dir.join("made/server.properties")).expect("a configuration was made");
    let made: BTreeSet<_> = made.lines().filter_map(|line| line.split_once('=')).collect();
    // All but the one for the Java machine.
    assert_eq!(made.len(), compose.service("kafka").environment.len() - 1, "{made:?}");
    for (name, _) in &made {
        assert!(names.contains(&format!("id=\"{name}\"")), "Kafka has no setting {name}");
    }
}

#[test]
fn the_registry_is_told_what_it_is_told_locally() {
    let compose = Compose::open();
    let registry = compose.service("registry");
    let environment = &registry.environment;
    assert_eq!(environment["APICURIO_KAFKASQL_TOPIC_RETENTION_MS"], "-1", "schemas are kept for good");
    // Those that the other tests run with; a dot or hyphen of theirs is an underscore here.
    let source = text("deploy/local/src/registry.rs");
    let upper = |name: &str| name.replace(['.', '-'], "_").to_ascii_uppercase();
    let known: BTreeSet<_> = source.split('"').map(upper).collect();
    for variable in environment.keys() {
        assert!(known.contains(variable), "deploy/local does not set {variable}");
    }
    let check = registry.healthcheck.as_ref().expect("it has a health check").test.join(" ");
    let port = registry.published()[0].container_port;
    assert!(check.contains(&format!("/127.0.0.1/{port} ")), "the health check asks elsewhere: {check}");
}

#[test]
fn redis_understands_its_settings() {
    let (dir, port) = (scratch("redis"), free_port().to_string());
    let compose = Compose::open();
    let redis = compose.service("redis");
    let (program, arguments) = redis.command.split_first().expect("compose.yaml has a command for Redis");
    let mut server = process::command(program);
    server.args(arguments).args(["--bind", "127.0.0.1", "--port", &port, "--dir"]).arg(&dir);
    let _server = Process::start(&server, &dir.join("redis.log"));

    let test = &redis.healthcheck.as_ref().expect("it has a health check").test;
    let [kind, client, check @ ..] = &test[..] else { panic!("{test:?}") };
    assert_eq!(kind, "CMD");
    let ask = |words: &[String]| {
        let mut command = process::command(client);
        command.args(["-p", &port]).args(words);
        process::run(command, LIMIT)
    };
    eventually("healthy Redis", || {
        let output = ask(check);
        if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
    });
    for (name, value) in [("maxmemory-policy", "noeviction"), ("appendonly", "yes"), ("save", "")] {
        let output = ask(&["CONFIG".to_owned(), "GET".to_owned(), name.to_owned()]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{name}\n{value}\n"));
    }
}
