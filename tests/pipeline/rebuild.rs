//! A projection is built anew while it is in use, and nobody who asks notices.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use millrace_tests::{
    Deployment, Services, eventually,
    http::Answer,
    process::{Process, binary, command},
    redis::Redis,
    wait::PATIENCE,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const ACCOUNTS: usize = 12;
const CLIENTS: usize = 3;

/// The names of all keys of a version.
fn keys_of(deployment: &Deployment, version: u32) -> Vec<String> {
    let (mut redis, mut found, mut cursor) = (deployment.redis(), Vec::new(), 0u64);
    loop {
        let pattern = format!("{{{}.bank-accounts.v{version}:*", deployment.prefix);
        let words = [cursor.to_string(), "MATCH".into(), pattern, "COUNT".into(), "1000".into()];
        let (next, names): (u64, Vec<String>) = redis.run("SCAN", &words);
        found.extend(names);
        if next == 0 {
            return found;
        }
        cursor = next;
    }
}

fn projection(services: &Services) -> Value {
    let answer = services.ask("/v1/projections").send();
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut all = answer.json();
    let all = all["projections"].as_array_mut().expect("a list");
    all.iter_mut().find(|projection| projection["name"] == "bank-accounts").expect("it is listed").take()
}

#[track_caller]
fn rebuild(deployment: &Deployment, flags: &[&str]) -> String {
    let ran = deployment.run_projector_tool(&[&["rebuild", "bank-accounts"], flags].concat());
    assert_eq!(ran.code, Some(0), "rebuild {flags:?}: {}{}", ran.output, ran.errors);
    ran.output + &ran.errors
}

/// Waits until a version answers, and so many are kept in all.
#[track_caller]
fn wait_for_versions(services: &Services, version: u32, kept: usize) {
    eventually(&format!("version {version} of {kept}"), || {
        let shown = projection(services);
        let live = (&shown["version"], &shown["state"]) == (&version.into(), &"live".into());
        if live && shown["versions"].as_array().map(Vec::len) == Some(kept) { Ok(()) } else { Err(shown.to_string()) }
    });
}

/// Pays into an account of its own, and finds each payment in view, list and stats at once.
fn read_your_writes(services: &Services, id: &str, over: &AtomicBool, told: &AtomicUsize) {
    let mut balance = 0;
    while !over.load(Ordering::Relaxed) {
        let token = services.deposit(id, 1).token();
        balance += 1;
        let after = format!("after={token}&wait_ms=20000&stale=error");
        let view = services.ask(&format!("/v1/bank-accounts/{id}?{after}")).send();
        assert_eq!((view.status, &view.json()["balance_minor"]), (200, &balance.into()), "{view:?}");
        let list = services.ask(&format!("/v1/bank-accounts?limit=200&{after}")).send();
        assert_eq!(list.status, 200, "{list:?}");
        let list = list.json();
        let items = list["items"].as_array().expect("a list");
        let ids: BTreeSet<&str> = items.iter().filter_map(|item| item["id"].as_str()).collect();
        assert_eq!((items.len(), ids.len()), (ACCOUNTS, ACCOUNTS), "each account once: {list}");
        assert!(
            items.iter().any(|item| item["id"] == *id && item["balance_minor"] == balance),
            "{id} {balance}: {list}"
        );
        let stats = services.ask(&format!("/v1/bank-accounts/stats?{after}")).send();
        assert_eq!((stats.status, &stats.json()["accounts"]["open"]), (200, &ACCOUNTS.into()), "{stats:?}");
        let history = services.ask(&format!("/v1/bank-accounts/{id}?at_version={}&{after}", balance + 1)).send();
        assert_eq!((history.status, &history.json()["balance_minor"]), (200, &balance.into()), "{history:?}");
        told.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn g10_views_are_rebuilt_rolled_back_and_freed_under_load_and_nobody_notices() {
    let services = Services::start(Deployment::new());
    let ids: Vec<String> = (0..ACCOUNTS).map(|_| services.open("Ada")).collect();
    let (over, told) = (AtomicBool::new(false), AtomicUsize::new(0));
    let wait_for_more = |more: usize| {
        let before = told.load(Ordering::Relaxed);
        eventually(&format!("{more} more answers"), || match told.load(Ordering::Relaxed) {
            now if now >= before + more => Ok(()),
            now => Err(format!("there were {}", now - before)),
        });
    };
    // All of them are there before the clients begin to count.
    eventually(
        "all accounts",
        || match services.ask("/v1/bank-accounts/stats").try_send()?.json()["accounts"]["open"] {
            ref open if *open == ACCOUNTS => Ok(()),
            ref open => Err(open.to_string()),
        },
    );
    let page = services.ask("/v1/bank-accounts?limit=5").send().json();
    let cursor = page["next_cursor"].as_str().expect("there is more").to_owned();
    let next_page = || services.ask(&format!("/v1/bank-accounts?limit=5&cursor={cursor}")).send();

    thread::scope(|scope| {
        let clients: Vec<_> =
            ids[..CLIENTS].iter().map(|id| scope.spawn(|| read_your_writes(&services, id, &over, &told))).collect();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for_more(5);
            rebuild(&services.deployment, &[]);
            wait_for_more(5);
            wait_for_versions(&services, 2, 2);
            eventually("refused cursor", || match next_page() {
                page if page.status == 200 => Err("it still answers".into()),
                refused => {
                    refused.problem(400, "malformed-request");
                    assert!(refused.text().contains("version 1"), "the cursor is told why: {refused:?}");
                    Ok(())
                }
            });

            rebuild(&services.deployment, &["--rollback"]);
            eventually("version 1 again", || match projection(&services)["version"] {
                ref version if *version == 1 => Ok(()),
                ref version => Err(version.to_string()),
            });
            eventually("the cursor of version 1", || match next_page() {
                page if page.status == 200 => Ok(()),
                page => Err(format!("{page:?}")),
            });
            wait_for_more(5);
            // Both are up to date, so it goes forward again at once.
            rebuild(&services.deployment, &["--rollback"]);
            wait_for_more(5);
            rebuild(&services.deployment, &["--drop-old"]);
            assert_eq!(keys_of(&services.deployment, 1), [""; 0], "keys of the old version");
            wait_for_more(5);
        }));
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap_or_else(|failure| std::panic::resume_unwind(failure));
        }
        done.unwrap_or_else(|failure| std::panic::resume_unwind(failure));
    });
    for id in &ids {
        services.view_is_the_fold_of_the_log(id);
    }
    services.deployment.verify();
    wait_for_versions(&services, 2, 1);
    assert!(!keys_of(&services.deployment, 2).is_empty());
}

