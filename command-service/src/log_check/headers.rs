//! Headers as the contract has them.

use jiff::Timestamp;
use millrace_shared::{
    envelope::{EventMeta, is_command_id, is_traceparent, names, parse_version, rfc3339_micros},
    kafka::bulk::Record,
};

/// A header's value as text; an error where there is none, or more than one.
pub fn text<'a>(record: &Record<'a>, name: &str) -> Result<&'a str, String> {
    optional(record, name)?.ok_or_else(|| format!("header {name} is missing"))
}

/// The same where it may be missing.
pub fn optional<'a>(record: &Record<'a>, name: &str) -> Result<Option<&'a str>, String> {
    let mut found = record.headers().filter(|(header, _)| *header == name);
    let Some((_, value)) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(format!("header {name} is there twice"));
    }
    let text = value.and_then(|bytes| std::str::from_utf8(bytes).ok());
    text.map(Some).ok_or_else(|| format!("header {name} is no text"))
}

/// The headers of an event; `full_name` is its record's name with the namespace.
pub fn of_event(
    record: &Record<'_>,
    aggregate_type: &str,
    aggregate_id: &str,
    full_name: &str,
    meta: &EventMeta,
) -> Result<(), String> {
    let expected = [
        ("content-type", "application/avro".to_owned()),
        ("ce_specversion", "1.0".to_owned()),
        (names::ID, format!("{aggregate_type}/{aggregate_id}/{}", meta.sequence)),
        ("ce_source", format!("/millrace/{aggregate_type}")),
        ("ce_type", full_name.to_owned()),
        ("ce_subject", aggregate_id.to_owned()),
        (names::TIME, rfc3339_micros(meta.time)),
        (names::SEQUENCE, meta.sequence.to_string()),
        (names::COMMAND_ID, meta.command_id.clone()),
    ];
    for (name, expected) in expected {
        let found = text(record, name)?;
        if found != expected {
            return Err(format!("header {name} is {found:?}, not {expected:?}"));
        }
    }
    if meta.command_id.is_empty() || !meta.command_id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("header {} is {:?}, which is no command id", names::COMMAND_ID, meta.command_id));
    }
    if optional(record, names::CORRELATION_ID)?.is_some_and(|id| !is_command_id(id)) {
        return Err(format!("header {} is malformed", names::CORRELATION_ID));
    }
    if optional(record, names::TRACEPARENT)?.is_some_and(|trace| !is_traceparent(trace)) {
        return Err(format!("header {} is malformed", names::TRACEPARENT));
    }
    let dated = record.timestamp_ms().and_then(|millis| Timestamp::from_millisecond(millis).ok());
    if dated.map(|time| time.as_millisecond()) != Some(meta.time.as_millisecond()) {
        return Err(format!("the record's time stamp is not that of header {}", names::TIME));
    }
    Ok(())
}

/// A record's place, as `<topic or topic id>/<partition>/<offset>`.
pub fn place(text: &str) -> Option<(&str, i32, i64)> {
    let mut parts = text.rsplitn(3, '/');
    let (offset, partition, topic) = (parts.next()?, parts.next()?, parts.next()?);
    let (partition, offset) = (parse_version(partition)?, parse_version(offset)?);
    Some((topic, i32::try_from(partition).ok()?, i64::try_from(offset).ok()?)).filter(|_| !topic.is_empty())
}
