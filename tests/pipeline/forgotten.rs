//! People who were erased: Redis has nothing of them any more, and everything else still folds.

use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use millrace_tests::{
    Deployment, Services, eventually,
    http::{Answer, post},
    kafka::{Draft, Producer},
    redis::{Client, Redis},
    sse::Stream,
};
use serde_json::{Value, Value::Null, json};

/// What somebody is called who is to be erased; in no other text.
const MARKERS: [&str; 7] =
    ["Zaphira", "Quillon", "Zenobia", "xyzzy1@example.org", "xyzzy2@example.org", "Plughstreet", "Frotzheim"];
/// And somebody who stays.
const STAYS: &str = "grue@example.org";

#[track_caller]
fn tell(services: &Services, id: &str, command: &str, body: &Value) -> Answer {
    let answer = post(&format!("{}/v1/users/{id}/{command}", services.command.url())).json(body).send();
    assert!([200, 201].contains(&answer.status), "{command}: {answer:?}");
    answer
}

#[track_caller]
fn register(services: &Services, id: &str, email: &str) -> Answer {
    let address = json!({"street": "Plughstreet 1", "postal_code": "1", "city": "Frotzheim", "country": "DE"});
    let person = json!({"given_name": "Zaphira", "family_name": "Quillon", "email": email, "address": address});
    tell(services, id, "register", &person)
}

#[track_caller]
fn ask(services: &Services, path: &str) -> Value {
    let answer = services.ask(&format!("/v1/users{path}")).send();
    assert_eq!((answer.status, answer.header("millrace-stale")), (200, None), "{path}: {answer:?}");
    answer.json()
}

#[track_caller]
fn user_after(services: &Services, id: &str, told: &Answer) -> Value {
    eventually("view with what was told", || {
        let path = format!("/v1/users/{id}?after={}&wait_ms=30000", told.token());
        let answer = services.ask(&path).try_send()?;
        if answer.header("millrace-stale").is_none() { Ok(answer.json()) } else { Err(format!("{answer:?}")) }
    })
}

/// Every name and every value that Redis has.
fn everything(redis: &mut Client) -> Vec<Vec<u8>> {
    let (mut all, mut cursor) = (Vec::new(), 0_u64);
    loop {
        let (next, keys): (u64, Vec<Vec<u8>>) = redis.run("SCAN", &[&cursor.to_string(), "COUNT", "1000"]);
        for key in keys {
            let kind: String = redis.run("TYPE", &[&key]);
            let (command, range): (&str, &[&[u8]]) = match kind.as_str() {
                "string" => ("GET", &[]),
                "list" => ("LRANGE", &[b"0", b"-1"]),
                "hash" => ("HGETALL", &[]),
                "zset" => ("ZRANGE", &[b"0", b"-1"]),
                "stream" => ("XRANGE", &[b"-", b"+"]),
                // It has expired meanwhile.
                "none" => continue,
                other => panic!("{other} {}", String::from_utf8_lossy(&key)),
            };
            let words: Vec<&[u8]> = std::iter::once(&key[..]).chain(range.iter().copied()).collect();
            flatten(redis.run(command, &words), &mut all);
            all.push(key);
        }
        cursor = next;
        if cursor == 0 {
            return all;
        }
    }
}

fn flatten(value: redis::Value, all: &mut Vec<Vec<u8>>) {
    match value {
        redis::Value::BulkString(bytes) => all.push(bytes),
        redis::Value::Array(values) => values.into_iter().for_each(|value| flatten(value, all)),
        redis::Value::Map(pairs) => pairs.into_iter().for_each(|(name, value)| {
            flatten(name, all);
            flatten(value, all);
        }),
        other => all.push(format!("{other:?}").into_bytes()),
    }
}

