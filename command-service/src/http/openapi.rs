//! What the API's description says of the commands.

use millrace_shared::{
    domain::{Aggregate, CommandDocs, Described, Docs, Domains, Visitor, process::reserved_prefixes},
    openapi::{Description, Operation, anything, boolean, number, text, time},
    problem::{
        CANCELLED, KEY_REUSED, Kind, MALFORMED, NOT_SCHEDULED, OUTCOME_UNKNOWN, OVERLOADED, REQUEST_TIMEOUT, TOO_LARGE,
        UNAVAILABLE, UNSUPPORTED_MEDIA_TYPE, VERSION_CONFLICT,
    },
};
use serde_json::json;
use utoipa::openapi::{
    HttpMethod, OpenApi,
    schema::{ArrayBuilder, ObjectBuilder, Type},
};

const ABOUT: &str = "Sends commands to aggregates. A command is answered when its events are in the log, or with the \
                     problem that stands against it. Repeated with the same `Idempotency-Key` it has no second effect and \
                     gets the same answer. `token` is what queries take in `after=`.";

/// Of all types that are served.
pub fn describe<D: Domains>(authenticated: bool) -> OpenApi {
    let mut commands = Commands(Description::new("Millrace: commands", ABOUT, authenticated));
    D::visit_all(&mut commands);
    commands.0.build()
}

struct Commands(Description);

impl Visitor for Commands {
    fn visit<A: Aggregate>(&mut self) {
        let docs = A::docs();
        let refusals: Vec<Kind> = A::REFUSALS
            .iter()
            .map(|refusal| Kind { name: refusal.name, status: 422, title: refusal.title, meaning: refusal.meaning })
            .collect();
        for (at, command) in docs.commands.iter().enumerate() {
            let id = format!("{}-{}", A::TYPE, command.name);
            let one = self::command::<A>(&id, &docs, command, &refusals).id(docs.noun);
            let one = if at == 0 { created::<A>(one, &docs, command) } else { one };
            self.0.add(HttpMethod::Post, &format!("/v1/{}/{{id}}/{}", A::COLLECTION, command.name), one);
        }
        let scheduled = format!("/v1/{}/{{id}}/scheduled/{{command_id}}", A::COLLECTION);
        self.0.add(HttpMethod::Delete, &scheduled, cancel::<A>(&docs).id(docs.noun));
        if let Some(first) = docs.commands.first() {
            let new = command::<A>(&format!("{}-new", A::TYPE), &docs, first, &refusals).about(
                "The id is made here: of the caller and the `Idempotency-Key` where there is one, so that a repeat does \
                 not make a second one; else a new one each time.",
            );
            self.0.add(HttpMethod::Post, &format!("/v1/{}", A::COLLECTION), created::<A>(new, &docs, first));
        }
    }
}

