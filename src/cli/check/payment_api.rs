//! The calls of `check` to the payment API: it queries both hosts for a coupon that does not exist.
//!
//! A verified response that says so confirms both signatures, ours and theirs. Any other result is a finding: an unsigned
//! response shows nothing, and a rejection for another reason would meet every command.

use jiff::{SignedDuration, Timestamp};

use super::remedies::{Origin, apiv3_key, merchant_serial};
use super::{Finding, Severity};
use crate::config::{Config, PUBLIC_KEY_ID, PUBLIC_KEYS};
use crate::domain::evidence::Operation;
use crate::domain::redemption::{
    Appid, AssociatedOrder, BrandId, CouponCode, Openid, OrderNo, OrderNumbers, ProductCouponId, Redemption,
    RequestNo, StockId, Unfit, UseTime,
};
use crate::policy::classify::{Authenticity, CallResult, Response, SignatureFlaw, Verdict, classify};
use crate::policy::host_choice::Host;
use crate::telemetry::untrusted::Untrusted;
use crate::wechat::certificates::NoCertificates;
use crate::wechat::client::{CallOutcome, Client, Prepared, UnverifiedResponse};
use crate::wechat::verify::CLOCK_TOLERANCE_SECONDS;

const WHAT: &str = "payment API";

/// Queries each host.
pub(super) async fn check_calls(
    config: &Config,
    origin: &Origin<'_>,
    client: &Client,
    findings: &mut Vec<Finding>,
) {
    let Ok(nobody) = describe_unreachable() else { return };
    let prepared = Prepared::new(&nobody);
    let backup = (!config.wechat.backup_base_url.is_empty()).then_some((Host::Primary, true));
    // A host is chosen by reporting the other one as failed.
    for (failed, is_backup) in [Some((Host::Backup, false)), backup].into_iter().flatten() {
        let now = Timestamp::now();
        let operation = Operation::Query;
        let outcome = client
            .send_to_other_host(Some(failed), operation, &prepared, None, now, rand::random(), 1.0)
            .await;
        let verdict = classify(operation, &outcome.result, &nobody);
        let at = At { config, origin, is_backup };
        if !is_backup {
            findings.push(at.clock_finding(&outcome));
        }
        findings.push(at.call(&outcome, &verdict));
    }
}

/// The threshold of the alert `ClockSkewed`.
const CLOCK_OFF_SECONDS: i64 = 30;

fn round(skew: SignedDuration) -> SignedDuration {
    SignedDuration::from_secs(skew.as_secs())
}

/// The code and the message of the provider, if it sent any.
fn provider_words(response: &Response) -> String {
    let words: Vec<_> =
        [&response.code, &response.message].into_iter().flatten().map(|text| &**text).collect();
    let words = Untrusted(&words.join(": ")).to_string();
    let id =
        response.request_id.as_deref().map(|id| format!(" (request {})", Untrusted(id))).unwrap_or_default();
    match words.as_str() {
        "" => id,
        words => format!(" {words}{id}"),
    }
}

/// One of the hosts, and what its findings need.
struct At<'a> {
    config: &'a Config,
    origin: &'a Origin<'a>,
    is_backup: bool,
}

