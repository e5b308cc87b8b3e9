//! The program itself, as the benchmarks run it.

use std::process::{Child, Command, Stdio};

use crate::bed::{Bed, until};

/// A running instance on the configuration of a bed. It ends when it is dropped.
pub(crate) struct Program(Child);

impl Program {
    /// Starts the `nth` instance and waits until it is ready.
    pub(crate) async fn start(bed: &Bed, nth: usize) -> Self {
        let address = bed.dir.join(format!("admin.address.{nth}"));
        let child = Command::new(env!("CARGO_BIN_EXE_redeemer"))
            .arg("--config")
            .arg(bed.config_file())
            .args(["run", "--with-parent", "--admin-address-file"])
            .arg(&address)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let program = Self(child);
        until("readiness", async || {
            let Ok(at) = std::fs::read_to_string(&address) else { return false };
            let answer = reqwest::get(format!("http://{}/readyz", at.trim())).await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
