//! Services that go away in the middle of a stream of commands: nothing is lost, nothing happens twice.

use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use millrace_tests::{
    Deployment, Services, Stack, account, commands, eventually, eventually_within,
    fail_points::Action,
    http::{get, post},
    kafka::{self, Draft, Producer},
    process::{Process, free_port},
    redis::Redis,
    services::{Service, command_at, new_id, new_key, open_at},
};
use serde_json::json;

const ACCOUNTS: usize = 6;
/// Longest time a client goes on asking.
const CLIENT_LIMIT: Duration = Duration::from_secs(120);

/// Clients that send one command after another, each until it is told, while `hurt` does what it does; then the log
/// is compared with what they were told, and the views with the log.
fn stream_while(services: &mut Services, hurt: impl FnOnce(&mut Services, &AtomicUsize)) {
    let url = services.command.url();
    let ids: Vec<_> = (0..ACCOUNTS).map(|_| services.open("Ada")).collect();
    let (over, told) = (AtomicBool::new(false), AtomicUsize::new(0));
    let client = |id: &String| {
        let mut keys = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let (key, number) = (new_key(), keys.len());
            let (command, amount) = if number % 3 == 2 { ("withdraw", 1) } else { ("deposit", 2) };
            let request = post(&format!("{url}/v1/bank-accounts/{id}/{command}"));
            let request = request.json(&json!({"amount_minor": amount})).key(&key);
            let answer = request.send_until_definite(CLIENT_LIMIT);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.json()["aggregate"]["version"], number + 2, "{answer:?}");
            keys.push(key);
            told.fetch_add(1, Ordering::Relaxed);
        }
        keys
    };
    let answered: Vec<Vec<String>> = thread::scope(|scope| {
        let clients: Vec<_> = ids.iter().map(|id| scope.spawn(|| client(id))).collect();
        // When the hurting fails, the clients must end as well, else their scope never does.
        let hurt = panic::catch_unwind(AssertUnwindSafe(|| hurt(services, &told)));
        over.store(true, Ordering::Relaxed);
        let answered = clients.into_iter().map(|client| client.join().expect("the client was always told")).collect();
        hurt.unwrap_or_else(|failure| panic::resume_unwind(failure));
        answered
    });

    for (id, keys) in ids.iter().zip(&answered) {
        let events = services.deployment.events(id);
        // Sequences without gap or repeat, and rules that hold.
        account::fold(id, &events);
        let in_log: Vec<_> = events[1..].iter().map(|event| event.command_id.clone()).collect();
        assert_eq!(&in_log, keys, "the log of {id} is not what the client was told");
        services.view_is_the_fold_of_the_log(id);
    }
    services.deployment.check_log();
    let outcomes = services.deployment.outcomes();
    let originals = outcomes.iter().filter(|(record, _)| record.header("millrace_replayed").is_none()).count();
    assert_eq!(originals, ACCOUNTS + told.load(Ordering::Relaxed), "a command has one outcome");
}

/// Waits until the clients were told `more` than now.
#[track_caller]
fn wait_for_more(told: &AtomicUsize, more: usize) {
    let before = told.load(Ordering::Relaxed);
    eventually_within(CLIENT_LIMIT, &format!("{more} more answers"), || {
        let now = told.load(Ordering::Relaxed);
        if now >= before + more { Ok(()) } else { Err(format!("there were {}", now - before)) }
    });
}

#[test]
fn g15_all_services_restart_cleanly_in_the_middle_of_a_stream() {
    let mut services = Services::start(Deployment::new());
    stream_while(&mut services, |services, told| {
        for _ in 0..2 {
            wait_for_more(told, 50);
            services.command.terminate();
            services.command.start_again();
            services.projector.terminate();
            wait_for_more(told, 50);
            services.projector.start_again();
            services.query.terminate();
            services.query.start_again();
        }
        wait_for_more(told, 50);
        for service in [&mut services.command, &mut services.projector, &mut services.query] {
            service.terminate();
        }
        for service in [&mut services.projector, &mut services.query, &mut services.command] {
            service.launch();
        }
        wait_for_more(told, 50);
        services.projector.wait_ready();
        services.query.wait_ready();
    });
}

