//! Settings: each is named, checked and documented.

use std::{collections::BTreeSet, fs, path::Path, process::Output, time::Duration};

use millrace_tests::{
    Deployment, Services, Stack, kafka,
    process::{binary, command, free_port, run},
    redis::Redis,
};

const SERVICES: [&str; 3] = ["command-service", "projector-service", "query-service"];
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a service with settings that must end it.
#[track_caller]
fn ends(service: &str, args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut service = command(binary(service));
    service.args(args).envs(Stack::shared().secrets.clone()).envs(env.iter().copied());
    let Output { status, stdout, stderr } = run(service, LIMIT);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn a_malformed_setting_ends_the_service_and_is_named() {
    for (name, values) in [
        ("MILLRACE_PARTITIONS", &["abc", "0", "-1", "1.5", ""][..]),
        ("MILLRACE_OPS_ADDR", &["nowhere", "127.0.0.1", "127.0.0.1:99999"]),
        ("MILLRACE_TOPIC_PREFIX", &["two words", "a/b", "x."]),
        ("MILLRACE_LOG_FORMAT", &["xml"]),
        ("MILLRACE_LOG", &["info,=,=", "mod=loudly"]),
    ] {
        for service in SERVICES {
            for (value, args) in values.iter().flat_map(|value| [(value, &[][..]), (value, &["--check-config"])]) {
                let (code, _, stderr) = ends(service, args, &[(name, value)]);
                assert_eq!(code, Some(2), "{service} {args:?} {name}={value:?}: {stderr}");
                assert!(stderr.contains(name), "{service} {args:?} {name}={value:?} is not named: {stderr}");
            }
        }
    }
    for (service, name, value) in [
        ("command-service", "MILLRACE_HTTP_ADDR", "8080"),
        ("command-service", "MILLRACE_QUERY_URL", "ftp://example.org"),
        ("command-service", "MILLRACE_SESSION_TIMEOUT_MS", "10s"),
        ("command-service", "MILLRACE_OUTCOME_TIMEOUT_MS", "0"),
        ("command-service", "MILLRACE_INSTANCE_ID", "two words"),
        ("command-service", "MILLRACE_REGISTRY_URL", "no url"),
        ("projector-service", "MILLRACE_REDIS_URL", "http://127.0.0.1"),
        ("projector-service", "MILLRACE_CHANGES_WINDOW", "-5"),
        ("query-service", "MILLRACE_REDIS_URL", "nonsense"),
        ("query-service", "MILLRACE_HTTP_ADDR", "localhost"),
        ("query-service", "MILLRACE_CORS_ORIGIN", "foo"),
    ] {
        let (code, _, stderr) = ends(service, &[], &[(name, value)]);
        assert_eq!(code, Some(2), "{service} {name}={value:?}: {stderr}");
        assert!(stderr.contains(name), "{service} {name}={value:?} is not named: {stderr}");
    }
    let (code, _, stderr) = ends("command-service", &["--partitions", "many"], &[]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("--partitions"), "{stderr}");
}

#[test]
fn a_variable_that_no_service_knows_ends_the_service_and_is_named() {
    for service in SERVICES {
        let (code, _, stderr) = ends(service, &[], &[("MILLRACE_PARTITION", "12")]);
        assert_eq!(code, Some(2), "{service}: {stderr}");
        assert!(stderr.contains("MILLRACE_PARTITION "), "{service}: {stderr}");
        // What Kubernetes puts into every container, and what another service knows, is fine.
        let (code, _, stderr) = ends(
            service,
            &["--check-config"],
            &[
                ("MILLRACE_COMMAND_SERVICE_HOST", "10.0.0.1"),
                ("MILLRACE_COMMAND_SERVICE_PORT", "8080"),
                ("MILLRACE_COMMAND_SERVICE_PORT_HTTP", "8080"),
                ("MILLRACE_COMMAND_PORT", "tcp://10.0.0.1:8080"),
                ("MILLRACE_COMMAND_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
                ("MILLRACE_COMMAND_PORT_8080_TCP_ADDR", "10.0.0.1"),
                ("MILLRACE_CHANGES_WINDOW", "100"),
                ("MILLRACE_QUERY_URL", "http://127.0.0.1:1234"),
            ],
        );
        assert_eq!(code, Some(0), "{service}: {stderr}");
    }
}

#[test]
fn g14_an_api_open_to_the_network_needs_somebody_to_say_so() {
    for service in ["command-service", "query-service"] {
        for address in ["0.0.0.0:1", "[::]:1"] {
            for args in [&[][..], &["--check-config"]] {
                let (code, _, stderr) = ends(service, args, &[("MILLRACE_HTTP_ADDR", address)]);
                assert_eq!(code, Some(2), "{service} on {address}: {stderr}");
                assert!(stderr.contains("MILLRACE_API_TOKEN"), "{service}: {stderr}");
            }
            for decided in [("MILLRACE_API_TOKEN", "s3cret"), ("MILLRACE_API_OPEN", "true")] {
                let env = [("MILLRACE_HTTP_ADDR", address), decided];
                let (code, stdout, stderr) = ends(service, &["--check-config"], &env);
                assert_eq!(code, Some(0), "{service}: {stderr}");
                assert!(!format!("{stdout}{stderr}").contains("s3cret"), "a secret is shown");
            }
        }
    }
}

#[test]
fn g14_secrets_are_read_from_files_and_never_shown() {
    let dir = &Stack::shared().dir;
    let (file, empty, missing) = (dir.join("secret"), dir.join("empty"), dir.join("missing"));
    fs::write(&file, "redis://:s3cret@127.0.0.1:1\n").expect("the scratch folder is writable");
    fs::write(&empty, "\n").expect("the scratch folder is writable");
    let path = |path: &Path| path.to_string_lossy().into_owned();
    for service in ["projector-service", "query-service"] {
        let with_file = |file: &Path| ends(service, &["--check-config"], &[("MILLRACE_REDIS_URL_FILE", &path(file))]);
        let (code, stdout, stderr) = with_file(&file);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(!format!("{stdout}{stderr}").contains("s3cret"), "a secret is shown");
        for bad in [&missing, &empty] {
            let (code, _, stderr) = with_file(bad);
            assert_eq!(code, Some(2), "{stderr}");
            assert!(stderr.contains("MILLRACE_REDIS_URL_FILE"), "{stderr}");
        }
    }
    let url = ("MILLRACE_REGISTRY_URL", "http://user:s3cret@127.0.0.1:1/apis/ccompat/v7");
    for args in [["--check-config"], ["--help"]] {
        let (code, stdout, stderr) = ends("command-service", &args, &[url, ("MILLRACE_API_TOKEN", "s3cret")]);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(!format!("{stdout}{stderr}").contains("s3cret"), "a secret is shown by {args:?}");
    }
}

#[test]
fn services_tell_their_version_and_check_their_settings() {
    for service in SERVICES {
        let (code, stdout, _) = ends(service, &["--version"], &[]);
        assert_eq!((code, stdout.trim()), (Some(0), format!("{service} {}", env!("CARGO_PKG_VERSION")).as_str()));
        // Nothing is asked: nobody listens there.
        let env = [("MILLRACE_KAFKA_BOOTSTRAP", "127.0.0.1:1"), ("MILLRACE_PARTITIONS", "7")];
        let (code, stdout, stderr) = ends(service, &["--check-config"], &env);
        assert_eq!(code, Some(0), "{stderr}");
        for line in ["MILLRACE_KAFKA_BOOTSTRAP=127.0.0.1:1", "MILLRACE_PARTITIONS=7", "MILLRACE_LOG=info"] {
            assert!(stdout.lines().any(|shown| shown == line), "what counts is shown: {stdout}");
        }
    }
}

#[test]
fn another_partition_count_is_refused() {
    let services = Services::shared();
    for service in SERVICES {
        let env = services.deployment.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut env: Vec<_> = env.filter(|(name, _)| *name != "MILLRACE_PARTITIONS").collect();
        env.extend([
            ("MILLRACE_PARTITIONS", "4"),
            ("MILLRACE_INSTANCE_ID", "c9"),
            ("MILLRACE_OPS_ADDR", "127.0.0.1:0"),
        ]);
        if service != "projector-service" {
            env.push(("MILLRACE_HTTP_ADDR", "127.0.0.1:0"));
        }
        let (code, stdout, stderr) = ends(service, &[], &env);
        let said = format!("{stdout}{stderr}");
        assert!(code.is_some_and(|code| code != 0), "{service}: {said}");
        assert!(said.contains("MILLRACE_PARTITIONS=3"), "{service} does not say what to do: {said}");
    }
    // Nothing was changed by it.
    let id = services.open("Ada");
    services.deposit(&id, 1);
}

#[test]
fn g07_a_redis_that_would_drop_views_is_refused() {
    // The nodes' own bus would be at a port 10,000 higher, which somebody's connection may have.
    let bus = free_port().to_string();
    let (redis, node) = (Redis::start(), Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus]));
    redis.client().run::<()>("CONFIG", &["SET", "maxmemory-policy", "allkeys-lru"]);
    let refused = |url: &str| {
        let env = Services::shared().deployment.env.clone();
        let env = env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut env: Vec<_> = env.filter(|(name, _)| *name != "MILLRACE_REDIS_URL").collect();
        env.extend([("MILLRACE_REDIS_URL", url), ("MILLRACE_INSTANCE_ID", "p9"), ("MILLRACE_OPS_ADDR", "127.0.0.1:0")]);
        let (code, stdout, stderr) = ends("projector-service", &[], &env);
        assert!(code.is_some_and(|code| code != 0), "{stdout}{stderr}");
        stdout + &stderr
    };
    let said = refused(&redis.url);
    assert!(said.contains("allkeys-lru") && said.contains("noeviction"), "{said}");
    let said = refused(&node.url);
    assert!(said.contains("MILLRACE_REDIS_CLUSTER=true"), "{said}");
}

