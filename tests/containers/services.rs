//! How Millrace is started.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use millrace_shared::config::{self, CommandSettings, ProjectorSettings, QuerySettings};
use millrace_tests::process::{self, binary};

use crate::{
    compose::{Compose, Service},
    dockerfile::Dockerfile,
    parts, repository, scratch,
};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const EVERYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// All that a service is told.
fn environment(name: &str, service: &Service) -> BTreeMap<String, String> {
    let mut environment = Dockerfile::read().environment(name);
    environment.extend(service.environment.clone());
    environment
}

/// The variables that a service reads.
fn settings(name: &str) -> BTreeSet<String> {
    fn of<S: clap::Args>() -> BTreeSet<String> {
        let command = S::augment_args(clap::Command::new("service"));
        command.get_arguments().filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned)).collect()
    }
    match name {
        "command-service" => of::<CommandSettings>(),
        "projector-service" => of::<ProjectorSettings>(),
        "query-service" => of::<QuerySettings>(),
        _ => panic!("{name} is unknown"),
    }
}

fn listener(environment: &BTreeMap<String, String>, name: &str) -> Option<SocketAddr> {
    let address = environment.get(name)?;
    Some(address.parse().unwrap_or_else(|error| panic!("{name} {address}: {error}")))
}

#[test]
fn compose_finds_nothing_wrong() {
    let found = [&["docker", "compose"][..], &["docker-compose"]].into_iter().find(|words| {
        let mut version = Command::new(words[0]);
        version.args(&words[1..]).arg("version").output().is_ok_and(|output| output.status.success())
    });
    let words = found.expect(
        "neither `docker compose` nor `docker-compose` can be started, and the Compose files are checked by it (no \
         engine needed): deploy/local/install installs Debian's docker-compose",
    );
    for files in [&["compose.yaml"][..], &["compose.yaml", "compose.token.yaml"]] {
        let mut compose = process::command(words[0]);
        compose.args(&words[1..]);
        for file in files {
            compose.arg("-f").arg(repository("deploy").join(file));
        }
        compose.args(["config", "--quiet"]);
        let output = process::run(compose, Duration::from_secs(60));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{files:?}: {said}");
        assert!(!said.contains("variable is not set"), "{files:?}: {said}");
    }
}

#[test]
fn services_are_told_only_what_they_read() {
    let known = config::known_variables();
    for compose in [Compose::open(), Compose::with_token()] {
        for (name, service, _) in compose.built() {
            let settings = settings(name);
            for variable in environment(name, service).keys() {
                assert!(known.contains(variable), "{name}: no service has a setting {variable}");
                assert!(settings.contains(variable), "{name} has no setting {variable}");
            }
        }
    }
}

#[test]
fn services_accept_what_they_are_told() {
    let dir = scratch("settings");
    for compose in [Compose::open(), Compose::with_token()] {
        for (name, service, _) in compose.built() {
            let mut command = process::command(binary(name));
            command.arg("--check-config");
            for (variable, value) in environment(name, service) {
                let value = match value.strip_prefix("/run/secrets/") {
                    Some(secret) => {
                        assert!(variable.ends_with("_FILE"), "{name}: {variable} is a path");
                        assert!(service.secrets.iter().any(|given| given == secret), "{name} is not given {secret}");
                        assert!(compose.secrets[secret].file.starts_with("./secrets/"), "kept out of the repository");
                        let file = dir.join(secret);
                        let text = match secret {
                            "master-keys" => "k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n",
                            _ => "a token, or a secret\n",
                        };
                        fs::write(&file, text).expect("the secret can be written");
                        file.display().to_string()
                    }
                    None => value,
                };
                command.env(variable, value);
            }
            let output = process::run(command, Duration::from_secs(30));
            let said = [output.stdout, output.stderr].concat();
            assert!(output.status.success(), "{name}: {}\n{}", output.status, String::from_utf8_lossy(&said));
        }
    }
}

#[test]
fn a_token_is_asked_for_once_there_is_one() {
    let compose = Compose::with_token();
    for name in ["command-service", "query-service"] {
        let environment = environment(name, compose.service(name));
        assert!(environment.contains_key("MILLRACE_API_TOKEN_FILE"), "{name}");
        assert_eq!(environment["MILLRACE_API_OPEN"], "false", "{name}");
    }
}

