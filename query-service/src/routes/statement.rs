//! `GET /v1/<collection>/{id}/statement`: what moved a balance in a time, and the balances before, between and after.

use std::sync::Arc;

use axum::{
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use millrace_shared::{
    domain::{Aggregate, AggregateId, Projection},
    envelope::rfc3339_micros,
    http,
    problem::{FieldError, Problem},
    records::Records,
};
use serde::Serialize;

use super::json;
use crate::{
    edition::Edition,
    params::{After, IdInPath, Params, time},
    past::{Replay, trimmed},
    service::{Service, caveats, not_found},
};

/// What is asked for.
struct Wanted {
    /// Inclusive.
    from: Option<Timestamp>,
    /// Exclusive.
    to: Option<Timestamp>,
    csv: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    currency: &'a str,
    from: Option<String>,
    to: Option<String>,
    opening_balance_minor: i64,
    entries: Vec<Entry>,
    closing_balance_minor: i64,
}

#[derive(Serialize)]
struct Entry {
    sequence: u64,
    time: String,
    r#type: &'static str,
    amount_minor: i64,
    balance_minor: i64,
    reference: Option<String>,
    command_id: String,
}

pub(super) async fn get<A: Aggregate>(
    State(service): State<Arc<Service<A>>>,
    IdInPath(id): IdInPath,
    RawQuery(query): RawQuery,
    request: HeaderMap,
) -> Result<Response, Problem> {
    let mut params = Params::parse(query.as_deref());
    let after = After::take(&mut params, service.means.waits(), A::TYPE, None);
    let wanted = Wanted { from: params.read("from", time), to: params.read("to", time), csv: wants_csv(&request) };
    if let (Some(from), Some(to)) = (wanted.from, wanted.to)
        && from > to
    {
        params.wrong("from", "must not be later than to");
    }
    params.finish()?;
    let (service, id, after, wanted) = (&*service, &id, &after, &wanted);
    service.editions.answer(|edition| async move { statement(service, &edition, id, after, wanted).await }).await
}

async fn statement<A: Aggregate>(
    service: &Service<A>,
    edition: &Edition,
    id: &AggregateId,
    after: &After,
    wanted: &Wanted,
) -> Result<Response, Problem> {
    let Some(shape) = A::Projection::STATEMENT else { return Ok(not_found::<A>(id).into_response()) };
    let found = service.find_after_all(edition, id.as_str(), after).await?;
    let mut headers = caveats(found.stale, found.parked);
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    let Some((_, present)) = &found.view else { return Ok((headers, not_found::<A>(id)).into_response()) };
    let mut replay = Replay::new(service, edition, id.as_str());
    let (mut opening, mut entries) = (None, Vec::new());
    while let Some((meta, event)) = replay.next().await? {
        if wanted.to.is_some_and(|to| meta.time >= to) {
            break;
        }
        if opening.is_none() && wanted.from.is_none_or(|from| meta.time >= from) {
            opening = Some(replay.view().map_or(0, shape.balance_minor));
        }
        let balance_minor = (shape.balance_minor)(replay.fold(&meta, &event)?);
        let Some((amount_minor, reference)) = (shape.entry)(&event).filter(|_| opening.is_some()) else { continue };
        let most = service.means.limits.statement;
        if entries.len() == most {
            let upto = rfc3339_micros(meta.time);
            let detail = format!("there are more than {most} entries; ask for those before {upto} first");
            return Err(Problem::malformed(vec![FieldError::new("to", detail)]));
        }
        entries.push(Entry {
            sequence: meta.sequence,
            time: rfc3339_micros(meta.time),
            r#type: event.name(),
            amount_minor,
            balance_minor,
            reference: reference.map(str::to_owned),
            command_id: meta.command_id,
        });
    }
    service.require_unchanged(edition, &[found.seen]).await?;
    if let Some(base) = replay.base.as_ref().filter(|base| wanted.from.is_none_or(|from| from <= base.time)) {
        return Ok((headers, trimmed::<A>(id.as_str(), base)).into_response());
    }
    let closing_balance_minor = replay.view().map_or(0, shape.balance_minor);
    let body = Body {
        id: id.as_str(),
        currency: (shape.currency)(present),
        from: wanted.from.map(rfc3339_micros),
        to: wanted.to.map(rfc3339_micros),
        opening_balance_minor: opening.unwrap_or(closing_balance_minor),
        entries,
        closing_balance_minor,
    };
    if wanted.csv {
        let mut response = json(headers, csv(&body));
        let csv = HeaderValue::from_static("text/csv; charset=utf-8; header=present");
        response.headers_mut().insert(header::CONTENT_TYPE, csv);
        return Ok(response);
    }
    let body = serde_json::to_string(&body).map_err(|error| http::internal(&error))?;
    Ok(json(headers, body))
}

/// By RFC 4180, one line an entry, between one of the balance before and one of the balance after.
fn csv(body: &Body<'_>) -> String {
    let mut lines = "time,sequence,type,amount_minor,balance_minor,currency,reference,command_id\r\n".to_owned();
    let currency = body.currency;
    let balance = |time: &Option<String>, name, balance| {
        format!("{},,{name},,{balance},{currency},,\r\n", time.as_deref().unwrap_or_default())
    };
    lines += &balance(&body.from, "opening", body.opening_balance_minor);
    for entry in &body.entries {
        let Entry { sequence, time, r#type, amount_minor, balance_minor, reference, command_id } = entry;
        let (reference, command_id) = (quoted(reference.as_deref().unwrap_or_default()), quoted(command_id));
        lines +=
            &format!("{time},{sequence},{type},{amount_minor},{balance_minor},{currency},{reference},{command_id}\r\n");
    }
    lines += &balance(&body.to, "closing", body.closing_balance_minor);
    lines
}

/// What somebody else wrote, as one field.
fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

/// Whether the caller prefers CSV to JSON.
fn wants_csv(request: &HeaderMap) -> bool {
    let given = request.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut csv, mut json) = (0.0, 0.0);
    for range in given.flat_map(|value| value.split(',')) {
        let (name, parameters) = range.split_once(';').unwrap_or((range, ""));
        let quality = parameters.split(';').find_map(|one| one.trim().strip_prefix("q=")?.parse().ok());
        let quality: f32 = quality.unwrap_or(1.0);
        match name.trim() {
            "text/csv" => csv = quality.max(csv),
            "application/json" | "application/*" | "*/*" => json = quality.max(json),
            _ => {}
        }
    }
    csv > json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_is_for_those_who_prefer_it() {
        let wants = |accept: &str| wants_csv(&HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]));
        for csv in ["text/csv", "text/csv, */*;q=0.1", "application/json;q=0.5, text/csv", "text/html,text/csv;q=0.2"] {
            assert!(wants(csv), "{csv}");
        }
        for json in ["", "*/*", "application/json, text/csv", "text/csv;q=0.5, application/json", "text/csv;q=0"] {
            assert!(!wants(json), "{json}");
        }
    }

    #[test]
    fn g13_what_others_wrote_stays_one_field() {
        assert_eq!(quoted("a,\"b\"\r\nc"), "\"a,\"\"b\"\"\r\nc\"");
        assert_eq!(quoted(""), "");
    }
}
