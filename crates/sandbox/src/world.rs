//! The state that all connections share: the identity, the clock, the settings that may change, and the rest behind one lock.
//!
//! One lock, held for microseconds and never across an await, makes the order of the ledger the order of events.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::clock::Clock;
use super::coupon::{ActionRequest, Coupon, NewCoupon};
use super::coupons::Coupons;
use super::faults::{Faults, Script};
use super::identity::{Identity, Registered};
use super::ledger::{Effect, Ledger, Moment, Page, Summary};
use super::registry::{App, Store};

/// The settings that can be changed while the sandbox runs: the body of `PUT /_sandbox/settings`. Absent members are unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// The delay of each response of the provider API, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// Calls that are accepted per second and merchant; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_per_second: Option<u32>,
    /// Whether an unknown coupon code that begins with `auto` is issued at first sight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_issue: Option<bool>,
    /// Brands whose requests get 403 `NO_AUTH`; `*` is every brand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unauthorized_brands: Option<BTreeSet<String>>,
    /// Coupons whose code begins so are returned by the user just before a use under a number that has already used
    /// them, and the number is free again: a use that is repeated without a query has a second effect. Harsher than
    /// the provider, who remembers its numbers; it makes such a fault visible. Empty: no coupon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned_before_reuse: Option<String>,
    /// Whether coupons that are issued from now on get the appearance of their product coupon and stock by the seed, so that all
    /// documented members and words are shown by many coupons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vary_looks: Option<bool>,
}

pub(super) struct World {
    pub identity: Identity,
    pub seed: u64,
    pub idle_timeout: Duration,
    pub clock: Clock,
    /// RSA at work: never more than there are cores, so that a burst of signing does not starve the runtime.
    pub crypto: Arc<Semaphore>,
    merchant: RwLock<Registered>,
    state: Mutex<State>,
}

pub(super) struct State {
    pub coupons: Coupons,
    pub ledger: Ledger,
    pub faults: Faults,
    pub latency: Duration,
    pub calls_per_second: u32,
    pub auto_issue: bool,
    pub unauthorized_brands: BTreeSet<String>,
    pub returned_before_reuse: String,
    seed: u64,
    /// By merchant: the second and its calls.
    taken: HashMap<String, (u64, u32)>,
}

impl World {
    pub(crate) fn new(identity: Identity, seed: u64, idle_timeout: Duration, tuning: Tuning) -> World {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let merchant = identity.merchant.clone();
        let mut state = State {
            coupons: Coupons::default(),
            ledger: Ledger::default(),
            faults: Faults::default(),
            latency: Duration::ZERO,
            calls_per_second: 0,
            auto_issue: false,
            unauthorized_brands: BTreeSet::new(),
            returned_before_reuse: String::new(),
            seed,
            taken: HashMap::new(),
        };
        state.tune(tuning);
        World {
            identity,
            seed,
            idle_timeout,
            clock: Clock::new(),
            crypto: Arc::new(Semaphore::new(cores)),
            merchant: RwLock::new(merchant),
            state: Mutex::new(state),
        }
    }

