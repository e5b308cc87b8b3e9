//! A child process and what the kernel counts of it.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

/// The kernel counts in hundredths of a second on every Linux that is in use (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// A program that is being measured; killed with its value.
pub struct Process(Child);

impl Process {
    /// Starts it; what it says on either output goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let name = command.get_program().to_owned();
        let child = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", OsStr::display(&name)))?;
        Ok(Self(child))
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<ExitStatus> {
        Ok(self.0.wait()?)
    }

    /// Processor time so far, of all threads that live or lived, in user and kernel mode.
    pub fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // The name in brackets may hold anything; what follows it are numbers: state is the third field.
        let (_, rest) = text.rsplit_once(')').context("/proc/<pid>/stat has no name")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |nth: usize| -> Result<u32> {
            Ok(fields.get(nth - 3).context("/proc/<pid>/stat is short")?.parse()?)
        };
        Ok(TICK * (ticks(14)? + ticks(15)?))
    }

    /// The most memory that was ever resident, in MB.
    pub fn peak_mb(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = text.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
        let kib: f64 = line.split_whitespace().nth(1).context("VmHWM is empty")?.parse()?;
        Ok(kib * 1024.0 / 1e6)
    }

    /// Holds it where it is, or lets it go on. What is published meanwhile is a backlog.
    pub fn hold(&self, held: bool) -> Result<()> {
        self.signal(if held { Signal::STOP } else { Signal::CONT })
    }

    /// Asks it to end, and waits until it has.
    pub fn end(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        self.0.wait()?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.0), signal)?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
