//! Validation of values that types cannot express: ranges, formats, and keys that depend on each other.

use super::*;

/// The longest delay of the first delay queue.
const SHORTEST_DELAY_MAX: Duration = Duration::from_secs(30);

impl Config {
    /// Validates ranges and formats. Required keys are checked by the functions that use them.
    pub(super) fn check(&self, faults: &mut Vec<ConfigFault>) {
        let mut wrong = |holds: bool, key: &str, problem: &str| {
            if !holds {
                faults.push(ConfigFault::new(key, problem));
            }
        };
        let Self { broker, wechat, concurrency, retry, rate_limit, event, admin, log, telemetry, .. } = self;
        wrong((1..=2_000).contains(&broker.prefetch), "broker.prefetch", "must be 1 to 2000");
        wrong((1..=2_000).contains(&concurrency.commands), "concurrency.commands", "must be 1 to 2000");
        wrong((1..=2_000).contains(&concurrency.per_coupon), "concurrency.per_coupon", "must be 1 to 2000");
        wrong((1..=60).contains(&broker.heartbeat.0.as_secs()), "broker.heartbeat", "must be 1s to 60s");
        let patient = broker.connect_timeout.0 <= Duration::from_secs(20);
        wrong(patient, "broker.connect_timeout", "must be 20s at most");
        // A delivery is held meanwhile, and the broker closes the channel after half an hour.
        let held = retry.in_process_max.0 <= Duration::from_secs(600);
        wrong(held, "retry.in_process_max", "must be 10m at most");
        wrong(mode(&broker.topology).is_some(), "broker.topology", "must be create, verify or off");
        wrong(broker.delivery_limit >= 1, "broker.delivery_limit", "must be 1 or more");
        for (key, span) in [
            ("broker.connect_timeout", broker.connect_timeout),
            ("broker.confirm_timeout", broker.confirm_timeout),
            ("wechat.connect_timeout", wechat.connect_timeout),
            ("wechat.read_timeout", wechat.read_timeout),
            ("wechat.total_timeout", wechat.total_timeout),
            ("wechat.reload_every", wechat.reload_every),
            ("telemetry.otlp_timeout", telemetry.otlp_timeout),
            ("telemetry.otlp_every", telemetry.otlp_every),
        ] {
            let within = (Duration::from_millis(10)..=Duration::from_secs(600)).contains(&span.0);
            wrong(within, key, "must be 10ms to 10m");
        }
        // As above: a delivery is held meanwhile.
        let held =
            (Duration::from_millis(10)..=Duration::from_secs(900)).contains(&event.publish_retry_max.0);
        wrong(held, "event.publish_retry_max", "must be 10ms to 15m");
        let twelve_hours = Duration::from_secs(12 * 3_600);
        let often = (Duration::from_secs(1)..=twelve_hours).contains(&wechat.download_every.0);
        wrong(often, "wechat.download_every", "must be 1s to 12h");
        let fits = (1_024..=16 * 1024 * 1024).contains(&wechat.response_bytes_max);
        wrong(fits, "wechat.response_bytes_max", "must be 1024 to 16777216");
        if let Err(fault) = retry.backoff() {
            wrong(false, "retry.initial, retry.multiplier, retry.jitter, retry.max_interval", &fault);
        }
        wrong(retry.delays.is_sorted_by(|a, b| a.0 < b.0), "retry.delays", "must grow from one to the next");
        wrong(retry.delays.len() <= 32, "retry.delays", "must be 32 at most");
        let waits = retry.delays.iter().all(|delay| (50..=86_400_000).contains(&delay.0.as_millis()));
        wrong(waits, "retry.delays", "must each be 50ms to 24h");
        // A command waits in the shortest queue while calls are suspended, and gets its event within a minute of its deadline.
        let shortest = retry.delays.first().is_none_or(|delay| delay.0 <= SHORTEST_DELAY_MAX);
        wrong(shortest, "retry.delays", "must begin with 30s or less; put a shorter delay first");
        // How often a query was negative does not travel through a delay queue: both must fit into one stay.
        wrong(
            retry.query_delay.0.saturating_mul(2) <= retry.in_process_max.0,
            "retry.in_process_max",
            "must be twice retry.query_delay or more",
        );
        wrong(retry.attempts_max >= 1, "retry.attempts_max", "must be 1 or more");
        wrong(!retry.deadline.0.is_zero(), "retry.deadline", "must be longer than zero");
        wrong(
            retry.deadline.0 <= retry.deadline_max.0,
            "retry.deadline_max",
            "must not be under retry.deadline",
        );
        let year = Duration::from_secs(366 * 86_400);
        wrong(retry.deadline_max.0 <= year, "retry.deadline_max", "must be a year at most");
        wrong((0.0..=100.0).contains(&retry.budget_ratio), "retry.budget_ratio", "must be 0 to 100");
        wrong(rate_limit.calls_per_second >= 1, "rate_limit.calls_per_second", "must be 1 or more");
        wrong(
            admin.listen.parse::<SocketAddr>().is_ok(),
            "admin.listen",
            "must be an address such as 127.0.0.1:9464",
        );
        wrong(format(&log.format).is_some(), "log.format", "must be plain or json");
        let filter = crate::telemetry::log::check_filter(&log.filter);
        wrong(filter.is_ok(), "log.filter", "must be a filter such as info or redeemer=debug");
        let both = broker.client_certificate_file.is_empty() == broker.client_key_file.is_empty();
        wrong(both, "broker.client_certificate_file, broker.client_key_file", "must be set together");
        let (endpoint, management) = (telemetry.otlp_endpoint.as_str(), broker.management_uri.as_str());
        let plain = web_address(endpoint).is_some_and(|url| {
            url.query().is_none()
                && url.fragment().is_none()
                && url.password().is_none()
                && url.username().is_empty()
        });
        wrong(
            endpoint.is_empty() || plain,
            "telemetry.otlp_endpoint",
            "must be a base URL such as http://127.0.0.1:4318, without user and query",
        );
        wrong(
            management.is_empty() || web_address(management).is_some(),
            "broker.management_uri",
            "must be a URL such as http://127.0.0.1:15672",
        );
        wrong((0.0..=1.0).contains(&telemetry.otlp_sample), "telemetry.otlp_sample", "must be 0 to 1");
        let queue = (1..=100_000).contains(&telemetry.otlp_queue);
        wrong(queue, "telemetry.otlp_queue", "must be 1 to 100000");
        for (key, name) in broker.names.all() {
            let fits = (1..=255).contains(&name.len()) && !name.contains("://") && !name.contains("-----");
            let fits = fits && !name.chars().any(is_hidden);
            wrong(fits, key, "must be a name of 1 to 255 bytes on one line");
        }
        self.check_identity(&mut wrong);
        for (key, value) in self.file_names() {
            if let Err(why) = file_name::check(value) {
                let problem = format!("expects a file name, and {}; {}", why.as_str(), belongs(&key));
                faults.push(ConfigFault::new(key, problem).with_id("config_not_a_file_name"));
            }
        }
    }

