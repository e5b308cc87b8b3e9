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
use crate::parked::{self, CouponQuery, CouponStatus, Decision, Filter, Parked, StaysParked};
use crate::telemetry::masking::Short;
use crate::telemetry::untrusted::{Untrusted, Visible};
use crate::wechat::client::Client;
use crate::wire::audit_event::OperatorAction;

/// The selected commands and the decision.
pub(super) struct OperatorRun<'a> {
    settings: crate::amqp::connection::AmqpSettings,
    filter: Filter,
    deciding: &'a DecisionArguments,
    decision: Decision<'a>,
}

/// The result for one command.
pub(super) enum Done {
    Did(OperatorAction),
    Would(OperatorAction),
    Left(StaysParked),
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
                "--yes requires your name: --operator NAME, or USER in the environment"
            )));
        }
        let signed = |span: Duration| SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
        let decision = Decision {
            source: &config.event.source,
            operator: deciding.operator.as_deref().unwrap_or_default(),
            because,
            deadline_limits: config.deadline_limits(),
            query_delay: signed(config.retry.query_delay.0),
            longest_call: signed(config.wechat.total_timeout.0),
            publish_refused,
        };
        Ok(Self { settings: config.broker_settings()?, filter, deciding, decision })
    }

    /// Processes the queue: replays with a client, discards without one.
    pub(crate) async fn process_all(
        &self,
        mut replaying: Option<(&Client, ReplayRate)>,
    ) -> Result<(), Failure> {
        let mut tally = Tally::default();
        // Commands that stay parked; the next pass sees them again.
        let mut left: HashSet<(String, Option<Timestamp>)> = HashSet::new();
        if self.deciding.yes {
            check_publishing(&self.settings).await.context("nothing can be published")?;
        }
        let mut is_reported = false;
        let ended = loop {
            let queue = ParkedQueue::begin(&self.settings).await;
            let mut queue = match queue {
                Ok(queue) => queue,
                Err(error) => break Err(Failure::Failed(anyhow!(error))),
            };
            if let Some(why) = queue.missing_lock().filter(|_| !is_reported) {
                print_error(&why);
                is_reported = true;
            }
            let once = self.process_one(&mut queue, &mut replaying, &mut left, &mut tally).await;
            queue.end().await;
            match once {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        };
        self.conclude(ended, &tally, replaying.is_some())
    }

    /// One pass, until the queue, the limit or the hold time ends. True if another pass is required.
    pub(crate) async fn process_one(
        &self,
        queue: &mut ParkedQueue,
        replaying: &mut Option<(&Client, ReplayRate)>,
        left: &mut HashSet<(String, Option<Timestamp>)>,
        tally: &mut Tally,
    ) -> Result<bool, Failure> {
        if self.deciding.yes {
            queue.open_publisher(&self.settings).await.map_err(|error| anyhow!(error))?;
        }
        let before = left.clone();
        let hold = self.deciding.hold.unsigned_abs();
        while let Some(delivery) = queue.next().await.map_err(|error| anyhow!(error))? {
            let parked = Parked::read(delivery);
            let key = (parked.sha256.clone(), parked.at);
            if !self.filter.admits(&parked, Timestamp::now()) || before.contains(&key) {
                continue;
            }
            // Reads on to the end: a partial pass changes the order, and the next one, with --yes, would select other
            // commands than the dry run has shown.
            if self.deciding.limit.is_some_and(|limit| tally.did + tally.left >= limit) {
                continue;
            }
            let mut line = summary(&parked, Timestamp::now());
            let queried = match replaying.as_mut() {
                None => None,
                Some((client, rate)) => Some(match parked.replayable() {
                    Ok(redemption) => Ok(self.query(client, rate, &parked, redemption).await),
                    Err(why) => Err(why),
                }),
            };
            let query = queried.as_ref().and_then(|queried| queried.as_ref().ok());
            let done = self.settle(queue, parked, queried.as_ref()).await?;
            match &done {
                // After a dry run it is still parked, and must not be queried a second time.
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
            self.report(&mut line, query, &done)?;
            if let Some(CouponQuery { status: CouponStatus::Suspended(fault), .. }) = query {
                let fault = fault.as_str();
                return Err(
                    anyhow!("every call fails ({fault}); nothing more is tried; run redeemer check").into()
                );
            }
            if queue.age() >= hold {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Queries the coupon, and queries again if a refusal is to be published.
    pub(crate) async fn query(
        &self,
        client: &Client,
        rate: &mut ReplayRate,
        parked: &Parked,
        redemption: &Redemption,
    ) -> CouponQuery {
        rate.wait().await;
        let first = query(client, redemption).await;
        match parked::confirm_after(parked, &first, &self.decision) {
            None => first,
            Some(wait) => {
                sleep(wait).await;
                rate.wait().await;
                query(client, redemption).await.following(first)
            }
        }
    }

    pub(crate) async fn settle(
        &self,
        queue: &ParkedQueue,
        parked: Parked,
        queried: Option<&Result<CouponQuery, StaysParked>>,
    ) -> Result<Done, Failure> {
        let now = Timestamp::now();
        let assessment = match queried {
            None => Ok(OperatorAction::Discarded),
            Some(Ok(query)) => parked::assess_replay(&parked, query, &self.decision),
            Some(Err(why)) => Err(why.clone()),
        };
        let query = queried.and_then(|queried| queried.as_ref().ok());
        match (assessment, self.deciding.yes) {
            (Err(why), _) => Ok(Done::Left(why)),
            (Ok(action), false) => Ok(Done::Would(action)),
            (Ok(action), true) => {
                let id = parked.sha256.clone();
                parked::carry_out(queue, parked, action, query, &self.decision, now).await.with_context(
                    || format!("{id} did not complete and may still be parked; run it again"),
                )?;
                Ok(Done::Did(action))
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
                Done::Did(action) => line["did"] = json!(action.effect()),
                Done::Would(action) => line["would"] = json!(action.effect()),
                Done::Left(why) => {
                    line["left"] = json!(why.code());
                    line["why"] = json!(why.to_string());
                }
            }
            return print(&line.to_string());
        }
        let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
        let id: String = text("id").chars().take(12).collect();
        let coupon = match line["coupon_code"].as_str() {
            Some(code) => Short(code).to_string(),
            None => "-".to_owned(),
        };
        let queried = query.map_or_else(String::new, |query| format!("{}; ", describe(query)));
        let what = match done {
            Done::Did(action) => format!("{queried}{}", action.effect().replace('_', " ")),
            Done::Would(action) => format!("{queried}would be {}", action.effect().replace('_', " ")),
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
