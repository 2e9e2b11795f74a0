//! The scene of what is queried: views of a bank in Redis, all three services, and one account with a long past.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use millrace_shared::views::{Keys, versions};
use millrace_tests::{Deployment, Stack, process::free_port, services::Service};
use redis::Connection;

use crate::{
    deposits::Deposits,
    groups::Settings,
    load::{Bank, account},
    progress,
    raw::{Sample, views::ViewSample},
    scene::Scene,
    views::{caught_up, clear, connection, sample_of},
};

/// Owners have so many accounts each where there are a million: as many as the index of an owner is read whole for.
const OWNERS: usize = 1_000;
/// Shares no divisor with the number of owners: each has some.
const DOLLARS: usize = 97;
/// The account with a long past.
pub const LONG: usize = 0;
/// The settings say how many streams one address may open.
const STREAMS: (&str, &str) = ("MILLRACE_MAX_STREAMS_PER_CALLER", "10000");

/// It.
pub struct Served {
    /// Topics and settings.
    pub deployment: Deployment,
    /// command-service.
    pub command: Service,
    /// projector-service, until it is stopped.
    projector: Option<Service>,
    /// query-service.
    pub query: Service,
    /// What command-service wrote for a deposit.
    pub sample: Sample,
    /// What projector-service wrote for it.
    pub view: ViewSample,
    /// Accounts.
    pub accounts: usize,
    /// Keys begin with it.
    pub redis_prefix: String,
}

/// The owner of an account. The first one has twice as many.
pub fn owner(number: usize) -> String {
    let number = number % OWNERS;
    format!("Owner {:03}", if number == 1 { 0 } else { number })
}

/// The currency: one account in [`DOLLARS`] has dollars.
fn currency(number: usize) -> &'static str {
    if number.is_multiple_of(DOLLARS) { "USD" } else { "EUR" }
}

impl Served {
    /// A bank of so many accounts, half of them with a deposit, all of the same amount; and one with so many events.
    pub fn start(settings: &Settings, accounts: usize, long: usize) -> Result<Self> {
        progress(format_args!("query: opening {accounts} accounts"));
        let openings = (0..accounts.min(DOLLARS * OWNERS)).map(|number| (owner(number), currency(number)));
        let bank = Bank::uniform(0, accounts, Scene::PARTITIONS).with_openings(openings);
        let Scene { deployment, service, bank, sample, .. } = Scene::with(settings, None, bank, &[STREAMS])?;
        let mut deposits = Deposits::new(&deployment, bank, &sample)?;
        deposits.write(accounts / 2)?;
        deposits.write_into(LONG, long.saturating_sub(deposits.sequence(LONG) as usize))?;
        progress(format_args!("query: projecting {} events", deposits.written()));
        let redis_prefix = format!("{}.", deployment.prefix);
        let projector = caught_up(&deployment, &redis_prefix, &["bank-accounts", "owners"])?;
        let view = sample_of(&redis_prefix)?;
        let query = deployment.query_service();
        query.wait_for_views();
        Ok(Self {
            deployment,
            command: service,
            projector: Some(projector),
            query,
            sample,
            view,
            accounts,
            redis_prefix,
        })
    }

    /// Ends projector-service and command-service.
    pub fn stop_writing(&mut self) {
        self.projector = None;
        self.command.terminate();
    }

    /// A query-service of its own.
    pub fn another_query_service(&self) -> Service {
        let query = self.deployment.query_service_at(free_port());
        query.wait_for_views();
        query
    }

    /// The path of an account.
    pub fn path(number: usize) -> String {
        format!("/v1/bank-accounts/{}", account(number))
    }

    /// Writes changes to the feeds as projector-service does, but of nothing that has happened. It must have been stopped.
    pub fn feeds(&self) -> Result<Feeds> {
        let mut redis = connection(&Stack::shared().redis)?;
        let mut feeds = Vec::new();
        for partition in 0..Scene::PARTITIONS {
            let keys = Keys::projection(&self.redis_prefix, "bank-accounts", versions::FIRST, partition);
            let last: Vec<(String, Vec<(String, String)>)> =
                redis::cmd("XREVRANGE").arg(keys.changes()).arg("+").arg("-").arg("COUNT").arg(1).query(&mut redis)?;
            let offset = last.first().and_then(|(id, _)| id.split_once('-')?.0.parse::<u64>().ok()).unwrap_or(0);
            let number = (0..self.accounts).find(|number| Scene::partition_of(&account(*number)) == partition);
            feeds.push(Feed { key: keys.changes(), offset, id: account(number.context("every partition has some")?) });
        }
        Ok(Feeds { redis, feeds, sample: self.view.clone() })
    }

    /// Ends the services and deletes topics and keys.
    pub fn stop(self) -> Result<()> {
        let prefix = self.redis_prefix.clone();
        drop(self);
        clear(&prefix)
    }
}

/// Where a service listens.
pub fn address(service: &Service) -> Result<SocketAddr> {
    Ok(service.url().trim_start_matches("http://").parse()?)
}

/// The feeds of all partitions.
pub struct Feeds {
    redis: Connection,
    feeds: Vec<Feed>,
    sample: ViewSample,
}

struct Feed {
    key: String,
    offset: u64,
    /// An account of that partition.
    id: String,
}

impl Feeds {
    /// Adds changes, at once for all readers. Returns how long it took.
    pub fn add(&mut self, count: usize) -> Result<Duration> {
        let begin = Instant::now();
        let mut pipe = redis::pipe();
        pipe.atomic();
        let partitions = self.feeds.len();
        for at in 0..count {
            let feed = &mut self.feeds[at * partitions / count];
            feed.offset += 1;
            let add = pipe.cmd("XADD").arg(&feed.key).arg("MAXLEN").arg("~").arg(self.sample.changes_window);
            add.arg(format!("{}-1", feed.offset)).arg("id").arg(&feed.id);
            for (name, value) in self.sample.change.iter().filter(|(name, _)| name != "id") {
                add.arg(name).arg(value);
            }
            add.ignore();
        }
        pipe.query::<()>(&mut self.redis)?;
        Ok(begin.elapsed())
    }
}
