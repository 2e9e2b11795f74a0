//! What librdkafka really answers when a broker refuses a request, and what becomes of the batch then. The brokers are
//! librdkafka's mock cluster, since only it can be told to refuse. It shows uncommitted records to everybody, so nothing
//! here is about isolation: that is what the fault tests are for.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use millrace_shared::{
    domain::bank_account::BankAccount,
    kafka::topics::{Names, Topic},
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    mocking::{MockCluster, MockCoordinator},
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey as Api, RDKafkaErrorCode as Code, RDKafkaRespErr as Answer},
};

use super::{
    Failure, Producer, ProducerSettings, Rhythm, ToWriter, Writer,
    batch::Served,
    checkpoint::waits_for_stores,
    errors::{Cause, Verdict, cause, classify},
};
use crate::{
    failpoints::FailPoints,
    grant::{Captures, FencedOffsets, Grant, Slot},
    intake::ToIntake,
    partition::{Decider, Held, RestoreError, Stored},
    record::{CommandRecord, Headers, OutRecord, Sink},
    types::{CommandType, TypeOf},
};

struct Bench {
    cluster: MockCluster<'static, DefaultProducerContext>,
    types: Vec<Arc<dyn CommandType>>,
    producer: Producer,
    consumer: BaseConsumer,
}

fn settings(cluster: &MockCluster<'static, DefaultProducerContext>) -> ProducerSettings {
    ProducerSettings {
        bootstrap: cluster.bootstrap_servers(),
        names: Names::default(),
        instance: "test".into(),
        transaction_timeout: Duration::from_secs(2),
    }
}

impl Bench {
    fn new() -> Self {
        Self::of(1)
    }

    fn of(brokers: i32) -> Self {
        let cluster = MockCluster::new(brokers).unwrap();
        let kind = Arc::new(TypeOf::<BankAccount>::unregistered());
        for topic in [Topic::Commands, Topic::Events] {
            cluster.create_topic(kind.topic(topic), 2, 1).unwrap();
        }
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "group")
            .create()
            .unwrap();
        let types: Vec<Arc<dyn CommandType>> = vec![kind];
        let producer = Producer::new(&settings(&cluster), &types, 0).unwrap();
        Self { cluster, types, producer, consumer }
    }

    /// One transaction of one record of so many bytes.
    fn write(&self, bytes: usize) -> Result<(), Failure> {
        let fail_points = FailPoints::default();
        let mut transaction = self.producer.begin(&fail_points)?;
        transaction.sink(0).send(OutRecord {
            topic: Topic::Events,
            partition: 1,
            key: Some(b"acc-1"),
            value: Some(&vec![7; bytes]),
            headers: &Headers::default(),
            timestamp_ms: 1,
        });
        transaction.commit(|| {
            let mut offsets = TopicPartitionList::new();
            offsets.add_partition_offset(self.types[0].topic(Topic::Commands), 1, Offset::Offset(5))?;
            Ok(FencedOffsets { offsets, metadata: Arc::new(self.consumer.group_metadata().unwrap()) })
        })
    }

    fn refuse(&self, request: Api, times: usize, answer: Answer) {
        self.cluster.request_errors(request, &vec![answer; times]);
    }

    /// After a clean abort the same producer goes on, at the second attempt at the latest (see `write_again`).
    fn goes_on(&self) {
        match self.write(10) {
            Err(Failure::Abort(_)) => self.write(10).unwrap(),
            result => result.unwrap(),
        }
    }
}

#[test]
fn passing_troubles_of_brokers_are_ridden_out() {
    let bench = Bench::new();
    bench.goes_on();
    for (request, answer) in [
        (Api::Produce, Answer::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS),
        (Api::Produce, Answer::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION),
        (Api::AddPartitionsToTxn, Answer::RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS),
        (Api::AddPartitionsToTxn, Answer::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS),
        (Api::AddOffsetsToTxn, Answer::RD_KAFKA_RESP_ERR_NOT_COORDINATOR),
        (Api::TxnOffsetCommit, Answer::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS),
        (Api::EndTxn, Answer::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE),
    ] {
        bench.refuse(request, 2, answer);
        assert!(bench.write(10).is_ok(), "{request:?} {answer:?}");
    }
}

