//! Everything that the service reads before it starts. `run` refuses to start on a fault, and `check` reports all faults:
//! both use this code, so that they agree.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, RwLock};

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};

use crate::amqp::connection;
use crate::config::{Config, ConfigFault, PUBLIC_KEY_ID};
use crate::telemetry::spans::Traces;
use crate::wechat::certificates::ApiV3Key;
use crate::wechat::client::{CannotStart, Client, SharedKeyring};
use crate::wechat::keys::{Keyring, KeyringFault};

/// Everything that the service needs to start.
pub struct Startup {
    /// How the broker is reached.
    pub broker: connection::AmqpSettings,
    /// The token of the operator console, if it is enabled.
    pub console_token: Option<SecretString>,
    /// The APIv3 key, which decrypts downloaded certificates, if they are enabled.
    pub apiv3_key: Option<ApiV3Key>,
    /// The keys of the files.
    pub keys: SharedKeyring,
    /// The payment API.
    pub client: Client,
}

/// A fault that prevents a start.
#[derive(Debug, thiserror::Error)]
pub enum StartFault {
    /// In the configuration, or in a file that it names.
    #[error("{}: {}", .0.key, .0.problem)]
    Config(ConfigFault),
    /// A key or a certificate.
    #[error("{0}")]
    Key(KeyringFault),
    /// The payment API's client could not be made.
    #[error("{0}")]
    Client(CannotStart),
}

/// The parts that could be read, and everything that is wrong with the others.
pub struct Inspected {
    /// How the broker is reached.
    pub broker: Option<connection::AmqpSettings>,
    /// The keys, though others may be wrong.
    pub keys: Option<SharedKeyring>,
    /// The payment API.
    pub client: Option<Client>,
    /// The APIv3 key.
    pub apiv3_key: Option<ApiV3Key>,
    console_token: Option<SecretString>,
    /// The most important ones first.
    pub faults: Vec<StartFault>,
}

impl Startup {
    /// Reads everything.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn read(config: &Config, merchant_key: Option<&SecretString>) -> Result<Self, Vec<StartFault>> {
        let Inspected { broker, keys, client, apiv3_key, console_token, faults } =
            Inspected::with_address(config, merchant_key);
        match (broker, keys, client) {
            (Some(broker), Some(keys), Some(client)) if faults.is_empty() => {
                Ok(Self { broker, console_token, apiv3_key, keys, client })
            }
            _ => Err(faults),
        }
    }
}

impl Inspected {
    /// Reads everything and reports the faults.
    pub fn with_address(config: &Config, merchant_key: Option<&SecretString>) -> Self {
        let mut faults = Vec::new();
        let mut keep = |fault| faults.push(StartFault::Config(fault));
        let broker = config.broker_settings().map_err(&mut keep).ok();
        let console_token = config.console_token().map_err(&mut keep).ok().flatten();
        let apiv3_key = config.apiv3_key().map_err(&mut keep).ok().flatten();
        let settings =
            config.wechat_settings().map_err(|faults| faults.0.into_iter().for_each(&mut keep)).ok();
        let merchant_key = merchant_key.map(|key| key.expose_secret());
        let keys = match Keyring::load(&config.key_files(), merchant_key, Timestamp::now()) {
            Ok(keyring) => {
                misnamed(config, &keyring)
                    .into_iter()
                    .for_each(|fault| faults.push(StartFault::Config(fault)));
                Some(Arc::new(RwLock::new(Arc::new(keyring))))
            }
            Err(found) => {
                faults.extend(found.into_iter().map(StartFault::Key));
                None
            }
        };
        let elsewhere = [cannot_listen(config), cannot_trace(config)];
        faults.extend(elsewhere.into_iter().flatten().map(StartFault::Config));
        let client = settings.zip(keys.clone()).and_then(|(settings, keys)| {
            Client::new(settings, keys).map_err(|fault| faults.push(StartFault::Client(fault))).ok()
        });
        Self { broker, keys, client, apiv3_key, console_token, faults }
    }
}

/// The address of the admin port, if this host does not have it. A port that another program has is not a fault of
/// the configuration.
fn cannot_listen(config: &Config) -> Option<ConfigFault> {
    let listen = config.admin_listen();
    // A free port of the same address: the one that is meant may be in use by the service that runs here.
    let fault = TcpListener::bind(SocketAddr::new(listen.ip(), 0)).err()?;
    let problem = format!("nothing can listen at this address here: {fault}");
    Some(ConfigFault::new("admin.listen", problem).with_id("admin_listen"))
}

/// The collector of spans, if its client cannot be made.
fn cannot_trace(config: &Config) -> Option<ConfigFault> {
    let settings = config.traces()?;
    let fault = Traces::check(&settings).err()?;
    // The library quotes it, and its path may hold a token.
    let problem = fault.to_string().replace(settings.endpoint.trim_end_matches('/'), "…");
    Some(ConfigFault::new("telemetry.otlp_endpoint", problem))
}

/// The faults of the next start that this one did not have: files that are read at start only, and serials without a
/// key.
pub fn faults_of_next_start(config: &Config, keyring: &Keyring) -> Vec<ConfigFault> {
    let read = [config.broker_settings().err(), config.console_token().err(), config.apiv3_key().err()];
    read.into_iter().flatten().chain(misnamed(config, keyring)).collect()
}

/// `wechat.verification_serial`, if none of the keys has it.
pub fn serial_not_held(config: &Config, keyring: &Keyring) -> Option<ConfigFault> {
    let asked = config.wechat.verification_serial.as_str();
    if asked.is_empty() || keyring.public.get(asked).is_some() {
        return None;
    }
    let held: Vec<_> = keyring.public.iter().map(|(serial, _)| serial).collect();
    let problem = format!(
        "no key of this serial is held; responses signed with it could not be verified (held: {})",
        held.join(", ")
    );
    Some(ConfigFault::new("wechat.verification_serial", problem).with_id("serial_not_held"))
}

/// Serials without a key.
fn misnamed(config: &Config, keyring: &Keyring) -> Vec<ConfigFault> {
    let wechat = &config.wechat;
    let mut faults = Vec::new();
    // A download brings certificates, and never a public key.
    let may_be_downloaded =
        !wechat.apiv3_key_file.is_empty() && !wechat.verification_serial.starts_with(PUBLIC_KEY_ID);
    if !may_be_downloaded {
        faults.extend(serial_not_held(config, keyring));
    }
    if let Some(serial) = &keyring.merchant_serial
        && !wechat.merchant_serial.is_empty()
        && !serial.eq_ignore_ascii_case(&wechat.merchant_serial)
    {
        let problem = format!("is not the serial of wechat.merchant_certificate_file, which is {serial}");
        faults.push(
            ConfigFault::new("wechat.merchant_serial", problem).with_id("serial_of_another_certificate"),
        );
    }
    faults
}
