//! `projector-service rebuild`: a projection's next version beside the one that answers, and the switch to it.
//!
//! The next version is `filling`: this process folds the log into it at full speed, with the workers that the service
//! has, but in large batches. When the end is reached it is `following`: the projectors take its partitions over from
//! their checkpoints. Once they keep up, a sample is compared with the log, and queries are switched over. Each step is
//! noted in Redis, so that a rebuild that was killed goes on where it was.

mod drop;
mod fill;
mod lock;
pub mod sample;
mod switch;

use std::{process::ExitCode, time::Duration};

use clap::Args;
use millrace_shared::{config, domain::Domains, serve::blocking};

use super::ToolSettings;
use crate::{app, crew::Means, events::Limits, projections::Kind, store};

/// It can't be done, or a setting is wrong.
const CANNOT: u8 = 2;
/// Redis may take so long for one of the large batches, whatever is set.
const LONGEST_ANSWER: Duration = Duration::from_secs(30);

/// Flags of `rebuild`.
#[derive(Args)]
#[command(
    after_help = "Exit status: 0 done; 1 the new version is built, and does not answer since it was found wrong or parks more than the present one; 2 it can't be \
    done, or a setting is wrong.\n\nMay be ended at any time: run again it goes on where it was."
)]
pub struct Arguments {
    /// Name of the projection, e.g. `bank-accounts`
    projection: String,
    /// Show which versions there are
    #[arg(long, group = "instead")]
    status: bool,
    /// Answer from the version before again, which was kept up to date
    #[arg(long, group = "instead")]
    rollback: bool,
    /// Free what doesn't answer: older versions, and those whose rebuild was given up
    #[arg(long, group = "instead")]
    drop_old: bool,
    /// Partitions that are filled at once
    #[arg(long, default_value_t = 2, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    fillers: u32,
    /// Records in one script call, at most: the more, the fewer writes for a view, and the longer others wait for Redis
    #[arg(long, default_value_t = 20_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch_records: u32,
    /// Memory for records that are being folded, in MiB
    #[arg(long, default_value_t = 192, value_name = "MIB", value_parser = clap::value_parser!(u32).range(16..=65_536))]
    memory_mib: u32,
    /// Aggregates compared with the log before the switch, about
    #[arg(long, default_value_t = 200, value_name = "COUNT")]
    sample: u32,
    /// Switch over although aggregates are parked in the new version that are not in the present one
    #[arg(long)]
    allow_parked: bool,
    /// Parked aggregates of one partition before the rebuild stops
    #[arg(long, env = "MILLRACE_PARKED_MAX", default_value_t = 1_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    parked_max: u32,
    /// As the service's own setting
    #[arg(long, env = "MILLRACE_HISTORY_MAX_ENTRIES", default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    history_max_entries: u32,
    #[command(flatten)]
    settings: ToolSettings,
}

/// Why it can't be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Kafka.
    #[error("Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// What it takes for a worker can't be made.
    #[error(transparent)]
    Service(#[from] app::Error),
    /// It must not be done as things are.
    #[error("{0}")]
    Refused(String),
}

/// What the steps share.
pub struct Rebuild {
    kind: Kind,
    means: Means,
    options: fill::Options,
    sample: u32,
    allow_parked: bool,
}

/// Runs it.
pub async fn run<D: Domains>(arguments: Arguments) -> ExitCode {
    arguments.settings.start_log();
    match blocking(move || work::<D>(&arguments)).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Error::Service(app::Error::Config(error))) => config::exit_with(&error),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(CANNOT)
        }
    }
}

fn work<D: Domains>(arguments: &Arguments) -> Result<bool, Error> {
    let Some(kind) = Kind::find::<D>(&arguments.projection) else {
        let all: Vec<&str> = Kind::all::<D>().iter().map(|kind| kind.name).collect();
        let text = format!("there is no projection {:?}, but {}", arguments.projection, all.join(", "));
        return Err(Error::Refused(text));
    };
    // No changes are written: nobody can have a place among those of a version that never answered.
    let limits = Limits {
        changes_window: 0,
        history_max: arguments.history_max_entries.into(),
        parked_max: arguments.parked_max as usize,
    };
    let mut means = arguments.settings.means(format!("millrace-rebuild-{}", std::process::id()), limits)?;
    means.redis_timeout = means.redis_timeout.max(LONGEST_ANSWER);
    let options = fill::Options {
        fillers: arguments.fillers,
        batch_records: arguments.batch_records as usize,
        batch_bytes: ((arguments.memory_mib as usize) << 20) / arguments.fillers as usize / fill::MEMORY_PER_BYTE,
    };
    let (sample, allow_parked) = (arguments.sample, arguments.allow_parked);
    let rebuild = Rebuild { kind, means, options, sample, allow_parked };
    if arguments.status {
        return rebuild.status().map(|()| true);
    }
    let lock = lock::Lock::take(&rebuild)?;
    match (arguments.rollback, arguments.drop_old) {
        (true, _) => rebuild.roll_back(&lock).map(|()| true),
        (_, true) => rebuild.drop_old(&lock).map(|()| true),
        _ => rebuild.run(&lock),
    }
}