#[test]
fn g01_a_refused_generation_aborts_and_is_told_from_other_aborts() {
    let bench = Bench::new();
    for answer in [
        Answer::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
        Answer::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
        Answer::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID,
    ] {
        bench.refuse(Api::TxnOffsetCommit, 1, answer);
        let failure = bench.write(10).unwrap_err();
        assert!(matches!(failure, Failure::Refused(_)), "{answer:?}: {failure:?}");
        bench.goes_on();
    }
}

#[test]
fn a_partition_that_can_not_be_written_is_named() {
    let bench = Bench::new();
    bench.goes_on();
    // For longer than a record may take.
    bench.refuse(Api::Produce, 10_000, Answer::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS);
    let failure = bench.write(10).unwrap_err();
    let Failure::Unavailable(partitions, _) = &failure else { panic!("{failure:?}") };
    assert_eq!(partitions, &[("bank-account.events".to_owned(), 1)]);
    bench.cluster.clear_request_errors(Api::Produce);
    bench.goes_on();
}

#[test]
fn g13_a_record_that_is_refused_for_its_own_sake_is_poison() {
    let bench = Bench::new();
    // Too large for the client.
    let failure = bench.write(3 << 20).unwrap_err();
    assert!(matches!(failure, Failure::Poison(_)), "{failure:?}");
    bench.goes_on();
    // Refused by the broker, whose topic was made with a lower limit than ours.
    for answer in [Answer::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Answer::RD_KAFKA_RESP_ERR_INVALID_RECORD] {
        bench.refuse(Api::Produce, 1, answer);
        let failure = bench.write(10).unwrap_err();
        assert!(matches!(failure, Failure::Poison(_)), "{answer:?}: {failure:?}");
        bench.goes_on();
    }
}

#[test]
fn g01_a_fenced_producer_is_done_for() {
    for (request, answer) in [
        (Api::EndTxn, Answer::RD_KAFKA_RESP_ERR_PRODUCER_FENCED),
        (Api::AddPartitionsToTxn, Answer::RD_KAFKA_RESP_ERR_PRODUCER_FENCED),
        (Api::AddOffsetsToTxn, Answer::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH),
        (Api::TxnOffsetCommit, Answer::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING),
        (Api::EndTxn, Answer::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED),
    ] {
        let bench = Bench::new();
        bench.goes_on();
        bench.refuse(request, 1, answer);
        let failure = bench.write(10).unwrap_err();
        assert!(matches!(failure, Failure::Unknown(_)), "{request:?} {answer:?}: {failure:?}");
    }
}