#[test]
fn g01_topics_under_which_guarantees_break_are_refused_and_others_warned_of() {
    let deployment = Deployment::new();
    let mut service = deployment.command_service("c1");
    service.terminate();
    let clean = fs::read_to_string(&service.log).expect("there is a log");
    assert!(!clean.contains("kafka-configs.sh"), "topics as we make them are as they should be: {clean}");
    let (events, commands) = (deployment.topic("events"), deployment.topic("commands"));
    let whole = ("message.timestamp.after.max.ms", "9223372036854775807");

    kafka::alter_topic(&events, &[("retention.ms", "604800000"), whole]);
    service.launch();
    service.wait_ended();
    let log = fs::read_to_string(&service.log).expect("there is a log");
    let mended = format!("--entity-name {events} --add-config retention.ms=-1");
    assert!(log.contains("retention.ms is 604800000") && log.contains(&mended), "{log}");

    kafka::alter_topic(&events, &[("retention.ms", "-1"), ("local.retention.ms", "1000"), whole]);
    kafka::alter_topic(&commands, &[("retention.ms", "86400000"), whole]);
    service.start_again();
    let log = fs::read_to_string(&service.log).expect("there is a log");
    let warned: Vec<_> = log.lines().filter(|line| line.contains(" WARN ") && line.contains("--add-config")).collect();
    assert!(
        matches!(warned[..], [line] if line.contains(&format!("{commands} --add-config retention.ms=-1"))),
        "{log}"
    );
    // What belongs to tiered storage is nobody's business here, and stays as it is.
    assert_eq!(kafka::topic_setting(&events, "local.retention.ms").as_deref(), Some("1000"));
}

