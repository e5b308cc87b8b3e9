//! `redeemer demo`

use clap::Args;

use crate::cli::Failure;

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct Arguments {}

/// Not there yet.
///
/// # Errors
/// Always.
pub async fn run(_: Arguments) -> Result<(), Failure> {
    Err(Failure::Unexpected("not there yet".to_owned()))
}