/// Producers to the topic don't ask again: what comes in while partitions are taken over must be read all the same.
#[test]
fn g01_commands_from_the_topic_are_decided_through_restarts() {
    let mut services = Services::start(Deployment::new());
    let topic = services.deployment.topic("commands");
    let ids: Vec<_> = (0..3).map(|partition| services.deployment.id_in(partition)).collect();
    for id in &ids {
        open_at(&services.command, id, "Ada");
    }
    let (over, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let producer = Producer::new("murmur2_random");
            for id in ids.iter().cycle().take_while(|_| !over.load(Ordering::Relaxed)) {
                producer.send(&topic, &Draft::new(id, commands::deposit(1)));
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        let hurt = panic::catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..3 {
                services.command.terminate();
                services.command.start_again();
                // Taken over, and on: what was lost here once was lost up to a second after the service was ready.
                wait_for_more(&sent, 300);
            }
        }));
        over.store(true, Ordering::Relaxed);
        producer.join().expect("the producer was told of every record");
        hurt.unwrap_or_else(|failure| panic::resume_unwind(failure));
    });
    let sent = sent.load(Ordering::Relaxed);
    eventually_within(CLIENT_LIMIT, "every command has its event", || {
        let deposited = ids.iter().map(|id| services.deployment.events(id).len() - 1).sum::<usize>();
        if deposited == sent { Ok(()) } else { Err(format!("{deposited} of {sent}")) }
    });
}

#[test]
fn g01_g02_all_services_are_killed_in_the_middle_of_a_stream() {
    let mut services = Services::start(Deployment::new());
    stream_while(&mut services, |services, told| {
        for _ in 0..2 {
            wait_for_more(told, 50);
            services.projector.kill();
            wait_for_more(told, 20);
            services.projector.launch();
            services.command.kill();
            services.command.launch();
            services.query.kill();
            services.query.launch();
            wait_for_more(told, 50);
        }
        services.projector.wait_ready();
        services.query.wait_ready();
        services.command.wait_ready();
    });
}

#[test]
fn g01_g02_instances_come_and_go_in_the_middle_of_a_stream() {
    let mut services = Services::start(Deployment::new());
    stream_while(&mut services, |services, told| {
        wait_for_more(told, 30);
        let mut second = services.deployment.command_service("c2");
        let mut projector = services.deployment.projector_service("p2");
        wait_for_more(told, 50);
        second.terminate();
        wait_for_more(told, 50);
        second.start_again();
        projector.kill();
        wait_for_more(told, 50);
        second.kill();
        wait_for_more(told, 50);
        second.start_again();
        wait_for_more(told, 50);
    });
}

#[test]
fn g01_a_silent_owner_is_replaced_within_session_timeout_and_ten_seconds() {
    let deployment = Deployment::new();
    let (mut first, second) = (deployment.command_service("c1"), deployment.command_service("c2"));
    let ids: Vec<_> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
    for id in &ids {
        open_at(&first, id, "Ada");
    }
    first.kill();
    let limit = Duration::from_secs(6 + 10);
    thread::scope(|scope| {
        for id in &ids {
            let request = command_at(&second, id, "deposit", &json!({"amount_minor": 3})).key("after");
            scope.spawn(move || {
                let answer = request.send_until_definite(limit);
                assert_eq!((answer.status, answer.must("etag")), (200, "\"2\""), "{answer:?}");
            });
        }
    });
    for id in &ids {
        account::fold(id, &deployment.events(id));
    }
}

