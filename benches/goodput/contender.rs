//! What is measured: the service, or a peer, on the queues of a bed.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::bed::{Bed, until};
use crate::peer::{self, PeerSettings};
use crate::program::Program;

/// Which one.
#[derive(Clone)]
pub(crate) enum Contender {
    Service,
    /// A peer that is ready below this folder.
    Peer(PathBuf, &'static str),
}

/// A running contender; it ends when it is dropped.
pub(crate) enum Running {
    Service(#[allow(dead_code, reason = "held until it is dropped")] Program),
    Peer(Child),
}

impl Contender {
    /// Starts it and waits until it consumes.
    pub(crate) async fn start(&self, bed: &Bed) -> Running {
        match self {
            Self::Service => Running::Service(Program::start(bed, 0).await),
            Self::Peer(peers, name) => Running::Peer(start_peer(bed, peers, name).await),
        }
    }
}

async fn start_peer(bed: &Bed, peers: &Path, name: &str) -> Child {
    let names = &bed.config.broker.names;
    let card = bed.sandbox.card();
    let mut command = peer::command(peers, name);
    PeerSettings {
        uri: &bed.config.broker.uri,
        commands: &names.commands,
        results: &names.results,
        in_flight: bed.config.broker.prefetch.into(),
        base_url: &bed.config.wechat.base_url,
        mchid: &card.mchid,
        merchant_serial: &card.merchant_serial,
        merchant_key_file: &bed.dir.join("merchant_key.pem"),
        public_key_id: &card.public_key_id,
        public_key_file: &bed.dir.join("wechatpay_public_key.pem"),
    }
    .apply(&mut command);
    // Each nack of a peer is a line of its log.
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the peer's consumer", async || {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = names.commands.as_str().into();
        bed.channel().queue_declare(queue, options, FieldTable::default()).await.unwrap().consumer_count() > 0
    })
    .await;
    child
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Peer(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