#[test]
fn ports_lead_to_listeners() {
    let (dockerfile, compose) = (Dockerfile::read(), Compose::open());
    for (name, service, _) in compose.built() {
        let environment = environment(name, service);
        let http = listener(&environment, "MILLRACE_HTTP_ADDR");
        assert_eq!(http.is_some(), settings(name).contains("MILLRACE_HTTP_ADDR"), "{name}");
        let ops = listener(&environment, "MILLRACE_OPS_ADDR").expect("every service has one");
        let ports: BTreeSet<_> = http.iter().chain([&ops]).map(SocketAddr::port).collect();
        for listener in http.iter().chain([&ops]) {
            assert_eq!(listener.ip(), EVERYWHERE, "{name}: nobody gets to {listener} from outside the container");
        }

        let exposed = dockerfile.all(name, "EXPOSE").join(" ");
        let exposed: BTreeSet<u16> = exposed.split_whitespace().map(|port| port.parse().expect("a port")).collect();
        assert_eq!(exposed, ports, "{name}: EXPOSE");
        let published = service.published();
        assert_eq!(published.iter().map(|port| port.container_port).collect::<BTreeSet<_>>(), ports, "{name}: ports");
        // People find everything where deploy/local/run puts it.
        assert!(published.iter().all(|port| port.port == port.container_port), "{name}: {published:?}");

        let health = dockerfile.stage(name).words("HEALTHCHECK");
        let url = format!("http://127.0.0.1:{}/health/ready", ops.port());
        assert_eq!(health.last(), Some(&url), "{name}: HEALTHCHECK");
        assert!(
            dockerfile.all(name, "RUN").join(" ").contains(&format!(" {} ", health[0])),
            "{} is missing",
            health[0]
        );
    }
}

#[test]
fn links_lead_to_the_query_service() {
    let compose = Compose::open();
    let query = environment("query-service", compose.service("query-service"));
    let port = listener(&query, "MILLRACE_HTTP_ADDR").expect("it has one").port();
    let command = environment("command-service", compose.service("command-service"));
    assert_eq!(command["MILLRACE_QUERY_URL"], format!("http://127.0.0.1:{port}"));
}

#[test]
fn ports_are_published_on_loopback_and_once() {
    let mut taken = BTreeSet::new();
    for (name, service) in Compose::open().services {
        for published in service.published() {
            assert_eq!(published.address, LOOPBACK, "{name}: {published:?}");
            assert!(taken.insert(published.port), "{name}: {} is taken twice", published.port);
        }
    }
}

/// The host and port of `MILLRACE_…`'s value.
fn host_and_port(address: &str) -> (&str, u16) {
    let authority = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = authority.split('/').next().expect("there is always a first");
    let (host, port) = authority.rsplit_once(':').unwrap_or_else(|| panic!("{address} names no port"));
    (host, port.parse().unwrap_or_else(|error| panic!("{address}: {error}")))
}

#[test]
fn services_find_their_parts() {
    let compose = Compose::open();
    let reached = |part: &str, port| match part {
        "kafka" => parts::kafka_listeners(&compose).any(|listener| listener.advertised == format!("kafka:{port}")),
        "registry" => compose.service(part).published().iter().any(|published| published.container_port == port),
        "redis" => port == 6379,
        _ => panic!("{part} is no part"),
    };
    for (name, service, _) in compose.built() {
        let settings = settings(name);
        let needed: Vec<_> = ["MILLRACE_KAFKA_BOOTSTRAP", "MILLRACE_REGISTRY_URL", "MILLRACE_REDIS_URL"]
            .into_iter()
            .filter(|variable| settings.contains(*variable))
            .collect();
        // Queries only tell how the registry is.
        let does_without = |variable: &str| name == "query-service" && variable == "MILLRACE_REGISTRY_URL";
        let awaited = needed.iter().filter(|variable| !does_without(variable)).count();
        assert_eq!(service.depends_on.len(), awaited, "{name} waits for {:?}", service.depends_on.keys());
        for variable in needed {
            let address = service.environment.get(variable).unwrap_or_else(|| panic!("{name} lacks {variable}"));
            let (host, port) = host_and_port(address);
            let part = compose.service(host);
            assert!(reached(host, port), "{name}: nobody answers at {address}");
            assert!(part.networks.iter().any(|n| service.networks.contains(n)), "{name} and {host} share no network");
            if does_without(variable) {
                assert!(!service.depends_on.contains_key(host), "{name} waits for {host}");
                continue;
            }
            assert_eq!(service.depends_on[host].condition, "service_healthy", "{name}: {host}");
            assert!(part.healthcheck.is_some(), "{host} is never healthy");
        }
    }
}

#[test]
fn containers_may_do_little() {
    for (name, service) in Compose::open().services {
        assert_eq!(service.cap_drop, ["ALL"], "{name}");
        assert_eq!(service.security_opt, ["no-new-privileges:true"], "{name}");
        assert!(service.mem_limit.is_some() && service.pids_limit.is_some(), "{name} is not limited");
        assert_eq!(service.restart.as_deref(), Some("unless-stopped"), "{name}");
        assert!(service.read_only || name == "kafka", "{name} can change its own files");
        // The services promise to end within 10 s.
        let grace = service.stop_grace_period.as_deref().and_then(|time| time.strip_suffix('s'));
        assert!(grace.is_some_and(|seconds| seconds.parse::<u32>().is_ok_and(|s| s > 10)), "{name}: {grace:?}");
    }
}
