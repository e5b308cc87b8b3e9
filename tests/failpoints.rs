//! Every failpoint, for a command that comes for the first time, for one that is delivered again, and for a copy that
//! comes back from a delay queue: the service is killed there, launched again, and must end the command as if nothing had
//! happened, with one effect at the payment API. What was on its way or done at death is read from the ledger: what is
//! delivered again and what comes back from a delay queue begins with queries, and is killed over these and over the use
//! that follows.
//!
//! The simulator is harsher here than the payment API: just before a use under a number that has already taken effect
//! the user returns the coupon, and the number is free again. So a use that is sent once more, without having asked what
//! the last one did, is a second effect in the ledger.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a rig that cannot be set up fails, and it reports as it goes
#![allow(dead_code)] // the fault rig's parts, of which this is a smaller user
#![cfg(any(debug_assertions, feature = "failpoints"))]

#[path = "support/broker.rs"]
mod broker;
#[path = "torture/commands.rs"]
mod commands;
#[path = "torture/dice.rs"]
mod dice;
#[path = "torture/service.rs"]
mod service;
#[path = "torture/wires.rs"]
mod wires;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use broker::Broker;
use jiff::{SignedDuration, Timestamp};
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use redeemer::config::{Config, Span};
use redeemer::runtime::failpoints::Failpoint;
use redeemer::telemetry::metrics::Message;
use redeemer::wechat::client::Prepared;
use redeemer::wire::{command, retry_message};
use rstest::rstest;
use serde_json::{Value, json};
use service::{Sandbox, Service, was_killed};
use tokio::task::spawn_blocking;
use wires::{ReceivedEvent, Seen};

const PATIENCE: Duration = Duration::from_secs(60);
const OPENID: &str = "oh-394z-6CGkNoJrsDLTTUKiAnp4";

/// How a command comes to the service that is killed over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    First,
    Redelivered,
    Copy,
}

/// How far the calls about it had come by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was asked.
    Unasked,
    /// There were queries, and no use.
    Queried,
    /// The use was sent.
    Used,
}

impl Stage {
    /// What these calls about one coupon have come to.
    fn of(attempts: &[Value]) -> Self {
        if attempts.iter().any(|attempt| attempt["operation"] == "use") {
            Self::Used
        } else if attempts.is_empty() {
            Self::Unasked
        } else {
            Self::Queried
        }
    }
}

impl Arrival {
    /// The how manieth call is the use. What is delivered again is looked at at once, and twice more after a settling
    /// time; a copy that was delayed because the payment API had not accepted it is looked at once.
    fn nth_of_use(self) -> usize {
        match self {
            Self::First => 1,
            Self::Redelivered => 4,
            Self::Copy => 2,
        }
    }
}

/// The stages that a command which comes so can have reached at a point.
fn stages(point: Failpoint, arrival: Arrival) -> &'static [Stage] {
    match (point, arrival) {
        (Failpoint::Taken, _) => &[Stage::Unasked],
        // It takes a use to be reported as redeemed.
        (
            Failpoint::Publishing(Message::Event) | Failpoint::Published(Message::Event) | Failpoint::Acking,
            _,
        )
        | (_, Arrival::First) => &[Stage::Used],
        (_, Arrival::Redelivered | Arrival::Copy) => &[Stage::Queried, Stage::Used],
    }
}

/// Each arrival on a broker of its own, so that they run side by side.
#[rstest]
#[case::first_delivery(Arrival::First)]
#[case::redelivery(Arrival::Redelivered)]
#[case::retry_message(Arrival::Copy)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_anywhere_a_command_ends_once_and_takes_effect_once(#[case] arrival: Arrival) {
    let mut ground = Ground::new(arrival).await;
    for point in Failpoint::ALL {
        for stage in stages(point, arrival) {
            let mut times = 1;
            while !ground.check(point, arrival, *stage).await {
                times += 1;
                assert!(times <= 5, "{point:?}, {arrival:?}, {stage:?}: no call is on its way at death");
            }
        }
    }
    ground.end().await;
}

struct Ground {
    dir: PathBuf,
    config: Config,
    sandbox: Sandbox,
    service: Service,
    reported: ReceivedEvent,
    channel: Channel,
    cases: usize,
    _connection: Connection,
    broker: Broker,
}

