//! A Kafka client that knows nothing of Millrace.

use std::{
    collections::HashSet,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::KafkaError,
    message::{Header, Headers, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer},
};

use crate::Stack;

const LIMIT: Duration = Duration::from_secs(60);

/// A record as it lies in a topic.
#[derive(Clone, PartialEq)]
pub struct Record {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Time stamp in milliseconds.
    pub timestamp_ms: i64,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Option<Vec<u8>>,
    /// Headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// `topic/partition/offset`.
    pub fn place(&self) -> String {
        format!("{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes: &Option<Vec<u8>>| match bytes {
            Some(bytes) if bytes.len() > 200 => format!("{} bytes", bytes.len()),
            Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            None => "null".to_owned(),
        };
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
        write!(f, "{} key={} value={} {headers:?}", self.place(), text(&self.key), text(&self.value))
    }
}

/// Everything that is committed in a topic, or in one partition of it, in order within each partition.
#[track_caller]
pub fn read(topic: &str, partition: Option<i32>) -> Vec<Record> {
    let mut records = Vec::new();
    for_each(topic, partition, |record| records.push(record));
    records
}

/// The same one by one: a long run writes more than one wants to keep.
#[track_caller]
pub fn for_each(topic: &str, partition: Option<i32>, mut each: impl FnMut(Record)) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &Stack::shared().kafka)
        .set("group.id", "millrace-tests-reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        // Commands with personal data may be deleted while they are read: then from where the topic begins by now.
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "10")
        .create()
        .expect("a consumer can be made");
    let metadata = consumer.fetch_metadata(Some(topic), LIMIT).expect("the broker answers");
    let of_topic = metadata.topics().iter().find(|t| t.name() == topic).expect("the topic is listed");
    let mut open: HashSet<i32> = of_topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect();
    assert!(!open.is_empty(), "there is no topic {topic}");
    open.retain(|p| partition.is_none_or(|wanted| wanted == *p));
    let mut list = TopicPartitionList::new();
    for partition in &open {
        list.add_partition_offset(topic, *partition, Offset::Beginning).expect("an offset is valid");
    }
    consumer.assign(&list).expect("partitions can be assigned");

    let mut moved = Instant::now();
    while !open.is_empty() {
        assert!(moved.elapsed() < LIMIT, "the end of {topic} was not reached: {open:?}");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                moved = Instant::now();
                each(detached(&message));
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            Some(Err(error)) => panic!("{topic} can't be read: {error}"),
            None => {}
        }
    }
}

fn detached(message: &impl Message) -> Record {
    let headers = message.headers().map(|headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
    });
    Record {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    }
}

/// A record to be sent.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Partition; chosen by the partitioner when absent.
    pub partition: Option<i32>,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Option<Vec<u8>>,
    /// Headers.
    pub headers: Vec<(&'static str, Option<Vec<u8>>)>,
    /// Time stamp in milliseconds; now when absent.
    pub timestamp_ms: Option<i64>,
}

impl Draft {
    /// A record with a key and a value.
    pub fn new(key: &str, value: Vec<u8>) -> Self {
        Self { key: Some(key.into()), value: Some(value), ..Self::default() }
    }

    /// Puts it into a partition.
    pub fn to(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name, Some(value.as_ref().to_vec())));
        self
    }
}

/// A producer with a partitioner of one's choice.
pub struct Producer(ThreadedProducer<Told>);

struct Told;
type Delivered = Result<(i32, i64), String>;

impl ClientContext for Told {}

impl ProducerContext for Told {
    type DeliveryOpaque = Arc<mpsc::Sender<Delivered>>;

    fn delivery(&self, result: &DeliveryResult<'_>, tell: Self::DeliveryOpaque) {
        let result = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, _)) => Err(error.to_string()),
        };
        // Nobody waits any more when the test has failed meanwhile.
        let _ = tell.send(result);
    }
}

impl Producer {
    /// librdkafka's name of a partitioner: `consistent_random` (its default, CRC32), `murmur2_random` (Java's).
    pub fn new(partitioner: &str) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &Stack::shared().kafka)
            .set("partitioner", partitioner)
            .set("acks", "all")
            .set("linger.ms", "0")
            .create_with_context(Told);
        Self(producer.expect("a producer can be made"))
    }

    /// Sends a record and waits until it is there; returns `topic/partition/offset`.
    #[track_caller]
    pub fn send(&self, topic: &str, draft: &Draft) -> Place {
        let told = self.queue(topic, draft);
        let (partition, offset) =
            told.recv_timeout(LIMIT).expect("the broker answers").unwrap_or_else(|e| panic!("{topic}: {e}"));
        Place { topic: topic.to_owned(), partition, offset }
    }

    /// Sends a record many times, as fast as can be, and waits until all are there.
    #[track_caller]
    pub fn flood(&self, topic: &str, draft: &Draft, count: usize) {
        // As many as the client queues at once.
        for portion in (0..count).collect::<Vec<_>>().chunks(50_000) {
            let queued: Vec<_> = portion.iter().map(|_| self.queue(topic, draft)).collect();
            for told in queued {
                told.recv_timeout(LIMIT).expect("the broker answers").unwrap_or_else(|e| panic!("{topic}: {e}"));
            }
        }
    }

    fn queue(&self, topic: &str, draft: &Draft) -> mpsc::Receiver<Delivered> {
        let (tell, told) = mpsc::channel();
        let mut record: BaseRecord<'_, [u8], [u8], _> = BaseRecord::with_opaque_to(topic, Arc::new(tell));
        let mut headers = OwnedHeaders::new();
        for (key, value) in &draft.headers {
            headers = headers.insert(Header { key, value: value.as_deref() });
        }
        record = record.headers(headers);
        record.partition = draft.partition;
        record.key = draft.key.as_deref();
        record.payload = draft.value.as_deref();
        record.timestamp = draft.timestamp_ms;
        self.0.send(record).map_err(|(error, _)| error).expect("a record can be queued");
        told
    }
}