    /// A panic while the lock was held is a defect of the sandbox; the ledger stays readable to find it.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment { at_us: self.clock.elapsed_us(), at: Timestamp::now() }
    }

    /// Works on the coupons and enters in the ledger what changed, all under one lock.
    pub(crate) fn with_coupons<T>(&self, work: impl FnOnce(&mut State, Timestamp) -> T) -> T {
        let mut state = self.state();
        // Read under the lock, so that times in the ledger never run backwards.
        let moment = self.moment();
        let result = work(&mut state, self.clock.now());
        for change in state.coupons.take_changes() {
            state.ledger.record(moment, change);
        }
        result
    }

    pub(crate) fn merchant(&self) -> Registered {
        self.merchant.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn register_merchant(&self, pem: &str) -> Result<(), String> {
        let mut merchant = self.merchant.write().unwrap_or_else(PoisonError::into_inner);
        let mut registered = Registered::from_pem(pem, &merchant.serial)?;
        if self.identity.fast.is_some() {
            registered.prepare_signers()?;
        }
        *merchant = registered;
        Ok(())
    }

    pub(crate) fn issue(&self, coupons: Vec<NewCoupon>) -> Result<(), String> {
        self.with_coupons(|state, now| state.coupons.issue(coupons, now))
    }

    pub(crate) fn act(&self, code: &str, act: &ActionRequest) -> Result<Coupon, String> {
        self.with_coupons(|state, now| state.coupons.act(code, act, now))
    }

    pub(crate) fn set_stores(&self, stores: Vec<Store>) -> Result<(), String> {
        self.state().coupons.registry.replace_stores(stores)
    }

    pub(crate) fn set_apps(&self, apps: Vec<App>) -> Result<(), String> {
        self.state().coupons.registry.replace_apps(apps)
    }

    pub(crate) fn set_faults(&self, script: Script) -> Result<(), String> {
        self.state().faults.replace(script)
    }

    pub(crate) fn tune(&self, tuning: Tuning) -> Tuning {
        let mut state = self.state();
        state.tune(tuning);
        state.tuning()
    }

    /// Copies under the lock what is to be written without it.
    pub(crate) fn ledger(&self) -> Page {
        let state = self.state();
        Page {
            coupons: state.coupons.all(),
            effects: state.ledger.effects().to_vec(),
            attempts: state.ledger.attempts().to_vec(),
        }
    }

    pub(crate) fn effects(&self) -> Vec<Effect> {
        self.state().ledger.effects().to_vec()
    }

    pub(crate) fn summary(&self) -> Summary {
        let state = self.state();
        state.ledger.summary(state.coupons.len())
    }

    pub(crate) fn calls_by_second(&self) -> BTreeMap<u64, u64> {
        self.state().ledger.calls_by_second().clone()
    }
}

impl State {
    /// Whether one more call of this merchant fits into this whole second.
    pub(crate) fn admit_call(&mut self, mchid: &str, second: u64) -> bool {
        if self.calls_per_second == 0 {
            return true;
        }
        let taken = self.taken.entry(mchid.to_owned()).or_default();
        if taken.0 != second {
            *taken = (second, 0);
        }
        taken.1 = taken.1.saturating_add(1);
        taken.1 <= self.calls_per_second
    }

    pub(crate) fn is_unauthorized(&self, brand: &str) -> bool {
        self.unauthorized_brands.contains(brand) || self.unauthorized_brands.contains("*")
    }

    pub(crate) fn is_returned_before_reuse(&self, code: &str) -> bool {
        !self.returned_before_reuse.is_empty() && code.starts_with(&self.returned_before_reuse)
    }

    fn tune(&mut self, tuning: Tuning) {
        if let Some(ms) = tuning.latency_ms {
            self.latency = Duration::from_millis(ms);
        }
        if let Some(calls) = tuning.calls_per_second {
            self.calls_per_second = calls;
        }
        if let Some(auto_issue) = tuning.auto_issue {
            self.auto_issue = auto_issue;
        }
        if let Some(brands) = tuning.unauthorized_brands {
            self.unauthorized_brands = brands;
        }
        if let Some(prefix) = tuning.returned_before_reuse {
            self.returned_before_reuse = prefix;
        }
        if let Some(vary) = tuning.vary_looks {
            self.coupons.appearance_seed = vary.then_some(self.seed);
        }
    }

    pub(crate) fn tuning(&self) -> Tuning {
        Tuning {
            latency_ms: Some(u64::try_from(self.latency.as_millis()).unwrap_or(u64::MAX)),
            calls_per_second: Some(self.calls_per_second),
            auto_issue: Some(self.auto_issue),
            unauthorized_brands: Some(self.unauthorized_brands.clone()),
            returned_before_reuse: Some(self.returned_before_reuse.clone()),
            vary_looks: Some(self.coupons.appearance_seed.is_some()),
        }
    }
}
