//! What the dashboard is served by. The page itself is tried in a browser: see `tests/browser`.

use millrace_tests::{
    Deployment, Services, eventually,
    http::get,
    kafka::{Draft, Producer},
    services::new_id,
};
use serde_json::json;

#[test]
fn g14_the_page_is_for_everybody_and_its_data_is_not() {
    let query = Deployment::new().with("MILLRACE_API_TOKEN", "s3cret").query_service();
    let page = get(&format!("{}/", query.url())).send();
    assert_eq!(page.status, 200);
    assert!(page.must("content-type").starts_with("text/html"));
    assert!(page.must("content-security-policy").contains("script-src 'self'"), "{page:?}");
    let text = page.text();
    let script = text.split('"').find(|part| part.ends_with("/app.js")).expect("the page names its script");
    let script = get(&format!("{}/{script}", query.url())).send();
    assert_eq!(script.status, 200);
    assert!(script.must("content-type").starts_with("text/javascript"));
    for path in ["health", "dead-letters", "projections"] {
        get(&format!("{}/v1/{path}", query.url())).send().problem(401, "unauthenticated");
    }
}

#[test]
fn it_is_told_how_the_others_are() {
    let services = Services::shared();
    let health = eventually("health of all", || {
        let health = services.ask("/v1/health").try_send()?.json();
        let ready = ["redis", "kafka", "registry"].iter().all(|part| health["parts"][part]["ready"] == true);
        if ready { Ok(health) } else { Err(health.to_string()) }
    });
    assert_eq!(health["parts"].as_object().map(|parts| parts.len()), Some(3), "{health}");
    assert_eq!(health["parts"]["registry"]["needed"], false, "queries go on without the registry");
    services.ask("/v1/health?verbose=1").send().problem(400, "malformed-request");
}

#[test]
fn g13_the_newest_dead_letters_are_told_with_their_reason() {
    let services = Services::shared();
    let deployment = &services.deployment;
    let (first, second) = (new_id(), new_id());
    // Text of whatever kind is shown as text.
    let producer = Producer::new("murmur2_random");
    let mut seen_at_most = 0;
    for key in [format!("<b>{first}</b>"), format!("{second} \u{1}")] {
        producer.send(&deployment.topic("commands"), &Draft::new(&key, b"garbage".to_vec()));
        let (letter, at_most) = eventually("dead letter", || {
            let answer = services.ask("/v1/dead-letters").try_send()?;
            let body = answer.json();
            let found = body["items"].as_array().into_iter().flatten().find(|one| one["key"] == json!(key));
            found.cloned().map(|letter| (letter, body["at_most"].clone())).ok_or_else(|| body.to_string())
        });
        assert_eq!(letter["topic"], json!(deployment.topic("dead-letters")));
        assert_eq!(letter["bytes"], 7);
        assert!(letter["origin"].as_str().is_some_and(|origin| origin.starts_with(&deployment.topic("commands"))));
        assert!(letter["error"].as_str().is_some_and(|error| !error.is_empty()), "{letter}");
        let at_most = at_most.as_i64().expect("a number");
        assert!(at_most > seen_at_most, "{at_most} after {seen_at_most}");
        seen_at_most = at_most;
    }
}