#[test]
fn g15_a_group_coordinator_that_is_gone_holds_nobody_up_for_ever() {
    let mut bench = Bench::of(2);
    let group_at = |broker| bench.cluster.coordinator(MockCoordinator::Group("group".into()), broker).unwrap();
    let of_producer = MockCoordinator::Transaction(Names::default().transactional_id("test", 0));
    bench.cluster.coordinator(of_producer, 1).unwrap();
    bench.cluster.partition_leader(bench.types[0].topic(Topic::Events), 1, Some(1)).unwrap();
    group_at(2);
    bench.goes_on();
    bench.cluster.broker_down(2).unwrap();
    group_at(1);
    let begun = Instant::now();
    let failure = bench.write(10).unwrap_err();
    // Another reason means that librdkafka keeps to its time-out: then `offsets.rs` is not needed any more.
    assert!(matches!(&failure, Failure::Unknown(reason) if reason.contains("does not return")), "{failure:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    bench.producer = Producer::new(&settings(&bench.cluster), &bench.types, 0).unwrap();
    bench.goes_on();
}

#[test]
fn what_is_not_listed_is_fatal() {
    use rdkafka::error::KafkaError;
    for code in [Code::Unknown, Code::InvalidRequest, Code::Fenced, Code::InvalidTransactionalState, Code::NoEnt] {
        assert_eq!(classify(&KafkaError::MessageProduction(code)), Verdict::Fatal, "{code:?}");
    }
    assert_eq!(classify(&KafkaError::Canceled), Verdict::Fatal);
    assert_eq!(classify(&KafkaError::MessageProduction(Code::QueueFull)), Verdict::Retry);
    assert_eq!(classify(&KafkaError::Flush(Code::OperationTimedOut)), Verdict::Unknown);
    // An abort takes every record with it; none of them is to blame.
    for code in [Code::PurgeQueue, Code::PurgeInflight, Code::InvalidProducerEpoch, Code::Fatal] {
        assert_eq!(cause(code), Cause::Elsewhere, "{code:?}");
    }
}

/// Sends one event a command, of as many bytes as the command says, and panics when it says nothing.
struct Scripted {
    slot: Slot,
    batch: Vec<i64>,
    log: Log,
    unstored: usize,
    storing: bool,
}

impl Scripted {
    fn new(slot: Slot, log: &Log) -> Self {
        Self { slot, batch: Vec::new(), log: log.clone(), unstored: 0, storing: false }
    }
}

/// Offsets that were committed, and the reasons of those that were condemned.
type Log = Arc<Mutex<(Vec<(Slot, i64)>, Vec<(Slot, i64, String)>)>>;

impl Decider for Scripted {
    fn decide(&mut self, record: &CommandRecord, _: Timestamp, sink: &mut dyn Sink) -> Result<(), Held> {
        let bytes: usize = std::str::from_utf8(record.value().unwrap()).unwrap().parse().unwrap();
        self.batch.push(record.offset);
        sink.send(OutRecord {
            topic: Topic::Events,
            partition: self.slot.partition,
            key: Some(b"acc-1"),
            value: Some(&vec![7; bytes]),
            headers: &Headers::default(),
            timestamp_ms: 1,
        });
        Ok(())
    }

    fn condemn(&mut self, record: &CommandRecord, reason: &str, _: bool, _: Timestamp, _: &mut dyn Sink) {
        self.batch.push(record.offset);
        self.log.lock().unwrap().1.push((self.slot, record.offset, reason.to_owned()));
    }

    fn commit(&mut self, _: Timestamp) {
        self.log.lock().unwrap().0.extend(self.batch.drain(..).map(|offset| (self.slot, offset)));
    }

    fn rollback(&mut self) {
        self.batch.clear();
    }

    fn events_since_checkpoint(&self) -> u64 {
        0
    }

    fn begin_checkpoint(&mut self, _: i64) {
        unreachable!("there is never one due")
    }

    fn is_snapshotting(&self) -> bool {
        false
    }

    fn send_snapshots(&mut self, _: Timestamp, _: &mut dyn Sink) {
        unreachable!("none is under way")
    }

    fn give_snapshots_up(&mut self, _: &str) {
        unreachable!("none is under way")
    }

    fn is_full(&self) -> bool {
        false
    }

    fn next_due(&self) -> Option<Timestamp> {
        None
    }

    fn release_due(&mut self, _: Timestamp, _: &mut dyn Sink) {
        unreachable!("nothing waits")
    }

    fn scheduled(&self) -> (usize, usize) {
        (0, 0)
    }

    fn unstored(&self) -> usize {
        self.unstored
    }

    fn is_storing(&self) -> bool {
        self.storing
    }

    fn begin_store_commit(&mut self, _: i64, _: i64, _: i64) {
        unreachable!("there is none")
    }

    fn tend(&mut self, _: Timestamp) -> bool {
        false
    }

    fn stored_up_to(&mut self, _: (i64, i64), _: i64) -> Option<(i64, i64)> {
        None
    }

    fn restore(&mut self, _: Topic, _: &Stored<'_>, _: Timestamp) -> Result<(), RestoreError> {
        unreachable!("nothing is restored")
    }

    fn first_event_to_read(&mut self, _: i64, _: i64) -> Result<i64, RestoreError> {
        unreachable!("nothing is restored")
    }

    fn decided_up_to(&self) -> Option<i64> {
        None
    }

    fn sizes(&self) -> (usize, usize) {
        (0, 0)
    }
}

fn writer(bench: &Bench) -> (Writer, Receiver<ToIntake>) {
    let (_, inbox) = channel::<ToWriter>();
    let (intake, from_writer) = channel();
    let writer = Writer {
        number: 0,
        types: bench.types.clone().into(),
        captures: Captures::default(),
        producer: settings(&bench.cluster),
        batch_commands: 512,
        rhythm: Rhythm { snapshot_events: u64::MAX, snapshot_interval: Duration::MAX, store_interval: Duration::MAX },
        inbox,
        intake,
        fail_points: FailPoints::default(),
    };
    (writer, from_writer)
}

#[test]
fn g13_the_commands_to_blame_are_found_by_halving_and_the_others_are_decided_once() {
    let bench = Bench::new();
    let (writer, _from_writer) = writer(&bench);
    let log = Log::default();
    let mut served = HashMap::new();
    let numbers = [1, 2];
    for (partition, number) in numbers.into_iter().enumerate() {
        let slot = Slot { kind: 0, partition: partition as i32 };
        let grant = Arc::new(Grant::new(number, slot, bench.types[0].topic(Topic::Commands)));
        let decider = Scripted::new(slot, &log);
        let mut partition = Served::new(grant, Box::new(decider), 0);
        for offset in 0..100 {
            let value = match (slot.partition, offset) {
                (0, 17) => "not a number: it panics",
                (0, 18) => "3000000",
                _ => "10",
            };
            partition.queue.push_back(CommandRecord::new(offset, None, None, Some(value.as_bytes()), [].into_iter()));
        }
        served.insert(slot, partition);
    }
    writer.captures.renew(numbers.into_iter(), bench.consumer.group_metadata().unwrap());
    for _ in 0..10 {
        let batch = writer.assemble(&served);
        if batch.is_empty() {
            break;
        }
        writer.work(&bench.producer, &batch, &mut served).unwrap();
    }
    let log = log.lock().unwrap();
    let condemned: Vec<_> = log.1.iter().map(|(slot, offset, _)| (slot.partition, *offset)).collect();
    assert_eq!(condemned, [(0, 17), (0, 18)], "{:?}", log.1);
    for partition in 0..2 {
        let offsets: Vec<_> = log.0.iter().filter(|(slot, _)| slot.partition == partition).map(|(_, at)| *at).collect();
        assert_eq!(offsets, (0..100).collect::<Vec<_>>());
    }
}

#[test]
fn g16_one_store_is_written_at_a_time_and_who_lacks_much_waits_for_it() {
    let of = |lacks: &[(usize, bool)]| -> HashMap<Slot, Served> {
        let served = (0..).zip(lacks).map(|(partition, (unstored, storing))| {
            let slot = Slot { kind: 0, partition };
            let decider = Scripted { unstored: *unstored, storing: *storing, ..Scripted::new(slot, &Log::default()) };
            (slot, Served::new(Arc::new(Grant::new(1, slot, "commands")), Box::new(decider), 0))
        });
        served.collect()
    };
    let rhythm = Rhythm { snapshot_events: 1, snapshot_interval: Duration::MAX, store_interval: Duration::MAX };
    let next = |served| rhythm.next_store(&served).map(|slot| slot.partition);
    assert_eq!(next(of(&[(20_000, false), (100_000, false), (30_000, false)])), Some(1), "it lacks most");
    assert_eq!(next(of(&[(100, false)])), None, "the interval has not passed");
    assert_eq!(next(of(&[(100_000, false), (0, true)])), None, "another one is being written");
    let waits = |served: &HashMap<Slot, Served>| {
        let mut waiting: Vec<i32> = Vec::new();
        waiting.extend(served.iter().filter(|(_, one)| waits_for_stores(one, served)).map(|(slot, _)| slot.partition));
        waiting
    };
    assert_eq!(waits(&of(&[(100_000, false), (30_000, true)])), [0]);
    assert_eq!(waits(&of(&[(100_000, false), (30_000, false)])), [0; 0], "it is its turn");
    let mut served = of(&[(100_000, false), (30_000, true)]);
    served.get_mut(&Slot { kind: 0, partition: 0 }).unwrap().store_ends = Some((0, 0));
    assert_eq!(waits(&served), [0; 0], "a transaction is to begin it");
}
