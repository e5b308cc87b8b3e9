//! The processes that the demo starts, with signals and HTTP on the loopback.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

/// The longest wait for a program to start, or to stop.
const PATIENCE: Duration = Duration::from_secs(40);
/// Interval of polls.
const POLL_EVERY: Duration = Duration::from_millis(50);

/// A running child process. It ends when this is dropped, and when this process ends, also in a crash.
pub(super) struct Running {
    name: &'static str,
    child: Child,
    log: PathBuf,
    /// It closes when this process ends, and the child stops then. Kept apart, because waiting for a child would close it.
    _lifeline: Option<ChildStdin>,
}

impl Running {
    /// Starts this executable with other arguments. Its output goes to `log`.
    pub(super) fn start(name: &'static str, arguments: Vec<OsString>, log: &Path) -> anyhow::Result<Self> {
        let executable = std::env::current_exe().context("where this program is, is not known")?;
        let out = File::create(log).with_context(|| format!("{} cannot be written", log.display()))?;
        let err = out.try_clone().context("a file cannot be opened twice")?;
        let mut command = Command::new(executable);
        // Configuration of other services in our environment is not one of theirs.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with(crate::config::PREFIX) {
                command.env_remove(variable);
            }
        }
        command.args(arguments).stdin(Stdio::piped()).stdout(out).stderr(err).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        let lifeline = child.stdin.take();
        Ok(Self { name, child, log: log.to_owned(), _lifeline: lifeline })
    }

    /// Polls until there is a value.
    pub(super) async fn until<T>(
        &mut self,
        what: &str,
        poll: impl AsyncFn() -> Option<T>,
    ) -> anyhow::Result<T> {
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            if let Some(seen) = poll().await {
                return Ok(seen);
            }
            if let Some(status) = self.child.try_wait().context("a child cannot be waited for")? {
                bail!("{} ended by itself ({status}); {}", self.name, self.last_words());
            }
            if Instant::now() >= give_up_at {
                bail!("{}: no {what} within {PATIENCE:?}; {}", self.name, self.last_words());
            }
            sleep(POLL_EVERY).await;
        }
    }

    /// Waits until it ends by itself.
    pub(super) async fn wait_ended(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => anyhow!("{} ended by itself ({status}); {}", self.name, self.last_words()),
            Err(error) => anyhow!(error).context(format!("{} cannot be waited for", self.name)),
        }
    }

    /// Sends SIGTERM and expects exit code 0 in time.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            // The shell's own `kill`: there is no other way to send a signal without unsafe code. The pid is still
            // the child's, because nobody has waited for it yet.
            let sent = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid.to_string()]).status().await;
            if !sent.is_ok_and(|status| status.success()) {
                bail!("{}: SIGTERM could not be sent", self.name);
            }
        }
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => {
                bail!("{} did not stop in good order ({status}); {}", self.name, self.last_words())
            }
            Ok(Err(error)) => Err(anyhow!(error).context(format!("{} cannot be waited for", self.name))),
            Err(_) => bail!("{} did not stop within {PATIENCE:?} of SIGTERM", self.name),
        }
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(8)..];
        format!("its last words:\n  {}", last.join("\n  "))
    }
}

/// HTTP on the loopback.
#[derive(Clone)]
pub(super) struct Http(reqwest::Client);

impl Http {
    /// A client that ignores proxies of the environment.
    pub(super) fn new() -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build();
        Ok(Self(client.context("no HTTP client")?))
    }

    /// GETs a text; an error if the status is not one of success.
    pub(super) async fn get(&self, url: &str) -> anyhow::Result<String> {
        let response = self.0.get(url).send().await.with_context(|| format!("GET {url}"))?;
        let response = response.error_for_status().context("refused")?;
        response.text().await.with_context(|| format!("GET {url}"))
    }

    /// GETs JSON.
    pub(super) async fn read<T: DeserializeOwned>(&self, url: &str) -> anyhow::Result<T> {
        let text = self.get(url).await?;
        serde_json::from_str(&text).with_context(|| format!("GET {url}: not the JSON that was expected"))
    }

    /// Sends JSON.
    pub(super) async fn send(
        &self,
        method: reqwest::Method,
        url: &str,
        value: &impl Serialize,
    ) -> anyhow::Result<()> {
        let body = serde_json::to_vec(value).context("no JSON")?;
        let request = self.0.request(method, url).header("content-type", "application/json").body(body);
        let response = request.send().await.with_context(|| format!("sending to {url}"))?;
        if !response.status().is_success() {
            bail!("{url}: {}", response.text().await.unwrap_or_default());
        }
        Ok(())
    }
}
