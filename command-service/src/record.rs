//! Records on their way in and out, apart from any Kafka client.

use std::ops::Range;

use millrace_shared::kafka::{bulk::Record, topics::Topic};
use rdkafka::message::BorrowedMessage;

/// Each so many bytes of a record count as one record more.
const LARGE_BYTES: usize = 4096;
/// Lengths of name and value, at their longest: a record may hold a million empty headers.
const HEADER_BYTES: usize = 10;

/// A record of a command topic, copied out of librdkafka.
#[derive(Clone, Debug, Default)]
pub struct CommandRecord {
    /// Offset in its partition.
    pub offset: i64,
    /// Time stamp in milliseconds since 1970, where there is one.
    pub timestamp_ms: Option<i64>,
    headers: Headers,
    /// In the buffer of the headers, behind them.
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
}

/// Headers in one buffer, which can be used again and again.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    bytes: Vec<u8>,
    /// Where name and value end; a name begins where the last value ended.
    ends: Vec<(usize, Option<usize>)>,
}

impl Headers {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Adds one.
    pub fn push(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.bytes.extend_from_slice(name);
        let name_end = self.bytes.len();
        let value_end = value.map(|value| {
            self.bytes.extend_from_slice(value);
            self.bytes.len()
        });
        self.ends.push((name_end, value_end));
    }

    /// Adds one whose value is put together.
    pub fn push_joined(&mut self, name: &str, parts: &[&str]) {
        self.bytes.extend_from_slice(name.as_bytes());
        let name_end = self.bytes.len();
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part.as_bytes()));
        self.ends.push((name_end, Some(self.bytes.len())));
    }

    /// In order. Names are any bytes but zero.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], Option<&[u8]>)> {
        let mut from = 0;
        self.ends.iter().map(move |(name_end, value_end)| {
            let name = &self.bytes[from..*name_end];
            from = value_end.unwrap_or(*name_end);
            (name, value_end.map(|value_end| &self.bytes[*name_end..value_end]))
        })
    }
}

impl CommandRecord {
    /// Copies a message.
    pub fn copy(message: &BorrowedMessage<'_>) -> Self {
        let record = Record::of(message);
        Self::new(record.offset(), record.timestamp_ms(), record.key(), record.value(), record.raw_headers())
    }

    /// Makes a record from its parts.
    pub fn new<'a>(
        offset: i64,
        timestamp_ms: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Self {
        let mut record = Self { offset, timestamp_ms: timestamp_ms.filter(|millis| *millis >= 0), ..Self::default() };
        record.headers.bytes.reserve(key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + 64);
        for (name, value) in headers {
            record.headers.push(name, value);
        }
        record.key = key.map(|bytes| record.push(bytes));
        record.value = value.map(|bytes| record.push(bytes));
        record
    }

    fn push(&mut self, bytes: &[u8]) -> Range<usize> {
        let from = self.headers.bytes.len();
        self.headers.bytes.extend_from_slice(bytes);
        from..self.headers.bytes.len()
    }

    /// Key.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.clone().map(|range| &self.headers.bytes[range])
    }

    /// Value.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.clone().map(|range| &self.headers.bytes[range])
    }

    /// Headers in order, but those whose name is no text: none of ours.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.raw_headers().filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)))
    }

    /// Headers in order.
    pub fn raw_headers(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.headers.iter()
    }

    /// What it counts for in a queue: one, and more when it is large, so that queues are bounded in bytes too.
    pub fn weight(&self) -> usize {
        1 + self.size() / LARGE_BYTES
    }

    /// Bytes of key, value and headers, with what Kafka adds to each header.
    pub fn size(&self) -> usize {
        self.headers.bytes.len() + self.headers.ends.len() * HEADER_BYTES
    }
}

/// A record to be produced in the writer's transaction. The producer copies what it needs.
#[derive(Debug)]
pub struct OutRecord<'a> {
    /// Which of the type's topics.
    pub topic: Topic,
    /// Partition.
    pub partition: i32,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value.
    pub value: Option<&'a [u8]>,
    /// Headers.
    pub headers: &'a Headers,
    /// Time stamp in milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// Takes the records of a batch.
pub trait Sink {
    /// Takes one for a topic of the partition's own type. A failure shows when the transaction is committed.
    fn send(&mut self, record: OutRecord<'_>);

    /// Takes one for a topic of another type, by its index in the list of types.
    fn send_to(&mut self, kind: usize, record: OutRecord<'_>);
}
