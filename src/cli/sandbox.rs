//! `redeemer sandbox`: simulates the payment API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use toml::{Table, Value};

use crate::cli::files::{PUBLIC, write_file};
use crate::cli::{Failure, print};
use crate::policy::file_name::Typed;
use crate::runtime::shutdown;
use redeemer_sandbox::{Card, Sandbox, Settings};

/// The default folder.
const DIR: &str = "sandbox";

/// Arguments of `sandbox`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:9480")]
    listen: SocketAddr,
    /// The folder for its keys, identity.json and a configuration for the service.
    #[arg(long, default_value = DIR)]
    dir: PathBuf,
    /// The seed of all random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The delay of each response, in milliseconds.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Calls accepted per second; further ones get a 429. 0: no limit.
    #[arg(long, default_value_t = 0)]
    calls_per_second: u32,
    /// Issue a coupon whose code begins with "auto" at its first call.
    #[arg(long)]
    auto_issue: bool,
    /// Sign and verify with the library of the client, five times as fast: for measurements only.
    #[arg(long)]
    fast_signatures: bool,
    /// Also stop when standard input ends, so that it ends with the program that started it.
    #[arg(long)]
    with_parent: bool,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot listen or write its files.
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
    let file = arguments.dir.join("redeemer.toml");
    let text = configuration(&arguments.dir, sandbox.card())?;
    write_file(&file, PUBLIC, text.as_bytes())
        .with_context(|| format!("{} cannot be written", Typed(&file)))?;
    let shown = match arguments.dir.as_os_str() == DIR {
        true => DIR.to_owned(),
        false => Typed(&arguments.dir).to_string(),
    };
    print(&format!("sandbox at {}, identity in {shown}", sandbox.base_url()))?;
    shutdown::signal_or_parent(arguments.with_parent).await.context("cannot listen for signals")?;
    sandbox.shutdown().await;
    Ok(())
}

/// The configuration of a service that works against this sandbox.
fn configuration(dir: &Path, card: &Card) -> anyhow::Result<String> {
    let dir = dir.canonicalize().with_context(|| format!("{} cannot be found", Typed(dir)))?;
    let file = |name: &str| dir.join(name).display().to_string();
    let mut wechat = Table::new();
    let texts = [
        ("base_url", card.base_url.clone()),
        ("backup_base_url", String::new()),
        ("mchid", card.mchid.clone()),
        ("merchant_serial", card.merchant_serial.clone()),
        ("merchant_key_file", file("merchant_key.pem")),
    ];
    wechat.extend(texts.map(|(key, text)| (key.to_owned(), Value::String(text))));
    let key = (card.public_key_id.clone(), Value::String(file("wechatpay_public_key.pem")));
    wechat.insert("public_keys".to_owned(), Value::Table(Table::from_iter([key])));
    let whole = Table::from_iter([("wechat".to_owned(), Value::Table(wechat))]);
    Ok(format!("# Written at every start of the sandbox.\n{}", toml::to_string(&whole)?))
}