impl At<'_> {
    fn clock_finding(&self, outcome: &CallOutcome) -> Finding {
        const SET: &str = "timedatectl set-ntp true; timedatectl status";
        let off = |skew| format!("this machine's clock differs from the payment API's by {:#}", round(skew));
        match outcome.clock_skew {
            None => Finding::warning("clock", "the payment API sent no time", self.describe_host())
                .with_id("clock_unknown"),
            Some(skew) if skew.abs() >= SignedDuration::from_secs(CLOCK_TOLERANCE_SECONDS) => {
                Finding::fault("clock", off(skew), SET).with_id("clock_skewed")
            }
            Some(skew) if skew.abs() >= SignedDuration::from_secs(CLOCK_OFF_SECONDS) => {
                Finding::warning("clock", off(skew), SET).with_id("clock_skewed")
            }
            Some(skew) => Finding::ok("clock", format!("{:#} from the payment API's", round(skew))),
        }
    }

    /// The command that shows whether the payment API can be reached: any status is a response.
    fn describe_host(&self) -> String {
        let wechat = &self.config.wechat;
        let url = if self.is_backup { &wechat.backup_base_url } else { &wechat.base_url };
        format!("curl -sSI {}/v3/certificates", url.trim_end_matches('/'))
    }

    fn call(&self, outcome: &CallOutcome, verdict: &Verdict) -> Finding {
        let response = match &outcome.result {
            CallResult::NotSent(_) | CallResult::NoResponse(_) => return self.no_response_finding(outcome),
            CallResult::Response(response) => response,
        };
        match (response.status, response.authenticity) {
            (401, _) => self.unauthenticated_finding(outcome, response),
            (_, Authenticity::Verified) => self.verified_finding(outcome, response, verdict),
            (_, Authenticity::Invalid(flaw)) => self.invalid_signature_finding(outcome, response, flaw),
            (_, Authenticity::Unsigned) => self.unsigned_finding(outcome, response),
        }
    }

    fn no_response_finding(&self, outcome: &CallOutcome) -> Finding {
        let why = outcome.error.as_deref().unwrap_or("no complete response");
        let detail = format!("{} does not respond: {why}", outcome.host_name);
        let remedy = reaching(self.config, self.origin, self.is_backup);
        let gravity = if self.is_backup { Severity::Warning } else { Severity::Fault };
        Finding::new(WHAT, gravity, detail, Some(remedy)).with_id("payment_api_unreachable")
    }

    fn unauthenticated_finding(&self, outcome: &CallOutcome, response: &Response) -> Finding {
        let host = &outcome.host_name;
        // The provider gives a reason, and always a `Request-ID`.
        let is_its_own = response.code.is_some() && response.request_id.is_some();
        if response.authenticity != Authenticity::Verified && !is_its_own {
            return self.name_responder(outcome, response);
        }
        let is_skewed =
            |skew: SignedDuration| skew.abs() >= SignedDuration::from_secs(CLOCK_TOLERANCE_SECONDS);
        let remedy = match outcome.clock_skew.is_some_and(is_skewed) {
            true => "timedatectl set-ntp true".to_owned(),
            false => unauthenticated(self.config, self.origin),
        };
        let detail = format!("{host} rejects our signature (401):{}", provider_words(response));
        Finding::fault(WHAT, detail, remedy).with_id("payment_api_unauthenticated")
    }

    fn verified_finding(&self, outcome: &CallOutcome, response: &Response, verdict: &Verdict) -> Finding {
        let (host, status) = (&outcome.host_name, response.status);
        let serial = outcome.serial.as_deref().unwrap_or_default();
        let signed =
            format!("{host} responded with {status}{}, signed by {serial}", provider_words(response));
        match (status, verdict) {
            (500.., _) => Finding::fault(
                WHAT,
                format!("{signed}: a server error"),
                "redeemer check # again, until it is well; nothing of ours has to be changed",
            )
            .with_id("payment_api_server_error"),
            (_, Verdict::NotAccepted(_)) => Finding::warning(
                WHAT,
                format!("{signed}: it did not take the call now"),
                "redeemer check # again in a minute; if it stays, lower rate_limit.calls_per_second",
            )
            .with_id("payment_api_throttled"),
            (403, Verdict::NotAuthorized) => Finding::warning(
                WHAT,
                format!("{signed}: not authorized, for the made-up brand 0 of check"),
                "redeemer parked show --query # shows it for a brand of yours; see the merchant platform",
            )
            .with_id("payment_api_not_authorized"),
            // The coupon that was queried does not exist.
            (200 | 404, _) => Finding::ok(WHAT, signed),
            _ if outcome.detail.as_ref().is_some_and(|detail| detail.is_about_our_headers()) => Finding::fault(
                WHAT,
                format!("{signed}: it rejects a header that every call has"),
                renaming_requested_key(self.config, self.origin, None),
            )
            .with_id("payment_api_rejects_headers"),
            // The queried coupon is made up, so a rejection of openid, appid or ids is expected.
            (400, _) if outcome.detail.as_ref().is_some_and(|detail| detail.names_a_field()) => {
                Finding::ok(WHAT, format!("{signed}: the coupon of check is made up"))
            }
            _ => Finding::fault(
                WHAT,
                format!("{signed}: unexpected, and perhaps so for every command"),
                self.origin.remedies(
                    "wechat.mchid",
                    "compare wechat.mchid, wechat.verification_serial and the names of wechat.public_keys with the \
                     merchant platform",
                ),
            )
            .with_id("payment_api_rejects_call"),
        }
    }

    fn invalid_signature_finding(
        &self,
        outcome: &CallOutcome,
        response: &Response,
        flaw: SignatureFlaw,
    ) -> Finding {
        let (host, status) = (&outcome.host_name, response.status);
        if flaw != SignatureFlaw::UnknownSerial {
            return Finding::fault(
                WHAT,
                format!(
                    "{host} responded with {status}, and its signature does not verify ({})",
                    flaw.as_str()
                ),
                "redeemer check # again, for a probe of the provider looks the same; if it stays, compare \
                 wechat.public_keys with the merchant platform",
            )
            .with_id(format!("payment_api_signature_{}", flaw.as_str()));
        }
        let serial = outcome.unverified.as_ref().and_then(|seen| seen.shown_serial()).unwrap_or_default();
        let named = self.config.wechat.public_keys.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let configured = if named.is_empty() { String::new() } else { format!("; configured: {named}") };
        Finding::fault(
            WHAT,
            format!(
                "{host} responded with {status}{}, signed by a key that is not held: {serial}{configured}",
                provider_words(response)
            ),
            renaming_requested_key(self.config, self.origin, Some(&serial)),
        )
        .with_id("payment_api_serial_not_held")
    }

    /// An unverified response. The provider does not sign some errors, but always sends `code` and `Request-ID`.
    fn unsigned_finding(&self, outcome: &CallOutcome, response: &Response) -> Finding {
        let (host, status) = (&outcome.host_name, response.status);
        match (response.code.is_some(), response.request_id.is_some()) {
            (true, true) if matches!(status, 403 | 404 | 429) => Finding::warning(
                WHAT,
                format!("{host} responded with {status}{}, unsigned: it shows nothing", provider_words(response)),
                "redeemer check # again; if it stays, no error of the provider can conclude a command before its \
                 coupon is seen",
            )
            .with_id("payment_api_unsigned"),
            _ => self.name_responder(outcome, response),
        }
    }

    fn name_responder(&self, outcome: &CallOutcome, response: &Response) -> Finding {
        let (host, status) = (&outcome.host_name, response.status);
        let seen = outcome.unverified.as_deref().map(UnverifiedResponse::in_words).unwrap_or_default();
        Finding::fault(
            WHAT,
            format!("{host} responded with {status}{}, unsigned: not a response of WeChat Pay ({seen})", provider_words(response)),
            format!(
                "{} # a proxy, a firewall or a captive portal responds in its place, or strips headers; or the base URL \
                 leads elsewhere",
                reaching_command(self.config, self.origin, self.is_backup)
            ),
        )
        .with_id("payment_api_other_answers")
    }
}

