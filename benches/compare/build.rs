//! A release build, apart from every other.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// The folder that it is built in, removed with its value.
pub(crate) struct Build(PathBuf);

/// A release, as its users build it: the harness's own build of the program has the features that its tests ask for.
pub(crate) struct Built {
    pub took: Duration,
    /// Of the program.
    pub bytes: u64,
}

impl Build {
    pub(crate) fn new(folder: PathBuf) -> Result<Self> {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    /// How long it takes from nothing, on two processors, with every dependency's source already here.
    pub(crate) fn clean(&self) -> Result<Built> {
        println!("bench: building a release from nothing");
        let start = Instant::now();
        self.cargo(&["build", "--release", "--jobs", "2"])?;
        let took = start.elapsed();
        println!("bench: a release build took {} s", took.as_secs());
        Ok(Built { took, bytes: fs::metadata(self.program())?.len() })
    }

    /// The same program with the names of its functions in it.
    pub(crate) fn with_names(&self) -> Result<PathBuf> {
        // For this package alone, so that its dependencies are not built again.
        let names = "profile.release.package.redeemer.strip=\"none\"";
        self.cargo(&["build", "--release", "--config", names])?;
        Ok(self.program())
    }

    fn program(&self) -> PathBuf {
        self.0.join("release/redeemer")
    }

    fn cargo(&self, arguments: &[&str]) -> Result<()> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("CARGO_TARGET_DIR", &self.0)
            .args(arguments)
            .args(["--locked", "--offline", "--quiet"])
            .stdin(Stdio::null())
            .output()
            .context("cargo cannot be started")?;
        ensure!(output.status.success(), "cargo failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
