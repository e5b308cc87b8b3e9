//! Requests to the broker's management API, for `redeemer check`: facts that AMQP does not show. None of them changes
//! anything, and the service itself never sends one: it must not depend on a plugin.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::amqp::connection::{AmqpSettings, CannotConnect, address};
use crate::amqp::topology::{Argument, Object, Topology};

/// The management API of one broker.
pub struct Management {
    http: reqwest::Client,
    base: Url,
    user: String,
    password: SecretString,
    vhost: String,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    /// The broker settings are unusable.
    #[error(transparent)]
    Settings(#[from] CannotConnect),
    /// The URL is invalid, or the HTTP client could not be created.
    #[error("broker.management_uri: {0}")]
    Uri(String),
    /// The user is not authorized.
    #[error("the management API rejects user {user} ({status}): give the user the tag monitoring")]
    Forbidden {
        /// The user.
        user: String,
        /// 401 or 403.
        status: u16,
    },
    /// No response, or an invalid one.
    #[error("the management API at {at} does not respond: {why}")]
    NoResponse {
        /// Host and port.
        at: String,
        /// What happened.
        why: String,
    },
}

/// A queue as the broker holds it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// The arguments of its declaration.
    pub arguments: BTreeMap<String, Value>,
    /// The policy that applies to it.
    #[serde(deserialize_with = "name")]
    pub policy: Option<String>,
    /// The operator policy that applies to it.
    #[serde(deserialize_with = "name")]
    pub operator_policy: Option<String>,
    /// The result of both policies.
    #[serde(deserialize_with = "definition")]
    pub effective_policy_definition: BTreeMap<String, Value>,
    /// Its consumers.
    pub consumer_details: Vec<Consumer>,
}

/// One consumer of a queue.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Consumer {
    /// After this time the broker requeues deliveries that are not acknowledged, in milliseconds; newer brokers report it.
    pub consumer_timeout: Option<Value>,
}

/// A resource that a node has too little of. Meanwhile no message can be published.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Alarm {
    /// Which node.
    pub node: String,
    /// `memory` or `disk`.
    pub resource: String,
}

/// One thing about a queue that is not as the service needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The policy key or the argument.
    pub key: String,
    /// The value.
    pub found: String,
    /// The required value.
    pub expected: String,
    /// Whether the value comes from a policy, not from an argument.
    pub by_policy: bool,
}

/// No policy is an empty text to some brokers and null to others.
fn name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|name| !name.is_empty()))
}

/// An empty definition is an empty list to some brokers.
fn definition<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Value>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(match value {
        Value::Object(map) => map.into_iter().collect(),
        _ => BTreeMap::new(),
    })
}

/// The longest response that is read, in bytes.
const RESPONSE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest wait for one response: the API gathers some of them from all nodes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

