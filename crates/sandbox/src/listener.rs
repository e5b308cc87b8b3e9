//! The listening socket: HTTP/1.1 connections that can be closed abruptly.
//!
//! `axum::serve` cannot close a connection without a response, which is the fault that matters most here.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// A handle on the connection that a request came in by.
#[derive(Clone, Default)]
pub(super) struct ServerConnection(Arc<Notify>);

impl ServerConnection {
    /// Closes the connection. The caller is dropped with it, so this never returns.
    pub(crate) async fn close_abruptly<T>(&self) -> Result<T, Infallible> {
        self.0.notify_one();
        std::future::pending().await
    }
}

/// Accepts until it is aborted; its connections end with it.
pub(super) async fn listen(listener: TcpListener, router: Router, idle_timeout: Duration) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve(stream, router.clone(), idle_timeout));
            }
            Err(error) => {
                // Mostly "too many open files", which passes when clients close theirs.
                tracing::warn!(%error, "the sandbox cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, router: Router, idle_timeout: Duration) {
    // Small responses must not wait for the client's acknowledgements; if this fails they are merely slower.
    let _ = stream.set_nodelay(true);
    let wire = ServerConnection::default();
    let service = TowerToHyperService::new(router.layer(Extension(wire.clone())));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // hyper waits for the head of the next request as long as for a slow one, so this closes idle connections too.
        .header_read_timeout(idle_timeout)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // Errors here are clients that went away and bodies that were cut on purpose.
        _ = connection => {}
        () = wire.0.notified() => {}
    }
}
