//! The program: parse, match, return.

use std::io;
use std::process::ExitCode;

use clap::Parser as _;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

fn main() -> ExitCode {
    if let Err(error) = forbid_core_dumps() {
        eprintln!("redeemer: core dumps cannot be turned off: {error}");
    }
    redeemer::cli::main(redeemer::cli::Arguments::parse())
}

/// A core file would hold the merchant key and the broker's password. A limit of zero does not keep the kernel from
/// piping one to a collector such as systemd-coredump (core(5)). A process that is not dumpable leaves none there
/// either, and other processes of the same user cannot read its memory.
fn forbid_core_dumps() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // A unit that has set it may forbid the call.
    if getrlimit(Resource::Core) != none {
        setrlimit(Resource::Core, none)?;
    }
    Ok(())
}