#[test]
fn g10_a_rebuild_that_is_killed_goes_on_where_it_was() {
    let mut services = Services::start(Deployment::new());
    let ids: Vec<String> = (0..6).map(|_| services.open("Ada")).collect();
    for id in &ids {
        (0..40).for_each(|_| drop(services.deposit(id, 1)));
    }
    for id in &ids {
        services.view_is_the_fold_of_the_log(id);
    }
    let deployment = services.deployment.clone();
    // Without a projector it may fill, but not switch, however late the kill comes.
    services.projector.terminate();
    let log = millrace_tests::Stack::shared().log(&format!("{}-rebuild", deployment.prefix));
    let mut program = command(binary("projector-service"));
    // So small that the kill comes in between.
    program.args(["rebuild", "bank-accounts", "--fillers", "1", "--batch-records", "1"]).envs(&deployment.env);
    let offsets = || -> Vec<i64> {
        let mut redis = deployment.redis();
        let key = |partition| format!("{{{}.bank-accounts.v2:{partition}}}:meta", deployment.prefix);
        (0..deployment.partitions)
            .map(|partition| redis.run::<Option<i64>>("HGET", &[key(partition), "offset".into()]).unwrap_or(0))
            .collect()
    };
    let mut rebuild_of = Process::start(&program, &log);
    eventually("fill under way", || match offsets().iter().sum::<i64>() {
        0 => Err("nothing is filled".into()),
        _ => Ok(()),
    });
    rebuild_of.end(Signal::SIGKILL, PATIENCE);
    let before = offsets();
    assert_eq!(projection(&services)["version"], 1, "nothing is switched: {before:?}");

    services.projector.start_again();
    let said = rebuild(&deployment, &[]);
    assert!(said.contains("going on with version 2"), "{said}");
    assert!(before.iter().zip(offsets()).all(|(before, now)| now >= *before), "it did not begin again");
    eventually("version 2", || match projection(&services)["version"] {
        ref version if *version == 2 => Ok(()),
        ref version => Err(version.to_string()),
    });
    for id in &ids {
        services.view_is_the_fold_of_the_log(id);
    }
    deployment.verify();
}