#[test]
fn two_of_each_service_share_the_work() {
    let deployment = Deployment::new();
    let (first, mut second) = (deployment.command_service("c1"), deployment.command_service("c2"));
    let (mut projector, _other) = (deployment.projector_service("p1"), deployment.projector_service("p2"));
    let query = deployment.query_service();
    query.wait_for_views();
    let both_ways = |first: &Service, second: &Service| {
        for partition in 0..deployment.partitions {
            for (here, there) in [(first, second), (second, first)] {
                let id = deployment.id_in(partition);
                open_at(here, &id, "Ada");
                let body = json!({"amount_minor": 8});
                let deposit = command_at(there, &id, "deposit", &body).key("key").send();
                assert_eq!((deposit.status, deposit.must("etag")), (200, "\"2\""), "{deposit:?}");
                // A repeat at the other one is answered by the owner all the same.
                let again = command_at(here, &id, "deposit", &body).key("key").send();
                assert_eq!((again.status, again.json()), (200, deposit.json()), "{again:?}");
                assert_eq!(again.header("idempotency-replayed"), Some("true"), "{again:?}");
                command_at(here, &id, "withdraw", &json!({"amount_minor": 9}))
                    .send()
                    .problem(422, "insufficient-funds");
                let url = format!("{}/v1/bank-accounts/{id}?after={}&wait_ms=30000", query.url(), deposit.token());
                let view = get(&url).send();
                assert_eq!((view.status, &view.json()["balance_minor"]), (200, &json!(8)), "{view:?}");
            }
        }
    };
    both_ways(&first, &second);
    // One of them leaves, in order; the other goes on alone, and takes the newcomer in.
    second.terminate();
    projector.terminate();
    for partition in 0..deployment.partitions {
        let id = deployment.id_in(partition);
        open_at(&first, &id, "Basil");
        eventually(&format!("view of {id}"), || {
            let view = get(&format!("{}/v1/bank-accounts/{id}", query.url())).try_send()?;
            if view.status == 200 { Ok(()) } else { Err(format!("{view:?}")) }
        });
    }
    second.start_again();
    both_ways(&first, &second);
}

#[test]
fn g15_services_end_in_time_while_they_still_wait_for_kafka() {
    // Ends while it still waits for Kafka.
    let nowhere = format!("127.0.0.1:{}", free_port());
    let deployment = Deployment::new().with("MILLRACE_KAFKA_BOOTSTRAP", &nowhere);
    for kind in ["command-service", "projector-service", "query-service"] {
        let (http, ops) = (free_port(), free_port());
        let log = Stack::shared().log(&format!("{}-{kind}-nowhere", deployment.prefix));
        let mut command = millrace_tests::process::command(millrace_tests::process::binary(kind));
        command.envs(&deployment.env).env("MILLRACE_OPS_ADDR", format!("127.0.0.1:{ops}"));
        if kind != "projector-service" {
            command.env("MILLRACE_HTTP_ADDR", format!("127.0.0.1:{http}"));
        }
        let mut process = Process::start(&command, &log);
        // It says what it waits for, in the log and on the operations listener.
        eventually(&format!("{kind} that says what it waits for"), || {
            assert!(process.status().is_none(), "{kind} ended: {}", fs::read_to_string(&log).unwrap_or_default());
            let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
            let ready = get(&format!("http://127.0.0.1:{ops}/health/ready")).try_send()?;
            let live = get(&format!("http://127.0.0.1:{ops}/health/live")).try_send()?;
            let named = |text: &str| text.to_lowercase().contains("kafka");
            let fine = ready.status == 503 && live.status == 200 && named(&ready.text());
            // query-service needs Kafka only for lag, so it may be ready without.
            let fine = fine || (kind == "query-service" && ready.status == 200);
            if fine && named(&text) { Ok(()) } else { Err(format!("{ready:?}, log: {text}")) }
        });
        let ended = process.end(nix::sys::signal::Signal::SIGTERM, Duration::from_secs(20));
        assert_eq!(ended.code, Some(0), "{kind}: {ended:?}");
        assert!(ended.took < millrace_tests::services::TERM_LIMIT, "{kind}: {ended:?}");
    }
}

