//! What travels in record headers: CloudEvents in Kafka's binary mode, and Millrace's own.

use jiff::Timestamp;
use rdkafka::message::{Header, OwnedHeaders};

use crate::domain::process::reserved_prefixes;

/// Header names, as the contract fixes them.
pub mod names {
    /// Command id, or event id.
    pub const ID: &str = "ce_id";
    /// Expected version of a command.
    pub const EXPECTED_VERSION: &str = "ce_expectedversion";
    /// Id of the event that a command of a process follows on, carried from command to events.
    pub const CAUSATION_ID: &str = "ce_causationid";
    /// Correlation id, carried from command to events.
    pub const CORRELATION_ID: &str = "ce_correlationid";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// Why a record is a dead letter.
    pub const ERROR: &str = "millrace_error";
    /// `topic/partition/offset` of where a record first lay.
    pub const ORIGIN: &str = "millrace_origin";
    /// `<topic id>/<partition>/<offset>` of the command in the aggregate's partition.
    pub const POSITION: &str = "millrace_position";
    /// Marks an outcome that answers a repeat.
    pub const REPLAYED: &str = "millrace_replayed";
    /// Marks a command that was put into its aggregate's partition by us.
    pub const FORWARDED: &str = "millrace_forwarded";
    /// Of a command: it is to be decided then, and not before.
    pub const NOT_BEFORE: &str = "ce_notbefore";
    /// Of a record without a value: the scheduled command with this id is not to be decided at all.
    pub const CANCELS: &str = "ce_cancels";
    /// Marks a command that was scheduled, and is due or cancelled.
    pub const RELEASED: &str = "millrace_released";
    /// Of a command that waits: its fingerprint, in hexadecimal digits.
    pub const FINGERPRINT: &str = "millrace_fingerprint";
    /// Marks one that is not to be decided, as it was cancelled.
    pub const CANCELLED: &str = "millrace_cancelled";
    /// Of a command that waits for the answer to its question: what tells it from all others.
    pub const CLAIM: &str = "millrace_claim";
    /// When it has asked.
    pub const ASKED: &str = "millrace_asked";
    /// In the topic of scheduled commands: what it was answered.
    pub const ANSWER: &str = "millrace_answer";
    /// In the topic of scheduled commands: the value is encrypted; name of the command.
    pub const SEALED: &str = "millrace_sealed";
    /// A record without a value that has Kafka close the segment before it.
    pub const SWEEP: &str = "millrace_sweep";
    /// Of a snapshot: Kafka's id of the event topic that it was made from.
    pub const TOPIC_ID: &str = "millrace_topic_id";
    /// Of a snapshot: the release's number for the meaning of states.
    pub const STATE_VERSION: &str = "millrace_state_version";
    /// Sequence of an event, or the last one that a snapshot covers.
    pub const SEQUENCE: &str = "ce_sequence";
    /// Time of an event.
    pub const TIME: &str = "ce_time";
    /// Command id of an event.
    pub const COMMAND_ID: &str = "ce_commandid";
}

/// Longest command id and correlation id, in bytes.
pub const MAX_ID_BYTES: usize = 128;

/// The metadata of a command, read from its headers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommandHeaders {
    /// The command id, where one is given.
    pub id: Option<String>,
    /// The version the aggregate is expected to have.
    pub expected_version: Option<u64>,
    /// Id of the event that it follows on, passed on to events.
    pub causation_id: Option<String>,
    /// Correlation id, passed on to events.
    pub correlation_id: Option<String>,
    /// W3C trace context, passed on to events.
    pub traceparent: Option<String>,
    /// Where the command first lay, when it was forwarded.
    pub origin: Option<String>,
    /// Whether we put it into its partition.
    pub forwarded: bool,
    /// When it is to be decided at the earliest.
    pub not_before: Option<Timestamp>,
    /// Id of the scheduled command of the same aggregate that it cancels: then it has no value.
    pub cancels: Option<String>,
    /// Whether it had waited until it was due, or was cancelled.
    pub released: bool,
    /// Whether it was cancelled before it was due.
    pub cancelled: bool,
    /// Whether it has asked a question, and waited for the answer.
    pub has_asked: bool,
}

