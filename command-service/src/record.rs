//! Records on their way in and out, apart from any Kafka client.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

use millrace_shared::kafka::topics::Topic;
use rdkafka::{
    Message,
    message::{BorrowedMessage, Headers, OwnedHeaders},
};

/// Each so many bytes of a record count as one record more.
const LARGE_BYTES: usize = 4096;
/// Lengths of name and value, at their longest: a record may hold a million empty headers.
const HEADER_BYTES: usize = 10;

/// A record of a command topic, copied out of librdkafka: all bytes in one buffer.
#[derive(Clone, Debug, Default)]
pub struct CommandRecord {
    /// Offset in its partition.
    pub offset: i64,
    /// Time stamp in milliseconds since 1970, where there is one.
    pub timestamp_ms: Option<i64>,
    bytes: Vec<u8>,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
    headers: Vec<(Range<usize>, Option<Range<usize>>)>,
    unreadable_headers: Option<OwnedHeaders>,
}

impl CommandRecord {
    /// Copies a message.
    pub fn copy(message: &BorrowedMessage<'_>) -> Self {
        let (offset, timestamp_ms) = (message.offset(), message.timestamp().to_millis());
        let (key, value) = (message.key(), message.payload());
        let Some(headers) = message.headers() else {
            return Self::new(offset, timestamp_ms, key, value, std::iter::empty());
        };
        // rust-rdkafka panics on a header name that is not UTF-8.
        let read = || {
            let headers = headers.iter().map(|header| (header.key, header.value));
            Self::new(offset, timestamp_ms, key, value, headers)
        };
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Self {
            unreadable_headers: Some(headers.detach()),
            ..Self::new(offset, timestamp_ms, key, value, std::iter::empty())
        })
    }

    /// Makes a record from its parts.
    pub fn new<'a>(
        offset: i64,
        timestamp_ms: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Self {
        let lengths = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        let mut record = Self {
            offset,
            timestamp_ms: timestamp_ms.filter(|millis| *millis >= 0),
            bytes: Vec::with_capacity(lengths + 64),
            ..Self::default()
        };
        record.key = key.map(|bytes| record.push(bytes));
        record.value = value.map(|bytes| record.push(bytes));
        for (name, value) in headers {
            let name = record.push(name.as_bytes());
            let value = value.map(|bytes| record.push(bytes));
            record.headers.push((name, value));
        }
        record
    }

    fn push(&mut self, bytes: &[u8]) -> Range<usize> {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        from..self.bytes.len()
    }

    /// Key.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.clone().map(|range| &self.bytes[range])
    }

    /// Value.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.clone().map(|range| &self.bytes[range])
    }

    /// Headers in order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.headers.iter().map(|(name, value)| {
            let name = std::str::from_utf8(&self.bytes[name.clone()]).unwrap_or_default();
            (name, value.clone().map(|range| &self.bytes[range]))
        })
    }

    /// What it counts for in a queue: one, and more when it is large, so that queues are bounded in bytes too.
    pub fn weight(&self) -> usize {
        1 + self.size() / LARGE_BYTES
    }

    /// The headers, copied as they are, when the name of one is not UTF-8.
    pub fn unreadable_headers(&self) -> Option<&OwnedHeaders> {
        self.unreadable_headers.as_ref()
    }

    /// Bytes of key, value and headers, with what Kafka adds to each header.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.headers.len() * HEADER_BYTES
    }
}

/// A record to be produced in the writer's transaction. Key and value are copied by the producer.
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
    pub headers: OwnedHeaders,
    /// Time stamp in milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// Takes the records of a batch.
pub trait Sink {
    /// Takes one. A failure shows when the transaction is committed.
    fn send(&mut self, record: OutRecord<'_>);
}