#[test]
fn g07_without_redis_queries_say_so_and_commands_go_on() {
    let mut redis = Redis::start();
    let services = Services::start(Deployment::new().with("MILLRACE_REDIS_URL", &redis.url));
    let id = services.open("Ada");
    let token = services.deposit(&id, 5).token();
    assert_eq!(services.view_after(&id, &token)["balance_minor"], 5);

    redis.kill();
    let unready = |service: &Service| {
        // Ten seconds are promised, of a machine that does not hang.
        eventually_within(Duration::from_secs(15), &format!("{} that is not ready", service.kind), || {
            let reason = service.ready().err().ok_or("it says that it is ready")?;
            if reason.to_lowercase().contains("redis") { Ok(()) } else { Err(format!("no word of Redis: {reason}")) }
        });
    };
    unready(&services.query);
    unready(&services.projector);
    for path in [format!("/v1/bank-accounts/{id}"), "/v1/bank-accounts".into(), "/v1/bank-accounts/stats".into()] {
        let answer = services.ask(&path).send();
        answer.problem(503, "unavailable");
        answer.must("retry-after").parse::<u32>().expect("seconds");
    }
    services.command.ready().expect("commands need no Redis");
    let token = services.deposit(&id, 6).token();

    redis.start_again();
    let view = eventually("view after Redis came back", || {
        let answer = services.ask(&format!("/v1/bank-accounts/{id}?after={token}&wait_ms=5000")).try_send()?;
        let fresh = answer.status == 200 && answer.header("millrace-stale").is_none();
        if fresh { Ok(answer.json()) } else { Err(format!("{answer:?}")) }
    });
    assert_eq!(view["balance_minor"], 11);
    services.view_is_the_fold_of_the_log(&id);
    for service in [&services.query, &services.projector] {
        eventually(&format!("ready {}", service.kind), || service.ready());
    }
}

#[test]
fn an_outcome_that_is_not_there_in_time_can_be_asked_for_again() {
    let deployment = Deployment::new();
    let hasty = deployment.clone().with("MILLRACE_OUTCOME_TIMEOUT_MS", "500");
    let (mut hasty, points) = hasty.command_service_with_fail_points("c1");
    // However long it takes to ask, nothing is decided before.
    points.arm("begin", Action::Stall);
    let id = new_id();
    let open = |service: &Service| {
        command_at(service, &id, "open", &json!({"owner": "Ada", "currency": "EUR"})).key("open").send()
    };
    let unknown = open(&hasty);
    let problem = unknown.problem(504, "outcome-unknown");
    assert_eq!(problem["command_id"], "open");
    let query_url = &deployment.env["MILLRACE_QUERY_URL"];
    assert_eq!(unknown.must("location"), format!("{query_url}/v1/bank-accounts/{id}/commands/open"));
    points.release("begin");
    deployment.outcome("open");
    hasty.terminate();

    let patient = deployment.command_service("c2");
    let answer = open(&patient);
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (201, Some("true")), "{answer:?}");
    assert_eq!(deployment.events(&id).len(), 1);
}

#[test]
fn g07_a_log_that_was_cut_stops_the_projection_and_nothing_is_jumped() {
    let mut services = Services::start(Deployment::new());
    let (deployment, topic) = (services.deployment.clone(), services.deployment.topic("events"));
    let (cut, other) = (deployment.id_in(0), deployment.id_in(1));
    for id in [&cut, &other] {
        open_at(&services.command, id, "Ada");
        let token = services.deposit(id, 1).token();
        services.view_after(id, &token);
    }
    // While it runs: frozen, so that it does not read what is cut off.
    services.projector.freeze();
    for _ in 0..20 {
        services.deposit(&cut, 1);
    }
    kafka::delete_before(&topic, 0, kafka::end(&topic, 0));
    services.deposit(&cut, 1);
    services.projector.thaw();
    let stopped = |services: &Services| {
        millrace_tests::eventually("projection that stops", || match services.projector.ready() {
            Err(reason) if reason.contains("the log begins at") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let view = services.ask(&format!("/v1/bank-accounts/{cut}")).send();
        assert!(view.json()["version"].as_u64() < Some(22), "it has jumped: {view:?}");
    };
    stopped(&services);
    services.projector.wait_logged("no longer projected");
    services.projector.wait_logged("restore the log");
    // The others go on, and a restart changes nothing.
    let token = services.deposit(&other, 1).token();
    assert_eq!(services.view_after(&other, &token)["balance_minor"], 2);
    services.projector.terminate();
    services.projector.launch();
    stopped(&services);
}