impl CommandHeaders {
    /// Reads them.
    ///
    /// # Errors
    /// A text for people when the id or the expected version is malformed. What only helps tracing is dropped when
    /// it is malformed: it must not cost a command.
    pub fn read<'a>(headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> Result<Self, String> {
        let mut read = Self::default();
        for (name, value) in headers {
            let text = value.map(std::str::from_utf8).transpose().ok().flatten();
            match name {
                names::ID => {
                    let id = text.filter(|id| is_known_command_id(id));
                    read.id = Some(id.map(str::to_owned).ok_or_else(|| {
                        format!("{} must be 1 to {MAX_ID_BYTES} visible ASCII characters", names::ID)
                    })?);
                }
                names::EXPECTED_VERSION => {
                    read.expected_version =
                        Some(text.and_then(parse_version).ok_or_else(|| {
                            format!("{} must be a decimal number, 0 or more", names::EXPECTED_VERSION)
                        })?);
                }
                names::CAUSATION_ID => read.causation_id = text.filter(|id| is_event_id(id)).map(str::to_owned),
                names::CORRELATION_ID => {
                    read.correlation_id = text.filter(|id| is_command_id(id)).map(str::to_owned);
                }
                names::TRACEPARENT => read.traceparent = text.filter(|t| is_traceparent(t)).map(str::to_owned),
                names::ORIGIN => read.origin = text.map(str::to_owned),
                names::FORWARDED => read.forwarded = true,
                names::NOT_BEFORE => {
                    read.not_before = Some(text.and_then(|text| text.parse().ok()).ok_or_else(|| {
                        format!("{} must be a time in RFC 3339, such as 2027-01-31T08:00:00Z", names::NOT_BEFORE)
                    })?);
                }
                names::CANCELS => {
                    let id = text.filter(|id| is_known_command_id(id));
                    read.cancels = Some(
                        id.map(str::to_owned)
                            .ok_or_else(|| format!("{} must be the id of a scheduled command", names::CANCELS))?,
                    );
                }
                names::RELEASED => read.released = true,
                names::CANCELLED => read.cancelled = true,
                names::CLAIM => read.has_asked = true,
                _ => {}
            }
        }
        Ok(read)
    }

    /// The headers of a command that we produce.
    pub fn write(&self) -> OwnedHeaders {
        let mut headers = OwnedHeaders::new_with_capacity(4);
        let expected = self.expected_version.map(|version| version.to_string());
        let not_before = self.not_before.map(rfc3339_micros);
        for (key, value) in [
            (names::ID, self.id.as_deref()),
            (names::EXPECTED_VERSION, expected.as_deref()),
            (names::NOT_BEFORE, not_before.as_deref()),
            (names::CANCELS, self.cancels.as_deref()),
            (names::CORRELATION_ID, self.correlation_id.as_deref()),
            (names::TRACEPARENT, self.traceparent.as_deref()),
        ] {
            if value.is_some() {
                headers = headers.insert(Header { key, value });
            }
        }
        headers
    }
}

/// The metadata of an event that we write.
#[derive(Debug)]
pub struct EventHeaders<'a> {
    /// Aggregate type, e.g. `bank-account`.
    pub aggregate_type: &'a str,
    /// Aggregate id.
    pub aggregate_id: &'a str,
    /// Sequence within the aggregate.
    pub sequence: u64,
    /// Namespace and record name.
    pub namespace: &'a str,
    /// Record name.
    pub record: &'a str,
    /// When it happened: RFC 3339 in UTC with six digits of a second.
    pub time: &'a str,
    /// The command that caused it.
    pub command_id: &'a str,
    /// Passed on from the command.
    pub causation_id: Option<&'a str>,
    /// Passed on from the command.
    pub correlation_id: Option<&'a str>,
    /// Passed on from the command.
    pub traceparent: Option<&'a str>,
}

impl EventHeaders<'_> {
    /// Hands over each header, in the contract's order, with the parts that its value is put together from.
    pub fn write(&self, mut put: impl FnMut(&str, &[&str])) {
        let mut digits = itoa::Buffer::new();
        let sequence = digits.format(self.sequence);
        put("content-type", &["application/avro"]);
        put("ce_specversion", &["1.0"]);
        put(names::ID, &[self.aggregate_type, "/", self.aggregate_id, "/", sequence]);
        put("ce_source", &["/millrace/", self.aggregate_type]);
        put("ce_type", &[self.namespace, ".", self.record]);
        put("ce_subject", &[self.aggregate_id]);
        put(names::TIME, &[self.time]);
        put(names::SEQUENCE, &[sequence]);
        put(names::COMMAND_ID, &[self.command_id]);
        if let Some(causation_id) = self.causation_id {
            put(names::CAUSATION_ID, &[causation_id]);
        }
        if let Some(correlation_id) = self.correlation_id {
            put(names::CORRELATION_ID, &[correlation_id]);
        }
        if let Some(traceparent) = self.traceparent.filter(|text| is_sampled(text)) {
            put(names::TRACEPARENT, &[traceparent]);
        }
    }
}

/// A time as text, kept for when it is asked for again.
#[derive(Debug)]
pub struct Rfc3339 {
    time: Timestamp,
    text: String,
}

