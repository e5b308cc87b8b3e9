//! Operator actions on a parked command. The command line and the console use it.
//!
//! A parked command may have taken effect, so it is sent again only after a query, and the service begins with a query of
//! its own. An `invalid` command stays invalid, because outcomes are final and only `unresolved` may be superseded. A
//! parked command is acked only after the event and the audit event are confirmed; after a crash in between it is still
//! parked, and the action can be repeated without a second effect.
//!
//! One operator works at a time: an action is published on the connection that holds the command, after the broker has
//! confirmed that it still holds the lock. A refusal is published after two negative queries in a row, as the service
//! requires.

mod stays_parked;

pub use self::stays_parked::StaysParked;

pub mod operator_text;

use std::borrow::Cow;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::amqp::confirm::{PublishFailure, Published};
use crate::amqp::delivery::{AckError, Delivery};
use crate::amqp::parked_queue::{ParkedQueue, ParkedQueueError};
use crate::amqp::publisher::{PARKED_AT, PARKED_REASON, Publisher};
use crate::domain::coupon::Coupon;
use crate::domain::evidence::{Evidence, Operation, Rejection};
use crate::domain::outcome::{EstablishedBy, Outcome};
use crate::domain::reason::Reason;
use crate::domain::redemption::Redemption;
use crate::policy::attempt::{EffectState, Progress};
use crate::policy::classify::{self, Verdict, classify};
use crate::telemetry::masking::{Short, beginning, masked_except, unescaped_tokens, without_openids};
use crate::wechat::client::{Client, Prepared, hex};
use crate::wire::audit_event::{self, AuditContext, OperatorAction};
use crate::wire::command::{self, COMMAND_BYTES_MAX, Fault, PartialCommand, Rejected};
use crate::wire::result_event::{self, EventContext};
use crate::wire::retry_message::{self, DeadlineLimits};

/// The longest reason that is read, in characters.
const REASON_MAX: usize = 64;
/// Bytes of a message that are shown: as many as a command may have.
const SHOWN_BYTES_MAX: usize = COMMAND_BYTES_MAX;

/// A parked command, read.
#[derive(Debug)]
pub struct Parked {
    /// The delivery from the parked queue.
    pub delivery: Delivery,
    /// SHA-256 of its bytes in hex: its id for operators.
    pub sha256: String,
    /// Why it was parked: a word of [`Reason`], or of the broker (`delivery_limit`), or `unknown`.
    pub reason: String,
    /// When it was parked, if known.
    pub at: Option<Timestamp>,
    /// Its bytes, decoded.
    pub command: Result<Redemption, Box<Rejected>>,
    /// Its identifying fields, as far as they can be read.
    pub partial: PartialCommand,
}

impl Parked {
    /// Reads a delivery of the parked queue.
    pub fn read(delivery: Delivery) -> Self {
        let (reason, at) = match delivery.death() {
            // The service removes the broker's header when it parks a command, so a death is the later reason.
            Some(death) => (death.reason.to_owned(), death.at),
            None => (
                // A header: any user with the right to publish to the parked exchange can forge it.
                beginning(delivery.header(PARKED_REASON).unwrap_or("unknown"), REASON_MAX).to_owned(),
                delivery.header(PARKED_AT).and_then(|text| text.parse().ok()),
            ),
        };
        let command = command::decode(delivery.body());
        let partial = match &command {
            Ok(redemption) => PartialCommand::from(redemption),
            Err(rejected) => rejected.partial.clone(),
        };
        Self { sha256: hex(&Sha256::digest(delivery.body())), reason, at, command, partial, delivery }
    }

    /// The beginning of its bytes, at most 64 KiB, and the number of bytes left out. A character that crosses the bound is
    /// left out, too.
    pub fn shown_body(&self) -> (&[u8], usize) {
        let body = self.delivery.body();
        let mut shown = &body[..body.len().min(SHOWN_BYTES_MAX)];
        if shown.len() < body.len()
            && let Err(error) = std::str::from_utf8(shown)
            && error.error_len().is_none()
        {
            shown = &shown[..error.valid_up_to()];
        }
        (shown, body.len() - shown.len())
    }

    /// Its headers and properties for display, without an openid in name or value.
    pub fn shown_headers(&self) -> Vec<(String, String)> {
        let headers = self.delivery.visible_headers().into_iter();
        headers.map(|(name, value)| (without_openids(&name).into_owned(), self.masked(&value))).collect()
    }

