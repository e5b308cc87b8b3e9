//! A private RabbitMQ node for tests: `deploy/local/rabbitmq` as a value.
//!
//! A node ends when its value is dropped, also while a test panics, and at the latest when the test process is gone,
//! however that ended: the script keeps watch over our pid. It never touches a broker that is not its own.
//!
//! - `REDEEMER_TEST_BROKER`: the URI of a ready broker, which [`shared`] then uses instead of a node of its own.
//! - `REDEEMER_TEST_BROKER_TREE`: a tree made by `deploy/local/rabbitmq4`, from which every node is then started.
#![allow(dead_code)] // each test binary uses its own part of it

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// The one broker of this test binary, for tests that neither kill it nor care who else uses it. Names of queues and
/// exchanges must be the test's own.
pub(crate) fn shared() -> &'static Broker {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    SHARED.get_or_init(|| match env::var("REDEEMER_TEST_BROKER") {
        Ok(uri) => Broker { uri, node: None },
        Err(_) => Broker::start(),
    })
}

/// How old a count may be that `list_queues` gives of a queue on a node of [`Broker::start_counting`]: twice its tick.
pub(crate) const COUNTED_WITHIN: Duration = Duration::from_millis(400);

/// A running broker, or one that was ended on purpose and may be restarted on the same data and ports.
pub(crate) struct Broker {
    uri: String,
    /// Nothing if the broker is somebody else's: then it can be used, but not ended.
    node: Option<PathBuf>,
}

impl Broker {
    /// Starts a node and waits until it takes connections: 4 to 6 s.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with lines of `rabbitmq.conf`, such as `"heartbeat = 2"`; they win over the script's own.
    pub(crate) fn start_with(config_lines: &[&str]) -> Self {
        Self::start_as(&config_lines.iter().flat_map(|line| ["--config", line]).collect::<Vec<_>>())
    }

    /// The same, with counts that can be believed: what `list_queues` shows is no older than [`COUNTED_WITHIN`].
    pub(crate) fn start_counting() -> Self {
        Self::start_as(&["--advanced", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/counting.config")])
    }

    /// The same with options of the script, such as `["--plugin", "rabbitmq_management"]`.
    pub(crate) fn start_as(more: &[&str]) -> Self {
        let dir = unused_dir();
        let parent = process::id().to_string();
        let mut options = vec!["--parent", &parent];
        options.extend(more);
        let tree = env::var("REDEEMER_TEST_BROKER_TREE").ok();
        if let Some(tree) = &tree {
            options.extend(["--root", tree]);
        }
        // Made first, so that a node which fails to start is dropped, and its folder with it.
        let mut broker = Self { uri: String::new(), node: Some(dir) };
        broker.uri = broker.script("start", &options).trim().to_owned();
        broker
    }

    /// `amqp://user:password@127.0.0.1:port/%2f`; the same after a restart.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// User and password, and the port.
    fn parts(&self) -> (&str, u16) {
        let (user, rest) = self.uri.trim_start_matches("amqp://").split_once('@').expect("it has a user");
        let port = rest.split([':', '/']).nth(1).and_then(|port| port.parse().ok());
        (user, port.expect("it has a port"))
    }

    /// Where a node with `--plugin rabbitmq_management` takes requests, without a user.
    pub(crate) fn management(&self) -> String {
        format!("http://127.0.0.1:{}", self.parts().1 + 15)
    }

    /// The URI of a node with `--tls`, under one of the host's names.
    pub(crate) fn amqps(&self, host: &str) -> String {
        let (user, port) = self.parts();
        format!("amqps://{user}@{host}:{}/%2f", port + 14)
    }

    /// The password of its user.
    pub(crate) fn password(&self) -> &str {
        self.parts().0.split_once(':').expect("it has a password").1
    }

    /// The URI for another user.
    pub(crate) fn uri_of(&self, user: &str, password: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/%2f", self.parts().1)
    }

    /// Ends the node with `kill -9`; its data stay.
    pub(crate) fn kill9(&self) {
        self.script("kill", &[]);
    }

    /// Ends the node in good order; its data stay.
    pub(crate) fn stop(&self) {
        self.script("stop", &[]);
    }

    /// Starts the node again, having ended it with `kill -9` where it still ran.
    pub(crate) fn restart(&self) {
        self.kill9();
        self.script("start", &[]);
    }

    /// What `rabbitmqctl` says to these arguments.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        self.script("ctl", arguments)
    }

    /// Closes the connection that an exclusive queue belongs to.
    pub(crate) fn close_owner(&self, queue: &str) {
        let queues = self.ctl(&["list_queues", "--quiet", "name", "owner_pid"]);
        let owner = queues.lines().find_map(|line| line.split_once('\t').filter(|(name, _)| *name == queue));
        let (_, owner) = owner.unwrap_or_else(|| panic!("{queue} is not among {queues}"));
        self.ctl(&["close_connection", owner.trim(), "by a test"]);
    }

    /// The node's own folder.
    pub(crate) fn dir(&self) -> &Path {
        self.node.as_deref().expect("the broker of REDEEMER_TEST_BROKER is not ours to end or command")
    }

    fn script(&self, command: &str, arguments: &[&str]) -> String {
        run(command, self.dir(), arguments).unwrap_or_else(|complaint| panic!("{complaint}"))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let Some(dir) = &self.node else { return };
        let removed = run("remove", dir, &[]);
        // A start that failed early leaves a folder which the script does not know as a node.
        let _ = fs::remove_dir_all(dir);
        match removed {
            Err(complaint) if thread::panicking() => eprintln!("{complaint}"),
            Err(complaint) => panic!("{complaint}"),
            Ok(_) => {}
        }
    }
}

/// Runs one command of the script for the node in `dir`. Its complaint ends with the node's log where that helps.
pub(crate) fn run(command: &str, dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/local/rabbitmq");
    let output = Command::new(script)
        .arg(command)
        .arg(dir)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{script}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "{script} {command} {} {arguments:?}: {}\n{}{}",
        dir.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    ))
}

/// A folder for one node, below `target/tmp`: unique by process and count.
pub(crate) fn unused_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("broker-{}-{count}", process::id()));
    // Left by an earlier process with our pid, if that and its watch were both killed.
    if dir.exists() {
        let _ = run("remove", &dir, &[]);
        let _ = fs::remove_dir_all(&dir);
    }
    dir
}
