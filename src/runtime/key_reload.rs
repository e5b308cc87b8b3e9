//! Keeps the keyring current: reloads changed files and downloads platform certificates.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::interval;
use tracing::{info, warn};

use crate::config::startup::faults_of_next_start;
use crate::config::{Config, ConfigFault};
use crate::runtime::circuit_gate::CircuitGate;
use crate::telemetry::metrics::{Key, Metrics};
use crate::wechat::certificates::ApiV3Key;
use crate::wechat::client::{Client, SharedKeyring};
use crate::wechat::keys::{KeyFiles, Keyring, KeyringFault, PublicKeys};

/// The sources of keys.
pub struct KeySources {
    pub files: KeyFiles,
    pub merchant_key: Option<SecretString>,
    pub apiv3_key: Option<ApiV3Key>,
    pub apiv3_key_file: Option<PathBuf>,
    pub reload_every: Duration,
    pub download_every: Duration,
}

impl KeySources {
    /// Reads every key file; `downloaded` certificates are added.
    fn load(&self, downloaded: PublicKeys) -> Result<Keyring, Vec<KeyringFault>> {
        let from_environment = self.merchant_key.as_ref().map(|key| key.expose_secret());
        let mut keyring = Keyring::load(&self.files, from_environment, Timestamp::now())?;
        for fault in &keyring.left_out {
            warn!(%fault, "platform certificate left out");
        }
        keyring.public.extend(downloaded);
        Ok(keyring)
    }

    /// Modification time and size of every key file.
    fn versions(&self) -> Vec<Option<Version>> {
        let KeyFiles { merchant_key, merchant_certificate, public_keys, platform_certificates, downloads: _ } =
            &self.files;
        let merchant = merchant_key.iter().chain(merchant_certificate);
        merchant.chain(public_keys.values()).chain(platform_certificates).map(|path| version(path)).collect()
    }

    /// The same for the file of the APIv3 key.
    fn apiv3_version(&self) -> Option<Version> {
        self.apiv3_key_file.as_deref().and_then(version)
    }
}

/// Modification time and size in bytes of a file, and when its owner or mode changed last, in nanoseconds.
type Version = (SystemTime, u64, i128);

fn version(path: &Path) -> Option<Version> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    Some((metadata.modified().ok()?, metadata.len(), changed))
}

/// Faults of key files that were valid at the start, for readiness.
pub type KeyFaults = Arc<Mutex<BTreeSet<String>>>;

/// The pause after a failed download.
const DOWNLOAD_RETRY: Duration = Duration::from_secs(30);

/// Reloads changed key files and downloads platform certificates.
pub struct KeyReloader {
    pub sources: KeySources,
    pub keys: SharedKeyring,
    pub client: Arc<Client>,
    pub circuit_gate: CircuitGate,
    pub metrics: Arc<Metrics>,
    pub trouble: KeyFaults,
    /// The sources that the next start will read.
    pub config: Config,
}

impl KeyReloader {
    /// Checks whether the next start would accept every file, and warns of new faults.
    fn check_files(&self, reloads: &[String]) {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let next = faults_of_next_start(&self.config, &keys).into_iter();
        let next = next.map(|ConfigFault { key, problem, .. }| format!("{key}: {problem}"));
        let now: BTreeSet<String> = reloads.iter().cloned().chain(next).collect();
        let mut reported = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        for fault in now.difference(&reported) {
            warn!(fault, "key file no longer usable; the next start would fail");
        }
        self.metrics.keys.set_key_files_failing(now.len());
        *reported = now;
    }

    /// Runs until it is aborted.
    pub async fn run(mut self) {
        self.record_expiry();
        let mut reload = interval(self.sources.reload_every);
        let mut seen = self.sources.versions();
        let mut apiv3_seen = self.sources.apiv3_version();
        let mut downloaded = PublicKeys::default();
        let mut download_at = Instant::now();
        let mut reloads = Vec::new();
        loop {
            if let Some(key) = &self.sources.apiv3_key
                && download_at <= Instant::now()
            {
                match self.client.certificates(key, Timestamp::now(), rand::random()).await {
                    Ok(brought) => {
                        info!(certificates = brought.iter().count(), "platform certificates downloaded");
                        downloaded = brought;
                        reloads = self.replace_keyring(&downloaded, &mut seen);
                        let taken = reloads.is_empty();
                        let pause = if taken { self.sources.download_every } else { DOWNLOAD_RETRY };
                        download_at = Instant::now() + pause;
                    }
                    Err(why) => {
                        warn!(%why, "platform certificates not downloaded; the current ones stay in use");
                        download_at = Instant::now() + DOWNLOAD_RETRY.min(self.sources.download_every);
                    }
                }
            }
            if self.sources.versions() != seen {
                reloads = self.replace_keyring(&downloaded, &mut seen);
            } else {
                reloads.clear();
            }
            self.check_files(&reloads);
            let version = self.sources.apiv3_version();
            if version != apiv3_seen && self.reread_apiv3_key() {
                apiv3_seen = version;
                download_at = Instant::now();
                // The next round downloads with it at once.
                continue;
            }
            reload.tick().await;
        }
    }

    /// Reads the APIv3 key again. If the file is not usable, the current key stays in use.
    fn reread_apiv3_key(&mut self) -> bool {
        let Some(file) = &self.sources.apiv3_key_file else { return false };
        match ApiV3Key::read(file) {
            Ok(key) => {
                info!("APIv3 key replaced; platform certificates are downloaded with it");
                self.sources.apiv3_key = Some(key);
                true
            }
            // `check_files` warns of it.
            Err(_) => false,
        }
    }

    fn record_expiry(&self) {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.metrics.keys.set_key_expiry(Key::Merchant, keys.merchant_expires.map(Timestamp::as_second));
        // A public key never expires; with one, responses can always be verified.
        let ends: Option<Vec<_>> = keys.public.iter().map(|(_, key)| key.expires).collect();
        let last = ends.and_then(|ends| ends.into_iter().max());
        self.metrics.keys.set_key_expiry(Key::Verification, last.map(Timestamp::as_second));
    }

    /// Replaces the keyring as a whole. If files are not usable, most likely half-written, the current keys stay in use
    /// and the files are read again later.
    fn replace_keyring(&self, downloaded: &PublicKeys, seen: &mut Vec<Option<Version>>) -> Vec<String> {
        let versions = self.sources.versions();
        match self.sources.load(downloaded.clone()) {
            Ok(keyring) => {
                // Before and after: a call between the two must not let all others go with the new key, nor vouch for
                // it with the old one.
                let changed = versions != *seen;
                if changed {
                    self.circuit_gate.force_half_open();
                }
                *seen = versions;
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keyring);
                if changed {
                    self.circuit_gate.force_half_open();
                    info!("keys replaced; the next call goes alone");
                }
                self.record_expiry();
                Vec::new()
            }
            Err(faults) => faults.iter().map(ToString::to_string).collect(),
        }
    }
}
