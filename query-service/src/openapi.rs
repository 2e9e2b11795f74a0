//! What the API's description says of the queries.

use millrace_shared::{
    domain::{Aggregate, Described, Docs, Domains, Grouping, GroupingVisitor, Projection, Visitor},
    openapi::{Description, Operation, anything, boolean, number, text, time},
    problem::{HISTORY_TRIMMED, MALFORMED, NOT_FOUND, OVERLOADED, REBUILDING, STALE, UNAVAILABLE},
};
use serde_json::{Value, json};
use utoipa::openapi::{
    HttpMethod, OpenApi, RefOr,
    schema::{
        AdditionalProperties, ArrayBuilder, KnownFormat, ObjectBuilder, OneOfBuilder, Schema, SchemaFormat, SchemaType,
        Type,
    },
};

use crate::service::Limits;

const ABOUT: &str = "Reads what the projections made of the events. `after=` takes the token of an accepted command, and \
                     waits until the answer shows what that command did. An answer that could not wait so long carries \
                     `Millrace-Stale: true`; one about an aggregate whose events are parked, `Millrace-Parked: true`.";
const STALE_HEADER: &str = "Millrace-Stale";
const PARKED_HEADER: &str = "Millrace-Parked";

/// Of all that is served.
pub fn describe<D: Domains>(authenticated: bool, limits: Limits) -> OpenApi {
    let mut queries = Queries(Description::new("Millrace: queries", ABOUT, authenticated), limits);
    D::visit_all(&mut queries);
    D::visit_groupings(&mut queries);
    queries.general();
    queries.0.build()
}

struct Queries(Description, Limits);

impl Queries {
    fn get(&mut self, path: &str, operation: Operation) {
        let operation = operation
            .header("If-None-Match", anything(), "`ETag` of what the caller has.", "\"2\"")
            .empty(304, "The caller has it.")
            .answer_header("ETag", text(2, 100), "Changes when the answer does.")
            .answer_header("Cache-Control", text(1, 100), "To be asked for again before it is used again.");
        self.passing(path, operation);
    }

    /// Of what is never kept.
    fn passing(&mut self, path: &str, operation: Operation) {
        self.0.add(HttpMethod::Get, path, operation.problems(&[&MALFORMED, &UNAVAILABLE]));
    }

    fn general(&mut self) {
        let projections = Described {
            schema: object([("projections", list(any_object()))]).into(),
            example: json!({"projections": [{
                "name": "bank-accounts", "version": 1, "state": "live",
                "partitions": [{"partition": 0, "checkpoint": 812, "lag_records": 0, "lag_seconds": 0.0}],
                "parked": [], "versions": [], "rebuild": null,
            }]}),
        };
        self.get(
            "/v1/projections",
            Operation::new("projections", "general", "How far the projections are, and what is parked").json(
                200,
                "All projections.",
                &projections,
            ),
        );
        let health = Described { schema: any_object().into(), example: json!({"ready": true, "parts": {}}) };
        self.passing(
            "/v1/health",
            Operation::new("health", "general", "Whether Kafka, the registry and Redis answer").json(
                200,
                "Each part.",
                &health,
            ),
        );
        let letters = Described {
            schema: object([("items", list(any_object())), ("at_most", number(0, u64::MAX).into())]).into(),
            example: json!({"items": [{
                "topic": "bank-account.dead-letters", "partition": 3, "offset": 17, "time": "2026-02-01T08:30:00Z",
                "key": "acc-42", "error": "is no Avro", "origin": "bank-account.commands/3/812", "bytes": 20,
            }], "at_most": 1}),
        };
        self.get(
            "/v1/dead-letters",
            Operation::new("dead-letters", "general", "The newest records that are no commands").json(
                200,
                "Newest first, without their content.",
                &letters,
            ),
        );
    }
}