fn command<A: Aggregate>(id: &str, docs: &Docs, command: &CommandDocs, refusals: &[Kind]) -> Operation {
    let reserved = reserved_prefixes().join("|");
    let one_of_a_key = format!(r"^(?!{reserved})[\x21-\x7e]{{1,128}}$");
    Operation::new(id, A::COLLECTION, command.summary)
        .header(
            "Idempotency-Key",
            text(1, 128).pattern(Some(one_of_a_key)),
            "The command's id, 1 to 128 visible ASCII characters; made here when absent.",
            "salary-2026-01",
        )
        .header(
            "If-Match",
            text(3, 22).pattern(Some(r#"^"(0|[1-9][0-9]{0,17})"$"#)),
            "The version that the aggregate must have, in quotes; `\"0\"`: it must not exist.",
            "\"1\"",
        )
        .header(
            "Prefer",
            anything(),
            "`respond-async`: answered as soon as the command is in the topic.",
            "respond-async",
        )
        .header(
            "Millrace-Not-Before",
            time(),
            "The command is decided then, and not before; until then it can be cancelled.",
            "2027-02-01T08:00:00Z",
        )
        .header(
            "Millrace-Correlation-Id",
            text(1, 128).pattern(Some(r"^[\x21-\x7e]{1,128}$")),
            "Goes with the events.",
            "order-7",
        )
        .header(
            "traceparent",
            anything(),
            "W3C trace context; goes with the events. One that is none is ignored.",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        .body(&command.body)
        .json(200, "Accepted: its events are in the log.", &accepted::<A>(docs))
        .json(
            202,
            "It is in the topic, and will be decided: soon (`Prefer: respond-async`), or when it is due (`Millrace-Not-Before`).",
            &enqueued(),
        )
        .answer_header("ETag", text(3, 22), "The aggregate's version, in quotes; not with 202.")
        .answer_header("Location", text(1, 1_000), "Of the view where one was created; with 202, of the outcome.")
        .answer_header("Idempotency-Replayed", boolean(), "`true`: the answer to the same command before.")
        .problems(&[
            &MALFORMED,
            &REQUEST_TIMEOUT,
            &VERSION_CONFLICT,
            &TOO_LARGE,
            &UNSUPPORTED_MEDIA_TYPE,
            &KEY_REUSED,
            &CANCELLED,
            &OVERLOADED,
            &UNAVAILABLE,
            &OUTCOME_UNKNOWN,
        ])
        .problems(&refusals.iter().collect::<Vec<_>>())
}

fn cancel<A: Aggregate>(docs: &Docs) -> Operation {
    let body = Described { schema: outcome_schema().into(), example: cancelled::<A>() };
    Operation::new(&format!("{}-cancel", A::TYPE), A::COLLECTION, "Cancels a command that is not due yet")
        .about(&format!("The {} stays as it is; the command is answered as `cancelled` from then on.", docs.noun))
        .path(
            "command_id",
            text(1, 128).pattern(Some(r"^[\x21-\x7e]{1,128}$")),
            "The scheduled command's id, percent-encoded.",
            "rent-2027-02",
        )
        .json(200, "It is cancelled.", &body)
        .json(202, "The order is in the topic (`Prefer: respond-async`).", &enqueued())
        .answer_header("ETag", text(3, 22), "The aggregate's version, in quotes; not with 202.")
        .answer_header("Location", text(1, 1_000), "With 202: of the order's outcome.")
        .answer_header("Idempotency-Replayed", boolean(), "`true`: the answer to the same order before.")
        .problems(&[&MALFORMED, &NOT_SCHEDULED, &KEY_REUSED, &OVERLOADED, &UNAVAILABLE, &OUTCOME_UNKNOWN])
}

fn cancelled<A: Aggregate>() -> serde_json::Value {
    let mut outcome = outcome(A::TYPE, "", 2);
    outcome["events"] = json!([]);
    outcome
}

fn created<A: Aggregate>(operation: Operation, docs: &Docs, command: &CommandDocs) -> Operation {
    let event = docs.events.first().map_or("", |event| event.name);
    let body = Described { schema: outcome_schema().into(), example: outcome(A::TYPE, event, 1) };
    operation.json(201, &format!("{}: it was created.", command.summary), &body)
}

fn accepted<A: Aggregate>(docs: &Docs) -> Described {
    let event = docs.events.get(1).map_or("", |event| event.name);
    Described { schema: outcome_schema().into(), example: outcome(A::TYPE, event, 2) }
}

fn outcome(aggregate_type: &str, event: &str, version: u64) -> serde_json::Value {
    json!({
        "command_id": "0198f3a2-7c1e-7d0a-9b1e-6a2f4f6d2c11",
        "outcome": "accepted",
        "aggregate": {"type": aggregate_type, "id": "acc-42", "version": version},
        "events": [{"sequence": version, "type": event}],
        "token": "MSBiYW5rLWFjY291bnQgMSBhY2MtNDI",
    })
}

fn outcome_schema() -> ObjectBuilder {
    let aggregate = ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("type", text(1, 100))
        .required("type")
        .property("id", text(1, 128))
        .required("id")
        .property("version", number(0, u64::MAX))
        .required("version");
    let event = ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("sequence", number(1, u64::MAX))
        .required("sequence")
        .property("type", text(1, 100))
        .required("type");
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("command_id", text(1, 300))
        .required("command_id")
        .property("outcome", ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["accepted"])))
        .required("outcome")
        .property("aggregate", aggregate)
        .required("aggregate")
        .property("events", ArrayBuilder::new().items(event))
        .required("events")
        .property("token", text(1, 1_000).description(Some("For `after=` of a query.")))
        .required("token")
}

fn enqueued() -> Described {
    let schema =
        ObjectBuilder::new().schema_type(Type::Object).property("command_id", text(1, 128)).required("command_id");
    Described { schema: schema.into(), example: json!({"command_id": "salary-2026-01"}) }
}
