//! The scene of what is projected: a log of events, a projector-service that has caught up with it, and the raw client.

use std::{cell::RefCell, fs};

use anyhow::{Context, Result, ensure};
use millrace_shared::views::{Keys, meta, versions};
use millrace_tests::{
    Deployment, Stack,
    process::{Process, binary, command},
    services::Service,
    tool::Ran,
};
use redis::Connection;

use crate::{
    deposits::Deposits,
    groups::Settings,
    kafka,
    load::{Bank, account},
    progress,
    raw::{
        views::{Options, ViewSample, keys},
        writers,
    },
    scene::Scene,
    side::Side,
};

/// Nobody may lose the group while it is frozen.
const SESSION_TIMEOUT_MS: &str = "300000";
/// The service's defaults.
pub const BATCH_EVENTS: usize = 512;
const CHANGES_WINDOW: u32 = 10_000;

/// It.
pub struct Views {
    /// Topics and settings.
    pub deployment: Deployment,
    /// Writes events.
    pub deposits: Deposits,
    /// The service.
    pub projector: Service,
    /// What it wrote.
    pub sample: ViewSample,
    redis_prefix: String,
}

impl Views {
    /// A bank of so many accounts, so many events in all, and a projector that has them.
    pub fn start(settings: &Settings, accounts: usize, events: usize) -> Result<Self> {
        progress(format_args!("project: opening {accounts} accounts, writing {events} events"));
        let bank = Bank::new(0, accounts, Scene::PARTITIONS);
        let session = &[("MILLRACE_SESSION_TIMEOUT_MS", SESSION_TIMEOUT_MS)];
        let Scene { deployment, mut service, bank, sample, .. } = Scene::with(settings, None, bank, session)?;
        service.terminate();
        let mut deposits = Deposits::new(&deployment, bank, &sample)?;
        deposits.write(events.saturating_sub(accounts + 1))?;
        progress(format_args!("project: projecting them for the first time"));
        let redis_prefix = format!("{}.", deployment.prefix);
        // As the raw client, which does the work of one.
        let deployment = deployment.with("MILLRACE_ONLY_PROJECTION", "bank-accounts");
        let projector = caught_up(&deployment, &redis_prefix, &["bank-accounts"])?;
        let sample = sample_of(&redis_prefix)?;
        Ok(Self { deployment, deposits, projector, sample, redis_prefix })
    }

    /// Where the log ends, over all partitions.
    pub fn end(&self) -> Result<u64> {
        end(&self.deployment)
    }

    /// How far the service is with a version.
    pub fn checkpoints(&self, version: u32) -> Result<Checkpoints> {
        let keys = |partition| Keys::projection(&self.redis_prefix, "bank-accounts", version, partition);
        Checkpoints::new(&Stack::shared().redis, keys)
    }

    /// The service, as far as it is with a version.
    pub fn ours(&mut self, version: u32) -> Result<Side> {
        let checkpoints = self.checkpoints(version)?;
        Ok(Side::by(self.projector.process(), move || checkpoints.done()))
    }

    /// How far it is with the version that answers.
    pub fn checkpoints_now(&self) -> Result<Checkpoints> {
        self.checkpoints(self.versions()?.1.active)
    }

    /// It, as far as it is with the version that answers.
    pub fn ours_now(&mut self) -> Result<Side> {
        self.ours(self.versions()?.1.active)
    }

    /// Lets the service bring up another version from nothing, as soon as it runs. Returns its number.
    pub fn list_another(&self) -> Result<u32> {
        let (key, versions) = self.versions()?;
        let number = versions.states.keys().max().map_or(versions::FIRST, |last| last + 1);
        let mut redis = connection(&Stack::shared().redis)?;
        let mut set = redis::cmd("HSET");
        set.arg(key).arg(versions::ACTIVE).arg(versions.active);
        for version in [versions.active, number] {
            set.arg(version).arg(versions::State::Following.name());
        }
        set.query::<()>(&mut redis)?;
        Ok(number)
    }

    /// Frees all versions but the one that answers, by the tool that users have.
    pub fn free(&self) -> Result<()> {
        let Ran { code, errors, .. } = self.deployment.run_projector_tool(&["rebuild", "bank-accounts", "--drop-old"]);
        ensure!(code == Some(0), "versions can't be freed: {errors}");
        Ok(())
    }

    /// Bytes of Redis for the history of a version, and entries in it.
    pub fn history(&self) -> Result<(u64, u64)> {
        let (_, versions) = self.versions()?;
        let mut redis = connection(&Stack::shared().redis)?;
        let (mut bytes, mut entries) = (0, 0);
        for number in 0..self.deposits.accounts() {
            let id = account(number);
            let partition = self.deployment.partition_of(&id);
            let keys = Keys::projection(&self.redis_prefix, "bank-accounts", versions.active, partition);
            let mut pipe = redis::pipe();
            pipe.cmd("MEMORY").arg("USAGE").arg(keys.history(&id)).arg("SAMPLES").arg(0);
            pipe.cmd("LLEN").arg(keys.history(&id));
            let (of_one, length): (u64, u64) = pipe.query(&mut redis)?;
            bytes += of_one;
            entries += length;
        }
        Ok((bytes, entries))
    }

    fn versions(&self) -> Result<(String, versions::Versions)> {
        let key = versions::key(&self.redis_prefix, "bank-accounts");
        let fields: Vec<(String, String)> =
            redis::cmd("HGETALL").arg(&key).query(&mut connection(&Stack::shared().redis)?)?;
        let versions = versions::Versions::read(fields).map_err(anyhow::Error::msg)?;
        Ok((key, versions))
    }

