//! A child process and what the kernel counts of it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

/// The kernel counts in hundredths of a second on every Linux that is in use (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// How long a program that was asked to end may take.
const ENDING: Duration = Duration::from_secs(30);

/// A program that is being measured; killed with its value.
pub(crate) struct Process {
    child: Child,
    meter: Meter,
}

/// Processor time of a process, in user and kernel mode, of all threads that live or lived.
///
/// The scheduler knows it of each living thread to the nanosecond, and only `stat`, in ticks, knows of those that
/// have ended. So the last that was seen of each thread is kept; and what `stat` counts beyond all that was seen belongs
/// to threads that ended unseen, now and for ever.
pub(crate) struct Meter {
    pid: u32,
    threads: RefCell<HashMap<u32, Duration>>,
    /// Of threads that ended unseen, or whose number another one has taken over.
    ended: Cell<Duration>,
}

/// Processor time of the whole machine, in ticks.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    /// Of all processors together, idle or not.
    pub all: Duration,
    /// Without idling; with what the machine's host took for itself.
    pub busy: Duration,
}

impl Process {
    /// Starts it; what it says on either output goes to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let name = command.get_program().to_owned();
        let child = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", OsStr::display(&name)))?;
        let meter = Meter::of(child.id());
        Ok(Self { child, meter })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Processor time so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.meter.cpu()
    }

    /// The most memory that was ever resident, in MB.
    pub(crate) fn peak_mb(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = text.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
        let kib: f64 = line.split_whitespace().nth(1).context("VmHWM is empty")?.parse()?;
        Ok(kib * 1024.0 / 1e6)
    }

    /// Stops the process, or lets it go on. What is published meanwhile is a backlog.
    pub(crate) fn hold(&self, held: bool) -> Result<()> {
        self.signal(if held { Signal::STOP } else { Signal::CONT })
    }

    /// Asks it to end, and waits until it has; one that takes too long is killed with its value.
    pub(crate) fn end(self) -> Result<()> {
        self.end_by(Signal::TERM)
    }

    /// The same as from a keyboard.
    pub(crate) fn interrupt(self) -> Result<()> {
        self.end_by(Signal::INT)
    }

    fn end_by(mut self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        let give_up_at = Instant::now() + ENDING;
        while self.runs() {
            anyhow::ensure!(Instant::now() < give_up_at, "it did not end within {ENDING:?}");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Meter {
    pub(crate) fn of(pid: u32) -> Self {
        Self { pid, threads: RefCell::default(), ended: Cell::default() }
    }

    /// Processor time so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        // Where the kernel keeps no such statistics, the sum is nothing and ticks are all there is.
        let seen = self.threads()?;
        let missed = self.ticks()?.saturating_sub(seen + self.ended.get());
        self.ended.set(self.ended.get() + missed);
        Ok(seen + self.ended.get())
    }

    fn threads(&self) -> Result<Duration> {
        let mut threads = self.threads.borrow_mut();
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let path = entry?.path();
            // A thread may end while we look; the last that was seen of it stays.
            let Ok(text) = fs::read_to_string(path.join("schedstat")) else { continue };
            let thread = path.file_name().and_then(OsStr::to_str).context("a thread without a number")?;
            let nanos = text.split_whitespace().next().context("schedstat is empty")?;
            let time = Duration::from_nanos(nanos.parse()?);
            let replaced = threads.insert(thread.parse()?, time).filter(|before| *before > time);
            self.ended.set(self.ended.get() + replaced.unwrap_or_default());
        }
        Ok(threads.values().sum())
    }

    fn ticks(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The name in brackets may hold anything; what follows it are numbers: state is the third field.
        let (_, rest) = text.rsplit_once(')').context("/proc/<pid>/stat has no name")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |nth: usize| -> Result<u32> {
            Ok(fields.get(nth - 3).context("/proc/<pid>/stat is short")?.parse()?)
        };
        Ok(TICK * (ticks(14)? + ticks(15)?))
    }
}

impl Machine {
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are in the first two already.
        let fields: Vec<u64> =
            line.split_whitespace().skip(1).take(8).map(str::parse).collect::<Result<_, _>>()?;
        let ticks = |ticks: u64| Duration::from_millis(ticks * 10);
        let all: u64 = fields.iter().sum();
        let idle: u64 = fields.iter().skip(3).take(2).sum();
        Ok(Self { all: ticks(all), busy: ticks(all - idle) })
    }
}

/// How many wanted to run on this machine, on average over the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}
