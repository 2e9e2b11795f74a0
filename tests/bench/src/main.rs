//! Measures Millrace against the raw limits of the same machine in the same run: `deploy/local/bench`.
//!
//! Reading order: [`groups`] lists what is measured, one file for each group; [`scene`] and [`load`] are the load, [`side`] the
//! measuring; [`raw`] is the raw client; [`report`] writes down what came out.

mod arrivals;
mod client;
mod deposits;
mod groups;
mod kafka;
mod load;
mod member;
mod random;
mod raw;
mod report;
mod scene;
mod served;
mod side;
mod views;

use std::{fmt, panic, path::PathBuf, process::ExitCode, thread};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

use groups::{GROUPS, Group, Settings};
use report::Figure;

// The raw client gets what command-service has: with glibc's allocator it would take a third more CPU.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measure Millrace against the raw limits of this machine, interleaved in one run, and print a table
#[derive(Parser)]
#[command(name = "bench", version, max_term_width = 100, after_help = names(), args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    /// What to measure: names, or first parts of names for whole groups; everything when absent
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// One short round without warming up, two groups at once: shows that everything works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Write the results as a JSON array too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds of each measure; their median counts
    #[arg(long, value_name = "N", default_value_t = 5, conflicts_with = "quick", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Accounts of the banks of `restart`, `store` and `list` [default: 1,000,000], and of those whose events are
    /// projected [default: 100,000]
    #[arg(long, value_name = "N", conflicts_with = "quick", value_parser = clap::value_parser!(u32).range(1_000..=50_000_000))]
    accounts: Option<u32>,
    /// Folder of the services' programs, to measure another build
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Part {
    /// The raw client, as a process of its own
    #[command(hide = true)]
    Raw { options: PathBuf },
    /// The raw client that writes views, as a process of its own
    #[command(hide = true)]
    RawViews { options: PathBuf },
    /// The raw server, as a process of its own
    #[command(hide = true)]
    RawWeb { options: PathBuf },
    /// A plain member of a group, as a process of its own
    #[command(hide = true)]
    Member(member::Options),
}

fn names() -> String {
    let mut text = "Names:\n".to_owned();
    for group in GROUPS {
        for (name, what) in group.figures {
            text += &format!("  {name:<20} {what}\n");
        }
    }
    text
}

/// The figures that are asked for, by group.
fn wanted(names: &[String]) -> Result<Vec<(&'static Group, Vec<&'static str>)>> {
    let known: Vec<&str> = GROUPS.iter().flat_map(|group| group.figures.iter().map(|(figure, _)| *figure)).collect();
    let is_meant =
        |name: &str, figure: &str| name == figure || figure.split_once('.').is_some_and(|(of, _)| name == of);
    for name in names {
        let some = known.iter().any(|figure| is_meant(name, figure));
        ensure!(some, "there is no measure {name}; there are {}", known.join(", "));
    }
    let of = |group: &'static Group| {
        let is_wanted = |figure: &str| names.is_empty() || names.iter().any(|name| is_meant(name, figure));
        let figures: Vec<_> = group.figures.iter().map(|(figure, _)| *figure).filter(|f| is_wanted(f)).collect();
        (!figures.is_empty()).then_some((group, figures))
    };
    Ok(GROUPS.iter().filter_map(of).collect())
}

/// Tells who waits what is going on.
fn progress(what: fmt::Arguments<'_>) {
    eprintln!("bench: {what}");
}

fn run(cli: &Cli) -> Result<()> {
    let settings = Settings {
        quick: cli.quick,
        rounds: if cli.quick { 1 } else { cli.rounds.into() },
        accounts: cli.accounts.map(|accounts| accounts as usize),
        bin_dir: cli.bin_dir.clone(),
    };
    progress(format_args!("starting Kafka, the registry and Redis"));
    let groups = wanted(&cli.names)?;
    let measure = |groups: &[(&'static Group, Vec<&'static str>)]| -> Result<Vec<Figure>> {
        let figures = groups.iter().map(|(group, names)| (group.run)(&settings, names));
        Ok(figures.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    };
    let figures = match groups.split_last() {
        // The last one, a take-over, mostly waits, and how fast the others are says nothing.
        Some((last, others)) if cli.quick => thread::scope(|scope| {
            let last = scope.spawn(|| measure(std::slice::from_ref(last)));
            let mut figures = measure(others)?;
            figures.extend(last.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?);
            anyhow::Ok(figures)
        })?,
        _ => measure(&groups)?,
    };
    print!("{}", report::table(&figures));
    cli.json.as_deref().map_or(Ok(()), |path| report::write(&figures, path))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // An unknown name is told before anything is started.
    if let Err(error) = wanted(&cli.names) {
        eprintln!("bench: {error}");
        return ExitCode::from(2);
    }
    let done = match &cli.part {
        Some(Part::Raw { options }) => raw::run(options),
        Some(Part::RawViews { options }) => raw::views::run(options),
        Some(Part::RawWeb { options }) => raw::web::run(options),
        Some(Part::Member(options)) => member::run(options),
        None => run(&cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
