//! The port for operators: metrics, liveness, readiness, and a page for people.
//!
//! Serves nothing secret and changes nothing, except through the operator console, if it is enabled. Every connection is bounded
//! in time and size. At the limit a new connection replaces the oldest one, so that a slow or a flooding client costs
//! others nothing.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::{SignedDuration, Timestamp};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{interval, timeout};
use tracing::warn;

use crate::admin::history::History;
use crate::admin::{history, host, status_page};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::status::{Status, join};

/// Connections held at once.
const CONNECTIONS_MAX: usize = 256;
/// The longest wait for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest life of a connection.
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// The longest wait for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time without a heartbeat of the main loop before `/livez` fails.
const LIVENESS_TIMEOUT: SignedDuration = SignedDuration::from_secs(30);

#[derive(Clone)]
struct PageSource {
    metrics: Arc<Metrics>,
    status: watch::Receiver<Status>,
    history: Arc<Mutex<History>>,
    /// Whether the operator console is enabled.
    console: bool,
}

/// The peer of a connection. Headers of proxies are ignored.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Why the port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("admin.listen = {address} cannot be opened: {source}")]
pub struct CannotListen {
    address: SocketAddr,
    source: std::io::Error,
}

/// Opens the port and serves until the task is aborted. Gives the address, for port 0. `console` is served below `/parked`. `hosts` are names that
/// it answers under, beside addresses and names that cannot be registered.
///
/// # Errors
/// [`CannotListen`]
pub async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    status: watch::Receiver<Status>,
    console: Option<Router>,
    hosts: &[String],
) -> Result<(SocketAddr, tokio::task::JoinHandle<()>), CannotListen> {
    let refused = |source| CannotListen { address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    let shown = PageSource { metrics, status, history: Arc::default(), console: console.is_some() };
    let router = Router::new()
        .route("/", get(page))
        .route("/metrics", get(render))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/status.json", get(status_json))
        .route("/runbook", get(runbook))
        .with_state(shown.clone())
        .merge(console.unwrap_or_default())
        .layer(from_fn_with_state(Arc::from(hosts), host::check));
    // Both end together, when the task is aborted.
    let both = async move {
        tokio::join!(accept(listener, router), record_peer(shown));
    };
    Ok((bound, tokio::spawn(both)))
}

/// Reads the body of a request whole, within its bound and its deadline.
///
/// # Errors
/// The response: 400, 413 or 408, after which the connection ends.
pub(super) async fn read_body(mut request: Request, bytes_max: usize) -> Result<Request, Response> {
    DefaultBodyLimit::max(bytes_max).apply(&mut request);
    let (parts, body) = request.into_parts();
    let reading = Bytes::from_request(Request::from_parts(parts.clone(), body), &());
    let mut response = match timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(body)) => return Ok(Request::from_parts(parts, body.into())),
        Ok(Err(rejected)) => rejected.into_response(),
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the body took too long\n").into_response(),
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Err(response)
}

/// Keeps the last minutes for the page.
async fn record_peer(mut shown: PageSource) {
    let mut due = interval(history::EVERY);
    let remembered = |shown: &PageSource, sample: bool| {
        let reasons = shown.status.borrow().clone().visible().reasons;
        let mut history = shown.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.problems(Timestamp::now(), &reasons);
        if sample {
            history.sample(shown.metrics.snapshot());
        }
    };
    loop {
        tokio::select! {
            _ = due.tick() => remembered(&shown, true),
            changed = shown.status.changed() => {
                // The sender of the status has ended.
                if changed.is_err() {
                    return;
                }
                remembered(&shown, false);
            }
        }
    }
}

async fn accept(listener: TcpListener, router: Router) {
    // Dropping it ends every connection.
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => {
                oldest_first.retain(|connection| !connection.is_finished());
                continue;
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                // A request takes milliseconds: the oldest of this many connections is slow or idle.
                if oldest_first.len() >= CONNECTIONS_MAX
                    && let Some(oldest) = oldest_first.pop_front()
                {
                    oldest.abort();
                }
                oldest_first.push_back(connections.spawn(serve_connection(stream, peer, router.clone())));
            }
            Err(error) => {
                // Most likely no file descriptor is free; some are closed during the pause.
                warn!(%error, "admin port: a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one connection to its end. Faults of the client are ignored.
async fn serve_connection(stream: TcpStream, peer: SocketAddr, router: Router) {
    let router = router.layer(Extension(Peer(peer)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let _ = timeout(CONNECTION_MAX, connection).await;
}

async fn render(State(shown): State<PageSource>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shown.metrics.render())
}

async fn live(State(shown): State<PageSource>) -> impl IntoResponse {
    let still = Timestamp::now().duration_since(shown.status.borrow().heartbeat);
    if still <= LIVENESS_TIMEOUT {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("the main loop has stood still for {still:#}\n"))
    }
}

async fn ready(State(shown): State<PageSource>) -> impl IntoResponse {
    let status = shown.status.borrow().clone().visible();
    let warnings: String = status.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    if status.ready() {
        (StatusCode::OK, format!("ok\n{warnings}"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n{warnings}", join(&status.reasons, "\n")))
    }
}

async fn status_json(State(shown): State<PageSource>) -> impl IntoResponse {
    axum::Json(shown.status.borrow().clone().visible())
}

async fn page(State(shown): State<PageSource>) -> impl IntoResponse {
    let status = shown.status.borrow().clone().visible();
    let history = shown.history.lock().unwrap_or_else(PoisonError::into_inner);
    let page =
        status_page::render(&status, &shown.metrics.snapshot(), &history, shown.console, Timestamp::now());
    document(page)
}

async fn runbook() -> impl IntoResponse {
    document(status_page::runbook())
}

fn document(page: String) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, status_page::content_security_policy()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (headers, Html(page))
}
