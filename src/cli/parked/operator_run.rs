//! One run of `parked replay` or `parked discard` over the commands that match.

use crate::cli::parked::{DecisionArguments, describe, queried, summary};
use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::amqp::parked_queue::{ParkedQueue, check_publishing};
use crate::cli::{Failure, print, print_error};
use crate::config::Config;
use crate::domain::redemption::Redemption;
use crate::parked::{self, CouponQuery, CouponStatus, Decision, Filter, Parked};
use crate::telemetry::masking::Short;
use crate::telemetry::untrusted::{Untrusted, Visible};
use crate::wechat::client::Client;
use crate::wire::audit_event::OperatorAction;

/// One run of an operator: the commands that are meant, and the decision.
pub(super) struct OperatorRun<'a> {
    settings: crate::amqp::connection::AmqpSettings,
    filter: Filter,
    deciding: &'a DecisionArguments,
    decision: Decision<'a>,
}

/// What became of one command.
pub(super) enum Done {
    Did(OperatorAction),
    Would(OperatorAction),
    Left(String),
}

#[derive(Default)]
pub(super) struct Tally {
    did: u64,
    left: u64,
}

impl<'a> OperatorRun<'a> {
    pub(crate) fn new(
        config: &'a Config,
        filter: Filter,
        deciding: &'a DecisionArguments,
        because: Option<&'a str>,
        publish_refused: bool,
    ) -> Result<Self, Failure> {
        if deciding.yes && deciding.operator.is_none() {
            return Err(Failure::Failed(anyhow!(
                "say who you are: --operator NAME, or USER in the environment"
            )));
        }
        let signed = |span: Duration| SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
        let decision = Decision {
            source: &config.event.source,
            operator: deciding.operator.as_deref().unwrap_or_default(),
            because,
            deadline_limits: config.deadline_limits(),
            settling: signed(config.retry.query_delay.0),
            longest_call: signed(config.wechat.total_timeout.0),
            publish_refused,
        };
        Ok(Self { settings: config.broker_settings()?, filter, deciding, decision })
    }

