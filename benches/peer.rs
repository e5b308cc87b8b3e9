//! A peer as a command line. `benches/peers/prepare` makes it ready below a folder.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// The peers, in the order of tables, by the names of their folders.
pub(crate) const PEERS: [&str; 5] =
    ["node-usual", "node-tuned", "python-usual", "python-tuned", "java-plain"];

/// What a peer reads from its environment.
pub(crate) struct PeerSettings<'a> {
    pub uri: &'a str,
    pub commands: &'a str,
    pub results: &'a str,
    /// Prefetch and concurrency.
    pub in_flight: usize,
    pub base_url: &'a str,
    pub mchid: &'a str,
    pub merchant_serial: &'a str,
    pub merchant_key_file: &'a Path,
    pub public_key_id: &'a str,
    pub public_key_file: &'a Path,
}

impl PeerSettings<'_> {
    /// Sets the environment of `command`.
    pub(crate) fn apply(&self, command: &mut Command) {
        let text = |text: &str| OsStr::new(text).to_owned();
        command.stdin(Stdio::null()).envs([
            ("PEER_URI", text(self.uri)),
            ("PEER_COMMANDS", text(self.commands)),
            ("PEER_RESULTS", text(self.results)),
            ("PEER_IN_FLIGHT", text(&self.in_flight.to_string())),
            ("PEER_BASE_URL", text(self.base_url)),
            ("PEER_MCHID", text(self.mchid)),
            ("PEER_SERIAL", text(self.merchant_serial)),
            ("PEER_KEY_FILE", self.merchant_key_file.into()),
            ("PEER_PUBLIC_KEY_ID", text(self.public_key_id)),
            ("PEER_PUBLIC_KEY_FILE", self.public_key_file.into()),
        ]);
    }
}

/// Whether `benches/peers/prepare` has made the peer ready below `peers`.
pub(crate) fn is_ready(peers: &Path, peer: &str) -> bool {
    peers.join(peer).join(".installed").exists()
}

/// Why `benches/peers/prepare` left the peer out.
pub(crate) fn why_absent(peers: &Path, peer: &str) -> String {
    std::fs::read_to_string(peers.join(peer).join(".missing")).map_or_else(
        |_| "benches/peers/prepare did not make it ready".to_owned(),
        |why| why.trim().to_owned(),
    )
}

/// The command line of a peer, in its folder.
pub(crate) fn command(peers: &Path, peer: &str) -> Command {
    const CLASSES: &str = "classes:/usr/share/java/amqp-client.jar:/usr/share/java/slf4j-api.jar:\
                           /usr/share/java/slf4j-nop.jar";
    let dir = peers.join(peer);
    let mut command = match peer.split('-').next() {
        Some("python") => {
            let mut command = Command::new(dir.join("venv/bin/python"));
            command.arg("main.py");
            command
        }
        Some("java") => {
            let mut command = Command::new("java");
            command.args(["-cp", CLASSES, "Peer"]);
            command
        }
        _ => {
            let mut command = Command::new("node");
            command.arg("index.js");
            command
        }
    };
    command.current_dir(dir);
    command
}
