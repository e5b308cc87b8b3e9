//! The request to shut down, for every part of the service.

use tokio::sync::{oneshot, watch};

/// Requests a shutdown.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// Waits for a shutdown.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// A trigger and its receiver, which may be cloned.
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Requests the shutdown.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Whether a shutdown is requested. A dropped trigger is a request.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Waits until a shutdown is requested. A dropped trigger is a request.
    pub async fn wait(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
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