/// The personal values that Redis has, as they are, in hexadecimal and in base64.
fn told_of(redis: &mut Client, markers: &[&'static str]) -> BTreeSet<&'static str> {
    let all = everything(redis);
    let holds = |part: &[u8]| all.iter().any(|text| text.windows(part.len()).any(|window| window == part));
    let hex = |marker: &str| marker.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    // Wherever it begins in a longer text: what depends on its neighbours is cut off.
    let base64 = |marker: &str| {
        let of = |skipped: usize| BASE64_STANDARD_NO_PAD.encode(&marker.as_bytes()[skipped..]);
        (0..3).map(of).map(|text| text[..text.len() - 2].to_owned()).collect::<Vec<_>>()
    };
    let found = |marker: &&str| {
        holds(marker.as_bytes())
            || holds(hex(marker).as_bytes())
            || holds(marker.to_uppercase().as_bytes())
            || base64(marker).iter().any(|text| holds(text.as_bytes()))
    };
    markers.iter().copied().filter(found).collect()
}

#[track_caller]
fn verify(deployment: &Deployment) {
    let verified = deployment.run_projector_tool(&["verify", "users"]);
    assert_eq!((verified.code, verified.output.as_str()), (Some(0), ""), "{}", verified.errors);
}

/// Everything personal in an answer is null.
#[track_caller]
fn is_erased(view: &Value) {
    for field in ["given_name", "family_name", "email", "address"] {
        assert_eq!(view.get(field), Some(&Null), "{field}: {view}");
    }
}

#[test]
fn g07_an_erased_person_is_gone_from_redis_and_from_the_past_and_all_else_folds() {
    let redis = Redis::start();
    let services = Services::start(Deployment::new().with("MILLRACE_REDIS_URL", &redis.url));
    let deployment = &services.deployment;
    let mut client = redis.client();
    let (gone, stays) = (deployment.id_in(0), deployment.id_in(0));
    register(&services, &gone, "xyzzy1@example.org");
    let names = json!({"given_name": "Olga", "family_name": "Grue", "email": STAYS});
    tell(&services, &stays, "register", &names);
    tell(&services, &gone, "change-name", &json!({"given_name": "Zenobia", "family_name": "Quillon"}));
    let told = tell(&services, &gone, "change-email", &json!({"email": "xyzzy2@example.org"}));
    let view = user_after(&services, &gone, &told);
    assert_eq!((&view["given_name"], &view["email"]), (&json!("Zenobia"), &json!("xyzzy2@example.org")), "{view}");
    assert_eq!(ask(&services, "?email=xyzzy2@example.org")["items"], json!([view]));
    assert_eq!(ask(&services, "?email=xyzzy1@example.org")["items"], json!([]));
    let then = ask(&services, &format!("/{gone}?at_version=1"));
    assert_eq!((&then["given_name"], &then["address"]["city"]), (&json!("Zaphira"), &json!("Frotzheim")), "{then}");
    let past = ask(&services, &format!("/{gone}/history"));
    assert_eq!(past["items"][0]["data"]["email"], "xyzzy1@example.org", "{past}");
    verify(deployment);
    // Views hold what is so now; of what was there is nothing in clear, though the past can be asked for.
    let known = told_of(&mut client, &MARKERS);
    assert_eq!(known, ["Quillon", "Zenobia", "xyzzy2@example.org", "Plughstreet", "Frotzheim"].into(), "the search");

    let kept = services.ask(&format!("/v1/users/{gone}?at_version=1")).send().must("etag").to_owned();
    let again = || services.ask(&format!("/v1/users/{gone}?at_version=1")).header("If-None-Match", &kept).send().status;
    assert_eq!(again(), 304);

    let mut stream = Stream::open(&services.query.url(), "/v1/users/changes", None);
    let before = stream.last_id();
    let erased = tell(&services, &gone, "erase", &json!({}));
    let view = user_after(&services, &gone, &erased);
    assert_eq!((&view["status"], &view["version"]), (&json!("erased"), &json!(4)), "{view}");
    is_erased(&view);
    assert_eq!(told_of(&mut client, &MARKERS), BTreeSet::new());
    assert_eq!(told_of(&mut client, &[STAYS]), [STAYS].into());

    let no_longer = |services: &Services| {
        let past = ask(services, &format!("/{gone}/history"));
        let types: Vec<_> = past["items"].as_array().expect("items").iter().map(|item| &item["type"]).collect();
        assert_eq!(types, ["UserRegistered", "NameChanged", "EmailChanged", "UserErased"]);
        assert!(MARKERS.iter().all(|marker| !past.to_string().contains(marker)), "{past}");
        for version in 1..=4 {
            is_erased(&ask(services, &format!("/{gone}?at_version={version}")));
        }
        let registered = view["registered_at"].as_str().expect("a time");
        is_erased(&ask(services, &format!("/{gone}?as_of={registered}")));
        for marker in ["xyzzy1@example.org", "xyzzy2@example.org"] {
            assert_eq!(ask(services, &format!("?email={marker}"))["items"], json!([]));
        }
        assert_eq!(ask(services, "?status=erased")["items"], json!([view]));
        assert_eq!(ask(services, &format!("?email={STAYS}"))["items"][0]["id"], json!(stays));
        assert_eq!(ask(services, &format!("/{stays}/history"))["items"][0]["data"]["given_name"], "Olga");
        assert_eq!(ask(services, "/stats"), json!({"users": {"active": 1, "inactive": 0, "erased": 1}}));
        past
    };
    let past = no_longer(&services);
    assert_eq!(again(), 200, "a copy that somebody keeps is no longer right");
    let mut resumed = Stream::open(&services.query.url(), "/v1/users/changes", Some(&before));
    for stream in [&mut stream, &mut resumed] {
        let events = stream.until(&gone, 4);
        is_erased(&events.last().expect("one").data["view"]);
    }
    verify(deployment);

    // Built anew, from a log that still has all of it: sealed, without a key.
    let ran = deployment.run_projector_tool(&["rebuild", "users"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.output, ran.errors);
    eventually("version 2", || {
        let all = services.ask("/v1/projections").try_send()?.json();
        let all = all["projections"].as_array().expect("a list").clone();
        let users = all.into_iter().find(|projection| projection["name"] == "users").expect("it is listed");
        if users["version"] == 2 { Ok(()) } else { Err(users.to_string()) }
    });
    assert_eq!(no_longer(&services), past);
    assert_eq!(told_of(&mut client, &MARKERS), BTreeSet::new());
    verify(deployment);
    let ran = deployment.run_projector_tool(&["rebuild", "users", "--drop-old"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.output, ran.errors);
    let left: Vec<String> = client.run("KEYS", &[format!("{{{}.users.v1:*", deployment.prefix)]);
    assert_eq!(left, [""; 0]);
}

#[test]
fn g07_an_erasure_takes_a_trimmed_history_with_it_and_one_that_came_first_leaves_nothing() {
    let redis = Redis::start();
    let deployment =
        Deployment::new().with("MILLRACE_REDIS_URL", &redis.url).with("MILLRACE_HISTORY_MAX_ENTRIES", "10");
    let mut services = Services::start(deployment.clone());
    let mut client = redis.client();
    let (long, short) = (deployment.id_in(1), deployment.id_in(1));
    let mut told = register(&services, &long, "xyzzy1@example.org");
    for number in 0..14 {
        told = tell(&services, &long, "change-name", &json!({"given_name": format!("N{number}"), "family_name": "N"}));
    }
    assert_eq!(user_after(&services, &long, &told)["given_name"], "N13");
    services.ask(&format!("/v1/users/{long}/history")).send().problem(410, "history-trimmed");
    verify(&deployment);
    let told = tell(&services, &long, "erase", &json!({}));
    is_erased(&user_after(&services, &long, &told));
    assert_eq!(told_of(&mut client, &MARKERS), BTreeSet::new());
    let trimmed = services.ask(&format!("/v1/users/{long}/history")).send().problem(410, "history-trimmed");
    assert_eq!(trimmed["kept_since"]["version"], 16, "{trimmed}");
    verify(&deployment);

    // Nobody projects while somebody comes and goes.
    services.projector.terminate();
    register(&services, &short, "xyzzy2@example.org");
    let stays = deployment.id_in(1);
    tell(&services, &stays, "register", &json!({"given_name": "Olga", "family_name": "Grue", "email": STAYS}));
    tell(&services, &short, "erase", &json!({}));
    services.projector.start_again();
    let told = tell(&services, &stays, "deactivate", &json!({}));
    assert_eq!(user_after(&services, &stays, &told)["given_name"], "Olga");
    is_erased(&ask(&services, &format!("/{short}?at_version=1")));
    assert_eq!(told_of(&mut client, &MARKERS), BTreeSet::new());
    verify(&deployment);

    // Keys in Redis that must not be there, or must: they are found and mended.
    let keys = format!("{{{}.users.v1:1}}:keys", deployment.prefix);
    let key: Vec<u8> = client.run("HGET", &[&keys, &stays]);
    client.run::<()>("HSET", &[keys.as_bytes(), short.as_bytes(), &key]);
    client.run::<()>("HDEL", &[&keys, &stays]);
    let name = keys.replace(":keys", &format!(":view:{stays}"));
    let view: String = client.run("GET", &[&name]);
    client.run::<()>("SET", &[&name, &view.replace(STAYS, "thief@example.org")]);
    client.run::<()>("ZADD", &[&keys.replace(":keys", ":filter:email:thief@example.org"), "0", &stays]);
    let verified = deployment.run_projector_tool(&["verify", "users"]);
    let found = verified.differences();
    let place = |id: &str, kind: &str| (Some(id.to_owned()), kind.to_owned(), "keys".to_owned(), Some(id.to_owned()));
    assert!(found.contains(&place(&short, "extra")), "{}\n{}", verified.output, verified.errors);
    assert!(found.contains(&place(&stays, "missing")), "{}\n{}", verified.output, verified.errors);
    let field = |key: &str, field: &str| (Some(stays.clone()), key.to_owned(), Some(field.to_owned()));
    for (key, of) in [(format!("view:{stays}"), "email"), ("filter:email:…".to_owned(), "score")] {
        let named =
            found.iter().any(|(id, _, at, field_of)| (id.clone(), at.clone(), field_of.clone()) == field(&key, of));
        assert!(named, "{key}: {}", verified.output);
    }
    let said = format!("{}{}", verified.output, verified.errors);
    assert!(!said.contains("@example.org"), "what is personal is told: {said}");
    let repaired = deployment.run_projector_tool(&["verify", "users", "--repair"]);
    assert_eq!(repaired.code, Some(0), "{}\n{}", repaired.output, repaired.errors);
    verify(&deployment);
    assert_eq!(ask(&services, &format!("/{stays}/history"))["items"][0]["data"]["given_name"], "Olga");
}

#[test]
fn g07_g13_an_erasure_reaches_those_whose_events_wait_or_are_done_without() {
    let redis = Redis::start();
    let deployment =
        Deployment::new().with("MILLRACE_REDIS_URL", &redis.url).with("MILLRACE_HISTORY_MAX_ENTRIES", "10");
    let services = Services::start(deployment.clone());
    let mut client = redis.client();
    let [waits, discarded, long] = [(); 3].map(|()| deployment.id_in(2));
    let all = [&waits, &discarded, &long];
    for (number, id) in (1..).zip(all) {
        // Nobody has the address of another.
        register(&services, id, &format!("{number}.xyzzy1@example.org"));
        for _ in 0..if *id == long { 14 } else { 1 } {
            tell(&services, id, "change-name", &json!({"given_name": "Zenobia", "family_name": "Quillon"}));
        }
        let told = tell(&services, id, "change-email", &json!({"email": format!("{number}.xyzzy2@example.org")}));
        user_after(&services, id, &told);
    }
    let listed = |id: &str| {
        let listed = deployment.run_projector_tool(&["parked", "list", "--json"]);
        listed.json_lines().into_iter().find(|one| one["projection"] == "users" && one["id"] == id)
    };
    let wait_for = |id: &str, count: u64| {
        eventually("events that wait", || {
            let parked = listed(id).ok_or("none")?;
            if parked["count"] == count { Ok(()) } else { Err(parked.to_string()) }
        });
    };
    // A record that no release will be able to read.
    let events = deployment.topic_of("user", "events");
    for id in all {
        Producer::new("murmur2_random").send(&events, &Draft::new(id, b"garbage".to_vec()).to(2));
        wait_for(id, 1);
    }
    let done = deployment.run_projector_tool(&["parked", "discard", "users", "--id", &discarded]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(told_of(&mut client, &MARKERS).contains("xyzzy2@example.org"), "the search");

    for id in [&waits, &discarded] {
        tell(&services, id, "erase", &json!({}));
        wait_for(id, 2);
        let view = ask(&services, &format!("/{id}"));
        assert_eq!((&view["status"], &view["version"]), (&json!("active"), &json!(3)), "{view}");
        is_erased(&view);
        let past = ask(&services, &format!("/{id}/history"));
        assert!(MARKERS.iter().all(|marker| !past.to_string().contains(marker)), "{past}");
    }
    assert_eq!(ask(&services, "?email=3.xyzzy2@example.org")["items"][0]["id"], json!(long));
    verify(&deployment);

    // What stands for the beginning of a long history can't be told without them.
    tell(&services, &long, "erase", &json!({}));
    wait_for(&long, 2);
    assert_eq!(told_of(&mut client, &MARKERS), BTreeSet::new());
    services.ask(&format!("/v1/users/{long}")).send().problem(404, "not-found");
    let repaired = deployment.run_projector_tool(&["verify", "users", "--repair"]);
    assert_eq!(repaired.code, Some(0), "{}\n{}", repaired.output, repaired.errors);
    is_erased(&ask(&services, &format!("/{long}")));
    assert_eq!(told_of(&mut client, &MARKERS), BTreeSet::new());
    verify(&deployment);
}

#[test]
fn g07_redis_follows_when_master_keys_are_rotated() {
    let [old, new] =
        ["old:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "new:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="];
    let redis = Redis::start();
    let mut deployment = Deployment::new().with("MILLRACE_REDIS_URL", &redis.url);
    deployment.env.remove("MILLRACE_MASTER_KEYS_FILE");
    let with = |keys: &str| deployment.clone().with("MILLRACE_MASTER_KEYS", keys);
    let mut services = Services::start(with(old));
    let mut client = redis.client();
    let (active, idle) = (deployment.id_in(0), deployment.id_in(0));
    register(&services, &idle, "xyzzy1@example.org");
    let told = register(&services, &active, "xyzzy2@example.org");
    user_after(&services, &active, &told);
    let name = format!("{{{}.users.v1:0}}:keys", deployment.prefix);
    let before: Vec<u8> = client.run("HGET", &[&name, &active]);

    services.command.terminate();
    services.command = with(&format!("{new},{old}")).command_service("c2");
    services.command.wait_logged("all keys are encrypted with the present master key");
    // From now on nobody has the old one.
    services.command.terminate();
    services.projector.terminate();
    services.query.terminate();
    services.command = with(new).command_service("c3");
    services.projector = with(new).projector_service("p2");
    services.query = with(new).query_service();
    let told = tell(&services, &active, "change-name", &json!({"given_name": "Zenobia", "family_name": "Quillon"}));
    assert_eq!(user_after(&services, &active, &told)["given_name"], "Zenobia");
    for id in [&idle, &active] {
        assert_eq!(ask(&services, &format!("/{id}/history"))["items"][0]["data"]["given_name"], "Zaphira");
    }

    // An older copy of Redis has the older key: the next event of its person brings the present one.
    client.run::<()>("HSET", &[name.as_bytes(), active.as_bytes(), &before]);
    let told = tell(&services, &active, "change-name", &json!({"given_name": "Zaphira", "family_name": "Quillon"}));
    assert_eq!(user_after(&services, &active, &told)["given_name"], "Zaphira");
    assert_eq!(ask(&services, &format!("/{active}/history"))["items"][1]["data"]["given_name"], "Zenobia");
}