impl Default for Rfc3339 {
    fn default() -> Self {
        Self { time: Timestamp::UNIX_EPOCH, text: rfc3339_micros(Timestamp::UNIX_EPOCH) }
    }
}

impl Rfc3339 {
    /// As [`rfc3339_micros`] gives it.
    pub fn text(&mut self, time: Timestamp) -> &str {
        if time != self.time {
            *self = Self { time, text: rfc3339_micros(time) };
        }
        &self.text
    }
}

/// What a reader of events needs from their headers.
#[derive(Clone, Debug, PartialEq)]
pub struct EventMeta {
    /// Sequence within the aggregate.
    pub sequence: u64,
    /// When it happened.
    pub time: Timestamp,
    /// The command that caused it.
    pub command_id: String,
}

impl EventMeta {
    /// Reads them.
    ///
    /// # Errors
    /// A text for people when one is missing or malformed: such a record was not written by Millrace.
    pub fn read<'a>(headers: impl Iterator<Item = (impl AsRef<[u8]>, Option<&'a [u8]>)>) -> Result<Self, String> {
        let (mut sequence, mut time, mut command_id) = (None, None, None);
        for (name, value) in headers {
            // Most headers are others: whether those are texts does not matter.
            let text = || value.and_then(|bytes| std::str::from_utf8(bytes).ok());
            let is = |known: &str| name.as_ref() == known.as_bytes();
            if is(names::SEQUENCE) {
                sequence = text().and_then(parse_version);
            } else if is(names::TIME) {
                time = text().and_then(|text| text.parse().ok());
            } else if is(names::COMMAND_ID) {
                command_id = text().map(str::to_owned);
            }
        }
        let missing = |name: &str| format!("header {name} is missing or malformed");
        Ok(Self {
            sequence: sequence.filter(|n| *n > 0).ok_or_else(|| missing(names::SEQUENCE))?,
            time: time.ok_or_else(|| missing(names::TIME))?,
            command_id: command_id.ok_or_else(|| missing(names::COMMAND_ID))?,
        })
    }
}

/// RFC 3339 in UTC with six digits of a second.
pub fn rfc3339_micros(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// 1 to 128 visible ASCII characters.
pub fn is_command_id(text: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The same, or one of a process: it holds the process' id, so it may be longer than those of callers.
pub fn is_known_command_id(text: &str) -> bool {
    is_command_id(text)
        || is_event_id(text) && reserved_prefixes().iter().any(|prefix| text.starts_with(prefix.as_str()))
}

/// `<type>/<id>/<sequence>`.
fn is_event_id(text: &str) -> bool {
    (1..=2 * MAX_ID_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Version 00 of W3C's trace context.
pub fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let id = |part: &str, length| hex(part, length) && part.bytes().any(|b| b != b'0');
    let parts: Vec<&str> = text.split('-').collect();
    matches!(parts[..], ["00", trace, span, flags] if id(trace, 32) && id(span, 16) && hex(flags, 2))
}

/// Whether the trace is recorded: the lowest bit of the flags.
fn is_sampled(traceparent: &str) -> bool {
    let flags = traceparent.rsplit('-').next().and_then(|flags| u8::from_str_radix(flags, 16).ok());
    flags.is_some_and(|flags| flags & 1 == 1)
}

/// A decimal number without sign or leading zeros.
pub fn parse_version(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &'static [u8])]) -> Result<CommandHeaders, String> {
        CommandHeaders::read(headers.iter().map(|(name, value)| (*name, Some(*value))))
    }

    #[test]
    fn g13_malformed_ids_and_versions_are_refused_with_a_reason() {
        for id in [&b""[..], b"\xff\xfe", b"with space", &[b'x'; 129]] {
            let id: &'static [u8] = id.to_vec().leak();
            assert!(read(&[(names::ID, id)]).unwrap_err().contains("ce_id"));
        }
        for version in [&b"-1"[..], b"+1", b"01", b"1.0", b"", b"18446744073709551616"] {
            let version: &'static [u8] = version.to_vec().leak();
            assert!(read(&[(names::EXPECTED_VERSION, version)]).unwrap_err().contains("ce_expectedversion"));
        }
    }

    #[test]
    fn a_malformed_trace_costs_nothing() {
        assert_eq!(read(&[(names::TRACEPARENT, b"garbage"), (names::ID, b"c1")]).unwrap().id.as_deref(), Some("c1"));
    }

    #[test]
    fn times_have_six_digits() {
        assert_eq!(rfc3339_micros("2026-01-02T03:04:05Z".parse().unwrap()), "2026-01-02T03:04:05.000000Z");
    }
}