    /// The beginning of its bytes for display, without an openid, and the number of bytes left out.
    pub fn masked_body(&self) -> (String, usize) {
        let (body, left_out) = self.shown_body();
        let text = String::from_utf8(body.to_vec()).unwrap_or_else(|_| body.escape_ascii().to_string());
        let text = unescaped_tokens(&text);
        // The last word may continue after the bound.
        let end = if left_out > 0 { text.chars().count().saturating_sub(1) } else { usize::MAX };
        (self.masked(beginning(&text, end)), left_out)
    }

    /// A text of the command with every openid shortened. The identifying fields stay whole, because the page names them
    /// anyway.
    fn masked(&self, text: &str) -> String {
        let PartialCommand {
            openid,
            coupon_code,
            brand_id,
            product_coupon_id,
            stock_id,
            appid,
            out_request_no,
        } = &self.partial;
        let known = [
            coupon_code.as_ref().map(|it| it.as_str()),
            brand_id.as_ref().map(|it| it.as_str()),
            product_coupon_id.as_ref().map(|it| it.as_str()),
            stock_id.as_ref().map(|it| it.as_str()),
            appid.as_ref().map(|it| it.as_str()),
            out_request_no.as_ref().map(|it| it.as_str()),
        ];
        // The openid of the command itself, even if it is too short to be recognized as one.
        let own = openid.as_ref().map(|openid| openid.as_str());
        let text = match own {
            Some(own) => Cow::Owned(text.replace(own, &Short(own).to_string())),
            None => Cow::Borrowed(text),
        };
        masked_except(&text, |token| known.contains(&Some(token)))
    }

    /// Its id in links of the console: two messages of equal bytes may have been parked for different reasons.
    pub fn key(&self) -> String {
        let place = Sha256::digest(format!("{} {:?}", self.reason, self.at));
        format!("{}-{}", self.sha256, &hex(&place)[..8])
    }

    /// How long it has been parked.
    pub fn age(&self, now: Timestamp) -> Option<SignedDuration> {
        self.at.map(|at| now.duration_since(at).max(SignedDuration::ZERO))
    }

    /// The faults of its bytes; empty for a valid command.
    pub fn faults(&self) -> &[Fault] {
        self.command.as_ref().err().map_or(&[], |rejected| &rejected.faults)
    }

    /// The attempts that its headers carry.
    pub fn evidence(&self) -> Vec<Evidence> {
        retry_message::evidence(self.delivery.header(retry_message::EVIDENCE))
    }

    /// Calls made before it was parked.
    pub fn attempts(&self) -> u32 {
        let reported =
            self.delivery.header(retry_message::ATTEMPTS).and_then(|text| text.parse().ok()).unwrap_or(0);
        reported.max(self.evidence().len() as u32)
    }

    /// Whether a query saw a use that may be its own before it was parked. If the coupon is usable now, it was returned.
    fn has_seen_use(&self) -> bool {
        let effect = self.delivery.header(retry_message::LAST_VERDICT).and_then(EffectState::from_header);
        effect == Some(EffectState::SeenUsed)
    }

    /// The redemption, if it may be sent again.
    ///
    /// # Errors
    /// [`StaysParked`]
    pub fn replayable(&self) -> Result<&Redemption, StaysParked> {
        let redemption =
            self.command.as_ref().map_err(|rejected| StaysParked::NotACommand(rejected.faults.clone()))?;
        if self.reason == Reason::InvalidCommand.as_str() {
            return Err(StaysParked::OutcomeFinal);
        }
        Ok(redemption)
    }
}

/// Whether the signature of a response counts as verified: only if this process verified it. A header about an earlier
/// response can be forged by any user with the right to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureWitness {
    /// A query by this process.
    ThisProcess,
    /// The headers of a message.
    Header,
}

impl SignatureWitness {
    /// The state of the signature in words.
    pub fn signature(self, evidence: &Evidence) -> &'static str {
        match (self, &evidence.serial) {
            (Self::Header, _) => "signature unconfirmed, as the header says",
            (Self::ThisProcess, Some(_)) => "verified",
            (Self::ThisProcess, None) => "not verified",
        }
    }
}

