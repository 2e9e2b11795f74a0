//! A plain member of a consumer group, which only holds partitions: what Kafka itself needs to notice a death.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use millrace_tests::{
    Deployment, Stack, eventually_within,
    process::{Process, binary, command},
};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};

const POLL_WAIT: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(60);

/// What a member is told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Kafka.
    #[arg(long)]
    pub bootstrap: String,
    /// Consumer group.
    #[arg(long)]
    pub group: String,
    /// Topic.
    #[arg(long)]
    pub topic: String,
    /// Session time-out.
    #[arg(long)]
    pub session_timeout_ms: u64,
}

impl Options {
    /// The same settings of the group as the service has.
    fn join(&self) -> Result<BaseConsumer> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", &self.group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", self.session_timeout_ms.to_string())
            .set("heartbeat.interval.ms", (self.session_timeout_ms / 4).min(1000).to_string())
            .set("enable.auto.commit", "false")
            .create()?;
        consumer.subscribe(&[&self.topic])?;
        Ok(consumer)
    }
}

/// Holds partitions until killed.
pub fn run(options: &Options) -> Result<()> {
    let consumer = options.join()?;
    loop {
        if let Some(Err(error)) = consumer.poll(POLL_WAIT) {
            eprintln!("member: {error}");
        }
    }
}

/// A group of two: one is killed, the other watches.
pub struct Pair {
    options: Options,
    victim: Option<Process>,
    /// Partitions that the survivor holds, and since when.
    held: Arc<Mutex<(usize, Instant)>>,
}

impl Pair {
    /// The one that survives; it has all partitions to begin with.
    pub fn start(deployment: &Deployment, session_timeout_ms: u64) -> Result<Self> {
        let (bootstrap, group) = (Stack::shared().kafka.clone(), format!("{}.raw-pair", deployment.prefix));
        let options = Options { bootstrap, group, topic: deployment.topic("commands"), session_timeout_ms };
        let (consumer, held) = (options.join()?, Arc::new(Mutex::new((0, Instant::now()))));
        let told = held.clone();
        thread::Builder::new().name("survivor".into()).spawn(move || {
            // Ends with the process; errors are those of brokers that come and go.
            loop {
                consumer.poll(POLL_WAIT);
                let count = consumer.assignment().map_or(0, |assignment| assignment.count());
                let mut held = told.lock().unwrap_or_else(PoisonError::into_inner);
                if held.0 != count {
                    *held = (count, Instant::now());
                }
            }
        })?;
        Ok(Self { options, victim: None, held })
    }

    fn held(&self) -> (usize, Instant) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the one that will be killed, and waits until each has half of the partitions.
    pub fn start_victim(&mut self, partitions: usize) {
        let Options { bootstrap, group, topic, session_timeout_ms } = &self.options;
        let mut member = command(binary("millrace-bench"));
        member.args(["member", "--bootstrap", bootstrap, "--group", group, "--topic", topic]);
        member.args(["--session-timeout-ms", &session_timeout_ms.to_string()]);
        self.victim = Some(Process::start(&member, &Stack::shared().log(group)));
        eventually_within(LIMIT, "half of the partitions at each member", || match self.held().0 {
            held if held == partitions / 2 => Ok(()),
            held => Err(format!("the first has {held}")),
        });
    }

    /// Kills the one.
    pub fn kill(&mut self) -> Result<()> {
        self.victim.as_mut().context("there is one to be killed")?.signal(nix::sys::signal::Signal::SIGKILL);
        Ok(())
    }

    /// Waits until the other has all partitions; returns when that was.
    pub fn all_at_survivor(&self, partitions: usize) -> Instant {
        eventually_within(LIMIT, "all partitions at the survivor", || match self.held() {
            (held, since) if held == partitions => Ok(since),
            (held, _) => Err(format!("it has {held}")),
        })
    }
}
