//! Reading records in bulk: many records for one call into librdkafka.
//!
//! Restores, projections, rebuilds and checks read everything there is. `rd_kafka_consume_batch_queue` reads 1.6 M
//! records/s where polling one by one reads 0.9 to 1.1 M (one consumer, 158-byte records, on two cores), and it tells
//! the end of a partition with topic and offset, which rust-rdkafka's `PartitionEOF` does not. That offset lies behind
//! transaction markers, so it is what "caught up" must be judged by: the last record's offset + 1 may never be the end.

#![allow(unsafe_code, reason = "the batch call exists in librdkafka's C interface only")]

use std::{
    ffi::{CStr, c_char, c_void},
    ptr, slice,
    sync::Arc,
    time::Duration,
};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    bindings::{
        rd_kafka_consume_batch_queue, rd_kafka_header_get_all, rd_kafka_message_destroy, rd_kafka_message_headers,
        rd_kafka_message_t, rd_kafka_message_timestamp, rd_kafka_queue_destroy, rd_kafka_queue_get_consumer,
        rd_kafka_queue_t, rd_kafka_resp_err_t, rd_kafka_timestamp_type_t, rd_kafka_topic_name,
    },
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
};

use super::{Logged, REQUEST_TIMEOUT};

/// Records fetched by one call at most.
const BATCH: usize = 1024;

/// A consumer of assigned partitions that reads in bulk. Stays on one thread at a time.
pub struct BulkReader<C: ConsumerContext = Logged> {
    // Declared before the consumer: a queue must be let go before its client.
    queue: Queue,
    consumer: Arc<BaseConsumer<C>>,
    buffer: Vec<*mut rd_kafka_message_t>,
}

// SAFETY: the pointers in `buffer` are only live within `read`, which takes `&mut self`; librdkafka's handles may be
// used from any thread.
unsafe impl<C: ConsumerContext> Send for BulkReader<C> {}

/// What a reader comes upon.
#[derive(Debug)]
pub enum Item<'a> {
    /// A record.
    Record(Record<'a>),
    /// The end of a partition as it is now.
    End {
        /// Topic.
        topic: &'a str,
        /// Partition.
        partition: i32,
        /// Where the next record will lie, or later.
        offset: i64,
    },
    /// A partition can't be read.
    Failed {
        /// Topic.
        topic: &'a str,
        /// Partition.
        partition: i32,
        /// Why.
        error: RDKafkaErrorCode,
    },
}

impl BulkReader {
    /// A reader without partitions. `config` comes from [`super::reader_config`] or the like.
    pub fn new(config: &ClientConfig) -> KafkaResult<Self> {
        Self::over(Arc::new(config.create_with_context(Logged)?))
    }
}

impl<C: ConsumerContext> BulkReader<C> {
    /// Reads what a consumer is assigned. While this reads, the consumer's callbacks are not called: a rebalance is
    /// seen only by the consumer's own `poll`.
    pub fn over(consumer: Arc<BaseConsumer<C>>) -> KafkaResult<Self> {
        // SAFETY: the client lives as long as `consumer`, which outlives the queue.
        let queue = Queue(unsafe { rd_kafka_queue_get_consumer(consumer.client().native_ptr()) });
        if queue.0.is_null() {
            return Err(KafkaError::ClientCreation("the client has no consumer queue".into()));
        }
        Ok(Self { queue, consumer, buffer: vec![ptr::null_mut(); BATCH] })
    }

    /// Adds partitions, each to be read from an offset on.
    pub fn add(&self, partitions: &[(&str, i32, i64)]) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for (topic, partition, offset) in partitions {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
        }
        self.consumer.incremental_assign(&list)
    }

    /// Asks who leads the partitions of topics, so that they are read at once when they are added. librdkafka looks for
    /// an unknown topic's leaders by a timer (measured: 0.4 to 0.9 s for each topic after the first).
    pub fn meet(&self, topics: &[&str]) -> KafkaResult<()> {
        topics.iter().try_for_each(|topic| self.consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT).map(drop))
    }

    /// Takes partitions away. Records already fetched may still come.
    pub fn remove(&self, partitions: &[(&str, i32)]) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in partitions {
            list.add_partition(topic, *partition);
        }
        self.consumer.incremental_unassign(&list)
    }

    /// Waits for up to `timeout` and hands over what there is, in order per partition. Returns how many items it was.
    pub fn read(&mut self, timeout: Duration, mut each: impl FnMut(Item<'_>)) -> KafkaResult<usize> {
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // librdkafka's call returns when the buffer is full or the time is up, however much there is meanwhile. So the
        // wait is for one message, and the rest is what is there already.
        let mut count = self.fill(0, 1, millis)?;
        if count == 1 {
            // An error would come again; the message that we have must not be lost over it.
            count += self.fill(1, BATCH - 1, 0).unwrap_or(0);
        }
        for message in &self.buffer[..count] {
            // SAFETY: see above; each message is visited once and lives until the guard goes.
            let message = Message(unsafe { &**message });
            each(message.item());
        }
        Ok(count)
    }

    /// Fetches up to `size` messages into the buffer from `at` on.
    fn fill(&mut self, at: usize, size: usize, millis: i32) -> KafkaResult<usize> {
        let room = &mut self.buffer[at..at + size];
        // SAFETY: there is room for `size` pointers; librdkafka fills the first `count` of them with messages that are
        // ours to destroy.
        let count = unsafe { rd_kafka_consume_batch_queue(self.queue.0, millis, room.as_mut_ptr(), room.len()) };
        usize::try_from(count).map_err(|_| KafkaError::MessageConsumption(RDKafkaErrorCode::Fail))
    }
}

