//! `redeemer check`

use clap::Args;

use crate::cli::Failure;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct Arguments {}

/// Not there yet.
///
/// # Errors
/// Always.
pub async fn run(_: Arguments, _: crate::config::Config) -> Result<(), Failure> {
    Err(Failure::Unexpected("not there yet".to_owned()))
}
