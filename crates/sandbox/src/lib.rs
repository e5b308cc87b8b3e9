//! A simulator of the WeChat Pay product-coupon API, which judges a client.
//!
//! It verifies every request, keeps a state machine per coupon, signs its responses, fails on purpose by a script, and
//! records everything. To be independent it shares nothing with the client: no types, no canonical text, and, unless
//! [`Settings::fast_signatures`] is set, no cryptographic library. It is not the vendor's service: if the vendor's documents
//! are silent, such as about which status belongs to which error number, its responses are guesses; a client must not
//! depend on them.
//!
//! A request goes through `listener` to `api`, which calls `signature`, `request`, `faults` and `coupons` in this order,
//! and `response` writes the response. `control` and the methods of [`Sandbox`] do the same things.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use http::Request;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

mod api;
mod appearance;
mod bundles;
mod call;
mod clock;
mod control;
mod coupon;
mod coupons;
mod entity;
mod error_response;
mod fast;
mod faults;
mod identity;
mod issue;
mod ledger;
mod listener;
mod registry;
mod request;
mod response;
mod signature;
mod world;

pub use coupon::{
    ActionRequest, Bundle, Coupon, CouponAction, CouponState, Mark, NewCoupon, Round, Usage, UsageMode,
};
pub use faults::{Fault, Rule, Script, Target};
pub use identity::{Card, IdentityError, MCHID};
pub use ledger::{
    Attempt, BodyDigest, BusiestSecond, Effect, EffectKind, Operation, Page, ResponseRecord, Summary,
};
pub use registry::{App, Store};
pub use world::Tuning;

use identity::Identity;
use listener::ServerConnection;
use world::World;

/// How a sandbox starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen; port 0 takes a free one. Loopback by default, and there is no reason to listen elsewhere.
    pub listen: SocketAddr,
    /// Where the identity files are written; created if absent. An identity found there is kept.
    pub dir: PathBuf,
    /// The seed of all randomness: keys, request ids, and which calls a fault hits.
    pub seed: u64,
    /// The delay of each response of the provider API. 0 by default.
    pub latency: Duration,
    /// Calls accepted per merchant and whole second since the start; beyond it 429. 0, the default: no limit.
    pub calls_per_second: u32,
    /// Whether an unknown coupon code that begins with `auto` is issued, usable, at first sight.
    pub auto_issue: bool,
    /// Brands whose requests get 403 `NO_AUTH`; `*` is every brand. None by default.
    pub unauthorized_brands: BTreeSet<String>,
    /// How long a connection may be idle before it is closed. 8 s by default, as at the provider.
    pub idle_timeout: Duration,
    /// Whether to sign and verify by the client's own library, five times as fast: for measurements and long loads,
    /// where the sandbox must not be the bottleneck. It is then no independent judge. False by default.
    pub fast_signatures: bool,
}

/// A running sandbox. It ends when it is dropped.
pub struct Sandbox {
    world: Arc<World>,
    addr: SocketAddr,
    accepting: JoinHandle<()>,
}

/// Why a sandbox did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity could not be read or created.
    #[error("identity: {0}")]
    Identity(#[from] IdentityError),
    /// The thread that reads the identity panicked, or the runtime is ending.
    #[error("the identity was not read: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// The control API rejected the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            dir: std::env::temp_dir().join("redeemer-sandbox"),
            seed: 1,
            latency: Duration::ZERO,
            calls_per_second: 0,
            auto_issue: false,
            unauthorized_brands: BTreeSet::new(),
            idle_timeout: Duration::from_secs(8),
            fast_signatures: false,
        }
    }
}

