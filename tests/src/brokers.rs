//! The brokers of this program's stack: who leads what, and how to hurt them.

use std::{
    fs,
    path::Path,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
    metadata::Metadata,
};

use crate::{Stack, eventually, eventually_within};

const ASK_LIMIT: Duration = Duration::from_secs(5);
/// How long brokers may take until all are back in step: the controllers miss a silent one after 9 s, and let it back
/// only then.
const IN_SYNC_LIMIT: Duration = Duration::from_secs(60);

/// The brokers, which one test at a time may hurt.
#[derive(Debug)]
pub struct Brokers(#[expect(dead_code, reason = "held, not read")] RwLockWriteGuard<'static, ()>);

/// The brokers, which nobody hurts meanwhile.
#[derive(Debug)]
pub struct WellBrokers(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'static, ()>);

static TAKEN: RwLock<()> = RwLock::new(());

/// One broker, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broker(i32);

/// A broker that is frozen until this is dropped.
#[derive(Debug)]
pub struct Frozen(Pid);

impl Brokers {
    /// Waits for one's turn, and until all brokers are well.
    #[track_caller]
    pub fn take() -> Self {
        let brokers = Self(TAKEN.write().unwrap_or_else(PoisonError::into_inner));
        brokers.wait_in_sync();
        brokers
    }

    /// Waits for those who hurt them, and until all are well; others may share them.
    #[track_caller]
    pub fn share() -> WellBrokers {
        let brokers = WellBrokers(TAKEN.read().unwrap_or_else(PoisonError::into_inner));
        wait_in_sync();
        brokers
    }

    /// All of them.
    pub fn all(&self) -> Vec<Broker> {
        (1..).take(count()).map(Broker).collect()
    }

    /// Who leads a partition.
    #[track_caller]
    pub fn leader_of(&self, topic: &str, partition: i32) -> Broker {
        eventually(&format!("leader of {topic}/{partition}"), || {
            let metadata = ask(Some(topic))?;
            let topic = metadata.topics().first().ok_or("no such topic")?;
            let found = topic.partitions().iter().find(|found| found.id() == partition).ok_or("no such partition")?;
            if found.leader() > 0 { Ok(Broker(found.leader())) } else { Err("there is none".to_owned()) }
        })
    }

    /// How many partitions of a topic a broker leads.
    #[track_caller]
    pub fn led_by(&self, broker: Broker, topic: &str) -> usize {
        eventually(&format!("leaders of {topic}"), || {
            let metadata = ask(Some(topic))?;
            let topic = metadata.topics().first().ok_or("no such topic")?;
            Ok(topic.partitions().iter().filter(|partition| partition.leader() == broker.0).count())
        })
    }

    /// Who coordinates the transactions of an id.
    #[track_caller]
    pub fn transaction_coordinator(&self, transactional_id: &str) -> Broker {
        self.coordinator("__transaction_state", transactional_id)
    }

    /// Who coordinates a consumer group.
    #[track_caller]
    pub fn group_coordinator(&self, group: &str) -> Broker {
        self.coordinator("__consumer_offsets", group)
    }

    fn coordinator(&self, topic: &str, name: &str) -> Broker {
        let partitions = eventually(&format!("partitions of {topic}"), || {
            let metadata = ask(Some(topic))?;
            let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
            i32::try_from(count).ok().filter(|count| *count > 0).ok_or_else(|| "there are none".to_owned())
        });
        // As Java has it: String.hashCode, without the sign.
        let hash = name.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(i32::from(byte)));
        self.leader_of(topic, (hash & i32::MAX) % partitions)
    }

    /// Waits until every broker is there and has every record.
    #[track_caller]
    pub fn wait_in_sync(&self) {
        wait_in_sync();
    }
}

impl Broker {
    /// Its place among all.
    pub fn index(self) -> usize {
        usize::try_from(self.0 - 1).expect("numbers begin at one")
    }

    /// kill -9. It is started again by `millrace-local`.
    #[track_caller]
    pub fn kill(self) {
        self.end(Signal::SIGKILL);
    }

    /// SIGTERM: it hands its partitions over first. It is started again by `millrace-local`.
    #[track_caller]
    pub fn terminate(self) {
        self.end(Signal::SIGTERM);
    }

    #[track_caller]
    fn end(self, signal: Signal) {
        let pid = self.pid();
        kill(pid, signal).expect("a broker can be signalled");
        eventually(&format!("end of broker {}", self.0), || match self.find() {
            Some(now) if now == pid => Err("it still runs".to_owned()),
            _ => Ok(()),
        });
    }

    /// SIGSTOP, until the answer is dropped.
    #[track_caller]
    pub fn freeze(self) -> Frozen {
        let pid = self.pid();
        kill(pid, Signal::SIGSTOP).expect("a broker can be signalled");
        Frozen(pid)
    }

    /// Its process; waits while it is being started again.
    #[track_caller]
    fn pid(self) -> Pid {
        eventually(&format!("process of broker {}", self.0), || self.find().ok_or_else(|| "there is none".to_owned()))
    }

    fn find(self) -> Option<Pid> {
        let config = format!("kafka/server-{}.properties", self.0);
        let data = Stack::shared().dir.join("data");
        let processes = fs::read_dir("/proc").expect("the kernel lists processes").flatten();
        processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw).find(|pid| {
            let own = Path::new("/proc").join(pid.to_string());
            let args = fs::read(own.join("cmdline")).unwrap_or_default();
            let mut args = args.split(|byte| *byte == 0);
            args.any(|arg| arg == config.as_bytes()) && fs::read_link(own.join("cwd")).is_ok_and(|dir| dir == data)
        })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that was killed meanwhile needs no waking.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

fn count() -> usize {
    Stack::shared().kafka.split(',').count()
}

#[track_caller]
fn wait_in_sync() {
    eventually_within(IN_SYNC_LIMIT, "brokers in step", || {
        let metadata = ask(None)?;
        if metadata.brokers().len() < count() {
            return Err(format!("{} of {} brokers are there", metadata.brokers().len(), count()));
        }
        let partitions =
            metadata.topics().iter().flat_map(|topic| topic.partitions().iter().map(move |p| (topic.name(), p)));
        for (topic, partition) in partitions {
            if partition.leader() < 1 || partition.isr().len() < partition.replicas().len() {
                return Err(format!("{topic}/{} has {:?} in sync", partition.id(), partition.isr()));
            }
        }
        Ok(())
    });
}

fn ask(topic: Option<&str>) -> Result<Metadata, String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &Stack::shared().kafka)
        .set("group.id", "millrace-tests-brokers")
        // A frozen broker accepts connections and never answers.
        .set("socket.timeout.ms", "1000")
        .create()
        .map_err(|error| error.to_string())?;
    consumer.fetch_metadata(topic, ASK_LIMIT).map_err(|error| error.to_string())
}
