//! What an operator can find out about a parked command, and do with it. Used by the command line and the console.
//!
//! A command is sent again only after a query, and the service begins with a query of its own: a parked command may have
//! taken effect. An `invalid` one stays invalid, because outcomes are final and only `unresolved` may be superseded. A parked
//! command is acked only after the event and the audit event are confirmed; after a crash in between it is still parked,
//! and the action can be repeated without a second effect.
//!
//! One operator at a time: what a look found is published on the connection of that look, after the broker has confirmed
//! that it still holds its lock. A refusal is published on two negative queries in a row, as the service requires.

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
use crate::policy::classify::{self, Response, Verdict, classify};
use crate::telemetry::masking::{Masked, Short, beginning, masked_except, unescaped_tokens, without_openids};
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
    /// What the broker handed over.
    pub delivery: Delivery,
    /// SHA-256 of its bytes in hex: what a person knows it by.
    pub sha256: String,
    /// Why it was parked: a word of [`Reason`], or of the broker (`delivery_limit`), or `unknown`.
    pub reason: String,
    /// When it was parked, if that is known.
    pub at: Option<Timestamp>,
    /// What its bytes say.
    pub command: Result<Redemption, Box<Rejected>>,
    /// Its identifying fields, as far as they can be read.
    pub partial: PartialCommand,
}

impl Parked {
    /// Reads a delivery of the parked queue.
    pub fn read(delivery: Delivery) -> Self {
        let (reason, at) = match delivery.death() {
            // The broker's own note is taken off whenever the service parks, so it is the later one.
            Some(death) => (death.reason.to_owned(), death.at),
            None => (
                // Anyone who may publish to the parked exchange can write anything here.
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

    /// The beginning of its bytes, 64 KiB at most, and how many bytes are left out. A character that the
    /// bound would cut is left out, too.
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

    /// Its headers and properties for people, without an openid in name or value.
    pub fn shown_headers(&self) -> Vec<(String, String)> {
        let headers = self.delivery.visible_headers().into_iter();
        headers.map(|(name, value)| (without_openids(&name).into_owned(), self.masked(&value))).collect()
    }

    /// The beginning of its bytes for people, without an openid, and how many bytes are left out.
    pub fn masked_body(&self) -> (String, usize) {
        let (body, left_out) = self.shown_body();
        let text = String::from_utf8(body.to_vec()).unwrap_or_else(|_| body.escape_ascii().to_string());
        let text = unescaped_tokens(&text);
        // What follows the bound may belong to the last word.
        let end = if left_out > 0 { text.chars().count().saturating_sub(1) } else { usize::MAX };
        (self.masked(beginning(&text, end)), left_out)
    }

    /// A text of it with every openid shortened, its own user's and those of others: over a shoulder they need not be
    /// read. The identifying fields of the command stay whole, for the page names them anyway.
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
        // One that is shorter than usual is known all the same.
        let own = openid.as_ref().map(|openid| openid.as_str());
        let text = match own {
            Some(own) => Cow::Owned(text.replace(own, &Short(own).to_string())),
            None => Cow::Borrowed(text),
        };
        masked_except(&text, |token| known.contains(&Some(token)))
    }

    /// What the console's links know it by: two messages of equal bytes may have been parked for different reasons.
    pub fn key(&self) -> String {
        let place = Sha256::digest(format!("{} {:?}", self.reason, self.at));
        format!("{}-{}", self.sha256, &hex(&place)[..8])
    }

    /// How long it has been parked.
    pub fn age(&self, now: Timestamp) -> Option<SignedDuration> {
        self.at.map(|at| now.duration_since(at).max(SignedDuration::ZERO))
    }

    /// What is wrong with its bytes; empty for a readable command.
    pub fn faults(&self) -> &[Fault] {
        self.command.as_ref().err().map_or(&[], |rejected| &rejected.faults)
    }

    /// The attempts that it remembers.
    pub fn evidence(&self) -> Vec<Evidence> {
        retry_message::evidence(self.delivery.header(retry_message::EVIDENCE))
    }

    /// Calls made before it was parked.
    pub fn attempts(&self) -> u32 {
        let reported =
            self.delivery.header(retry_message::ATTEMPTS).and_then(|text| text.parse().ok()).unwrap_or(0);
        reported.max(self.evidence().len() as u32)
    }

    /// Whether a use that may be its own was seen before it was parked. If the coupon is usable now, it was returned.
    fn has_seen_use(&self) -> bool {
        let effect = self.delivery.header(retry_message::LAST_VERDICT).and_then(EffectState::from_header);
        effect == Some(EffectState::SeenUsed)
    }

    /// The redemption, if it may be asked for and sent again.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn replayable(&self) -> Result<&Redemption, String> {
        let redemption = self.command.as_ref().map_err(|rejected| {
            let faults = rejected.faults.iter();
            let faults = faults.map(|fault| format!("{} {}", Masked(&fault.pointer), fault.problem));
            format!("it is not a command: {}", faults.collect::<Vec<_>>().join("; "))
        })?;
        if self.reason == Reason::InvalidCommand.as_str() {
            return Err("its sender was sent the outcome invalid, which is final".to_owned());
        }
        Ok(redemption)
    }
}

/// Whether the signature of an answer counts as verified: only if it was verified here and now. What a header says of
/// an earlier one can be written by anyone who may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureWitness {
    /// A query of this look.
    ThisProcess,
    /// The headers of a message.
    Header,
}