#[test]
fn g07_an_emptied_redis_is_noticed_and_built_again_and_never_half_an_answer_comes() {
    let redis = Redis::start();
    let mut services = Services::start(Deployment::new().with("MILLRACE_REDIS_URL", &redis.url));
    let ids: Vec<String> = (0..ACCOUNTS).map(|_| services.open("Ada")).collect();
    for id in &ids {
        services.view_is_the_fold_of_the_log(id);
    }
    rebuild(&services.deployment, &[]);
    eventually("version 2", || match projection(&services)["version"] {
        ref version if *version == 2 => Ok(()),
        ref version => Err(version.to_string()),
    });

    // So that somebody asks before it is filled again.
    services.projector.freeze();
    redis.client().run::<()>("FLUSHALL", &[""; 0]);
    eventually("refusal", || match services.ask("/v1/bank-accounts/stats").try_send()? {
        answer if answer.status == 200 => Err(format!("{answer:?}")),
        answer => Ok(answer.problem(503, "rebuilding")),
    });
    services.projector.thaw();
    let whole = |answer: &Answer, path: &str| match path {
        "/v1/bank-accounts?limit=200" => answer.json()["items"].as_array().map(Vec::len) == Some(ACCOUNTS),
        "/v1/bank-accounts/stats" => answer.json()["accounts"]["open"] == ACCOUNTS,
        _ => answer.json()["version"] == 1,
    };
    let mut paths: Vec<String> = ids.iter().map(|id| format!("/v1/bank-accounts/{id}")).collect();
    paths.extend(["/v1/bank-accounts?limit=200".into(), "/v1/bank-accounts/stats".into()]);
    eventually("views that were built again", || {
        let mut missing = 0;
        for path in &paths {
            let answer = services.ask(path).try_send()?;
            match answer.status {
                200 => assert!(whole(&answer, path), "half an answer to {path}: {answer:?}"),
                _ => {
                    let problem = answer.problem(503, "rebuilding");
                    assert!(problem["progress"]["partitions"].is_number(), "{problem}");
                    missing += 1;
                }
            }
        }
        if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} are not there", paths.len())) }
    });
    // The list of versions went as well: the first one is built, and answers.
    assert_eq!(projection(&services)["version"], 1);
    for id in &ids {
        let token = services.deposit(id, 1).token();
        assert_eq!(services.view_after(id, &token)["balance_minor"], 1);
        services.view_is_the_fold_of_the_log(id);
    }
}

