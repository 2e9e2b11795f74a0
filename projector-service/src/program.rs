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
};

/// Folds the events of Kafka's topics into views in Redis, each event exactly once
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    tool: Option<Tool>,
    #[command(flatten)]
    settings: config::ProjectorSettings,
}

#[derive(Subcommand)]
enum Tool {
    /// List, show, replay or discard the events that wait since they or an earlier one could not be applied
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Parked(cli::parked::Arguments),
    /// Prove that the views equal the log, or say where they don't (one JSON object a line)
    ///
    /// Folds the events up to where each partition's views are and compares every view, index entry, counter and history
    /// entry. Changes nothing, unless it is told to repair. The services may run meanwhile.
    Verify(cli::verify::Arguments),
    /// Build a projection's views anew beside those that answer, and switch over
    Rebuild(cli::rebuild::Arguments),
}

/// Runs it, as the command line says. It ends the process where a setting is wrong.
pub fn main<D: Domains>() -> ExitCode {
    let (arguments, listed) = config::parse();
    process::reserve::<D>();
    serve::run(run::<D>(arguments, &listed))
}

async fn run<D: Domains>(arguments: Cli, listed: &str) -> ExitCode {
    let ended = match arguments.tool {
        Some(Tool::Parked(arguments)) => return cli::parked::run::<D>(arguments).await,
        Some(Tool::Verify(arguments)) => return cli::verify::run::<D>(arguments).await,
        Some(Tool::Rebuild(arguments)) => return cli::rebuild::run::<D>(arguments).await,
        None => serve::<D>(arguments.settings, listed).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Config(error)) => config::exit_with(&error),
        Err(error) => {
            tracing::error!("projector-service ends: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve<D: Domains>(settings: config::ProjectorSettings, listed: &str) -> Result<(), Error> {
    if settings.log.check_config {
        settings.registry.url()?;
        settings.redis.address()?;
        print!("{listed}");
        return Ok(());
    }
    let metrics = telemetry::init(&settings.log).map_err(|error| config::Error(error.to_string()))?;
    let shutdown = serve::shutdown_on_signals()?;
    let app = App::build(settings, metrics).await?;
    tracing::info!(operations = %app.ops_addr()?, "projector-service {}", env!("CARGO_PKG_VERSION"));
    app.run::<D>(shutdown).await
}
