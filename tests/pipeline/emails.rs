//! E-mail addresses are one user's alone.

use std::{thread, time::Duration};

use millrace_tests::{
    Deployment, Services, eventually,
    fail_points::Action,
    http::{Answer, Request, post},
    services::{Service, new_id},
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);

fn tell(service: &Service, id: &str, command: &str, key: &str, body: &Value) -> Request {
    post(&format!("{}/v1/users/{id}/{command}", service.url())).json(body).key(key)
}

fn register(service: &Service, id: &str, key: &str, email: &str) -> Request {
    tell(service, id, "register", key, &json!({"given_name": "Ada", "family_name": "King", "email": email}))
}

fn change(service: &Service, id: &str, key: &str, email: &str) -> Request {
    tell(service, id, "change-email", key, &json!({"email": email}))
}

#[track_caller]
fn accepted(request: &Request) -> Answer {
    let answer = request.send_until_definite(LIMIT);
    assert!([200, 201].contains(&answer.status), "{answer:?}");
    answer
}

#[track_caller]
fn taken(request: &Request) {
    request.send_until_definite(LIMIT).problem(422, "email-taken");
}

#[test]
fn g04_of_fifty_who_register_one_address_at_once_one_gets_it() {
    let deployment = Deployment::new();
    // Two, so that most answers come from the other one.
    let services = [deployment.command_service("c1"), deployment.command_service("c2")];
    let ids: Vec<String> = (0..50).map(|_| new_id()).collect();
    // Nobody's spelling is another address.
    let spelled = |number: usize| ["ada@example.org", "Ada@Example.org", "ADA@EXAMPLE.ORG"][number % 3];
    let ask = |number: usize| register(&services[number % 2], &ids[number], "1", spelled(number)).within(LIMIT);
    let answers: Vec<Answer> = thread::scope(|scope| {
        let asked: Vec<_> =
            (0..ids.len()).map(|number| scope.spawn(move || ask(number).send_until_definite(LIMIT))).collect();
        asked.into_iter().map(|asked| asked.join().expect("it is answered")).collect()
    });
    let winners: Vec<usize> = (0..ids.len()).filter(|number| answers[*number].status == 201).collect();
    let [winner] = winners[..] else { panic!("{} got it: {answers:?}", winners.len()) };
    for (number, answer) in answers.iter().enumerate().filter(|(number, _)| *number != winner) {
        answer.problem(422, "email-taken");
        // Refusals are remembered as any other.
        let again = ask(number).send();
        assert_eq!((again.status, again.must("idempotency-replayed")), (422, "true"), "{again:?}");
    }
    // Who has it may spell it otherwise. Who leaves it, or is erased, leaves it to others.
    let (first, second, third) = (&ids[winner], new_id(), new_id());
    accepted(&change(&services[0], first, "2", "aDa@example.org"));
    accepted(&change(&services[1], first, "3", "king@example.org"));
    accepted(&register(&services[0], &second, "1", "ada@example.org"));
    taken(&register(&services[1], &third, "1", "King@example.org"));
    accepted(&tell(&services[0], first, "erase", "4", &json!({})));
    accepted(&register(&services[1], &third, "2", "King@example.org"));
    taken(&change(&services[0], &third, "3", "ada@example.org"));
    deployment.check_log();
}

#[test]
fn g01_g02_who_registers_gets_the_address_whatever_is_killed_on_the_way() {
    let deployment = Deployment::new();
    let (mut service, points) = deployment.command_service_with_fail_points("c1");
    let (id, other) = (new_id(), new_id());
    points.arm("committed", Action::Kill);
    // It may be killed before it has answered.
    let _ = register(&service, &id, "1", "ada@example.org").header("Prefer", "respond-async").try_send();
    service.wait_ended();
    // It has asked; now the reservation is made, its answer is noted, and the command is decided.
    for _ in 0..3 {
        points.arm("committed", Action::Kill);
        service.launch();
        service.wait_ended();
    }
    service.start_again();
    let answer = accepted(&register(&service, &id, "1", "ada@example.org"));
    assert_eq!(answer.must("idempotency-replayed"), "true", "{answer:?}");
    taken(&register(&service, &other, "1", "ada@example.org"));
    accepted(&tell(&service, &id, "erase", "2", &json!({})));
    accepted(&register(&service, &other, "2", "ada@example.org"));
    deployment.check_log();
}

#[test]
fn what_waits_for_an_address_is_told_of_and_not_listed_as_scheduled() {
    let services = Services::start(Deployment::new());
    let (id, other) = (new_id(), new_id());
    let answer = register(&services.command, &id, "1", "ada@example.org").header("Prefer", "respond-async").send();
    assert_eq!(answer.status, 202, "{answer:?}");
    let outcome = |id: &str, expected: &str| {
        eventually("outcome of a registration", || {
            let stored = services.ask(&format!("/v1/users/{id}/commands/1")).try_send()?.json();
            if stored["outcome"] == expected { Ok(stored) } else { Err(format!("{stored}")) }
        })
    };
    let token = outcome(&id, "accepted")["token"].as_str().expect("a token").to_owned();
    let answer = register(&services.command, &other, "1", "ada@example.org").header("Prefer", "respond-async").send();
    assert_eq!(answer.status, 202, "{answer:?}");
    let refused = outcome(&other, "rejected");
    assert!(refused["type"].as_str().is_some_and(|name| name.ends_with("/email-taken")), "{refused}");
    let listed = services.ask(&format!("/v1/users/{id}/scheduled")).send().json();
    assert_eq!(listed["items"], json!([]), "{listed}");

    let view = services.ask(&format!("/v1/users/{id}?after={token}&wait_ms=30000")).send().json();
    assert_eq!(view["email"], "ada@example.org", "{view}");
    let history = services.ask(&format!("/v1/users/{id}/history")).send().json();
    let reservation = history["items"][0]["data"]["reservation"].as_str().expect("a reservation").to_owned();
    // A keyed hash in hexadecimal digits, among which no name is to be looked for: "ada" is one by chance.
    assert!(reservation.len() == 64 && reservation.bytes().all(|b| b.is_ascii_hexdigit()), "{reservation}");
    eventually("confirmed reservation", || {
        let view = services.ask(&format!("/v1/email-reservations/{reservation}")).try_send()?.json();
        if view["status"] == "confirmed" { Ok(()) } else { Err(format!("{view}")) }
    });
    // Users send such commands, as processes.
    let posted = post(&format!("{}/v1/email-reservations/{reservation}/reserve", services.command.url()));
    posted.json(&json!({})).send().problem(404, "unknown-command");
    for projection in ["users", "email-reservations"] {
        let verified = services.deployment.run_projector_tool(&["verify", projection]);
        assert_eq!((verified.code, verified.output.as_str()), (Some(0), ""), "{}", verified.errors);
    }
    services.deployment.check_log();
}
