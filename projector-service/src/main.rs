//! projector-service: see the library's documentation and README.

use std::process::ExitCode;

use clap::Parser;
use millrace_shared::{config, serve, telemetry};
use projector_service::app::{App, Error};

/// Folds the events of Kafka's topics into views in Redis, each event exactly once
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    settings: config::ProjectorSettings,
}

fn main() -> ExitCode {
    let (Cli { settings }, listed) = config::parse();
    match serve::run(run(settings, &listed)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Config(error)) => config::exit_with(&error),
        Err(error) => {
            tracing::error!("projector-service ends: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: config::ProjectorSettings, listed: &str) -> Result<(), Error> {
    if settings.log.check_config {
        settings.registry.url()?;
        settings.redis.client()?;
        print!("{listed}");
        return Ok(());
    }
    let metrics = telemetry::init(&settings.log).map_err(|error| config::Error(error.to_string()))?;
    let shutdown = serve::shutdown_on_signals()?;
    let app = App::build(settings, metrics).await?;
    tracing::info!(operations = %app.ops_addr()?, "projector-service {}", env!("CARGO_PKG_VERSION"));
    app.run(shutdown).await
}
