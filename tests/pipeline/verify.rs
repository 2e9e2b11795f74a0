//! `projector-service verify`: views that equal the log pass, on a live system too; each planted fault is found and named.

use std::{collections::BTreeSet, thread};

use millrace_tests::{
    Deployment, Services, commands, eventually,
    kafka::{Draft, Producer},
    load::Load,
    redis::Client,
    services::{new_id, open_at},
    verify::Place,
};
use serde_json::{Value, json};

/// Opens an account of an owner with three payments; returns its id when the view has them.
#[track_caller]
fn account(services: &Services, owner: &str) -> String {
    let id = services.open(owner);
    services.deposit(&id, 100);
    services.deposit(&id, 20);
    let token = services.withdraw(&id, 3).token();
    assert_eq!(services.view_after(&id, &token)["balance_minor"], 117);
    id
}

/// Spoils views behind the services' backs, and says what has to be found.
struct Spoiler<'a> {
    deployment: &'a Deployment,
    redis: Client,
    found: BTreeSet<Place>,
}

impl Spoiler<'_> {
    fn key(&self, id: &str, kind: &str) -> String {
        self.deployment.view_key(self.deployment.partition_of(id), kind)
    }

    fn run(&mut self, name: &str, words: &[&str]) {
        let _: redis::Value = self.redis.run(name, words);
    }

    fn expect(&mut self, id: Option<&str>, kind: &str, key: impl Into<String>, field: Option<&str>) {
        let place = (id.map(str::to_owned), kind.to_owned(), key.into(), field.map(str::to_owned));
        self.found.insert(place);
    }

    fn alter_a_field(&mut self, id: &str) {
        let key = self.key(id, &format!("view:{id}"));
        let view: String = self.redis.run("GET", &[&key]);
        self.run("SET", &[&key, &view.replace(r#""balance_minor":117"#, r#""balance_minor":118"#)]);
        self.expect(Some(id), "different", format!("view:{id}"), Some("balance_minor"));
    }

    fn remove_a_view(&mut self, id: &str) {
        let key = self.key(id, &format!("view:{id}"));
        self.run("DEL", &[&key]);
        self.expect(Some(id), "missing", format!("view:{id}"), None);
    }

    fn add_to_indexes(&mut self, id: &str, stranger: &str) {
        let (sort, filter) = (self.key(stranger, "sort:balance_minor:asc"), self.key(id, "filter:owner:Mallory"));
        self.run("ZADD", &[&sort, "5", stranger]);
        self.run("ZADD", &[&filter, "0", id]);
        self.expect(Some(stranger), "extra", "sort:balance_minor:asc", Some("score"));
        self.expect(Some(id), "extra", "filter:owner:Mallory", Some("score"));
    }

    fn take_from_indexes(&mut self, id: &str) {
        for (kind, found) in [("sort:opened_at:desc", "missing"), ("filter:owner:Basil", "missing")] {
            let key = self.key(id, kind);
            self.run("ZREM", &[&key, id]);
            self.expect(Some(id), found, kind, Some("score"));
        }
        let key = self.key(id, "sort:updated_at:asc");
        self.run("ZADD", &[&key, "7", id]);
        self.expect(Some(id), "different", "sort:updated_at:asc", Some("score"));
    }

    fn double_a_counter(&mut self, id: &str) {
        let key = self.key(id, "counters");
        let field = "currencies/EUR/deposited_minor";
        let total: i64 = self.redis.run("HGET", &[&key, field]);
        self.run("HSET", &[&key, field, &(2 * total).to_string(), "currencies/XXX/events", "1"]);
        self.expect(None, "different", "counters", Some(field));
        self.expect(None, "extra", "counters", Some("currencies/XXX/events"));
    }

    /// As if the last event, a withdrawal of 3, had been skipped.
    fn skip_an_event(&mut self, id: &str) {
        let (view, history) = (self.key(id, &format!("view:{id}")), self.key(id, &format!("history:{id}")));
        let text: String = self.redis.run("GET", &[&view]);
        let mut before: Value = serde_json::from_str(&text).expect("views are JSON");
        before["balance_minor"] = json!(120);
        before["version"] = json!(3);
        self.run("SET", &[&view, &before.to_string()]);
        self.run("RPOP", &[&history]);
        for (direction, score) in [("asc", "120"), ("desc", "-120")] {
            let set = format!("sort:balance_minor:{direction}");
            let key = self.key(id, &set);
            self.run("ZADD", &[&key, score, id]);
            self.expect(Some(id), "different", set, Some("score"));
        }
        for field in ["balance_minor", "version"] {
            self.expect(Some(id), "different", format!("view:{id}"), Some(field));
        }
        self.expect(Some(id), "missing", format!("history:{id}"), Some("4"));
    }

    fn alter_a_history(&mut self, id: &str, other: &str) {
        let (key, other) = (self.key(id, &format!("history:{id}")), self.key(other, &format!("history:{other}")));
        let entry: Vec<u8> = self.redis.run("LINDEX", &[&other, "1"]);
        self.redis.run::<()>("LSET", &[key.as_bytes(), b"1", &entry]);
        self.redis.run::<()>("RPUSH", &[key.as_bytes(), &entry]);
        self.expect(Some(id), "different", format!("history:{id}"), Some("2"));
        self.expect(Some(id), "extra", format!("history:{id}"), Some("2"));
    }

    fn add_a_view(&mut self, stranger: &str) {
        let key = self.key(stranger, &format!("view:{stranger}"));
        self.run("SET", &[&key, r#"{"id":"somebody"}"#]);
        self.expect(Some(stranger), "extra", format!("view:{stranger}"), None);
    }

    fn park_without_reason(&mut self, id: &str) {
        let key = self.key(id, "parked");
        self.run("HSET", &[&key, id, r#"{"offset":9999999,"count":1,"reason":"none"}"#]);
        self.expect(Some(id), "extra", "parked", None);
    }
}

#[test]
fn g07_each_planted_fault_is_found_named_and_repaired() {
    let services = Services::start(Deployment::new());
    let deployment = &services.deployment;
    let ids: Vec<_> =
        ["Ada", "Basil", "Chidi", "Ada", "Basil", "Ada", "Ada"].iter().map(|o| account(&services, o)).collect();
    deployment.verify_all();

    let mut spoiler = Spoiler { deployment, redis: deployment.redis(), found: BTreeSet::new() };
    spoiler.alter_a_field(&ids[0]);
    spoiler.take_from_indexes(&ids[1]);
    spoiler.remove_a_view(&ids[2]);
    spoiler.skip_an_event(&ids[3]);
    spoiler.add_to_indexes(&ids[4], &new_id());
    spoiler.alter_a_history(&ids[5], &ids[0]);
    spoiler.double_a_counter(&ids[6]);
    spoiler.park_without_reason(&ids[6]);
    spoiler.add_a_view(&new_id());
    let verified = deployment.run_verify(&[]);
    assert_eq!(verified.code, Some(1), "{}\n{}", verified.output, verified.errors);
    assert_eq!(verified.differences(), spoiler.found, "{}", verified.output);
    let altered = verified.json_lines().into_iter().find(|line| line["id"] == ids[0].as_str()).expect("it was named");
    assert_eq!((&altered["expected"], &altered["found"]), (&json!(117), &json!(118)), "{altered}");
    assert_eq!(altered["partition"], deployment.partition_of(&ids[0]), "{altered}");

    // Mended while it is used, and no more than what is wrong is written. A counter that moves is mended by its projector.
    let load = Load::full(vec![services.command.url()], 4, 12);
    load.wait_for_more(20);
    let repaired = deployment.run_verify(&["--repair"]);
    assert_eq!(repaired.code, Some(0), "{}\n{}", repaired.output, repaired.errors);
    assert!(repaired.differences().is_subset(&spoiler.found), "{}", repaired.output);
    assert!(repaired.errors.contains("rewritten: 9 aggregates"), "{}", repaired.errors);
    load.wait_for_more(20);
    load.stop();
    deployment.verify_all();
    let token = services.deposit(&ids[0], 1).token();
    assert_eq!(services.view_after(&ids[0], &token)["balance_minor"], 118);

    // Two at once: a counter is mended once, and the slower one says so, or finds nothing any more.
    deployment.verify_all();
    spoiler.double_a_counter(&ids[6]);
    thread::scope(|scope| {
        for repair in [(); 2].map(|()| scope.spawn(|| deployment.run_verify(&["--repair"]))) {
            let repaired = repair.join().expect("it ends");
            assert!(matches!(repaired.code, Some(0 | 2)), "{}\n{}", repaired.output, repaired.errors);
        }
    });
    deployment.verify_all();
}

#[test]
fn g07_a_system_under_load_verifies_clean_in_one_pass_and_in_many() {
    let services = Services::start(Deployment::new());
    let deployment = &services.deployment;
    // Enough accounts that they don't fit into the least memory.
    let (producer, topic) = (Producer::new("murmur2_random"), deployment.topic("commands"));
    for _ in 0..600 {
        producer.send(&topic, &Draft::new(&new_id(), commands::open("Grace", "EUR")));
    }
    let load = Load::full(vec![services.command.url()], 4, 40);
    load.wait_for_more(100);
    for flags in [&[][..], &["--memory-bytes", "65536"]] {
        let verified = deployment.run_verify(flags);
        assert_eq!((verified.code, &*verified.output), (Some(0), ""), "{}\n{}", verified.output, verified.errors);
        assert_eq!(verified.errors.contains("passes"), !flags.is_empty(), "{}", verified.errors);
        load.wait_for_more(20);
    }
    load.stop();
    deployment.verify_all();
}

#[test]
fn g07_parked_aggregates_are_verified_as_what_they_are() {
    let services = Services::start(Deployment::new());
    let deployment = &services.deployment;
    let (parked, other) = (account(&services, "Ada"), account(&services, "Basil"));
    let poison = Draft::new(&parked, b"garbage".to_vec()).to(deployment.partition_of(&parked));
    Producer::new("murmur2_random").send(&deployment.topic("events"), &poison);
    services.deposit(&parked, 5);
    let token = services.deposit(&other, 5).token();
    services.view_after(&other, &token);
    eventually("aggregate that is parked with two records", || {
        let key = deployment.view_key(deployment.partition_of(&parked), "parked");
        let json: Option<String> = deployment.redis().run("HGET", &[&key, &parked]);
        let count = json.as_deref().and_then(|json| serde_json::from_str::<Value>(json).ok()?["count"].as_u64());
        if count == Some(2) { Ok(()) } else { Err(format!("{json:?}")) }
    });
    deployment.verify_all();

    // One whose count is wrong, and a view that goes on all the same.
    let mut spoiler = Spoiler { deployment, redis: deployment.redis(), found: BTreeSet::new() };
    let key = spoiler.key(&parked, "parked");
    let json: String = spoiler.redis.run("HGET", &[&key, &parked]);
    spoiler.run("HSET", &[&key, &parked, &json.replace(r#""count":2"#, r#""count":1"#)]);
    spoiler.expect(Some(&parked), "different", "parked", None);
    spoiler.alter_a_field(&parked);
    let verified = deployment.run_verify(&[]);
    assert_eq!(verified.differences(), spoiler.found, "{}\n{}", verified.output, verified.errors);
}

#[test]
fn g07_what_cannot_be_verified_is_said_and_is_no_success() {
    let deployment = Deployment::new();
    let service = deployment.command_service("c1");
    open_at(&service, &new_id(), "Ada");
    let unprojected = deployment.run_verify(&[]);
    let unknown = deployment.run_projector_tool(&["verify", "owner-accounts"]);
    let gone = deployment.clone().with("MILLRACE_KAFKA_BOOTSTRAP", "127.0.0.1:1").run_verify(&[]);
    for (ran, word) in [(unprojected, "not projected yet"), (unknown, "bank-accounts"), (gone, "Kafka")] {
        assert_eq!((ran.code, &*ran.output), (Some(2), ""), "{ran:?}");
        assert!(ran.errors.contains(word), "{ran:?}");
    }
}