impl SignatureWitness {
    /// What can be said of an answer's signature.
    pub fn signature(self, evidence: &Evidence) -> &'static str {
        match (self, &evidence.serial) {
            (Self::Header, _) => "signature unconfirmed, as the header says",
            (Self::ThisProcess, Some(_)) => "verified",
            (Self::ThisProcess, None) => "not verified",
        }
    }
}

/// Which parked commands are meant; every condition that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Parked for one of these.
    pub reasons: Vec<String>,
    /// Parked longer ago than this.
    pub older_than: Option<SignedDuration>,
    /// Parked more lately than this.
    pub newer_than: Option<SignedDuration>,
    /// Of this brand.
    pub brand: Option<String>,
    /// Of this coupon.
    pub coupon: Option<String>,
    /// With this request number.
    pub number: Option<String>,
    /// Whose SHA-256 begins like this.
    pub id: Option<String>,
}

impl Filter {
    /// Whether it admits everything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a command is meant. One whose time is not known is neither older nor newer than anything.
    pub fn admits(&self, parked: &Parked, now: Timestamp) -> bool {
        let is = |wanted: &Option<String>, text: Option<&str>| {
            wanted.as_ref().is_none_or(|wanted| text == Some(wanted.as_str()))
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

/// What a query says of a parked command now.
#[derive(Debug, Clone, PartialEq)]
pub struct CouponQuery {
    /// What follows from it.
    pub status: CouponStatus,
    /// The query itself.
    pub evidence: Evidence,
    /// The coupon of the command, where an authentic answer described it.
    pub coupon: Option<Coupon>,
    /// What the network said, where it failed.
    pub trouble: Option<String>,
    /// The query before it in the same look, if a refusal had to be confirmed.
    pub earlier: Option<Box<CouponQuery>>,
}

impl CouponQuery {
    /// This query as the one that follows `earlier`.
    pub fn following(self, earlier: Self) -> Self {
        Self { earlier: Some(Box::new(earlier)), ..self }
    }

    /// When the first query of this look began.
    fn begun_at(&self) -> Timestamp {
        self.earlier.as_ref().map_or(self.evidence.at, |earlier| earlier.begun_at())
    }

    /// Whether it confirms a refusal that a query found this long before, or earlier.
    fn confirms_refusal(&self, spacing: SignedDuration) -> bool {
        let refused = |query: &Self| matches!(query.status, CouponStatus::Refused { .. });
        self.earlier.as_ref().is_some_and(|earlier| {
            refused(self)
                && refused(earlier)
                && self.evidence.at.duration_since(earlier.evidence.at) >= spacing
        })
    }
}

/// What can be said of a parked command.
#[derive(Debug, Clone, PartialEq)]
pub enum CouponStatus {
    /// The coupon is used, under its number: it has taken effect.
    Redeemed(Coupon),
    /// The coupon can be used.
    Usable,
    /// The coupon was not used by it, and will not be.
    Refused {
        /// Why.
        reason: Reason,
        /// The provider's own words, where it gave any.
        rejection: Option<Rejection>,
    },
    /// Nothing is known.
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

/// Asks what is true of a redemption now. Changes nothing. `now` is the time of asking, `nonce` and `chance` are the
/// dice.
pub async fn query(
    client: &Client,
    redemption: &Redemption,
    now: Timestamp,
    nonce: u128,
    chance: f64,
) -> CouponQuery {
    let operation = Operation::Query;
    let heard = client.send(operation, &Prepared::new(redemption), None, now, nonce, chance).await;
    let verdict = classify(operation, &heard.result, redemption);
    let answer = heard.result.into_response();
    let evidence = Evidence {
        at: now,
        operation: operation.as_str().to_owned(),
        host: heard.host_name,
        status: answer.as_ref().map(|answer| answer.status),
        request_id: answer.as_ref().and_then(|answer| answer.request_id.as_deref()).map(str::to_owned),
        serial: heard.serial,
        verdict: verdict.as_str().to_owned(),
    };
    let rejection = answer.as_ref().filter(|answer| answer.status >= 400).map(rejection);
    let coupon = answer.and_then(|answer| answer.into_coupon(&verdict));
    let status = match (verdict, &coupon) {
        (Verdict::Redeemed, Some(coupon)) => CouponStatus::Redeemed(coupon.clone()),
        (Verdict::NotExecuted, _) => CouponStatus::Usable,
        (Verdict::Refused(reason), _) => CouponStatus::Refused { reason, rejection },
        (Verdict::Suspended(fault), _) => CouponStatus::Suspended(fault),
        _ => CouponStatus::Unknown,
    };
    CouponQuery { status, evidence, coupon, trouble: heard.error, earlier: None }
}

fn rejection(answer: &Response) -> Rejection {
    let Response { status, code, sub_code, message, request_id, .. } = answer.clone();
    Rejection { http_status: status, code, sub_code, message, request_id }
}

/// Who decides, and within which limits.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'a> {
    /// The name of the service: `source` of events.
    pub source: &'a str,
    /// Who decided, in their own words.
    pub operator: &'a str,
    /// Why, in their own words.
    pub because: Option<&'a str>,
    /// How far the deadline of a command that is sent again lies ahead.
    pub deadline_limits: DeadlineLimits,
    /// How long after a redeem a query may count as "not executed".
    pub settling: SignedDuration,
    /// The longest that a call of the service may take.
    pub longest_call: SignedDuration,
    /// Whether a refusal that a query has found is published, and the command taken off the queue.
    pub publish_refused: bool,
}

impl Decision<'_> {
    /// From how long after a call was begun a negative query counts, anyone who began it.
    fn over_after(&self) -> SignedDuration {
        self.longest_call.saturating_add(self.settling)
    }

    /// How far apart the two queries of a refusal are: where nobody knows when a command was parked, a call that was
    /// begun before the first must be over before the second.
    fn spacing(&self, parked: &Parked) -> SignedDuration {
        if parked.at.is_some() { self.settling } else { self.over_after() }
    }

    /// Whether a call of the service may have been under way when the first query of this look began. What it saw then
    /// counts for nothing, however long it took.
    fn is_under_way(&self, parked: &Parked, query: &CouponQuery) -> bool {
        parked.age(query.begun_at()).is_some_and(|age| age < self.over_after())
    }
}

/// How long to wait before a query that must confirm what `query` found; `None` where that decides by itself.
pub fn confirm_after(parked: &Parked, query: &CouponQuery, decision: &Decision<'_>) -> Option<Duration> {
    let refused = matches!(query.status, CouponStatus::Refused { .. });
    let required = refused && decision.publish_refused && !decision.is_under_way(parked, query);
    required.then(|| decision.spacing(parked).unsigned_abs())
}

/// What replaying a command would do, given what a query said.
///
/// # Errors
/// Why it stays parked, in words.
pub fn assess_replay(
    parked: &Parked,
    query: &CouponQuery,
    decision: &Decision<'_>,
) -> Result<OperatorAction, String> {
    match &query.status {
        CouponStatus::Redeemed(_) => Ok(OperatorAction::PublishedRedeemed),
        CouponStatus::Usable => Ok(OperatorAction::Republished),
        CouponStatus::Refused { reason, .. } if !decision.publish_refused => {
            Err(format!("refused ({}); it would be refused again", reason.as_str()))
        }
        CouponStatus::Refused { .. } if decision.is_under_way(parked, query) => {
            Err("refused, but it was parked a moment ago and may still be under way".to_owned())
        }
        CouponStatus::Refused { .. } if !query.confirms_refusal(decision.spacing(parked)) => {
            Err("refused, but by one query only".to_owned())
        }
        CouponStatus::Refused { .. } => Ok(OperatorAction::PublishedRefused),
        CouponStatus::Unknown | CouponStatus::Suspended(_) => {
            let Evidence { host, status, verdict, .. } = &query.evidence;
            let why = match (status, &query.trouble) {
                (Some(status), _) => format!("{host} answered {status}: {verdict}"),
                (None, Some(trouble)) => format!("{host}: {trouble}"),
                (None, None) => format!("{host} gave no whole answer"),
            };
            Err(format!("nothing is known; {why}"))
        }
    }
}

/// Why a deed was not finished. The command is still parked, unless the broker's answer to the acknowledgement alone was
/// lost; it may have been done all the same, and can be done again.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    /// It was not published.
    #[error(transparent)]
    NotPublished(#[from] PublishFailure),
    /// It was published, and could not be taken off the queue.
    #[error(transparent)]
    NotSettled(#[from] AckError),
    /// The look does not hold the command any more, or the broker did not say that it does.
    #[error(transparent)]
    LockLost(#[from] ParkedQueueError),
    /// The deed rests on a query that does not say so.
    #[error("the query does not bear it out")]
    NotConfirmed,
}

/// Does it, as long as `look` holds the command: publishes what it takes, then the audit event, each confirmed, and takes
/// the command off the queue.
///
/// # Errors
/// [`Unfinished`]
pub async fn carry_out(
    look: &ParkedQueue,
    parked: Parked,
    deed: OperatorAction,
    query: Option<&CouponQuery>,
    decision: &Decision<'_>,
    now: Timestamp,
) -> Result<(), Unfinished> {
    let coupon = query.and_then(|query| query.coupon.as_ref());
    let publisher = look.verified_publisher().await?;
    let done = publish(publisher, &parked, deed, query, decision, now).await?;
    let account = AuditContext {
        source: decision.source,
        at: now,
        action: deed,
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
    let reported = publisher.publish_audit(&audit_event::encode(account), &parked.delivery).await?;
    let proof = match done {
        Some(done) => done.join(reported),
        None => reported,
    };
    parked.delivery.ack(proof).await?;
    // The broker works in order: once it answers this, it has the acknowledgement.
    Ok(look.verify().await?)
}

/// What the deed itself publishes; nothing for a discard.
async fn publish(
    publisher: &Publisher,
    parked: &Parked,
    deed: OperatorAction,
    query: Option<&CouponQuery>,
    decision: &Decision<'_>,
    now: Timestamp,
) -> Result<Option<Published>, Unfinished> {
    let delivery = &parked.delivery;
    if deed == OperatorAction::Discarded {
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
    let outcome = match (deed, &query.status) {
        (OperatorAction::Republished, CouponStatus::Usable) => {
            let deadline = now.saturating_add(decision.deadline_limits.default).unwrap_or(Timestamp::MAX);
            // It counts as sent before, so the service asks for itself first.
            let mut progress = Progress::new(now, deadline, true);
            if parked.has_seen_use() {
                progress.effect = EffectState::SeenUsed;
            }
            // They count as made, and leave as many as a new command has.
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
    let telling = EventContext {
        source: decision.source,
        at: now,
        traceparent: delivery.traceparent(),
        attempts,
        evidence: &evidence,
    };
    let event = result_event::encode(redemption, &outcome, telling);
    Ok(Some(publisher.publish_event(&event, delivery, delivery.traceparent()).await?))
}