/// Id and remedy of a failed download, by its cause.
pub(super) fn download_remedy(
    fault: &NoCertificates,
    config: &Config,
    origin: &Origin<'_>,
) -> (&'static str, String) {
    let reached = || reaching_command(config, origin, false);
    match fault {
        NoCertificates::NoResponse(_) => ("download_unreachable", reaching(config, origin, false)),
        NoCertificates::Refused { has_request_id: false, .. } | NoCertificates::Unreadable => (
            "download_other_answers",
            format!(
                "{} # does a proxy respond in its place, or does the base URL lead elsewhere?",
                reached()
            ),
        ),
        NoCertificates::Refused { status: 401, .. } => {
            ("download_unauthenticated", unauthenticated(config, origin))
        }
        NoCertificates::Refused { status: 404 | 403, .. } => (
            "download_not_offered",
            format!(
                "{}; {} # this merchant has no platform certificates: the merchant platform has the public key for \
                 download, and shows its id",
                origin.leaving_out("wechat.apiv3_key_file"),
                origin.adding_public_key()
            ),
        ),
        NoCertificates::Refused { .. } => (
            "download_refused",
            "redeemer check # again in a minute; the response gives the reason".to_owned(),
        ),
        NoCertificates::Undecryptable(_) => ("download_apiv3_key", apiv3_key(config)),
        NoCertificates::Key(_) | NoCertificates::OtherSerial(_) | NoCertificates::Unverified(_) => (
            "download_unverified",
            format!("date; {} # the clock, and whether another party responds in its place", reached()),
        ),
    }
}

