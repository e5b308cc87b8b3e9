//! `redeemer sandbox`: a simulated payment API, to try things out without money.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::cli::{Failure, say};
use crate::sandbox::{Sandbox, Settings};
use crate::shutdown;

/// Arguments of `sandbox`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:9480")]
    listen: SocketAddr,
    /// Where its keys and identity.json are written.
    #[arg(long, default_value = "sandbox")]
    dir: PathBuf,
    /// All chance derives from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Added to each answer, in milliseconds.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Calls taken per second; beyond it 429. 0: no limit.
    #[arg(long, default_value_t = 0)]
    calls_per_second: u32,
    /// Coupons whose code begins with "auto" count as issued at first sight.
    #[arg(long)]
    auto_issue: bool,
    /// Sign and verify with the client's own library, five times as fast: for measuring, not for judging.
    #[arg(long)]
    fast_signatures: bool,
    /// Stop when standard input ends, too: for a program that starts this one and may be killed.
    #[arg(long)]
    with_parent: bool,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Where it cannot listen or write its files.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let settings = Settings {
        listen: arguments.listen,
        dir: arguments.dir.clone(),
        seed: arguments.seed,
        latency: Duration::from_millis(arguments.latency_ms),
        calls_per_second: arguments.calls_per_second,
        auto_issue: arguments.auto_issue,
        fast_signatures: arguments.fast_signatures,
        ..Settings::default()
    };
    let sandbox = Sandbox::start(settings).await.context("the sandbox does not start")?;
    say(&format!("sandbox at {}, identity in {}", sandbox.base_url(), arguments.dir.display()))?;
    shutdown::signal_or_parent(arguments.with_parent).await.context("cannot listen for signals")?;
    sandbox.shutdown().await;
    Ok(())
}
