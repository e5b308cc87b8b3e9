//! The program: parse, match, return.

use std::env;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

fn main() -> ExitCode {
    begin_again_with_larger_stacks();
    if let Err(error) = forbid_core_dumps() {
        complain(&format!("core dumps cannot be turned off: {error}"));
    }
    if let Err(problem) = allow_open_files() {
        complain(&problem);
        return ExitCode::from(3);
    }
    redeemer::cli::main(redeemer::cli::parse())
}

/// The stack of threads whose size nobody chose, such as the one that reads what the broker sends: the second line against
/// messages that are nested deeply.
const STACK_BYTES: &str = "8388608";
const STACK_VARIABLE: &str = "RUST_MIN_STACK";

/// Replaces the process by itself with larger stacks, unless a size is set already. The broker's client starts its threads
/// without asking, and a running process cannot set its own environment without unsafe code. If it cannot be replaced, it
/// goes on as it is: the limit on nesting is what protects it.
fn begin_again_with_larger_stacks() {
    if env::var_os(STACK_VARIABLE).is_some() {
        return;
    }
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "redeemer".into());
    let mut again = Command::new("/proc/self/exe");
    let _ = again.arg0(name).args(arguments).env(STACK_VARIABLE, STACK_BYTES).exec();
}

/// If standard error is closed, nothing can be reported.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "redeemer: {text}");
}

/// Fewer descriptors than this are not enough for a broker, the payment API and the admin port; a library of the broker's
/// client then panics once, and for ever after.
const OPEN_FILES_MIN: u64 = 64;
/// As many as the unit allows.
const OPEN_FILES_MAX: u64 = 65_536;

/// Raises the soft limit on open files toward the hard one, as servers do.
///
/// # Errors
/// The hard limit is too low.
fn allow_open_files() -> Result<(), String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if maximum.is_some_and(|most| most < OPEN_FILES_MIN) {
        return Err(format!(
            "{} files may be open at once, and {OPEN_FILES_MIN} are needed at least: raise the limit (ulimit -Hn, \
             LimitNOFILE= in the unit)",
            maximum.unwrap_or_default()
        ));
    }
    let required = maximum.unwrap_or(OPEN_FILES_MAX).min(OPEN_FILES_MAX);
    // A unit may forbid the call; then the present limit remains.
    if current.is_some_and(|now| now < required) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(required), maximum });
    }
    Ok(())
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
