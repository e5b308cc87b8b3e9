//! `redeemer run`: the service.

use anyhow::Context as _;
use clap::Args;
use tracing::{error, info};

use crate::app::{self, StartRefusal, merchant_key_from_environment};
use crate::cli::Failure;
use crate::cli::files::{PUBLIC, write_file};
use crate::config::Config;
use crate::policy::file_name::Typed;
use crate::runtime::shutdown;
use crate::telemetry::log;

/// Arguments of `run`: everything else is configuration.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Write the admin port's address to this file once it is open; useful with port 0.
    #[arg(long, value_name = "FILE")]
    admin_address_file: Option<std::path::PathBuf>,
    /// Also stop when standard input ends, so that it ends with the program that started it.
    #[arg(long)]
    with_parent: bool,
}

/// Consumes until SIGTERM or SIGINT.
///
/// # Errors
/// [`Failure::Misconfigured`] if it cannot start. An unavailable broker is not a failure.
pub async fn run(arguments: Arguments, config: Config) -> Result<(), Failure> {
    log::init(config.log_format(), &config.log.filter)
        .map_err(|fault| Failure::Misconfigured(fault.to_string()))?;
    let (trigger, listener) = shutdown::channel();
    tokio::spawn(async move {
        match shutdown::signal_or_parent(arguments.with_parent).await {
            Ok(name) => info!(signal = name, "asked to stop"),
            Err(error) => error!(%error, "cannot listen for signals"),
        }
        trigger.request();
    });
    let file = arguments.admin_address_file;
    let ready = |address: std::net::SocketAddr| {
        if let Some(file) = file
            && let Err(error) = write_file(&file, PUBLIC, address.to_string().as_bytes())
        {
            error!(%error, file = %Typed(&file), "cannot write the admin port's address");
        }
    };
    // A task beside those that it begins: from the thread that waits here, each step of the main loop would be a change
    // of thread.
    let service = tokio::spawn(app::run(config, merchant_key_from_environment(), listener, ready));
    service.await.context("the main loop broke")?.map_err(|refusal| match refusal {
        StartRefusal::Admin(fault) => Failure::Failed(fault.into()),
        refusal => Failure::Misconfigured(refusal.to_string()),
    })
}