    /// Ends the service and deletes topics and keys.
    pub fn stop(self) -> Result<()> {
        let prefix = self.redis_prefix.clone();
        drop(self);
        clear(&prefix)
    }
}

/// A projector that has all that is in the log, in these projections.
pub fn caught_up(deployment: &Deployment, redis_prefix: &str, projections: &[&str]) -> Result<Service> {
    let mut projector = deployment.projector_service("bench");
    let target = end(deployment)?;
    for projection in projections {
        let checkpoints = Checkpoints::new(&Stack::shared().redis, |partition| {
            Keys::projection(redis_prefix, projection, versions::FIRST, partition)
        })?;
        Side::by(projector.process(), move || checkpoints.done()).wait(target)?;
    }
    Ok(projector)
}

/// Deletes a deployment's topics and all keys.
pub fn clear(redis_prefix: &str) -> Result<()> {
    redis::cmd("FLUSHDB").arg("ASYNC").query::<()>(&mut connection(&Stack::shared().redis)?)?;
    kafka::delete(redis_prefix)
}

/// A connection to Redis.
pub fn connection(url: &str) -> Result<Connection> {
    Ok(redis::Client::open(url)?.get_connection()?)
}

/// Bytes that Redis holds.
pub fn redis_bytes() -> Result<u64> {
    let info: String = redis::cmd("INFO").arg("memory").query(&mut connection(&Stack::shared().redis)?)?;
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).context("Redis tells its memory")?;
    Ok(line.trim().parse()?)
}

fn end(deployment: &Deployment) -> Result<u64> {
    let ends = (0..deployment.partitions).map(|partition| kafka::end(&deployment.topic("events"), partition));
    ends.sum()
}

/// What the service wrote for a deposit into the account that had most.
pub fn sample_of(redis_prefix: &str) -> Result<ViewSample> {
    let id = account(0);
    let keys = Keys::projection(redis_prefix, "bank-accounts", versions::FIRST, Scene::partition_of(&id));
    let mut redis = connection(&Stack::shared().redis)?;
    let view = redis::cmd("GET").arg(keys.view(&id)).query(&mut redis)?;
    let entry = redis::cmd("LINDEX").arg(keys.history(&id)).arg(-1).query(&mut redis)?;
    let mut last = redis::cmd("XREVRANGE");
    last.arg(keys.changes()).arg("+").arg("-").arg("COUNT").arg(1);
    let changes: Vec<(String, Vec<(String, String)>)> = last.query(&mut redis)?;
    let (_, change) = changes.into_iter().next().context("there are changes")?;
    let counters: Vec<(String, String)> = redis::cmd("HGETALL").arg(keys.counters()).query(&mut redis)?;
    let counters = counters.into_iter().filter(|(name, _)| name.starts_with("currencies/")).collect();
    Ok(ViewSample { view, entry, change, counters, changes_window: CHANGES_WINDOW })
}

/// The checkpoints of a projection's partitions.
pub struct Checkpoints {
    connection: RefCell<Connection>,
    keys: Vec<String>,
}

impl Checkpoints {
    fn new(url: &str, keys: impl Fn(i32) -> Keys) -> Result<Self> {
        let keys = (0..Scene::PARTITIONS).map(|partition| keys(partition).meta()).collect();
        Ok(Self { connection: RefCell::new(connection(url)?), keys })
    }

    /// Of each partition.
    pub fn offsets(&self) -> Result<Vec<u64>> {
        let mut pipe = redis::pipe();
        for key in &self.keys {
            pipe.cmd("HGET").arg(key).arg(meta::OFFSET);
        }
        let offsets: Vec<Option<u64>> = pipe.query(&mut *self.connection.borrow_mut())?;
        Ok(offsets.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Their sum.
    pub fn done(&self) -> Result<u64> {
        Ok(self.offsets()?.into_iter().sum())
    }
}

/// The raw client, writing to a database of its own.
pub struct RawViews {
    /// Its process.
    pub process: Process,
    redis: String,
    redis_prefix: String,
}

impl RawViews {
    /// Starts one on the log of a scene.
    pub fn start(views: &Views, name: &str) -> Result<Self> {
        let stack = Stack::shared();
        let redis = format!("{}/1", stack.redis);
        let options = Options {
            bootstrap: stack.kafka.clone(),
            topic: views.deployment.topic("events"),
            partitions: views.deployment.partitions,
            redis: redis.clone(),
            redis_prefix: views.redis_prefix.clone(),
            writers: writers(),
            batch_events: BATCH_EVENTS,
            sample: views.sample.clone(),
        };
        let file = stack.dir.join(format!("{name}.json"));
        fs::write(&file, serde_json::to_vec(&options)?).with_context(|| format!("writing {}", file.display()))?;
        let mut raw = command(binary("millrace-bench"));
        raw.arg("raw-views").arg(file);
        let process = Process::start(&raw, &stack.log(name));
        Ok(Self { process, redis, redis_prefix: views.redis_prefix.clone() })
    }

    /// How far it is.
    pub fn checkpoints(&self) -> Result<Checkpoints> {
        Checkpoints::new(&self.redis, |partition| keys(&self.redis_prefix, partition))
    }

    /// It, as far as it is.
    pub fn side(&self) -> Result<Side> {
        let checkpoints = self.checkpoints()?;
        Ok(Side::by(&self.process, move || checkpoints.done()))
    }

    /// Ends it and forgets what it wrote.
    pub fn stop(self) -> Result<()> {
        drop(self.process);
        Ok(redis::cmd("FLUSHDB").query(&mut connection(&self.redis)?)?)
    }
}
