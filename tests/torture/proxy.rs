//! A TCP proxy that misbehaves on request: cut, fall silent, be slow, refuse, or close half-way through what it
//! was just passing on.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How a proxy treats what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As it should.
    Good,
    /// Accepts connections and bytes, and passes nothing on.
    Silent,
    /// Passes everything on so much later.
    Slow(Duration),
    /// Closes each new connection at once.
    Refusing,
}

/// A running proxy. It ends with its runtime.
pub(crate) struct Proxy {
    /// Where it listens, on the loopback interface.
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    manner: watch::Sender<Manner>,
    /// Counts up at each cut.
    cuts: watch::Sender<u64>,
    /// When the far end first closed a connection, since it was last asked to watch.
    broke_at: Mutex<Option<Instant>>,
    /// How many of the next chunks are passed on by half, and then the connection closed.
    halves: AtomicU32,
    /// How many of the next acknowledgements from the client are not passed on, and their connections closed.
    acks: AtomicU32,
    /// Connections that were closed by a cut.
    cut_off: AtomicU64,
    /// Connections that were refused, and pieces that were halved, held up or passed on late.
    ill_treated: AtomicU64,
}

impl Proxy {
    /// A proxy in front of a port of the loopback interface.
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            to: SocketAddr::from((Ipv4Addr::LOCALHOST, to)),
            manner: watch::Sender::new(Manner::Good),
            cuts: watch::Sender::new(0),
            broke_at: Mutex::new(None),
            halves: AtomicU32::new(0),
            acks: AtomicU32::new(0),
            cut_off: AtomicU64::new(0),
            ill_treated: AtomicU64::new(0),
        });
        tokio::spawn(accept(listener, shared.clone()));
        Self { port, shared }
    }

    /// Behaves so from now on.
    pub(crate) fn behave(&self, manner: Manner) {
        self.shared.manner.send_replace(manner);
    }

    /// Closes every connection.
    pub(crate) fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// How many connections were closed by a cut so far.
    pub(crate) fn cut_off(&self) -> u64 {
        self.shared.cut_off.load(Ordering::SeqCst)
    }

    /// How often it has misbehaved so far in any other way.
    pub(crate) fn ill_treated(&self) -> u64 {
        self.shared.ill_treated.load(Ordering::SeqCst)
    }

    /// Watches from now on for the far end to close a connection.
    pub(crate) fn watch(&self) {
        *self.shared.broke_at.lock().unwrap() = None;
    }

    /// When that first happened.
    pub(crate) fn broke_at(&self) -> Option<Instant> {
        *self.shared.broke_at.lock().unwrap()
    }

    /// Closes the next connections by which the client acknowledges something, just before that.
    pub(crate) fn cut_at_acks(&self, connections: u32) {
        self.shared.acks.store(connections, Ordering::SeqCst);
    }

    /// Closes the next connections that something passes through, half-way through it.
    pub(crate) fn halve(&self, connections: u32) {
        self.shared.halves.store(connections, Ordering::SeqCst);
    }
}

/// AMQP's `basic.ack` with the length of its frame and its class: from the third byte of the frame on.
const ACK: [u8; 8] = [0, 0, 0, 13, 0, 60, 0, 80];

/// Where the first frame begins that acknowledges something.
fn find_ack(bytes: &[u8]) -> Option<usize> {
    bytes.windows(ACK.len()).position(|window| window == ACK).map(|at| at.saturating_sub(3))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if *shared.manner.borrow() == Manner::Refusing {
            shared.misbehaved();
            continue;
        }
        let shared = shared.clone();
        let mut cuts = shared.cuts.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = pass(client, &shared) => {}
                _ = cuts.changed() => {
                    shared.cut_off.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
}

async fn pass(client: TcpStream, shared: &Shared) {
    shared.audible().await;
    let Ok(server) = TcpStream::connect(shared.to).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = pump(from_client, to_server, shared, true) => {}
        () = pump(from_server, to_client, shared, false) => {
            shared.broke_at.lock().unwrap().get_or_insert_with(Instant::now);
        }
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    by_client: bool,
) {
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let length = match from.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        shared.audible().await;
        let manner = *shared.manner.borrow();
        if let Manner::Slow(by) = manner {
            shared.misbehaved();
            tokio::time::sleep(by).await;
        }
        if by_client
            && let Some(at) = find_ack(&chunk[..length])
            && shared
                .acks
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_ok()
        {
            shared.misbehaved();
            let _ = to.write_all(&chunk[..at]).await;
            return;
        }
        let halve =
            shared.halves.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        let length = if halve.is_ok() { length / 2 } else { length };
        if halve.is_ok() {
            shared.misbehaved();
        }
        if to.write_all(&chunk[..length]).await.is_err() || halve.is_ok() {
            return;
        }
    }
}

impl Shared {
    /// Waits while nothing may pass.
    async fn audible(&self) {
        if *self.manner.borrow() == Manner::Silent {
            self.misbehaved();
        }
        let _ = self.manner.subscribe().wait_for(|manner| *manner != Manner::Silent).await;
    }

    fn misbehaved(&self) {
        self.ill_treated.fetch_add(1, Ordering::SeqCst);
    }
}
