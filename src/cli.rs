//! The command line: one file per subcommand, each with its arguments, its work and its exit code.

pub mod check;
pub mod demo;
pub mod files;
pub mod healthcheck;
pub mod parked;
pub mod publish;
pub mod run;
pub mod sandbox;
pub mod schema;
pub mod event_view;
pub mod topology;
pub mod watch;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

use crate::config;
use crate::telemetry::untrusted::visible_lines;

/// Redeems WeChat Pay product coupons from RabbitMQ commands, and publishes each outcome.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXIT_CODES)]
pub struct Arguments {
    /// The configuration file; the shipped config.toml has every key and its default.
    #[arg(long, short, global = true, env = "REDEEMER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 success; 1 the operation failed, or, without a message, the reader of the output \
is gone; 2 invalid command line; 3 invalid configuration or key; 4 a check failed, or a result is not the expected one \
(check, demo, healthcheck, parked, publish --wait, topology).";

#[derive(Debug, Subcommand)]
enum Command {
    /// Consume commands until SIGTERM.
    Run(run::Arguments),
    /// Check configuration, keys, clock, broker and payment API; report each fault with its remedy.
    Check(check::Arguments),
    /// Check whether the running service is alive, or ready.
    Healthcheck(healthcheck::Arguments),
    /// Publish commands: one, or a file with one per line.
    Publish(publish::Arguments),
    /// Show result events as they arrive.
    Watch(watch::Arguments),
    /// Show, create or verify the exchanges and queues on the broker.
    Topology(topology::Arguments),
    /// List, show, replay or discard parked commands.
    Parked(parked::Arguments),
    /// Simulate the payment API.
    Sandbox(sandbox::Arguments),
    /// Run the service against a sandbox and compare every outcome with its ledger.
    Demo(demo::Arguments),
    /// Print the contract: JSON Schemas of command and events, and an AsyncAPI document.
    Schema(schema::Arguments),
}

/// Why a subcommand ends without success.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It failed.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
    /// The configuration or a key is wrong.
    #[error("{0}")]
    Misconfigured(String),
    /// Something differs from what was expected, and has been reported.
    #[error("{0}")]
    Unexpected(String),
}

impl Failure {
    fn is_output_closed(&self) -> bool {
        matches!(self, Self::Failed(error) if error.chain().any(<dyn std::error::Error>::is::<OutputClosed>))
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Misconfigured(_) => 3,
            Self::Unexpected(_) => 4,
        }
    }
}

impl From<config::ConfigFaults> for Failure {
    fn from(faults: config::ConfigFaults) -> Self {
        Self::Misconfigured(faults.to_string())
    }
}

impl From<config::ConfigFault> for Failure {
    fn from(fault: config::ConfigFault) -> Self {
        config::ConfigFaults(vec![fault]).into()
    }
}

/// Reads the command line. Ends the program if it cannot be used.
pub fn parse() -> Arguments {
    Arguments::try_parse().unwrap_or_else(|error| without_values(error).exit())
}

/// The error without the invalid value of a closed list: it may be a secret, and errors end up in logs.
fn without_values(mut error: clap::Error) -> clap::Error {
    const NOT_SHOWN: &str = "(not shown)";
    let kind = match error.kind() {
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::TooManyValues => {
            ContextKind::InvalidValue
        }
        _ => return error,
    };
    let suggestions =
        [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg, ContextKind::SuggestedValue];
    let is_typo = suggestions.iter().any(|kind| error.get(*kind).is_some());
    let is_word =
        |text: &str| text.len() <= 20 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let may_be_shown = match error.get(kind) {
        Some(ContextValue::String(text)) => {
            text.is_empty()
                || is_word(text) && (is_typo || kind == ContextKind::InvalidArg && text.starts_with('-'))
        }
        _ => true,
    };
    if !may_be_shown {
        error.insert(kind, ContextValue::String(NOT_SHOWN.to_owned()));
        // These repeat it.
        error.insert(ContextKind::Suggested, ContextValue::None);
    }
    error
}

/// Runs the program.
pub fn main(arguments: Arguments) -> ExitCode {
    log_panics_in_one_line();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(&format!("no runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(dispatch(arguments));
    // The broker's client keeps threads of its own, which a blocked connection can hold for long.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that stops early, as `head` does, is not an error.
        Err(failure) if failure.is_output_closed() => ExitCode::from(failure.code()),
        Err(failure) => {
            print_error(&failure.to_string());
            ExitCode::from(failure.code())
        }
    }
}

/// The reader of standard output has closed it.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the reader of standard output is gone")]
struct OutputClosed;

async fn dispatch(Arguments { config, command }: Arguments) -> Result<(), Failure> {
    let load = || config::load(config.as_deref(), environment());
    match command {
        Command::Run(arguments) => run::run(arguments, load()?).await,
        Command::Check(arguments) => check::run(arguments, config.as_deref(), load()).await,
        Command::Healthcheck(arguments) => healthcheck::run(arguments, load()?).await,
        Command::Publish(arguments) => publish::run(arguments, load()?).await,
        Command::Watch(arguments) => watch::run(arguments, load()?).await,
        Command::Topology(arguments) => topology::run(arguments, load()?).await,
        Command::Parked(arguments) => parked::run(arguments, load()?).await,
        Command::Sandbox(arguments) => sandbox::run(arguments).await,
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Schema(arguments) => schema::run(&arguments, &load()?),
    }
}

fn print_error(text: &str) {
    // If standard error is closed, too, the exit code remains.
    let _ = writeln!(std::io::stderr(), "redeemer: {}", visible_lines(text));
}

/// Writes lines to standard output, without characters that a terminal would obey or hide.
///
/// # Errors
/// If the reader of the output has closed it.
pub fn print(line: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{}", visible_lines(line)) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        written => written.context("cannot write to standard output"),
    }
}

/// Logs a panic in one line that names its place, never its message: that may hold what the program works on. A
/// library of the broker's client has threads of its own, which panic when nothing is left to work with; what that
/// means is reported where the connection failed.
fn log_panics_in_one_line() {
    std::panic::set_hook(Box::new(|panic| {
        let Some(place) = panic.location() else { return };
        let (file, line) = (place.file(), place.line());
        match file.starts_with("src/") {
            true => print_error(&format!("defect: panic at {file}:{line}; please report it")),
            // As when the runtime ends before a connection that is still being made.
            false => tracing::debug!(file, line, "a thread of a library ended by a panic"),
        }
    }));
}

/// The variables of the environment that are text. Those that are none set nothing here.
fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text)
}
