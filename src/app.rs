//! Composition of the service: reads the configuration's secrets and keys, opens the admin port, starts the background
//! tasks and the supervisor, and shuts them down.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::admin::console::{self, Auth};
use crate::admin::server::{self, CannotListen};
use crate::amqp::connection::AmqpSettings;
use crate::amqp::topology;
use crate::config::startup::{StartFault, Startup};
use crate::config::{Config, ConfigFault, MERCHANT_KEY};
use crate::policy::retry_budget::RetryBudget;
use crate::runtime::circuit_gate::CircuitGate;
use crate::runtime::key_reload::{KeyFaults, KeyReloader, KeySources};
use crate::runtime::publishing::PublishFaults;
use crate::runtime::rate_limiter::RateLimiter;
use crate::runtime::response_log::ResponseLog;
use crate::runtime::service::Service;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::worker::{Brands, WorkerContext};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::Traces;
use crate::telemetry::status::Status;
use crate::wechat::client::Client;

/// Why the service does not start. The operator has to fix it; an unavailable broker does not prevent a start.
#[derive(Debug, thiserror::Error)]
pub enum StartRefusal {
    /// The configuration, a key or a file is wrong.
    #[error("the service cannot start:{}", .0.iter().map(|fault| format!("\n  {fault}")).collect::<String>())]
    Start(Vec<StartFault>),
    /// The admin port cannot be opened.
    #[error("{0}")]
    Admin(#[from] CannotListen),
}

impl From<ConfigFault> for StartRefusal {
    fn from(fault: ConfigFault) -> Self {
        Self::Start(vec![StartFault::Config(fault)])
    }
}

/// The time limit for exporting the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Runs until `shutdown`, then finishes the commands in work within `shutdown.deadline`. `ready` gets the address of the
/// admin port.
///
/// # Errors
/// [`StartRefusal`] if it cannot start.
pub async fn run(
    config: Config,
    merchant_key: Option<SecretString>,
    shutdown: Shutdown,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), StartRefusal> {
    let Startup { broker, console_token, apiv3_key, keys, client } =
        Startup::read(&config, merchant_key.as_ref()).map_err(StartRefusal::Start)?;
    for fault in &keys.read().unwrap_or_else(PoisonError::into_inner).left_out {
        warn!(%fault, "platform certificate left out");
    }
    let traces = match config.traces() {
        None => Traces::off(),
        Some(settings) => Traces::start(&settings)
            .map_err(|fault| ConfigFault::new("telemetry.otlp_endpoint", fault.to_string()))?,
    };
    let context = Arc::new(worker_context(&config, Arc::new(client), traces.clone()));
    let status = watch::Sender::new(Status::starting(Timestamp::now()));
    let console = console_token.map(|token| console_routes(&config, &token, &broker, &context));
    let (listen, metrics) = (config.admin_listen(), context.metrics.clone());
    let (address, admin) =
        server::serve(listen, metrics, status.subscribe(), console, &config.admin.hosts).await?;

    let key_faults = KeyFaults::default();
    let key_reloader = KeyReloader {
        sources: KeySources {
            files: config.key_files(),
            merchant_key,
            apiv3_key,
            apiv3_key_file: config.apiv3_key_file(),
            reload_every: config.wechat.reload_every.0,
            download_every: config.wechat.download_every.0,
        },
        keys: keys.clone(),
        client: context.client.clone(),
        circuit_gate: context.circuit_gate.clone(),
        metrics: context.metrics.clone(),
        trouble: key_faults.clone(),
        config: config.clone(),
    };
    let background = [tokio::spawn(key_reloader.run()), admin];
    info!(version = env!("CARGO_PKG_VERSION"), admin = %address, "starting");
    ready(address);

    let mut service = Service::new(&config, keys, context, status, key_faults);
    service.supervise(&broker, shutdown).await;
    background.iter().for_each(JoinHandle::abort);
    traces.finish(LAST_SPANS).await;
    info!("stopped");
    Ok(())
}

fn worker_context(config: &Config, client: Arc<Client>, traces: Traces) -> WorkerContext {
    let topology = config.topology();
    let delays: Vec<String> = topology.delays.iter().map(|wait| topology::delay_name(*wait)).collect();
    let metrics = Arc::new(Metrics::new(&delays));
    metrics.commands.set_permit_limit(config.concurrency.commands);
    metrics.rate_limit.set_rate_limit(f64::from(config.rate_limit.calls_per_second));
    WorkerContext {
        client,
        circuit_gate: CircuitGate::default(),
        rate_limiter: RateLimiter::start(config.calls_per_second()),
        budget: RetryBudget::new(config.retry.budget_ratio),
        metrics,
        limits: config.limits(),
        deadline_limits: config.deadline_limits(),
        publish_retry_max: config.event.publish_retry_max.0,
        source: config.event.source.clone(),
        brands: Brands::default(),
        traces,
        queue: topology.names.commands,
        publish_faults: PublishFaults::default(),
        responses: ResponseLog::default(),
        rejections: Mutex::default(),
    }
}

fn console_routes(
    config: &Config,
    token: &SecretString,
    broker: &AmqpSettings,
    context: &WorkerContext,
) -> Router {
    let exposed = !config.admin_listen().ip().is_loopback();
    if exposed {
        warn!("operator console reachable beyond this machine without encryption; use a tunnel");
    }
    let signed = |duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    console::routes(console::Setup {
        auth: Auth::new(token.expose_secret()),
        broker: broker.clone(),
        client: context.client.clone(),
        rate_limiter: context.rate_limiter.clone(),
        metrics: context.metrics.clone(),
        source: context.source.clone(),
        deadline_limits: context.deadline_limits,
        query_delay: signed(config.retry.query_delay.0),
        longest_call: signed(config.wechat.total_timeout.0),
        exposed,
    })
}

/// The merchant key from the environment, if it is set there.
pub fn merchant_key_from_environment() -> Option<SecretString> {
    std::env::var(MERCHANT_KEY).ok().map(SecretString::from)
}