    /// Validates numbers and serials, which people copy without a prefix, with a blank, or with invisible characters.
    fn check_identity(&self, wrong: &mut impl FnMut(bool, &str, &str)) {
        let wechat = &self.wechat;
        for (key, text) in [
            ("wechat.mchid", &wechat.mchid),
            ("wechat.merchant_serial", &wechat.merchant_serial),
            ("wechat.verification_serial", &wechat.verification_serial),
        ] {
            let hidden = text.chars().any(|letter| letter.is_whitespace() || is_hidden(letter));
            wrong(!hidden, key, "holds a blank or an invisible character; type it again");
        }
        for id in wechat.public_keys.keys() {
            if let Err(problem) = check_public_key_id(id) {
                wrong(false, "wechat.public_keys", problem);
            }
        }
        let serial = wechat.verification_serial.as_str();
        let reported = serial.chars().any(|letter| letter.is_whitespace() || is_hidden(letter));
        let known = reported || serial.is_empty() || is_serial(serial) || check_public_key_id(serial).is_ok();
        wrong(
            known,
            "wechat.verification_serial",
            "must be a PUB_KEY_ID_… or the serial of a certificate, in hex",
        );
    }
}

/// The prefix of the ids of WeChat Pay's public keys.
pub const PUBLIC_KEY_ID: &str = "PUB_KEY_ID_";

/// Whether a name is the id of a public key: `PUB_KEY_ID_`, then letters, digits and underscores.
///
/// # Errors
/// What is wrong with it, without the name.
pub fn check_public_key_id(id: &str) -> Result<(), &'static str> {
    let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match id.strip_prefix(PUBLIC_KEY_ID) {
        Some("") => Err("must have names such as PUB_KEY_ID_0116…: one of them ends after the prefix"),
        Some(rest) if rest.len() <= 64 && is_word(rest) => Ok(()),
        Some(_) => {
            Err("must have names of letters, digits and underscores: one of them holds a blank or another \
                        character, perhaps an invisible one")
        }
        None if is_serial(id) && id.bytes().any(|byte| byte.is_ascii_alphabetic()) => Err(
            "one of its names is the serial of a certificate: that file goes into wechat.platform_certificates",
        ),
        None => Err(
            "must have names such as PUB_KEY_ID_0116…, as the merchant platform shows them: one of them lacks \
                     the prefix",
        ),
    }
}

/// Whether a text is a serial in hex: of a merchant API certificate it has 40 digits.
pub(super) fn is_serial(text: &str) -> bool {
    (1..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