impl Visitor for Queries {
    fn visit<A: Aggregate>(&mut self) {
        let (docs, base) = (A::docs(), format!("/v1/{}", A::COLLECTION));
        self.get(&base, list_of::<A>(&docs, self.1));
        let stats = Operation::new(&format!("{}-stats", A::TYPE), A::COLLECTION, "Totals").json(
            200,
            "Over all of them.",
            &docs.stats,
        );
        self.get(&format!("{base}/stats"), waiting(stats, self.1));
        self.get(&format!("{base}/{{id}}"), view_of::<A>(&docs, self.1));
        self.get(&format!("{base}/{{id}}/history"), history_of::<A>(&docs, self.1));
        if A::Projection::STATEMENT.is_some() {
            self.get(&format!("{base}/{{id}}/statement"), statement_of::<A>(&docs, self.1));
        }
        self.passing(&format!("{base}/changes"), changes_of::<A>(&docs, None));
        self.passing(&format!("{base}/{{id}}/changes"), changes_of::<A>(&docs, Some(docs.noun)));
        self.get(&format!("{base}/{{id}}/commands/{{command_id}}"), outcome_of::<A>(&docs));
        self.get(&format!("{base}/{{id}}/scheduled"), scheduled_of::<A>(&docs));
    }
}

impl GroupingVisitor for Queries {
    fn visit<G: Grouping>(&mut self) {
        let operation = Operation::new(G::NAME, G::NAME, "What of all its aggregates adds up")
            .path("key", text(1, 200).pattern(Some(r"^[^\x00-\x1f\x7f-\x9f]+$")), "Which one.", "Ada")
            .json(200, "The view.", &G::docs())
            .answer_header(PARKED_HEADER, text(4, 4), "`true`: events of it are parked.")
            .problems(&[&NOT_FOUND]);
        self.get(&format!("/v1/{}/{{key}}", G::NAME), waiting(operation, self.1));
    }
}

/// May wait for a token.
fn waiting(operation: Operation, limits: Limits) -> Operation {
    operation
        .query(
            "after",
            text(1, 2_000),
            "Token of an accepted command: the answer is not older.",
            "MSBiYW5rLWFjY291bnQgMSBhY2MtNDI",
        )
        .query("wait_ms", number(0, limits.wait.as_millis() as u64), "Longest wait for it, in milliseconds.", 2_000)
        .query(
            "stale",
            ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["error"])),
            "`error`: when the time is up, a problem instead of an older answer.",
            "error",
        )
        .answer_header(STALE_HEADER, text(4, 4), "`true`: the time was up.")
        .problems(&[&STALE, &REBUILDING])
}

fn list_of<A: Aggregate>(docs: &Docs, limits: Limits) -> Operation {
    let body = Described {
        schema: object([("items", list(docs.view.schema.clone())), ("next_cursor", nullable_text())]).into(),
        example: json!({"items": [docs.view.example], "next_cursor": null}),
    };
    let sorts = A::Projection::SORTS.iter().flat_map(|sort| [sort.name.to_owned(), format!("-{}", sort.name)]);
    let sorts = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(sorts));
    let mut operation = Operation::new(&format!("{}-list", A::TYPE), A::COLLECTION, "Many, filtered and sorted")
        .query("sort", sorts, "By which field; with `-` the largest first. Ties go by id.", "-balance_minor")
        .query("limit", number(1, limits.list), "At most so many.", 50)
        .query("cursor", text(1, 2_000), "`next_cursor` of the page before.", "eyJ…")
        .json(200, "A page. It may be short although there is a next one.", &body);
    for filter in A::Projection::FILTERS {
        operation = filtered(operation, docs, filter.name);
    }
    waiting(operation, limits)
}

/// Takes a parameter that is a field of the view.
fn filtered(operation: Operation, docs: &Docs, field: &str) -> Operation {
    let of_view = match &docs.view.schema {
        RefOr::T(Schema::Object(view)) => view.properties.get(field).cloned(),
        _ => None,
    };
    let example = docs.view.example.get(field).cloned().unwrap_or(Value::Null);
    let schema = of_view.unwrap_or_else(|| text(1, 200).into());
    operation.query(field, schema, &format!("Only those whose `{field}` is this."), example)
}

fn view_of<A: Aggregate>(docs: &Docs, limits: Limits) -> Operation {
    let mut operation = Operation::new(A::TYPE, A::COLLECTION, &format!("One {}, now or as it was", docs.noun))
        .id(docs.noun)
        .query("at_version", number(0, u64::MAX), "As it was at that version.", 1)
        .query(
            "as_of",
            time(),
            "As it was at that time, which is included; not with `at_version`.",
            "2026-01-31T12:00:00Z",
        )
        .json(200, "The view. Its `ETag` is the version, in quotes.", &docs.view)
        .answer_header(PARKED_HEADER, text(4, 4), "`true`: events of it are parked.")
        .problems(&[&NOT_FOUND, &HISTORY_TRIMMED]);
    if A::Projection::IS_FINAL.is_some() {
        let values = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["final"]));
        operation = operation.query("until", values, "`final`: waits for its end, as for a token.", "final");
    }
    waiting(operation, limits)
}

