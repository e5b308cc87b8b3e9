//! Where the service spends its processor time, measured by `perf`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::bed::{Bed, codes};
use crate::contenders::{Contender, Settings, UNLIMITED};
use crate::process::Process;
use crate::rounds::{IN_FLIGHT, REPLIES, full_speed};

const FUNCTIONS: usize = 20;
const NAME_CHARS_MAX: usize = 110;

/// The functions that take the most, of a build with their names in it, one a line.
pub(crate) async fn run(bed: &Bed, program: &Path, commands: usize) -> Result<String> {
    let settings = Settings { in_flight: IN_FLIGHT, calls_per_second: UNLIMITED };
    let mut contender = Contender::build(bed, "profiled", program, settings).await?;
    bed.provider(Duration::ZERO, REPLIES).await?;
    full_speed(bed, &mut contender, commands).await?;
    let samples = bed.dir.join("perf.data");
    let _ = fs::remove_file(&samples);
    contender.process.hold(true)?;
    let codes = codes("profiled", commands * 2);
    bed.publish(&contender.names, &codes).await?;
    // No counter of the machine's: not every virtual one has them.
    let mut command = Command::new("perf");
    command.args(["record", "-e", "cpu-clock", "-F", "997", "-p", &contender.process.id().to_string()]);
    command.arg("-o").arg(&samples).stdin(Stdio::null());
    let mut perf = Process::start(&mut command, &bed.dir.join("perf.log"))?;
    // Its file is there before it has taken hold of the threads; this is ample, and the process stands still.
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(perf.runs(), "perf: {}", fs::read_to_string(bed.dir.join("perf.log"))?.trim());
    contender.process.hold(false)?;
    contender.reported.collect(codes.len()).await?;
    perf.interrupt()?;
    contender.process.end()?;
    let output = Command::new("perf")
        .args(["report", "--stdio", "--no-children", "--sort", "symbol", "-i"])
        .arg(&samples)
        .stdin(Stdio::null())
        .output()
        .context("perf report")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut top = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()).take(FUNCTIONS)
    {
        let line: String = line.trim().chars().take(NAME_CHARS_MAX).collect();
        let _ = writeln!(top, "{}", line.trim_end());
    }
    ensure!(
        !top.is_empty(),
        "perf report reported nothing: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(top)
}
