//! The request to shut down, for every part of the service.

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Requests a shutdown, also when it is dropped.
#[derive(Debug)]
pub struct Trigger(CancellationToken);

/// Waits for a shutdown.
#[derive(Debug, Clone)]
pub struct Shutdown(CancellationToken);

/// A trigger and its receiver, which may be cloned.
pub fn channel() -> (Trigger, Shutdown) {
    let token = CancellationToken::new();
    (Trigger(token.clone()), Shutdown(token))
}

impl Trigger {
    /// Requests the shutdown.
    pub fn request(&self) {
        self.0.cancel();
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        self.request();
    }
}

impl Shutdown {
    /// Whether a shutdown is requested.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until a shutdown is requested.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }
}

/// Waits for SIGTERM, SIGINT or SIGHUP: a closed terminal stops the service in good order, too.
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

/// Waits for SIGTERM or SIGINT and, if `with_parent` is set, for the end of standard input: then it also ends with the
/// program that started it.
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