fn history_of<A: Aggregate>(docs: &Docs, limits: Limits) -> Operation {
    let names: Vec<&str> = docs.events.iter().map(|event| event.name).collect();
    let data = docs.events.iter().fold(OneOfBuilder::new(), |any, event| any.item(event.data.schema.clone()));
    // Events of one shape are told apart by `type`.
    let data = Schema::AnyOf(utoipa::openapi::schema::AnyOf { items: data.build().items, ..Default::default() });
    let item = object([
        ("sequence", number(1, u64::MAX).into()),
        ("type", ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names)).into()),
        ("time", time().into()),
        ("command_id", text(0, 300).into()),
        ("data", RefOr::T(data)),
        ("state", docs.view.schema.clone()),
    ]);
    let example = docs.events.get(1).map_or(Value::Null, |event| {
        json!({
            "sequence": 2, "type": event.name, "time": "2026-02-01T08:30:00.250000Z",
            "command_id": "0198f3a2-7c1e-7d0a-9b1e-6a2f4f6d2c11", "data": event.data.example, "state": docs.view.example,
        })
    });
    let body = Described {
        schema: object([("items", list(item)), ("next", nullable_text())]).into(),
        example: json!({"items": [example], "next": null}),
    };
    let operation =
        Operation::new(&format!("{}-history", A::TYPE), A::COLLECTION, "Every event, with the view after it")
            .id(docs.noun)
            .query("after_sequence", number(0, u64::MAX), "Only later ones.", 0)
            .query("limit", number(1, limits.history), "At most so many.", 100)
            .json(200, "A page; `next` is the path of the next one.", &body)
            .answer_header(PARKED_HEADER, text(4, 4), "`true`: events of it are parked.")
            .problems(&[&NOT_FOUND, &HISTORY_TRIMMED]);
    waiting(operation, limits)
}

fn statement_of<A: Aggregate>(docs: &Docs, limits: Limits) -> Operation {
    let nullable_time = || {
        let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        let null = SchemaType::from_iter([Type::String, Type::Null]);
        ObjectBuilder::new().schema_type(null).format(Some(format))
    };
    let minor = || ObjectBuilder::new().schema_type(Type::Integer);
    let entry = object([
        ("sequence", number(1, u64::MAX).into()),
        ("time", time().into()),
        ("type", text(1, 100).into()),
        ("amount_minor", minor().description(Some("What it moved the balance by.")).into()),
        ("balance_minor", minor().description(Some("The balance after it.")).into()),
        ("reference", nullable_text()),
        ("command_id", text(0, 300).into()),
    ]);
    let event = docs.events.get(1).map_or("", |event| event.name);
    let body = Described {
        schema: object([
            ("id", text(1, 128).into()),
            ("currency", text(3, 3).into()),
            ("from", nullable_time().into()),
            ("to", nullable_time().into()),
            ("opening_balance_minor", minor().into()),
            ("entries", list(entry)),
            ("closing_balance_minor", minor().into()),
        ])
        .into(),
        example: json!({
            "id": "acc-42", "currency": "EUR", "from": "2026-02-01T00:00:00.000000Z", "to": null,
            "opening_balance_minor": 0, "closing_balance_minor": 10_000,
            "entries": [{
                "sequence": 2, "time": "2026-02-01T08:30:00.250000Z", "type": event, "amount_minor": 10_000,
                "balance_minor": 10_000, "reference": "salary", "command_id": "salary-2026-01",
            }],
        }),
    };
    let csv = "time,sequence,type,amount_minor,balance_minor,currency,reference,command_id\r\n";
    let operation =
        Operation::new(&format!("{}-statement", A::TYPE), A::COLLECTION, "What moved the balance in a time")
            .id(docs.noun)
            .query("from", time(), "From then on, inclusive.", "2026-02-01T00:00:00Z")
            .query("to", time(), "Until then, exclusive.", "2026-03-01T00:00:00Z")
            .json(200, "The entries, and the balances before and after them.", &body)
            .content(200, "The same.", "text/csv", text(0, 100_000_000).into(), csv.into())
            .answer_header(PARKED_HEADER, text(4, 4), "`true`: events of it are parked.")
            .problems(&[&NOT_FOUND, &HISTORY_TRIMMED]);
    waiting(operation, limits)
}