/// Every name that begins like a setting.
fn settings_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    text.match_indices("MILLRACE_")
        .map(|(at, _)| text[at..].chars().take_while(|c| is_part(*c)).collect::<String>())
        .filter(|name| !name.ends_with('_'))
        .collect()
}

#[test]
fn every_setting_is_in_help_and_in_the_readme() {
    let mut in_help = BTreeSet::new();
    for service in SERVICES {
        let (code, stdout, stderr) = ends(service, &["--help"], &[]);
        assert_eq!(code, Some(0), "{stderr}");
        let of_service: BTreeSet<_> = stdout
            .split("[env: ")
            .skip(1)
            .flat_map(|rest| settings_in(rest.split(['=', ']']).next().unwrap_or_default()))
            .collect();
        for name in [
            "MILLRACE_KAFKA_BOOTSTRAP",
            "MILLRACE_TOPIC_PREFIX",
            "MILLRACE_PARTITIONS",
            "MILLRACE_OPS_ADDR",
            "MILLRACE_LOG",
            "MILLRACE_LOG_FORMAT",
        ] {
            assert!(of_service.contains(name), "{service} --help says nothing of {name}");
            let flag = name.trim_start_matches("MILLRACE_").replace('_', "-").to_lowercase();
            assert!(stdout.contains(&format!("--{flag}")), "{service} has no flag --{flag}");
        }
        in_help.extend(of_service);
    }
    for name in [
        "MILLRACE_REGISTRY_URL",
        "MILLRACE_REDIS_URL",
        "MILLRACE_HTTP_ADDR",
        "MILLRACE_QUERY_URL",
        "MILLRACE_INSTANCE_ID",
        "MILLRACE_SESSION_TIMEOUT_MS",
        "MILLRACE_CHANGES_WINDOW",
    ] {
        assert!(in_help.contains(name), "no service has {name}");
    }
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = fs::read_to_string(&readme).unwrap_or_else(|error| panic!("{}: {error}", readme.display()));
    // A row of the table begins with the setting.
    let rows = text.lines().filter(|line| line.starts_with("| `MILLRACE_"));
    let in_readme: BTreeSet<_> = rows.filter_map(|row| row.split('|').nth(1)).flat_map(settings_in).collect();
    let missing: Vec<_> = in_help.difference(&in_readme).collect();
    let invented: Vec<_> = in_readme.difference(&in_help).collect();
    assert!(missing.is_empty(), "not in the README's table: {missing:?}");
    assert!(invented.is_empty(), "in the README's table, but in no service: {invented:?}");
}