fn transactional(id: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &Stack::shared().kafka)
        .set("transactional.id", id)
        // Longer than any test.
        .set("transaction.timeout.ms", "600000")
        .create()
        .expect("a producer can be made");
    producer.init_transactions(LIMIT).expect("the broker answers");
    producer
}

/// Makes the topics of the coordinators, which the first group and the first transaction would make.
#[track_caller]
pub fn make_coordinators() {
    drop(transactional("millrace-tests-first"));
    let mut list = TopicPartitionList::new();
    list.add_partition("none", 0);
    client("millrace-tests-first").committed_offsets(list, LIMIT).expect("the broker answers");
}

/// A transaction that nobody ends: a record lies in a partition, and whether it counts is open.
pub struct OpenTransaction(BaseProducer);

impl OpenTransaction {
    /// Of a producer that nobody knows.
    #[track_caller]
    pub fn begin(topic: &str, partition: i32) -> Self {
        let producer = transactional(&format!("stranger-of-{topic}-{partition}"));
        producer.begin_transaction().expect("a transaction can be begun");
        let record: BaseRecord<'_, str, str> =
            BaseRecord::to(topic).partition(partition).key("nobody").payload("never");
        producer.send(record).map_err(|(error, _)| error).expect("a record can be queued");
        producer.flush(LIMIT).expect("the record arrives");
        Self(producer)
    }

    /// Ends it: the record never was.
    #[track_caller]
    pub fn abort(self) {
        self.0.abort_transaction(LIMIT).expect("a transaction can be aborted");
    }
}

fn client(group: &str) -> BaseConsumer {
    let client = ClientConfig::new()
        .set("bootstrap.servers", &Stack::shared().kafka)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .create();
    client.expect("a client can be made")
}

/// End of a partition: where the next record will lie.
#[track_caller]
pub fn end(topic: &str, partition: i32) -> i64 {
    client("millrace-tests").fetch_watermarks(topic, partition, LIMIT).expect("the broker answers").1
}

/// Sets the committed offset of a group that has no members.
#[track_caller]
pub fn commit(group: &str, topic: &str, partition: i32, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("an offset is valid");
    client(group).commit(&list, CommitMode::Sync).expect("the group takes an offset");
}

/// Creates a topic whose partitions have their replicas on these brokers.
#[track_caller]
pub fn create(topic: &str, replicas: &[&[i32]], settings: &[(&str, &str)]) {
    let count = i32::try_from(replicas.len()).expect("a count");
    let mut new = NewTopic::new(topic, count, TopicReplication::Variable(replicas));
    for (name, value) in settings {
        new = new.set(name, value);
    }
    for result in answered(admin().create_topics(&[new], &AdminOptions::new())) {
        result.expect("the topic can be created");
    }
}

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &Stack::shared().kafka).create().expect("a client can be made")
}

/// Deletes a topic, and waits until it is gone.
#[track_caller]
pub fn delete_topic(topic: &str) {
    for result in answered(admin().delete_topics(&[topic], &AdminOptions::new())) {
        result.expect("the topic can be deleted");
    }
    crate::eventually("topic that is gone", || {
        let metadata =
            client("millrace-tests").fetch_metadata(Some(topic), LIMIT).map_err(|error| error.to_string())?;
        let there = metadata.topics().iter().any(|found| found.error().is_none());
        if there { Err("it is still there".into()) } else { Ok(()) }
    });
}

/// Deletes the records before an offset, as retention does.
#[track_caller]
pub fn delete_before(topic: &str, partition: i32, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("an offset is valid");
    let deleted = answered(admin().delete_records(&list, &AdminOptions::new()));
    let deleted = deleted.find_partition(topic, partition).expect("the partition is named");
    deleted.error().expect("records can be deleted");
}

/// Gives a topic these settings of its own and no others, as an operator may.
#[track_caller]
pub fn alter_topic(topic: &str, settings: &[(&str, &str)]) {
    let config = AlterConfig::new(ResourceSpecifier::Topic(topic));
    let config = settings.iter().fold(config, |config, (name, value)| config.set(name, value));
    let altered = answered(admin().alter_configs([&config], &AdminOptions::new()));
    assert!(altered.iter().all(Result::is_ok), "{altered:?}");
}

/// A setting of a topic as it is.
#[track_caller]
pub fn topic_setting(topic: &str, name: &str) -> Option<String> {
    let described = answered(admin().describe_configs(&[ResourceSpecifier::Topic(topic)], &AdminOptions::new()));
    let of_topic = described.into_iter().next().expect("a topic is described").expect("it is there");
    of_topic.get(name).and_then(|setting| setting.value.clone())
}

#[track_caller]
fn answered<T>(asked: impl Future<Output = Result<T, KafkaError>>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime can be made");
    runtime.block_on(asked).expect("the broker answers")
}

/// Where a record lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}