impl Management {
    /// Creates a client for the API at `uri`. Without user and password in it, those of the broker's first URI are used.
    ///
    /// # Errors
    /// [`ManagementError`] if the settings are unusable.
    pub fn new(uri: &str, settings: &AmqpSettings) -> Result<Self, ManagementError> {
        let bad = |why: String| ManagementError::Uri(why);
        let mut base = Url::parse(uri).map_err(|error| bad(error.to_string()))?;
        let (broker, _) = address(settings, 0)?;
        let (user, password) = match (base.username(), base.password()) {
            ("", _) => (broker.authority.userinfo.username, broker.authority.userinfo.password),
            (user, password) => (plain(user), plain(password.unwrap_or_default())),
        };
        let _ = (base.set_username(""), base.set_password(None));
        let mut http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tls_version_min(reqwest::tls::Version::TLS_1_2)
            .connect_timeout(settings.connect_timeout)
            .timeout(REQUEST_TIMEOUT);
        let tls = settings.tls.read().map_err(CannotConnect::from)?;
        if let Some(pem) = tls.cert_chain {
            let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes());
            http = http.tls_certs_merge(certificates.map_err(|error| bad(error.to_string()))?);
        }
        let http = http.build().map_err(|error| bad(error.to_string()))?;
        Ok(Self { http, base, user, password: SecretString::from(password), vhost: broker.vhost })
    }

    /// The user of the requests.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whether the password would travel unencrypted beyond this machine.
    pub fn is_cleartext(&self) -> bool {
        let loopback = match self.base.host_str().unwrap_or_default().trim_matches(['[', ']']) {
            "localhost" => true,
            host => host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
        };
        self.base.scheme() == "http" && !loopback
    }

    /// The broker's version.
    ///
    /// # Errors
    /// [`ManagementError`]
    pub async fn version(&self) -> Result<Option<String>, ManagementError> {
        #[derive(Deserialize)]
        struct Overview {
            rabbitmq_version: Option<String>,
        }
        let overview: Option<Overview> = self.get(&["overview"]).await?;
        Ok(overview.and_then(|overview| overview.rabbitmq_version))
    }

    /// The alarms of all nodes.
    ///
    /// # Errors
    /// [`ManagementError`]
    pub async fn alarms(&self) -> Result<Vec<Alarm>, ManagementError> {
        #[derive(Deserialize)]
        struct Alarms {
            #[serde(default)]
            alarms: Vec<Alarm>,
        }
        let response: Option<Alarms> = self.get(&["health", "checks", "alarms"]).await?;
        Ok(response.map_or_else(Vec::new, |response| response.alarms))
    }

    /// A queue; `None` if it does not exist. Policies in the response are up to five seconds old.
    ///
    /// # Errors
    /// [`ManagementError`]
    pub async fn queue(&self, name: &str) -> Result<Option<Queue>, ManagementError> {
        self.get(&["queues", &self.vhost, name]).await
    }

    /// Whether `queue` is bound to `exchange` under this routing key.
    ///
    /// # Errors
    /// [`ManagementError`]
    pub async fn is_bound(
        &self,
        exchange: &str,
        queue: &str,
        routing_key: &str,
    ) -> Result<bool, ManagementError> {
        #[derive(Deserialize)]
        struct Binding {
            routing_key: String,
        }
        let path = ["bindings", &self.vhost, "e", exchange, "q", queue];
        let bindings: Vec<Binding> = self.get(&path).await?.unwrap_or_default();
        Ok(bindings.iter().any(|binding| binding.routing_key == routing_key))
    }

    /// GET; `None` for 404. A health check that fails responds with 503 and the same body.
    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Option<T>, ManagementError> {
        let at = format!(
            "{}:{}",
            self.base.host_str().unwrap_or_default(),
            self.base.port_or_known_default().unwrap_or_default()
        );
        let no_response = |why: String| ManagementError::NoResponse { at: at.clone(), why };
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            // A virtual host may be called "/".
            segments.pop_if_empty().push("api").extend(path);
        }
        let request = self.http.get(url).basic_auth(&self.user, Some(self.password.expose_secret()));
        let network = |error: reqwest::Error| no_response(chain_text(&error.without_url()));
        let mut response = request.send().await.map_err(network)?;
        let status = response.status();
        match status {
            StatusCode::NOT_FOUND => return Ok(None),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(ManagementError::Forbidden { user: self.user.clone(), status: status.as_u16() });
            }
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => {}
            status => return Err(no_response(format!("status {status}"))),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(network)? {
            if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
                return Err(no_response(format!("its response is longer than {RESPONSE_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map(Some).map_err(|error| no_response(error.to_string()))
    }
}

/// A URL that a service on the web may have.
pub fn web_address(text: &str) -> Option<reqwest::Url> {
    let url = reqwest::Url::parse(text).ok()?;
    // The text after an @ that is not encoded would be shown as a path.
    let plain = !url.path().contains('@') && url.query().is_none() && url.fragment().is_none();
    (matches!(url.scheme(), "http" | "https") && url.has_host() && plain).then_some(url)
}

fn chain_text(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}

/// A part of a URL without its escapes.
fn plain(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let escaped =
            more.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The settings of `queue` that differ from `expected`, a queue of the plan. `held_max` is the longest that a command is
/// usually held.
///
/// The broker combines arguments and policies: of two numbers the smaller one counts, `overflow` is the policy's, and the
/// rest is the argument's. So a policy matters only if it restricts an argument.
pub fn mismatches(expected: &Object, queue: &Queue, held_max: Duration) -> Vec<Mismatch> {
    let Object::Queue { arguments, .. } = expected else { return Vec::new() };
    let argument = |key: &str| arguments.iter().find(|(name, _)| name.strip_prefix("x-") == Some(key));
    let mut mismatches = Vec::new();
    for (name, required) in arguments {
        let found = queue.arguments.get(*name);
        let same = match (required, found) {
            (Argument::Text(required), Some(Value::String(found))) => required == found,
            (Argument::Number(required), Some(found)) => found.as_i64() == Some(*required),
            _ => false,
        };
        if !same {
            mismatches.push(Mismatch {
                key: (*name).to_owned(),
                found: shown(found),
                expected: required.to_string(),
                by_policy: false,
            });
        }
    }
    let limits = ["delivery-limit", "message-ttl", "max-length", "max-length-bytes", "expires"];
    for key in limits {
        let bound = argument(key);
        if bound.is_none()
            && let Some(found) = queue.arguments.get(&format!("x-{key}"))
        {
            let (key, found) = (format!("x-{key}"), shown(Some(found)));
            mismatches.push(Mismatch { key, found, expected: "nothing".to_owned(), by_policy: false });
        }
        let Some(found) = queue.effective_policy_definition.get(key) else { continue };
        let harmless = match bound {
            Some((_, Argument::Number(bound))) => {
                found.as_i64().is_some_and(|found| found < 0 || found >= *bound)
            }
            _ => false,
        };
        if !harmless {
            let expected =
                bound.map_or_else(|| "nothing".to_owned(), |(_, bound)| format!("{bound} or more"));
            mismatches.push(Mismatch {
                key: key.to_owned(),
                found: shown(Some(found)),
                expected,
                by_policy: true,
            });
        }
    }
    if let (Some(found), Some((_, bound))) =
        (queue.effective_policy_definition.get("overflow"), argument("overflow"))
        && !matches!((bound, found), (Argument::Text(bound), Value::String(found)) if bound == found)
    {
        let (key, found, expected) = ("overflow".to_owned(), shown(Some(found)), bound.to_string());
        mismatches.push(Mismatch { key, found, expected, by_policy: true });
    }
    let expected = format!("well over {} ms", held_max.as_millis());
    let short = |found: &Value| found.as_u64().is_some_and(|found| u128::from(found) <= held_max.as_millis());
    let timeouts = [
        (queue.effective_policy_definition.get("consumer-timeout"), "consumer-timeout", true),
        (queue.arguments.get("x-consumer-timeout"), "x-consumer-timeout", false),
        (
            queue
                .consumer_details
                .iter()
                .find_map(|consumer| consumer.consumer_timeout.as_ref().filter(|found| short(found))),
            "consumer_timeout",
            false,
        ),
    ];
    for (found, key, by_policy) in timeouts {
        if let Some(found) = found.filter(|found| short(found)) {
            let (key, found) = (key.to_owned(), shown(Some(found)));
            mismatches.push(Mismatch { key, found, expected: expected.clone(), by_policy });
        }
    }
    mismatches
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "not set".to_owned(), Value::to_string)
}

/// The queues of the plan.
pub fn queues(topology: &Topology) -> Vec<Object> {
    topology.plan().into_iter().filter(|object| matches!(object, Object::Queue { .. })).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HELD: Duration = Duration::from_secs(44);

    fn commands() -> Object {
        let topology = Topology { names: Default::default(), delays: Vec::new(), delivery_limit: 20 };
        let is_it = |object: &Object| matches!(object, Object::Queue { name, .. } if *name == topology.names.commands);
        queues(&topology).into_iter().find(is_it).unwrap()
    }

    fn queue(policy: Value) -> Queue {
        serde_json::from_value(json!({
            "arguments": {
                "x-queue-type": "quorum", "x-delivery-limit": 20, "x-dead-letter-exchange": "redemption.dead",
                "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"
            },
            "policy": "p", "operator_policy": "", "effective_policy_definition": policy,
        }))
        .unwrap()
    }

    #[test]
    fn policy_matters_only_if_it_restricts_an_argument() {
        let check = |policy: Value, expected: &[&str]| {
            let found = mismatches(&commands(), &queue(policy.clone()), HELD);
            let found: Vec<_> = found
                .iter()
                .map(|mismatch| format!("{} {} {}", mismatch.key, mismatch.found, mismatch.expected))
                .collect();
            assert_eq!(found, expected, "{policy}");
        };
        check(json!({}), &[]);
        check(json!([]), &[]);
        check(json!({"delivery-limit": 20, "overflow": "reject-publish"}), &[]);
        check(json!({"delivery-limit": 100, "queue-leader-locator": "balanced"}), &[]);
        check(json!({"delivery-limit": 3}), &["delivery-limit 3 20 or more"]);
        check(json!({"message-ttl": 1000}), &["message-ttl 1000 nothing"]);
        check(json!({"max-length": 5}), &["max-length 5 nothing"]);
        check(json!({"overflow": "drop-head"}), &["overflow \"drop-head\" \"reject-publish\""]);
        check(json!({"consumer-timeout": 44_000}), &["consumer-timeout 44000 well over 44000 ms"]);
        check(json!({"consumer-timeout": 1_800_000}), &[]);
        // The argument wins.
        check(json!({"dead-letter-exchange": "elsewhere"}), &[]);
    }

    #[test]
    fn arguments_and_consumers_are_compared_too() {
        let mut found = queue(json!({}));
        found.arguments.remove("x-dead-letter-strategy");
        found.arguments.insert("x-max-length".to_owned(), json!(7));
        found.consumer_details =
            vec![Consumer { consumer_timeout: None }, Consumer { consumer_timeout: Some(json!(2_000)) }];
        let keys: Vec<_> =
            mismatches(&commands(), &found, HELD).into_iter().map(|mismatch| mismatch.key).collect();
        assert_eq!(keys, ["x-dead-letter-strategy", "x-max-length", "consumer_timeout"]);
        found.effective_policy_definition.insert("max-length".to_owned(), json!(9));
        assert_eq!(mismatches(&commands(), &found, HELD).len(), 4);
    }

    #[test]
    fn escapes_of_a_url_are_undone() {
        assert_eq!(plain("a%40b%2Fc%"), "a@b/c%");
        assert_eq!(plain("%zz"), "%zz");
    }
}
