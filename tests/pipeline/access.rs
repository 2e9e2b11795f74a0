//! Who may call.

use millrace_tests::{
    Deployment, Services, Stack,
    http::{Request, get},
    process::free_port,
    services::{command_at, new_id},
};
use serde_json::json;

#[test]
fn g14_with_a_token_set_nobody_gets_in_without_it() {
    let file = Stack::shared().dir.join("token");
    std::fs::write(&file, "s3cret\n").expect("the scratch folder is writable");
    let with_token = Deployment::new()
        .with("MILLRACE_API_TOKEN", "s3cret")
        .with("MILLRACE_LOG_FORMAT", "json")
        .with("MILLRACE_LOG", "debug");
    let mut from_file = with_token.clone().with("MILLRACE_API_TOKEN_FILE", file.to_string_lossy());
    from_file.env.remove("MILLRACE_API_TOKEN");
    let commands = with_token.command_service("c1");
    let _projector = with_token.projector_service("p1");
    let queries = from_file.query_service();

    let id = new_id();
    let open = command_at(&commands, &id, "open", &json!({"owner": "Ada", "currency": "EUR"}));
    let requests: [Request; 3] = [
        open.clone(),
        get(&format!("{}/v1/bank-accounts/{id}", queries.url())),
        get(&format!("{}/v1/bank-accounts", queries.url())),
    ];
    for request in &requests {
        for authorization in
            [None, Some("Bearer"), Some("Bearer s3cre"), Some("Bearer s3cret2"), Some("Basic czNjcmV0")]
        {
            let request = match authorization {
                Some(value) => request.clone().header("Authorization", value),
                None => request.clone(),
            };
            let answer = request.send();
            answer.problem(401, "unauthenticated");
            assert!(answer.must("www-authenticate").starts_with("Bearer"), "{answer:?}");
            assert!(!answer.text().contains("s3cret"));
        }
    }
    assert!(with_token.all_events().is_empty(), "an unauthenticated command had an effect");

    let known = |request: &Request| request.clone().header("Authorization", "Bearer s3cret").send();
    assert_eq!(known(&open).status, 201);
    millrace_tests::eventually("view", || {
        let answer = known(&requests[1]);
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    // Operators' probes carry no token.
    for service in [&commands, &queries] {
        assert_eq!(get(&format!("{}/health/ready", service.ops_url())).send().status, 200);
        let metrics = get(&format!("{}/metrics", service.ops_url())).send();
        assert!(!metrics.text().contains("s3cret"));
        let log = std::fs::read_to_string(&service.log).expect("there is a log");
        for line in log.lines().filter(|line| !line.starts_with("--- ")) {
            assert!(!line.contains("s3cret"), "the token is logged: {line}");
            assert!(
                serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line.is_object()),
                "no JSON: {line}"
            );
        }
    }
}

#[test]
fn pages_of_other_origins_may_call_only_where_that_is_set() {
    let services = Services::shared();
    let origin = "https://dashboard.example";
    let ask = |url: &str, method: &str| {
        let request = Request::new(method, url).header("Origin", origin).header("Access-Control-Request-Method", "GET");
        request.send()
    };
    let path = "/v1/bank-accounts";
    for method in ["GET", "OPTIONS"] {
        let answer = ask(&format!("{}{path}", services.query.url()), method);
        assert_eq!(answer.header("access-control-allow-origin"), None, "{method}: {answer:?}");
    }
    // Beside the shared one, on a port of its own.
    let deployment =
        services.deployment.clone().with("MILLRACE_CORS_ORIGIN", origin).with("MILLRACE_API_TOKEN", "s3cret");
    let query = deployment.query_service_at(free_port());
    let preflight = ask(&format!("{}{path}", query.url()), "OPTIONS");
    assert!(preflight.status < 300, "a preflight carries no token: {preflight:?}");
    assert_eq!(preflight.header("access-control-allow-origin"), Some(origin), "{preflight:?}");
    let refused = ask(&format!("{}{path}", query.url()), "GET");
    refused.problem(401, "unauthenticated");
    assert_eq!(refused.header("access-control-allow-origin"), Some(origin), "pages see why: {refused:?}");
}

#[test]
fn metrics_are_prometheus_text_and_begin_with_our_name() {
    let services = Services::shared();
    let id = services.open("Ada");
    let token = services.deposit(&id, 1).token();
    services.view_after(&id, &token);
    for service in [&services.command, &services.projector, &services.query] {
        let answer = get(&format!("{}/metrics", service.ops_url())).send();
        assert!(answer.must("content-type").starts_with("text/plain"), "{}", answer.must("content-type"));
        let text = answer.text();
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        assert!(!samples.is_empty(), "{} has no metrics", service.kind);
        for sample in samples {
            assert!(sample.starts_with("millrace_"), "{}: {sample}", service.kind);
            let (_, value) = sample.rsplit_once(' ').expect("a name and a value");
            assert!(value.parse::<f64>().is_ok(), "{sample}");
        }
    }
}