/// Which parked commands are selected; every condition that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Parked for one of these reasons.
    pub reasons: Vec<String>,
    /// Parked longer ago than this.
    pub older_than: Option<SignedDuration>,
    /// Parked more recently than this.
    pub newer_than: Option<SignedDuration>,
    /// Of this brand.
    pub brand: Option<String>,
    /// Of this coupon.
    pub coupon: Option<String>,
    /// With this request number.
    pub number: Option<String>,
    /// With a SHA-256 that begins like this.
    pub id: Option<String>,
}

impl Filter {
    /// Whether it admits everything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a command is selected. A command without a known time fulfills no condition about its age.
    pub fn admits(&self, parked: &Parked, now: Timestamp) -> bool {
        let is = |expected: &Option<String>, text: Option<&str>| {
            expected.as_ref().is_none_or(|expected| text == Some(expected.as_str()))
        };
        let age = parked.age(now);
        let PartialCommand { brand_id, coupon_code, out_request_no, .. } = &parked.partial;
        (self.reasons.is_empty() || self.reasons.contains(&parked.reason))
            && self.older_than.is_none_or(|span| age.is_some_and(|age| age > span))
            && self.newer_than.is_none_or(|span| age.is_some_and(|age| age < span))
            && is(&self.brand, brand_id.as_ref().map(|it| it.as_str()))
            && is(&self.coupon, coupon_code.as_ref().map(|it| it.as_str()))
            && is(&self.number, out_request_no.as_ref().map(|it| it.as_str()))
            && self.id.as_ref().is_none_or(|id| parked.sha256.starts_with(&id.to_ascii_lowercase()))
    }
}

/// A query about a parked command, and its result.
#[derive(Debug, Clone, PartialEq)]
pub struct CouponQuery {
    /// The state of the coupon, as far as it concerns the command.
    pub status: CouponStatus,
    /// The query as evidence.
    pub evidence: Evidence,
    /// The coupon of the command, if a verified response described it.
    pub coupon: Option<Coupon>,
    /// The network error, if there was one.
    pub trouble: Option<String>,
    /// The query before it, if a refusal had to be confirmed.
    pub earlier: Option<Box<CouponQuery>>,
}

impl CouponQuery {
    /// This query as the one that follows `earlier`.
    pub fn following(self, earlier: Self) -> Self {
        Self { earlier: Some(Box::new(earlier)), ..self }
    }

    /// When the first of these queries began.
    fn begun_at(&self) -> Timestamp {
        self.earlier.as_ref().map_or(self.evidence.at, |earlier| earlier.begun_at())
    }

    /// Whether it confirms a refusal that a query found at least `spacing` before.
    fn confirms_refusal(&self, spacing: SignedDuration) -> bool {
        let refused = |query: &Self| matches!(query.status, CouponStatus::Refused { .. });
        self.earlier.as_ref().is_some_and(|earlier| {
            refused(self)
                && refused(earlier)
                && self.evidence.at.duration_since(earlier.evidence.at) >= spacing
        })
    }
}

/// The state of a parked command's coupon.
#[derive(Debug, Clone, PartialEq)]
pub enum CouponStatus {
    /// The coupon is used under its number: the command has taken effect.
    Redeemed(Coupon),
    /// The coupon can be used.
    Usable,
    /// The command has not used the coupon, and will not.
    Refused {
        /// Why.
        reason: Reason,
        /// The provider's rejection, if there was one.
        rejection: Option<Rejection>,
    },
    /// The response does not show it.
    Unknown,
    /// Every call would fail the same way.
    Suspended(classify::SuspendReason),
}

impl CouponStatus {
    /// The word in output.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Redeemed(_) => "redeemed",
            Self::Usable => "usable",
            Self::Refused { .. } => "refused",
            Self::Unknown => "unknown",
            Self::Suspended(_) => "suspended",
        }
    }
}

