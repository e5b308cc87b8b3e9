//! Composition of the service: reads the configuration's secrets and keys, opens the admin port, starts the background
//! tasks and the supervisor, and shuts them down.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::admin::console::{self, Auth};
use crate::admin::server::{self, CannotListen};
use crate::amqp::topology::{self};
use crate::config::startup::{StartFault, Startup};
use crate::config::{Config, ConfigFault, MERCHANT_KEY};
use crate::runtime::circuit_gate::CircuitGate;
use crate::runtime::key_reload::{KeyFaults, KeyReloader, KeySources};
use crate::runtime::message_size::warn_of_message_size;
use crate::runtime::publishing::PublishFaults;
use crate::runtime::rate_limiter::{RateLimiter, RetryBudget};
use crate::runtime::response_log::ResponseLog;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::supervisor::Service;
use crate::runtime::worker::{Brands, WorkerContext};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::Traces;
use crate::telemetry::status::Status;

/// Why the service does not start. All of it is for the operator to mend; a broker that is down is not among it.
#[derive(Debug, thiserror::Error)]
pub enum StartRefusal {
    /// The configuration, a key or a file is wrong.
    #[error("the service cannot start:{}", .0.iter().map(|fault| format!("\n  {fault}")).collect::<String>())]
    Start(Vec<StartFault>),
    /// The admin port could not be opened.
    #[error("{0}")]
    Admin(#[from] CannotListen),
}

impl From<ConfigFault> for StartRefusal {
    fn from(fault: ConfigFault) -> Self {
        Self::Start(vec![StartFault::Config(fault)])
    }
}

/// The longest wait for a collector to take the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Runs until `shutdown`, then finishes what is in flight within the configured deadline. `ready` is told the admin
/// port's address.
///
/// # Errors
/// [`Refusal`] where it cannot start.
pub async fn run(
    config: Config,
    merchant_key: Option<SecretString>,
    shutdown: Shutdown,
    ready: impl FnOnce(std::net::SocketAddr),
) -> Result<(), StartRefusal> {
    let Startup { broker, console_token, apiv3_key, keys, client } =
        Startup::read(&config, merchant_key.as_ref()).map_err(StartRefusal::Start)?;
    let auth = console_token.map(|token| Auth::new(token.expose_secret()));
    let client = Arc::new(client);
    let sources = KeySources {
        files: config.key_files(),
        merchant_key,
        apiv3_key,
        apiv3_key_file: config.apiv3_key_file(),
        reload_every: config.wechat.reload_every.0,
        download_every: config.wechat.download_every.0,
    };
    for fault in &keys.read().unwrap_or_else(PoisonError::into_inner).left_out {
        warn!(%fault, "a platform certificate is left out");
    }
    let traces = match config.traces() {
        None => Traces::off(),
        Some(settings) => Traces::start(&settings)
            .map_err(|fault| ConfigFault::new("telemetry.otlp_endpoint", fault.to_string()))?,
    };

    let topology = config.topology();
    let delays: Vec<String> = topology.delays.iter().map(|wait| topology::delay_name(*wait)).collect();
    let metrics = Arc::new(Metrics::new(&delays));
    metrics.set_permit_limit(config.concurrency.commands);
    metrics.set_rate_limit(f64::from(config.rate_limit.calls_per_second));
    let circuit_gate = CircuitGate::default();
    let status = watch::Sender::new(Status::starting(Timestamp::now()));
    let rate_limiter = RateLimiter::start(config.calls_per_second());
    let exposed = !config.admin_listen().ip().is_loopback();
    let console = auth.map(|auth| {
        if exposed {
            warn!(
                "the parked console is open beyond this machine, and its token travels unencrypted: use a tunnel"
            );
        }
        console::routes(console::Setup {
            auth,
            broker: broker.clone(),
            client: client.clone(),
            rate_limiter: rate_limiter.clone(),
            metrics: metrics.clone(),
            source: config.event.source.clone(),
            deadline_limits: config.deadline_limits(),
            settling: SignedDuration::try_from(config.retry.query_delay.0).unwrap_or(SignedDuration::MAX),
            longest_call: SignedDuration::try_from(config.wechat.total_timeout.0)
                .unwrap_or(SignedDuration::MAX),
            exposed,
        })
    });
    let (address, admin) = server::serve(
        config.admin_listen(),
        metrics.clone(),
        status.subscribe(),
        console,
        &config.admin.hosts,
    )
    .await?;
    let key_trouble = KeyFaults::default();
    let keeper = KeyReloader {
        sources,
        keys: keys.clone(),
        client: client.clone(),
        circuit_gate: circuit_gate.clone(),
        metrics: metrics.clone(),
        trouble: key_trouble.clone(),
        secrets: config.secret_files(),
    };
    let keeper = tokio::spawn(keeper.run());
    let size_warning = Arc::new(OnceLock::new());
    let sizes = tokio::spawn(warn_of_message_size(broker.clone(), size_warning.clone()));
    info!(version = env!("CARGO_PKG_VERSION"), admin = %address, "starting");
    ready(address);

    let context = Arc::new(WorkerContext {
        client,
        circuit_gate,
        rate_limiter,
        budget: RetryBudget::new(config.retry.budget_ratio),
        metrics,
        limits: config.limits(),
        deadline_limits: config.deadline_limits(),
        publish_retry_max: config.event.publish_retry_max.0,
        source: config.event.source.clone(),
        brands: Brands::default(),
        traces: traces.clone(),
        queue: topology.names.commands.clone(),
        publish_faults: PublishFaults::default(),
        suspended_by: Mutex::default(),
        responses: ResponseLog::default(),
        rejections: Mutex::default(),
    });
    let mut service = Service::new(&config, keys, context, status, size_warning, key_trouble);
    service.supervise(&broker, shutdown).await;
    keeper.abort();
    sizes.abort();
    admin.abort();
    traces.finish(LAST_SPANS).await;
    info!("stopped");
    Ok(())
}

/// The merchant key from the environment, where it stands there.
pub fn merchant_key_from_environment() -> Option<SecretString> {
    std::env::var(MERCHANT_KEY).ok().map(SecretString::from)
}
