//! The program, for the domains that a binary names.

use std::process::ExitCode;

use clap::Parser;
use millrace_shared::{
    config,
    domain::{Domains, process},
    serve, telemetry,
};

use crate::app::{App, Error};

/// Serves the views in Redis over HTTP
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    settings: config::QuerySettings,
}

/// Runs it, as the command line says. It ends the process where a setting is wrong.
pub fn main<D: Domains>() -> ExitCode {
    let (Cli { settings }, listed) = config::parse();
    process::reserve::<D>();
    match serve::run(run::<D>(settings, &listed)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Config(error)) => config::exit_with(&error),
        Err(error) => {
            tracing::error!("query-service ends: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run<D: Domains>(settings: config::QuerySettings, listed: &str) -> Result<(), Error> {
    if settings.log.check_config {
        settings.api.token(settings.http_addr)?;
        settings.redis.address()?;
        settings.registry.url()?;
        print!("{listed}");
        return Ok(());
    }
    let metrics = telemetry::init(&settings.log).map_err(|error| config::Error(error.to_string()))?;
    let shutdown = serve::shutdown_on_signals()?;
    let app = App::build(settings, metrics).await?;
    tracing::info!(http = %app.http_addr()?, operations = %app.ops_addr()?, "query-service {}", env!("CARGO_PKG_VERSION"));
    app.run::<D>(shutdown).await
}