/// Queries the coupon of a redemption. Changes nothing. `nonce` and `chance` are random.
pub async fn query(
    client: &Client,
    redemption: &Redemption,
    now: Timestamp,
    nonce: u128,
    chance: f64,
) -> CouponQuery {
    let operation = Operation::Query;
    let outcome = client.send(operation, &Prepared::new(redemption), None, now, nonce, chance).await;
    let verdict = classify(operation, &outcome.result, redemption);
    let response = outcome.result.into_response();
    let evidence = Evidence {
        at: now,
        operation: operation.as_str().to_owned(),
        host: outcome.host_name,
        status: response.as_ref().map(|response| response.status),
        request_id: response.as_ref().and_then(|response| response.request_id.as_deref()).map(str::to_owned),
        serial: outcome.serial,
        verdict: verdict.as_str().to_owned(),
    };
    let rejection = response.as_ref().filter(|response| response.status >= 400).map(Rejection::from);
    let coupon = response.and_then(|response| response.into_coupon(&verdict));
    let status = match (verdict, &coupon) {
        (Verdict::Redeemed, Some(coupon)) => CouponStatus::Redeemed(coupon.clone()),
        (Verdict::NotExecuted, _) => CouponStatus::Usable,
        (Verdict::Refused(reason), _) => CouponStatus::Refused { reason, rejection },
        (Verdict::Suspended(fault), _) => CouponStatus::Suspended(fault),
        _ => CouponStatus::Unknown,
    };
    CouponQuery { status, evidence, coupon, trouble: outcome.error, earlier: None }
}

/// The decision of an operator, and its limits.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'a> {
    /// `source` of events.
    pub source: &'a str,
    /// The name that the operator gave.
    pub operator: &'a str,
    /// The reason that the operator gave.
    pub because: Option<&'a str>,
    /// The deadline of a command that is sent again, from now.
    pub deadline_limits: DeadlineLimits,
    /// The time after the end of a call from which a negative query counts.
    pub query_delay: SignedDuration,
    /// The longest call of the service.
    pub longest_call: SignedDuration,
    /// Whether a refusal that a query finds is published, and the command removed from the queue.
    pub publish_refused: bool,
}

impl Decision<'_> {
    /// The time after the beginning of a call, by any instance, from which a negative query counts.
    fn over_after(&self) -> SignedDuration {
        self.longest_call.saturating_add(self.query_delay)
    }

    /// The time between the two queries of a refusal. If the time of parking is unknown, a call that began before the
    /// first query must be over before the second.
    fn spacing(&self, parked: &Parked) -> SignedDuration {
        if parked.at.is_some() { self.query_delay } else { self.over_after() }
    }

    /// Whether a call of the service may have been under way when the first query began. That query then shows nothing.
    fn is_under_way(&self, parked: &Parked, query: &CouponQuery) -> bool {
        parked.age(query.begun_at()).is_some_and(|age| age < self.over_after())
    }
}

/// How long to wait before another query must confirm `query`; `None` if none is required.
pub fn confirm_after(parked: &Parked, query: &CouponQuery, decision: &Decision<'_>) -> Option<Duration> {
    let refused = matches!(query.status, CouponStatus::Refused { .. });
    let required = refused && decision.publish_refused && !decision.is_under_way(parked, query);
    required.then(|| decision.spacing(parked).unsigned_abs())
}

/// The action that follows from a query, if the command is replayed.
///
/// # Errors
/// [`StaysParked`]
pub fn assess_replay(
    parked: &Parked,
    query: &CouponQuery,
    decision: &Decision<'_>,
) -> Result<OperatorAction, StaysParked> {
    match &query.status {
        CouponStatus::Redeemed(_) => Ok(OperatorAction::PublishedRedeemed),
        CouponStatus::Usable => Ok(OperatorAction::Republished),
        CouponStatus::Refused { reason, .. } if !decision.publish_refused => {
            Err(StaysParked::Refused(*reason))
        }
        CouponStatus::Refused { .. } if decision.is_under_way(parked, query) => Err(StaysParked::UnderWay),
        CouponStatus::Refused { .. } if !query.confirms_refusal(decision.spacing(parked)) => {
            Err(StaysParked::RefusalUnconfirmed)
        }
        CouponStatus::Refused { .. } => Ok(OperatorAction::PublishedRefused),
        CouponStatus::Unknown | CouponStatus::Suspended(_) => {
            let Evidence { host, status, verdict, .. } = query.evidence.clone();
            Err(match status {
                Some(status) => StaysParked::UnknownByResponse { host, status, verdict },
                None => StaysParked::NoResponse { host, trouble: query.trouble.clone() },
            })
        }
    }
}

