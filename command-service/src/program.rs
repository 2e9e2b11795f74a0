//! The program: the service, and the tools beside it, for the domains that a binary names.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use millrace_shared::{
    config,
    domain::{Domains, process},
    serve, telemetry,
};

use crate::{
    app::{App, Error},
    cli,
    types::Secrets,
};

/// Takes commands over HTTP and from Kafka topics, checks them against the state of their aggregate, and publishes
/// events and outcomes, exactly once
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    tool: Option<Tool>,
    #[command(flatten)]
    settings: config::CommandSettings,
}

#[derive(Subcommand)]
enum Tool {
    /// Send the commands of a file (one JSON object a line) and wait for their outcomes
    ///
    /// A running command-service decides them. Running it twice has no second effect.
    Import(cli::import::Arguments),
    /// Print the events of an aggregate type (one JSON object a line)
    ///
    /// In order for each aggregate, up to the end as it is at the start.
    Export(cli::export::Arguments),
    /// Show from the topics alone that nothing was lost, doubled, reordered or against the rules
    ///
    /// Reads commands, events, outcomes and dead letters from their beginnings to their present ends, and writes
    /// nothing. The services may run meanwhile.
    CheckLog(cli::check_log::Arguments),
    /// Print an aggregate's events with the state after each, folded from the log alone
    ///
    /// For the night when somebody asks how a balance came to be. Reads the aggregate's partition of the event topic up
    /// to its end as it is at the start, and writes nothing. The services may run meanwhile.
    Replay(cli::replay::Arguments),
    /// List the transfers that have not ended, and move those that are stuck
    ///
    /// Reads the event topic of the transfers up to its end as it is at the start. The services may run meanwhile.
    Transfers(cli::transfers::Arguments),
}

/// Runs it, as the command line says. It ends the process where a setting is wrong.
pub fn main<D: Domains>() -> ExitCode {
    let (arguments, listed) = config::parse();
    process::reserve::<D>();
    serve::run(run::<D>(arguments, &listed))
}

async fn run<D: Domains>(arguments: Cli, listed: &str) -> ExitCode {
    let ended = match arguments.tool {
        Some(Tool::Import(arguments)) => return cli::import::run::<D>(arguments).await,
        Some(Tool::Export(arguments)) => return cli::export::run::<D>(arguments).await,
        Some(Tool::CheckLog(arguments)) => return cli::check_log::run::<D>(arguments).await,
        Some(Tool::Replay(arguments)) => return cli::replay::run::<D>(arguments).await,
        Some(Tool::Transfers(arguments)) => return cli::transfers::run(arguments).await,
        None => serve::<D>(arguments.settings, listed).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Config(error)) => config::exit_with(&error),
        Err(error) => {
            tracing::error!(%error, "command-service ends");
            ExitCode::FAILURE
        }
    }
}

async fn serve<D: Domains>(settings: config::CommandSettings, listed: &str) -> Result<(), Error> {
    if settings.log.check_config {
        settings.api.token(settings.http_addr)?;
        settings.registry.url()?;
        Secrets::of::<D>(&settings)?;
        print!("{listed}");
        return Ok(());
    }
    let metrics = telemetry::init(&settings.log)?;
    let shutdown = serve::shutdown_on_signals()?;
    let app = App::build(settings, metrics).await?;
    tracing::info!(http = %app.http_addr()?, operations = %app.ops_addr()?, "command-service {}", env!("CARGO_PKG_VERSION"));
    app.run::<D>(shutdown).await
}