/// The remedy for a host that cannot be reached. If its name is the usual one, the cause is outside of the configuration.
fn reaching(config: &Config, origin: &Origin<'_>, is_backup: bool) -> String {
    format!(
        "{} # then name resolution, the firewall and the proxy",
        reaching_command(config, origin, is_backup)
    )
}

fn reaching_command(config: &Config, origin: &Origin<'_>, is_backup: bool) -> String {
    let (usual, wechat) = (Config::default().wechat, &config.wechat);
    let (key, url, usual) = match is_backup {
        true => ("wechat.backup_base_url", &wechat.backup_base_url, usual.backup_base_url),
        false => ("wechat.base_url", &wechat.base_url, usual.base_url),
    };
    match *url == usual {
        true => format!("curl -sSI {}/v3/certificates", url.trim_end_matches('/')),
        false => origin.asking(key),
    }
}

/// The remedy for a rejected signature if the clock is right.
fn unauthenticated(config: &Config, origin: &Origin<'_>) -> String {
    match config.wechat.merchant_certificate_file.as_str() {
        "" => merchant_serial(origin),
        // The certificate has the serial, and belongs to the key.
        _ => origin.remedies(
            "wechat.mchid",
            "as the merchant platform shows it, where the certificate must be in force, too",
        ),
    }
}

/// The remedy for the id of the key that responses should be signed with, if the provider does not know it, or signs with
/// another one.
fn renaming_requested_key(config: &Config, origin: &Origin<'_>, signed_by: Option<&str>) -> String {
    const COMPARE: &str = "compare it with the merchant platform first: API security, WeChat Pay public key";
    let wechat = &config.wechat;
    let is_named = |id: &&String| wechat.verification_serial.is_empty() || **id == wechat.verification_serial;
    // If no serial is configured, the last one is requested.
    let requested = wechat.public_keys.keys().rfind(is_named);
    let new = signed_by.filter(|serial| serial.starts_with(PUBLIC_KEY_ID));
    let rename = requested.map(|id| origin.renaming_public_key(id, new));
    match (rename, signed_by) {
        (Some(rename), _) if wechat.verification_serial.is_empty() => format!("{rename} # {COMPARE}"),
        (Some(rename), _) => {
            format!("{rename}; {} # {COMPARE}", origin.leaving_out("wechat.verification_serial"))
        }
        (None, Some(serial)) if !serial.starts_with(PUBLIC_KEY_ID) => {
            let how =
                format!("the platform certificate {serial}, which the merchant platform has for download");
            origin.remedies("wechat.platform_certificates", &how)
        }
        (None, Some(_)) => format!("{} # {COMPARE}", origin.adding_public_key()),
        (None, None) => origin.removing("wechat.verification_serial", &format!("{PUBLIC_KEYS}: {COMPARE}")),
    }
}

/// A redemption that is never sent: it only names a coupon to query.
fn describe_unreachable() -> Result<Redemption, Unfit> {
    Ok(Redemption {
        openid: Openid::parse("oRedeemerCheckNobody00000000")?,
        coupon_code: CouponCode::parse("redeemer-check")?,
        brand_id: BrandId::parse("0")?,
        product_coupon_id: ProductCouponId::parse("0")?,
        stock_id: StockId::parse("0")?,
        appid: Appid::parse("wx0000000000000000")?,
        use_time: UseTime::parse("2025-01-01T00:00:00+08:00")?,
        out_request_no: RequestNo::parse("redeemer-check")?,
        order: AssociatedOrder::Payment(OrderNumbers::Provider(OrderNo::parse("0")?)),
        store_id: None,
        saved_amount: None,
        sequential_coupon_index: None,
    })
}
