//! The lines of `import`: one JSON object a command.

use std::sync::Arc;

use jiff::Timestamp;
use millrace_shared::{
    domain::{AggregateId, CommandError, process::reserved_prefixes},
    envelope::is_command_id,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::types::{CommandType, EncodeError, Encoded};

/// Longest line, in bytes.
pub const MAX_LINE_BYTES: usize = 128 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text<'a> {
    aggregate: String,
    id: String,
    command: String,
    command_id: Option<String>,
    time: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// A line that was checked.
pub struct Line {
    /// Index of its type.
    pub kind: usize,
    /// Its aggregate.
    pub aggregate_id: AggregateId,
    /// Its id, where it names one.
    pub command_id: Option<String>,
    /// Time stamp in milliseconds since 1970, where it names one.
    pub timestamp_ms: Option<i64>,
    /// The command.
    pub encoded: Encoded,
}

impl Line {
    /// Reads a line; the error says what is wrong with it.
    pub fn read(line: &[u8], types: &[Arc<dyn CommandType>]) -> Result<Self, String> {
        if line.len() > MAX_LINE_BYTES {
            return Err(format!("{} bytes, {MAX_LINE_BYTES} at most", line.len()));
        }
        let text: Text<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let kind = types
            .iter()
            .position(|kind| kind.info().aggregate_type == text.aggregate)
            .ok_or_else(|| format!("there is no aggregate type {:?}", text.aggregate))?;
        let aggregate_id = AggregateId::new(&text.id).map_err(|reason| format!("id: {reason}"))?;
        if let Some(id) = &text.command_id
            && !is_command_id(id)
        {
            return Err("command_id: must be 1 to 128 visible ASCII characters".to_owned());
        }
        let of = |id: &String| reserved_prefixes().iter().find(|prefix| id.starts_with(prefix.as_str()));
        if let Some(prefix) = text.command_id.as_ref().and_then(of) {
            return Err(format!("command_id: ids that begin with {prefix} are Millrace's own"));
        }
        let timestamp_ms = text.time.as_deref().map(millis).transpose()?;
        let data = text.data.map_or("{}", RawValue::get);
        let encoded = types[kind].encode(&text.command, data.as_bytes()).map_err(|error| match error {
            EncodeError::Command(CommandError::Unknown) => {
                format!("command: {} takes {}", text.aggregate, types[kind].info().commands.join(", "))
            }
            EncodeError::Command(CommandError::Malformed(errors)) => {
                let one = |e: &millrace_shared::problem::FieldError| format!("data{}: {}", e.pointer, e.detail);
                errors.iter().map(one).collect::<Vec<_>>().join("; ")
            }
            EncodeError::Internal(cause) => cause,
        })?;
        Ok(Self { kind, aggregate_id, command_id: text.command_id, timestamp_ms, encoded })
    }
}

fn millis(text: &str) -> Result<i64, String> {
    let time: Timestamp = text.parse().map_err(|_| "time: must be RFC 3339, e.g. 1993-01-31T00:00:00Z".to_owned())?;
    match time.as_millisecond() {
        millis if millis >= 0 => Ok(millis),
        _ => Err("time: Kafka has no time stamps before 1970".to_owned()),
    }
}
