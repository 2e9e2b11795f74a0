//! Runs everything Millrace needs on one machine, without containers: Kafka, a schema registry,
//! Redis and the three services.
//!
//! Reading order: [`layout`] says which part listens where; [`kafka`], [`registry`], [`redis`] and
//! [`services`] say how each part is started; [`supervise`] starts, watches and stops them;
//! [`run`] puts a whole run together. [`fetch`] brings what Debian doesn't package.

mod checksums;
mod child;
mod data_dir;
mod demo;
mod fetch;
mod kafka;
mod layout;
mod logs;
mod probe;
mod redis;
mod registry;
mod run;
mod services;
mod supervise;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Kafka, a schema registry, Redis and the services of Millrace on this machine, without containers
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything, print the addresses, and stay until Ctrl-C
    #[command(after_help = run::AFTER_HELP)]
    Run(run::Options),
    /// Download Kafka and the registry into the cache, once, and check every file's SHA-256
    #[command(after_help = fetch::AFTER_HELP)]
    Fetch,
    /// Become another program that ends with the process that started it (used by `run`)
    #[command(hide = true)]
    Exec(child::ExecOptions),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Fetch => fetch::parts().map(|parts| println!("ready in {}", parts.dir.display())),
        Command::Exec(options) => child::exec(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace-local: {error:#}");
            ExitCode::FAILURE
        }
    }
}
