//! Reports every part that it is time to stop: once, for good, without a global.

use tokio::sync::{oneshot, watch};

/// The one who says stop.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// One who listens.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// A trigger and its listener, which may be cloned.
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Says stop.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Whether it is time to stop. A trigger that is dropped means stop.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Waits until it is time to stop. A trigger that is dropped means stop.
    pub async fn wait(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// Waits for SIGTERM, SIGINT or SIGHUP: a terminal that is closed stops the service in good order, too.
///
/// # Errors
/// If the system does not let us listen for signals.
pub async fn signal() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = hangup.recv() => "SIGHUP",
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// Waits for SIGTERM or SIGINT and, where `with_parent` is set, for the end of standard input: a program that starts
/// this one and keeps its end of the pipe takes it along, however it ends itself.
///
/// # Errors
/// If the system does not let us listen for signals.
pub async fn signal_or_parent(with_parent: bool) -> std::io::Result<&'static str> {
    if !with_parent {
        return signal().await;
    }
    let (sender, ended) = oneshot::channel();
    // A thread, because a read of standard input cannot be called off.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = sender.send(());
    });
    tokio::select! {
        name = signal() => name,
        _ = ended => Ok("the end of standard input"),
    }
}