fn changes_of<A: Aggregate>(docs: &Docs, one: Option<&str>) -> Operation {
    let event = docs.events.get(1).map_or("", |event| event.name);
    let data = json!({
        "id": "acc-42", "sequence": 2, "type": event, "time": "2026-02-01T08:30:00.250000Z", "view": docs.view.example,
    });
    let example = format!("id: AQ…\nevent: change\ndata: {data}\n\n");
    let (id, summary) = match one {
        None => (format!("{}-changes", A::TYPE), "Changes as they come"),
        Some(_) => (format!("{}-changes-of-one", A::TYPE), "The changes of one as they come"),
    };
    let position = || text(1, 4_000);
    let mut operation = Operation::new(&id, A::COLLECTION, summary)
        .about(
            "Server-sent events: `change` for every event, in order for each aggregate, none twice. With the id of the last \
             one that the caller has seen, every one since; where that can't be told, `reset`, then one `change` for each \
             present view, then changes.",
        )
        .query("last_event_id", position(), "As the header, for those who can't set one.", "AQ…")
        .header("Last-Event-ID", position(), "`id` of the last event that the caller has seen.", "AQ…")
        .content(200, "A stream without end.", "text/event-stream", text(0, 1_000_000_000).into(), example.into())
        .problems(&[&OVERLOADED, &REBUILDING]);
    match one {
        Some(noun) => operation = operation.id(noun),
        None => {
            for filter in A::Projection::FILTERS.iter().filter(|filter| filter.selective && filter.fixed) {
                operation = filtered(operation, docs, filter.name);
            }
        }
    }
    operation
}

fn outcome_of<A: Aggregate>(docs: &Docs) -> Operation {
    let outcome = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([
        "accepted",
        "rejected",
        "scheduled",
        "pending",
    ]));
    let body = Described {
        schema: any_object().property("outcome", outcome).required("outcome").into(),
        example: json!({
            "command_id": "salary-2026-01", "outcome": "accepted",
            "aggregate": {"type": A::TYPE, "id": "acc-42", "version": 2},
            "events": [{"sequence": 2, "type": docs.events.get(1).map(|event| event.name)}],
            "token": "MSBiYW5rLWFjY291bnQgMSBhY2MtNDI",
        }),
    };
    Operation::new(&format!("{}-outcome", A::TYPE), A::COLLECTION, "The stored answer to a command")
        .id(docs.noun)
        .path(
            "command_id",
            text(1, 128).pattern(Some(r"^[\x21-\x7e]{1,128}$")),
            "The command's id, percent-encoded.",
            "salary-2026-01",
        )
        .json(200, "As the command was answered; when it was refused, with the problem's members.", &body)
        .problems(&[&NOT_FOUND, &STALE])
}

fn scheduled_of<A: Aggregate>(docs: &Docs) -> Operation {
    let item = object([
        ("command_id", text(1, 300).into()),
        ("not_before", time().into()),
        ("type", text(1, 100).into()),
        ("data", any_object().into()),
    ]);
    let body = Described {
        schema: object([("items", list(item)), ("complete", boolean().into())]).into(),
        example: json!({"complete": true, "items": [{
            "command_id": "rent-2027-02", "not_before": "2027-02-01T08:00:00.000000Z",
            "type": "Withdraw", "data": {"amount_minor": 5_000, "reference": "rent"},
        }]}),
    };
    Operation::new(&format!("{}-scheduled", A::TYPE), A::COLLECTION, "What is to be decided later")
        .about("The commands of one aggregate that wait until they are due, the next one first.")
        .id(docs.noun)
        .json(200, "All of them.", &body)
        .problems(&[&STALE])
}

fn object<const N: usize>(members: [(&'static str, RefOr<Schema>); N]) -> ObjectBuilder {
    let object = ObjectBuilder::new().schema_type(Type::Object);
    members.into_iter().fold(object, |object, (name, schema)| object.property(name, schema).required(name))
}

fn any_object() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Object).additional_properties(Some(AdditionalProperties::FreeForm(true)))
}

fn list(items: impl Into<RefOr<Schema>>) -> RefOr<Schema> {
    ArrayBuilder::new().items(items.into()).into()
}

fn nullable_text() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Null])).into()
}