impl Ground {
    async fn new(arrival: Arrival) -> Self {
        let broker = spawn_blocking(Broker::start_counting).await.unwrap();
        let name = format!("failpoints-{arrival:?}-{}", std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let sandbox = Sandbox::start(&dir.join("sandbox"), 1).await;
        sandbox.tell(reqwest::Method::PUT, "settings", &json!({"returned_before_reuse": "C"})).await;
        let config = configure(&dir.join("sandbox"), &sandbox, broker.uri());
        std::fs::write(dir.join("redeemer.toml"), toml::to_string(&config).unwrap()).unwrap();
        wires::establish(broker.uri(), &config).await;
        let reported = wires::read(broker.uri().to_owned());
        let connection = Connection::connect(broker.uri(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let service = Service::new("instance", &dir);
        let cases = 0;
        Self { dir, config, sandbox, service, reported, channel, cases, _connection: connection, broker }
    }

    /// False where the process died so soon that the call had not left it: all is well, and nothing is shown.
    async fn check(&mut self, point: Failpoint, arrival: Arrival, stage: Stage) -> bool {
        let nth = self.cases;
        self.cases += 1;
        let (code, number, id) = (format!("C{nth}"), format!("USE_{nth:04}"), format!("m-{nth}"));
        let what = format!("killed {} over a command that comes {arrival:?}, {stage:?}", point.as_str());
        let coupon = json!([{
            "openid": OPENID, "coupon_code": code, "appid": "wx1", "brand_id": "120344",
            "product_coupon_id": "1000000013", "stock_id": "1000000013001",
        }]);
        self.sandbox.tell(reqwest::Method::POST, "coupons", &coupon).await;
        let parked =
            matches!(point, Failpoint::Publishing(Message::Parked) | Failpoint::Published(Message::Parked));
        let fault = match point {
            Failpoint::Publishing(Message::Retry) | Failpoint::Published(Message::Retry) => {
                Some(json!({"kind": "html_502"}))
            }
            _ if parked => Some(json!({"kind": "cut_before_effect"})),
            // Long enough to die over it.
            Failpoint::Sent => Some(json!({"kind": "slow", "ms": 100})),
            Failpoint::Draining => Some(json!({"kind": "slow", "ms": 800})),
            _ => None,
        };
        // If no query is answered, no use is ever sent but by what comes for the first time.
        let operation = if stage == Stage::Used && arrival != Arrival::First { "use" } else { "any" };
        self.faults(fault, operation).await;
        let body = json!({
            "openid": OPENID, "coupon_code": code, "brand_id": "120344", "product_coupon_id": "1000000013",
            "stock_id": "1000000013001", "appid": "wx1", "use_time": "2026-03-05T12:30:45+08:00",
            "out_request_no": number, "associated_order_info": {"transaction_id": "4200000000123456789123456789"},
        });
        self.publish(&id, body.to_string().as_bytes(), arrival, parked).await;
        if matches!(arrival, Arrival::Redelivered) {
            self.hand_back().await;
        }

        let nth = match (point, stage) {
            (Failpoint::Sent | Failpoint::Responded, Stage::Used) => arrival.nth_of_use(),
            _ => 1,
        };
        self.service.launch_to_die(point, nth).await;
        if point == Failpoint::Draining {
            let since = Instant::now();
            while Stage::of(&self.of(&code, "attempts").await) != stage {
                assert!(since.elapsed() < PATIENCE, "{what}: never asked so");
            }
            self.service.ask_to_stop().await;
        }
        let status = self.service.ended(PATIENCE).await;
        assert!(status.is_some_and(was_killed), "{what}: {status:?}, see {}", self.dir.display());
        let mut at_death = self.of(&code, "attempts").await;
        let since = Instant::now();
        // What left it just before may arrive later.
        while point == Failpoint::Sent && at_death.len() < nth && since.elapsed() < Duration::from_millis(500)
        {
            at_death = self.of(&code, "attempts").await;
        }
        let too_soon = point == Failpoint::Sent && at_death.len() + 1 == nth;
        if !too_soon {
            assert_eq!(Stage::of(&at_death), stage, "{what}: {at_death:#?}");
        }
        if matches!(point, Failpoint::Sent | Failpoint::Responded) && !too_soon {
            assert_eq!(at_death.len(), nth, "{what}: {at_death:#?}");
        }

        if !parked {
            self.faults(None, "any").await;
        }
        self.service.launch().await;
        let since = Instant::now();
        while self.events(&id).is_empty()
            || self.service.metric("redeemer_commands_in_flight").await != Some(0.0)
        {
            assert!(since.elapsed() < PATIENCE, "{what}: {:?}", self.events(&id));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let emptied = wires::wait_empty(&self.broker, &self.config.broker.names.parked, PATIENCE).await;
        assert_eq!(emptied, Ok(()), "{what}: left in queues");
        self.service.kill().await;
        let gists: Vec<_> = self.events(&id).into_iter().map(|event| (event.id, event.outcome)).collect();
        let attempts = self.of(&code, "attempts").await;
        let when = if too_soon { " (before the call was on its way)" } else { "" };
        println!("{what}{when}: {} calls, reported {} times", attempts.len(), gists.len());
        let outcome = if parked { "unresolved" } else { "redeemed" };
        assert!(gists.iter().all(|gist| *gist == gists[0] && gist.1 == outcome), "{what}: {gists:?}");
        let effects = self.of(&code, "effects").await;
        let kinds: Vec<_> = effects.iter().map(|effect| effect["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, if parked { vec![] } else { vec!["used"] }, "{what}: {attempts:#?}");
        let reasons =
            wires::empty(self.broker.uri(), &self.config.broker.names.parked, "x-redemption-parked-reason");
        let reasons: Vec<_> = reasons.await.into_iter().map(|(_, reason)| reason).collect();
        assert!(reasons.iter().all(|reason| reason == "deadline_passed"), "{what}: {reasons:?}");
        assert_eq!(reasons.is_empty(), !parked, "{what}: {reasons:?}");
        !too_soon
    }

    async fn publish(&self, id: &str, body: &[u8], arrival: Arrival, hopeless: bool) {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let now = Timestamp::now();
        let mut headers = FieldTable::default();
        if hopeless {
            headers.insert(
                retry_message::DEADLINE.into(),
                text(&(now + SignedDuration::from_secs(3)).to_string()),
            );
        }
        if matches!(arrival, Arrival::Copy) {
            let prepared = Prepared::new(&command::decode(body).unwrap());
            let deadline =
                if hopeless { SignedDuration::from_secs(3) } else { SignedDuration::from_hours(1) };
            for (name, value) in [
                (retry_message::ATTEMPTS, "3".to_owned()),
                (retry_message::DELAYS_PASSED, "1".to_owned()),
                (retry_message::FIRST_SEEN, (now - SignedDuration::from_secs(60)).to_string()),
                (retry_message::DEADLINE, (now + deadline).to_string()),
                // Delayed because the payment API had not accepted it: the copy that sends its use the soonest.
                (retry_message::LAST_VERDICT, "no_effect".to_owned()),
                (retry_message::BODY_SHA256, prepared.body_sha256().to_owned()),
                (retry_message::EVIDENCE, "[]".to_owned()),
            ] {
                headers.insert(name.into(), text(&value));
            }
        }
        let properties =
            BasicProperties::default().with_delivery_mode(2).with_message_id(id.into()).with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let exchange = self.config.broker.names.commands.as_str();
        let publishing = self.channel.basic_publish(exchange.into(), "use".into(), options, body, properties);
        assert!(publishing.await.unwrap().await.unwrap().is_ack());
    }

    /// Somebody takes the command and dies.
    async fn hand_back(&self) {
        let queue = self.config.broker.names.commands.as_str();
        let since = Instant::now();
        loop {
            let connection =
                Connection::connect(self.broker.uri(), ConnectionProperties::default()).await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
            let redelivered = got.as_ref().is_some_and(|got| got.delivery.redelivered);
            connection.close(200, "gone with what it held".into()).await.unwrap();
            if redelivered {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "the command is not handed back");
        }
    }

    async fn faults(&self, fault: Option<Value>, operation: &str) {
        let rules: Vec<Value> =
            fault.into_iter().map(|fault| json!({"fault": fault, "operation": operation})).collect();
        self.sandbox.tell(reqwest::Method::PUT, "faults", &json!({"rules": rules})).await;
    }

    /// What the ledger has of a coupon.
    async fn of(&self, code: &str, list: &str) -> Vec<Value> {
        let mut entries = self.sandbox.ask("ledger").await[list].as_array().unwrap().clone();
        entries.retain(|entry| entry["coupon_code"] == code);
        entries
    }

    fn events(&self, id: &str) -> Vec<Seen> {
        self.reported.all().into_iter().filter(|event| event.command == id).collect()
    }

    async fn end(mut self) {
        self.service.launch().await;
        self.service.wait_ready(true).await.unwrap();
        for name in ["redeemer_unaccounted_deliveries", "redeemer_commands_in_flight"] {
            assert_eq!(self.service.metric(name).await, Some(0.0), "{name}");
        }
        self.service.ask_to_stop().await;
        assert!(self.service.ended(PATIENCE).await.is_some_and(|status| status.success()));
        std::fs::remove_dir_all(&self.dir).unwrap();
        let broker = self.broker;
        spawn_blocking(move || drop(broker)).await.unwrap();
    }
}

fn configure(keys: &Path, sandbox: &Sandbox, uri: &str) -> Config {
    let ms = |ms| Span(Duration::from_millis(ms));
    let mut config = service::configure(keys, &sandbox.card, sandbox.port());
    config.broker.uri = uri.to_owned();
    config.retry.initial = ms(50);
    config.retry.query_delay = ms(200);
    // Long enough to wait here for the longest call that anyone who held a command before may have begun.
    config.wechat.total_timeout = ms(1_000);
    config.retry.in_process_max = ms(2_000);
    config.retry.delays = vec![ms(400), ms(1_000)];
    config.log.filter = "info,lapin=off".to_owned();
    config
}