impl Sandbox {
    /// Reads or creates the identity, listens, and serves in the background. The first start in a directory takes a
    /// second or two, for the keys.
    ///
    /// # Errors
    /// The address is taken, or the directory cannot be written or holds something else.
    pub async fn start(settings: Settings) -> Result<Sandbox, StartError> {
        let failed = |source| StartError::Listen { addr: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (dir, seed, fast) = (settings.dir.clone(), settings.seed, settings.fast_signatures);
        let identity = tokio::task::spawn_blocking(move || {
            let mut identity = Identity::open(&dir, seed)?;
            if fast {
                identity.prepare_signers(&dir)?;
            }
            identity.publish(&dir, format!("http://{addr}"))?;
            Ok::<_, IdentityError>(identity)
        })
        .await??;

        let tuning = Tuning {
            latency_ms: Some(u64::try_from(settings.latency.as_millis()).unwrap_or(u64::MAX)),
            calls_per_second: Some(settings.calls_per_second),
            auto_issue: Some(settings.auto_issue),
            unauthorized_brands: Some(settings.unauthorized_brands),
            returned_before_reuse: None,
            vary_looks: None,
        };
        let world = Arc::new(World::new(identity, settings.seed, settings.idle_timeout, tuning));
        let provider = world.clone();
        let router = control::router(world.clone()).fallback(
            move |Extension(wire): Extension<ServerConnection>, request: Request<Body>| {
                api::serve_call(provider, wire, request)
            },
        );
        let accepting = tokio::spawn(listener::listen(listener, router, settings.idle_timeout));
        Ok(Sandbox { world, addr, accepting })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://` and the address.
    pub fn base_url(&self) -> String {
        self.world.identity.card.base_url.clone()
    }

    /// The data that a client needs besides the key files.
    pub fn card(&self) -> &Card {
        &self.world.identity.card
    }

    /// Stops listening and closes all connections at once.
    pub async fn shutdown(mut self) {
        self.accepting.abort();
        // The task was aborted, so its result is an error.
        let _ = (&mut self.accepting).await;
    }

    /// Issues coupons: all of them, or none.
    ///
    /// # Errors
    /// A code exists already or is too long, or there are too many rounds.
    pub fn issue(&self, coupons: impl IntoIterator<Item = NewCoupon>) -> Result<(), Refused> {
        self.world.issue(coupons.into_iter().collect()).map_err(Refused)
    }

    /// Applies an external action to a coupon, and returns its new state.
    ///
    /// # Errors
    /// There is no such coupon, or its state does not allow it.
    pub fn act(&self, coupon_code: &str, act: &ActionRequest) -> Result<Coupon, Refused> {
        self.world.act(coupon_code, act).map_err(Refused)
    }

    /// Replaces the stores of all brands.
    ///
    /// # Errors
    /// A store is listed twice.
    pub fn set_stores(&self, stores: impl IntoIterator<Item = Store>) -> Result<(), Refused> {
        self.world.set_stores(stores.into_iter().collect()).map_err(Refused)
    }

    /// Replaces the apps and their users.
    ///
    /// # Errors
    /// An app is listed twice, or a user belongs to two of them.
    pub fn set_apps(&self, apps: impl IntoIterator<Item = App>) -> Result<(), Refused> {
        self.world.set_apps(apps.into_iter().collect()).map_err(Refused)
    }

    /// Replaces the fault script and its counts.
    ///
    /// # Errors
    /// A share is not from 0 to 1, or a status not from 200 to 599. The old script stays then.
    pub fn set_faults(&self, script: Script) -> Result<(), Refused> {
        self.world.set_faults(script).map_err(Refused)
    }

    /// The fault script, and how often each rule was applied.
    pub fn faults(&self) -> Script {
        self.world.state().faults.script()
    }

    /// Sets the sandbox clock this many seconds ahead of the system's.
    pub fn set_clock_offset(&self, seconds: i64) {
        self.world.clock.set_offset(seconds);
    }

    /// Changes settings, and returns all of them.
    pub fn tune(&self, tuning: Tuning) -> Tuning {
        self.world.tune(tuning)
    }

    /// Registers another merchant key: a public key or a certificate in PEM.
    ///
    /// # Errors
    /// It is neither.
    pub fn register_merchant(&self, pem: &str) -> Result<(), Refused> {
        self.world.register_merchant(pem).map_err(Refused)
    }

    /// A copy of the whole ledger.
    pub fn ledger(&self) -> Page {
        self.world.ledger()
    }

    /// A copy of all effects.
    pub fn effects(&self) -> Vec<Effect> {
        self.world.effects()
    }

    /// Counts of everything.
    pub fn summary(&self) -> Summary {
        self.world.summary()
    }

    /// Whole seconds since the start, and the calls that arrived in each.
    pub fn calls_by_second(&self) -> BTreeMap<u64, u64> {
        self.world.calls_by_second()
    }

    /// Clears the attempts; effects and coupons stay.
    pub fn clear_attempts(&self) {
        self.world.state().ledger.clear_attempts();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[cfg(test)]
mod tests;