#[test]
fn g07_views_that_another_release_folded_otherwise_are_rebuilt_not_gone_on_with() {
    let mut services = Services::start(Deployment::new());
    let id = services.open("Ada");
    let token = services.deposit(&id, 1).token();
    services.view_after(&id, &token);
    services.projector.terminate();
    let (deployment, mut redis) = (services.deployment.clone(), services.deployment.redis());
    for partition in 0..deployment.partitions {
        redis.run::<()>("HSET", &[deployment.view_key(partition, "meta"), "fold".into(), "7".into()]);
    }

    services.projector.launch();
    eventually("word of what to do", || match services.projector.ready() {
        Err(reason) if reason.contains("version 7") && reason.contains("rebuild bank-accounts") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let token = services.deposit(&id, 1).token();
    let old = services.ask(&format!("/v1/bank-accounts/{id}?after={token}&wait_ms=0")).send();
    assert_eq!((old.header("millrace-stale"), &old.json()["balance_minor"]), (Some("true"), &1.into()), "{old:?}");

    rebuild(&deployment, &[]);
    eventually("views of this release", || {
        let view = services.ask(&format!("/v1/bank-accounts/{id}?after={token}")).try_send()?;
        let fresh = view.header("millrace-stale").is_none() && view.json()["balance_minor"] == 2;
        if fresh { Ok(()) } else { Err(format!("{view:?}")) }
    });
    rebuild(&deployment, &["--drop-old"]);
    assert_eq!(keys_of(&deployment, 1), [""; 0], "keys of the old version");
    eventually("projector without trouble", || services.projector.ready());
    deployment.verify();
}

#[test]
fn g07_a_half_freed_version_is_never_taken_for_complete_even_when_the_list_of_versions_is_lost() {
    let mut services = Services::start(Deployment::new());
    let id = services.deployment.id_in(0);
    millrace_tests::services::open_at(&services.command, &id, "Ada");
    let token = services.deposit(&id, 1).token();
    services.view_after(&id, &token);
    let (deployment, mut redis) = (services.deployment.clone(), services.deployment.redis());
    rebuild(&deployment, &[]);
    services.projector.terminate();
    // As when `--drop-old` had just begun with it.
    redis.run::<()>("HSET", &[deployment.view_key(0, "meta"), "state".into(), "dropping".into()]);
    redis.run::<()>("DEL", &[deployment.view_key(0, &format!("view:{id}"))]);
    redis.run::<()>("DEL", &[format!("{{{}.bank-accounts}}:versions", deployment.prefix)]);

    services.projector.launch();
    eventually("word of what to do", || match services.projector.ready() {
        Err(reason) if reason.contains("half freed") && reason.contains("rebuild bank-accounts") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    eventually("queries that are refused", || match services.ask(&format!("/v1/bank-accounts/{id}")).try_send()? {
        answer if answer.status == 200 => Err(format!("{answer:?}")),
        answer => {
            answer.problem(503, "rebuilding");
            Ok(())
        }
    });

    // What is left of the version that nobody knows of any more is freed first.
    let said = rebuild(&deployment, &[]);
    assert!(said.contains("freeing what is left of an unlisted version 2"), "{said}");
    let token = services.deposit(&id, 1).token();
    eventually("complete views", || {
        let view = services.ask(&format!("/v1/bank-accounts/{id}?after={token}")).try_send()?;
        if view.status == 200 && view.json()["balance_minor"] == 2 { Ok(()) } else { Err(format!("{view:?}")) }
    });
    rebuild(&deployment, &["--drop-old"]);
    assert_eq!(keys_of(&deployment, 1), [""; 0], "keys of the half freed version");
    eventually("projector without trouble", || services.projector.ready());
    deployment.verify();
}

#[test]
fn g10_a_version_that_is_wrong_or_parks_more_does_not_answer() {
    let mut services = Services::start(Deployment::new());
    let id = services.open("Ada");
    let token = services.deposit(&id, 1).token();
    services.view_after(&id, &token);
    let (deployment, mut redis) = (services.deployment.clone(), services.deployment.redis());
    let partition = deployment.partition_of(&id);
    let key = |kind: &str| deployment.view_key(partition, kind).replace(".v1:", ".v2:");
    let versions = format!("{{{}.bank-accounts}}:versions", deployment.prefix);
    let run = |flags: &[&str]| deployment.run_projector_tool(&[&["rebuild", "bank-accounts"], flags].concat());

    // Nobody projects: it is filled, says what it waits for, and is killed while it does.
    services.projector.terminate();
    let log = millrace_tests::Stack::shared().log(&format!("{}-waiting", deployment.prefix));
    let mut program = command(binary("projector-service"));
    program.args(["rebuild", "bank-accounts"]).envs(&deployment.env);
    let mut waiting = Process::start(&program, &log);
    eventually("word of what it waits for", || match std::fs::read_to_string(&log) {
        Ok(said) if said.contains("for a projector-service of this release") => Ok(()),
        said => Err(format!("{said:?}")),
    });
    waiting.end(Signal::SIGKILL, PATIENCE);
    let parked = r#"{"offset":0,"count":1,"reason":"planted","discarded":false}"#;
    redis.run::<()>("HSET", &[key("parked"), "acc-planted".into(), parked.into()]);
    services.projector.start_again();

    let ran = run(&[]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.errors.contains("acc-planted") && ran.errors.contains("--allow-parked"), "{ran:?}");
    let view: String = redis.run("GET", &[key(&format!("view:{id}"))]);
    let spoiled = view.replace(r#""balance_minor":1"#, r#""balance_minor":2"#);
    assert_ne!(view, spoiled);
    redis.run::<()>("SET", &[key(&format!("view:{id}")), spoiled]);
    let ran = run(&["--allow-parked"]);
    assert_eq!((ran.code, ran.json_lines().len()), (Some(1), 1), "{ran:?}");
    assert_eq!(ran.json_lines()[0]["id"], id);
    assert_eq!(redis.run::<String>("HGET", &[versions.as_str(), "2"]), "refused");

    // It is not taken again, and not rolled back to.
    for flags in [&["--allow-parked"][..], &["--rollback"]] {
        let ran = run(flags);
        assert_eq!(ran.code, Some(2), "{flags:?}: {ran:?}");
    }
    assert_eq!(projection(&services)["version"], 1);
    rebuild(&deployment, &["--drop-old"]);
    rebuild(&deployment, &[]);
    let token = services.deposit(&id, 1).token();
    assert_eq!(services.view_after(&id, &token)["balance_minor"], 2);
}