impl<C: ConsumerContext> std::fmt::Debug for BulkReader<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BulkReader")
    }
}

struct Queue(*mut rd_kafka_queue_t);

impl Drop for Queue {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: got from rd_kafka_queue_get_consumer, destroyed once.
            unsafe { rd_kafka_queue_destroy(self.0) };
        }
    }
}

/// Destroys its message when it goes.
struct Message<'a>(&'a rd_kafka_message_t);

impl Drop for Message<'_> {
    fn drop(&mut self) {
        // SAFETY: the message is ours; nothing borrowed from it outlives `self`.
        unsafe { rd_kafka_message_destroy(ptr::from_ref(self.0).cast_mut()) };
    }
}

impl Message<'_> {
    fn item(&self) -> Item<'_> {
        let topic = topic_of(self.0);
        let partition = self.0.partition;
        match self.0.err {
            rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Item::Record(Record { message: self.0, topic }),
            rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                Item::End { topic, partition, offset: self.0.offset }
            }
            error => Item::Failed { topic, partition, error: error.into() },
        }
    }
}

fn topic_of(message: &rd_kafka_message_t) -> &str {
    if message.rkt.is_null() {
        return "";
    }
    // SAFETY: a topic's name is a C string that lives as long as the message.
    unsafe { CStr::from_ptr(rd_kafka_topic_name(message.rkt)) }.to_str().unwrap_or("")
}

/// One record, borrowed from librdkafka.
#[derive(Debug)]
pub struct Record<'a> {
    message: &'a rd_kafka_message_t,
    topic: &'a str,
}

impl<'a> Record<'a> {
    /// One that was polled. (rust-rdkafka's own headers allocate for each name, and panic where one is not UTF-8.)
    pub fn of(message: &'a BorrowedMessage<'_>) -> Self {
        // SAFETY: the message lives as long as its borrower.
        let message = unsafe { &*message.ptr() };
        Self { message, topic: topic_of(message) }
    }

    /// Topic.
    pub fn topic(&self) -> &'a str {
        self.topic
    }

    /// Partition.
    pub fn partition(&self) -> i32 {
        self.message.partition
    }

    /// Offset.
    pub fn offset(&self) -> i64 {
        self.message.offset
    }

    /// Key.
    pub fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka's key pointer and length belong together and live as long as the message.
        unsafe { bytes(self.message.key, self.message.key_len) }
    }

    /// Value.
    pub fn value(&self) -> Option<&'a [u8]> {
        // SAFETY: as for the key.
        unsafe { bytes(self.message.payload, self.message.len) }
    }

    /// Time stamp in milliseconds since 1970, where there is one.
    pub fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: reads fields of a live message.
        let millis = unsafe { rd_kafka_message_timestamp(self.message, &mut kind) };
        (kind != rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && millis >= 0).then_some(millis)
    }

    /// Headers in order. Names that are not UTF-8 are left out.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> + use<'a> {
        self.raw_headers().filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)))
    }

    /// Headers in order; their names may be any bytes but zero.
    pub fn raw_headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let mut headers = ptr::null_mut();
        // SAFETY: on success the headers belong to the message and live as long.
        let found = unsafe { rd_kafka_message_headers(self.message, &mut headers) };
        let found = found == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && !headers.is_null();
        let mut at = 0;
        std::iter::from_fn(move || {
            if !found {
                return None;
            }
            let (mut name, mut value, mut size): (*const c_char, *const c_void, usize) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the out-pointers are valid; past the last header librdkafka answers with an error.
            let answer = unsafe { rd_kafka_header_get_all(headers, at, &mut name, &mut value, &mut size) };
            at += 1;
            (answer == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| {
                // SAFETY: name is a C string, value points to `size` bytes or is null.
                unsafe { (CStr::from_ptr(name).to_bytes(), bytes(value, size)) }
            })
        })
    }
}

/// # Safety
/// `at` is null or points to `length` bytes that live for `'a`.
unsafe fn bytes<'a>(at: *const c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: by the caller's word.
    (!at.is_null()).then(|| unsafe { slice::from_raw_parts(at.cast(), length) })
}
