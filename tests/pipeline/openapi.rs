//! The API's description, held against the services by schemathesis: what it says comes, and what it does not say doesn't.

use std::{collections::BTreeSet, fs, time::Duration};

use millrace_tests::{
    Services, Stack,
    http::get,
    python,
    services::{command_at, new_id},
};
use serde_json::Value;

/// Cases for each operation, of what is allowed and what is not.
const EXAMPLES: &str = "25";
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn g13_queries_are_as_their_description_says() {
    let services = Services::shared();
    let body = serde_json::json!({"owner": "Ada", "currency": "EUR"});
    let opened = command_at(&services.command, &new_id(), "open", &body).send().json();
    // Tokens and cursors can't be made up, and no schema says that two parameters exclude each other. The token is none of a
    // transfer.
    let mut but =
        vec!["bank-accounts".to_owned(), "bank-accounts/{id}".to_owned(), "bank-accounts/{id}/statement".to_owned()];
    for others in ["transfers", "standing-orders", "users", "email-reservations"] {
        but.extend(["", "/{id}", "/{id}/history", "/stats"].map(|path| format!("{others}{path}")));
    }
    let but = but.iter().map(|path| {
        format!(
            "\n[[operations]]\ninclude-path = \"/v1/{path}\"\n[operations.checks]\n\
             positive_data_acceptance.enabled = false\n"
        )
    });
    let settings = format!("[parameters]\n\"query.after\" = {}\n{}", opened["token"], but.collect::<String>());
    hold(&services.query.url(), &settings);
}

#[test]
fn g13_commands_are_as_their_description_says() {
    // The rules refuse what the description allows.
    hold(&Services::shared().command.url(), "[checks]\npositive_data_acceptance.enabled = false\n");
}

/// What the description refers to, as JSON pointers behind a `#`.
fn refs(description: &Value) -> BTreeSet<&str> {
    match description {
        Value::Object(members) => {
            let own = members.get("$ref").and_then(Value::as_str);
            own.into_iter().chain(members.values().flat_map(refs)).collect()
        }
        Value::Array(items) => items.iter().flat_map(refs).collect(),
        _ => BTreeSet::new(),
    }
}

/// Streams are not asked for: they have no end.
fn hold(url: &str, settings: &str) {
    let file = Stack::shared().log(&new_id()).with_extension("toml");
    fs::write(&file, settings).expect("settings of schemathesis");
    let (file, description) = (file.display().to_string(), format!("{url}/openapi.json"));
    let mut args = vec!["--config-file", &file, "run", &description, "--max-examples", EXAMPLES, "--seed", "1"];
    // One worker: several compile lambdas at a time, which CPython 3.11 fails at.
    args.extend(["--no-color", "--workers", "1", "--phases", "examples,coverage,fuzzing"]);
    args.extend(["--exclude-path-regex", "/changes$"]);
    let run = python::program("schemathesis", &args, LIMIT);
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    assert!(said.contains("passed"), "it tried something: {said}");
}

#[test]
fn the_viewer_loads_nothing_from_elsewhere() {
    let services = Services::shared();
    for url in [services.command.url(), services.query.url()] {
        let description = get(&format!("{url}/openapi.json")).send().json();
        assert_eq!(description["openapi"], "3.1.0");
        let refs = refs(&description);
        let missing: Vec<_> = refs.iter().filter(|name| description.pointer(&name[1..]).is_none()).collect();
        assert!(!refs.is_empty() && missing.is_empty(), "{missing:?}");
        assert_eq!(get(&format!("{url}/docs")).send().status, 308);
        let page = get(&format!("{url}/docs/")).send();
        assert!(page.must("content-security-policy").contains("default-src 'none'"), "{page:?}");
        let text = page.text();
        let named = text.split('"').filter(|part| part.ends_with(".js") || part.ends_with(".css"));
        let files: BTreeSet<String> = named.map(|file| file.trim_start_matches("./").to_owned()).collect();
        assert!(files.iter().any(|file| file.contains("swagger-ui")), "{text}");
        for file in files {
            assert_eq!(get(&format!("{url}/docs/{file}")).send().status, 200, "{file}");
        }
        get(&format!("{url}/docs/no-such-file")).send().problem(404, "not-found");
    }
}