    /// Goes through the queue: with a client to replay, without one to discard.
    pub(crate) async fn process_all(&self, mut asking: Option<(&Client, ReplayRate)>) -> Result<(), Failure> {
        let mut tally = Tally::default();
        // What was left parked on purpose; it comes by again once everything held was put back.
        let mut left: HashSet<(String, Option<Timestamp>)> = HashSet::new();
        if self.deciding.yes {
            check_publishing(&self.settings).await.context("nothing can be published")?;
        }
        let mut is_reported = false;
        let ended = loop {
            let look = ParkedQueue::begin(&self.settings).await;
            let mut look = match look {
                Ok(look) => look,
                Err(error) => break Err(Failure::Failed(anyhow!(error))),
            };
            if let Some(why) = look.missing_lock().filter(|_| !is_reported) {
                print_error(&why);
                is_reported = true;
            }
            let once = self.process_one(&mut look, &mut asking, &mut left, &mut tally).await;
            look.end().await;
            match once {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        };
        self.conclude(ended, &tally, asking.is_some())
    }

    /// One look, until the queue, the limit or the time ends. True if it must go on with another.
    pub(crate) async fn process_one(
        &self,
        look: &mut ParkedQueue,
        asking: &mut Option<(&Client, ReplayRate)>,
        left: &mut HashSet<(String, Option<Timestamp>)>,
        tally: &mut Tally,
    ) -> Result<bool, Failure> {
        if self.deciding.yes {
            look.open_publisher(&self.settings).await.map_err(|error| anyhow!(error))?;
        }
        let before = left.clone();
        let hold = self.deciding.hold.unsigned_abs();
        while let Some(delivery) = look.next().await.map_err(|error| anyhow!(error))? {
            let parked = Parked::read(delivery);
            let key = (parked.sha256.clone(), parked.at);
            if !self.filter.admits(&parked, Timestamp::now()) || before.contains(&key) {
                continue;
            }
            // To the end all the same: what a partial look took comes behind the rest, and the next one, with --yes,
            // would mean others than a dry run has shown.
            if self.deciding.limit.is_some_and(|limit| tally.did + tally.left >= limit) {
                continue;
            }
            let mut line = summary(&parked, Timestamp::now());
            let query = match (asking.as_mut(), parked.replayable()) {
                (Some((client, pace)), Ok(redemption)) => {
                    Some(self.query(client, pace, &parked, redemption).await)
                }
                _ => None,
            };
            let done = self.settle(look, parked, query.as_ref(), asking.is_some()).await?;
            match &done {
                // What would be done is still there after the look, and is not asked for a second time.
                Done::Would(_) => {
                    tally.did += 1;
                    left.insert(key);
                }
                Done::Did(_) => tally.did += 1,
                Done::Left(_) => {
                    tally.left += 1;
                    left.insert(key);
                }
            }
            self.report(&mut line, query.as_ref(), &done)?;
            if let Some(CouponQuery { status: CouponStatus::Suspended(fault), .. }) = &query {
                let fault = fault.as_str();
                return Err(
                    anyhow!("every call fails ({fault}): run redeemer check; nothing more is tried").into()
                );
            }
            if look.age() >= hold {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Asks what is true now, and a second time if a refusal is to be reported.
    pub(crate) async fn query(
        &self,
        client: &Client,
        pace: &mut ReplayRate,
        parked: &Parked,
        redemption: &Redemption,
    ) -> CouponQuery {
        pace.wait().await;
        let first = query(client, redemption).await;
        match parked::confirm_after(parked, &first, &self.decision) {
            None => first,
            Some(wait) => {
                sleep(wait).await;
                pace.wait().await;
                query(client, redemption).await.following(first)
            }
        }
    }

    pub(crate) async fn settle(
        &self,
        look: &ParkedQueue,
        parked: Parked,
        query: Option<&CouponQuery>,
        replaying: bool,
    ) -> Result<Done, Failure> {
        let now = Timestamp::now();
        let advice = match (replaying, query) {
            (false, _) => Ok(OperatorAction::Discarded),
            (true, Some(query)) => parked::assess_replay(&parked, query, &self.decision),
            (true, None) => Err(parked.replayable().err().unwrap_or_default()),
        };
        match (advice, self.deciding.yes) {
            (Err(why), _) => Ok(Done::Left(why)),
            (Ok(deed), false) => Ok(Done::Would(deed)),
            (Ok(deed), true) => {
                let id = parked.sha256.clone();
                parked::carry_out(look, parked, deed, query, &self.decision, now).await.with_context(
                    || format!("{id} was not finished and may still be parked; run it again"),
                )?;
                Ok(Done::Did(deed))
            }
        }
    }

    pub(crate) fn report(
        &self,
        line: &mut Value,
        query: Option<&CouponQuery>,
        done: &Done,
    ) -> anyhow::Result<()> {
        if self.deciding.json {
            if let Some(query) = query {
                line["query"] = queried(query);
            }
            match done {
                Done::Did(deed) => line["did"] = json!(deed.effect()),
                Done::Would(deed) => line["would"] = json!(deed.effect()),
                Done::Left(why) => line["left"] = json!(why),
            }
            return print(&line.to_string());
        }
        let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
        let id: String = text("id").chars().take(12).collect();
        let coupon = match line["coupon_code"].as_str() {
            Some(code) => Short(code).to_string(),
            None => "-".to_owned(),
        };
        let asked = query.map_or_else(String::new, |query| format!("{}; ", describe(query)));
        let what = match done {
            Done::Did(deed) => format!("{asked}{}", deed.effect().replace('_', " ")),
            Done::Would(deed) => format!("{asked}would be {}", deed.effect().replace('_', " ")),
            Done::Left(why) => format!("left parked: {why}"),
        };
        let reason = text("reason");
        let line = format!("{id}  {}  {coupon}  {}  {what}", Untrusted(&reason), text("out_request_no"));
        print(&Visible(&line).to_string())
    }

    pub(crate) fn conclude(
        &self,
        ended: Result<(), Failure>,
        tally: &Tally,
        replaying: bool,
    ) -> Result<(), Failure> {
        let Tally { did, left } = tally;
        let word = if replaying { "replay" } else { "discard" };
        if !self.deciding.yes {
            print_error(&format!(
                "{word}: {did} would be done, {left} stay parked; nothing was changed, --yes does it"
            ));
            return ended;
        }
        print_error(&format!("{word}: {did} done, {left} stay parked"));
        ended?;
        match left {
            0 => Ok(()),
            left => Err(Failure::Unexpected(format!("{word}: {left} stay parked"))),
        }
    }
}

pub(super) async fn query(client: &Client, redemption: &Redemption) -> CouponQuery {
    parked::query(client, redemption, Timestamp::now(), rand::random(), rand::random()).await
}

/// Spaces calls.
pub(super) struct ReplayRate {
    every: Duration,
    next: Instant,
}

impl ReplayRate {
    pub(crate) fn new(per_second: f64) -> Self {
        Self { every: Duration::from_secs_f64(1.0 / per_second), next: Instant::now() }
    }

    pub(crate) async fn wait(&mut self) {
        sleep_until(self.next).await;
        self.next = Instant::now() + self.every;
    }
}
