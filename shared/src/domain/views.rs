//! What the views of all domains have in common.

use jiff::Timestamp;
use serde::Serializer;
use serde_json::Value;

use crate::envelope::rfc3339_micros;

pub(super) fn micros<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339_micros(*time))
}

/// A total beyond 64 bits is given as text: JSON numbers end there.
pub(super) fn number(total: i128) -> Value {
    i64::try_from(total).map(Value::from).unwrap_or_else(|_| total.to_string().into())
}