/// Why an action did not complete. The command is still parked, unless only the broker's response to the acknowledgement
/// was lost. The action may have been published, and can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    /// A publish was not confirmed.
    #[error(transparent)]
    NotPublished(#[from] PublishFailure),
    /// It was published, and the command could not be acknowledged.
    #[error(transparent)]
    NotSettled(#[from] AckError),
    /// The broker did not confirm that the command is still held.
    #[error(transparent)]
    LockLost(#[from] ParkedQueueError),
    /// The query does not allow the action.
    #[error("the query does not allow it")]
    NotConfirmed,
}

/// Carries out an action, if `queue` still holds the command: publishes the event or the command, then the audit event,
/// each confirmed, and acks the parked command.
///
/// # Errors
/// [`Unfinished`]
pub async fn carry_out(
    queue: &ParkedQueue,
    parked: Parked,
    action: OperatorAction,
    query: Option<&CouponQuery>,
    decision: &Decision<'_>,
    now: Timestamp,
) -> Result<(), Unfinished> {
    let coupon = query.and_then(|query| query.coupon.as_ref());
    let publisher = queue.verified_publisher().await?;
    let done = publish(publisher, &parked, action, query, decision, now).await?;
    let context = AuditContext {
        source: decision.source,
        at: now,
        action,
        operator: decision.operator,
        because: decision.because,
        reason: &parked.reason,
        parked_at: parked.at,
        sha256: &parked.sha256,
        bytes: parked.delivery.body().len(),
        partial: &parked.partial,
        query: query.map(|query| &query.evidence),
        coupon_state: coupon.map(|coupon| coupon.state.as_str()),
    };
    let reported =
        publisher.publish_audit(&audit_event::encode(context), parked.delivery.correlation()).await?;
    let confirmed = match done {
        Some(done) => done.join(reported),
        None => reported,
    };
    parked.delivery.ack(confirmed).await?;
    // The broker works in order: once it responds to this, it has received the acknowledgement.
    Ok(queue.verify().await?)
}

/// Publishes the event or the command of an action; nothing for a discard.
async fn publish(
    publisher: &Publisher,
    parked: &Parked,
    action: OperatorAction,
    query: Option<&CouponQuery>,
    decision: &Decision<'_>,
    now: Timestamp,
) -> Result<Option<Published>, Unfinished> {
    let delivery = &parked.delivery;
    if action == OperatorAction::Discarded {
        return Ok(None);
    }
    let (Ok(redemption), Some(query)) = (parked.replayable(), query) else {
        return Err(Unfinished::NotConfirmed);
    };
    let mut evidence = parked.evidence();
    let earlier = query.earlier.as_ref().map(|earlier| earlier.evidence.clone());
    let made: Vec<_> = earlier.into_iter().chain([query.evidence.clone()]).collect();
    let attempts = parked.attempts().saturating_add(made.len() as u32);
    evidence.extend(made);
    let outcome = match (action, &query.status) {
        (OperatorAction::Republished, CouponStatus::Usable) => {
            let deadline = now.saturating_add(decision.deadline_limits.default).unwrap_or(Timestamp::MAX);
            // It counts as sent before, so the service queries first.
            let mut progress = Progress::new(now, deadline, true);
            if parked.has_seen_use() {
                progress.effect = EffectState::SeenUsed;
            }
            // The attempts so far are counted, and it has as many left as a new command.
            (progress.attempts, progress.suspended) = (attempts, attempts);
            let headers = retry_message::write(&progress, &evidence, Prepared::new(redemption).body_sha256());
            return Ok(Some(publisher.publish_replay(delivery, headers, now).await?));
        }
        (OperatorAction::PublishedRedeemed, CouponStatus::Redeemed(coupon)) => {
            Outcome::Redeemed { by: EstablishedBy::Query, coupon: coupon.clone() }
        }
        (OperatorAction::PublishedRefused, CouponStatus::Refused { reason, rejection }) => Outcome::Refused {
            reason: *reason,
            by: EstablishedBy::Query,
            coupon: query.coupon.clone(),
            rejection: rejection.clone(),
        },
        _ => return Err(Unfinished::NotConfirmed),
    };
    let context = EventContext {
        source: decision.source,
        at: now,
        traceparent: delivery.traceparent(),
        attempts,
        evidence: &evidence,
    };
    let event = result_event::encode(redemption, &outcome, context);
    Ok(Some(publisher.publish_event(&event, delivery, delivery.traceparent()).await?))
}
