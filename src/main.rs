//! The program: parse, match, return.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    redeemer::cli::main(redeemer::cli::Arguments::parse())
}
