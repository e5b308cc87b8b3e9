//! Endurance: the rate of a full limiter for a long time, with faults, and a backlog as after a long night.
//!
//! `make soak` runs all: `MINUTES` (20) at `RATE` (500) commands a second, a backlog of `BACKLOG` (100,000), and `FLOOD`
//! (100,000) commands whose deadline passes while no call can be made. What is measured is the service's process: resident memory and open files, their slope by least squares. The sandbox signs fast
//! here, or it would be what is measured.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a rig that cannot be set up fails, and it reports as it goes
#![allow(dead_code)] // the fault rig's parts, of which this is a smaller user

#[path = "support/broker.rs"]
mod broker;
#[path = "support/record.rs"]
mod record;
#[path = "torture/service.rs"]
mod service;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use broker::Broker;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use redeemer::amqp::topology::{Mode, establish};
use redeemer::config::Config;
use redeemer::wire::retry_message::DEADLINE;
use serde_json::{Value, json};
use service::{Sandbox, Service};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Both want the machine to themselves.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
const TICK: Duration = Duration::from_millis(100);
const SAMPLE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(600);
/// How many seconds' worth of commands may be on their way at full rate.
const LAG_SECONDS_MAX: usize = 20;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text:?}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_time_at_full_rate() {
    let _alone = ALONE.lock().await;
    let (minutes, rate) = (number("MINUTES", 20), number("RATE", 500));
    let mut ground = Ground::new("soak").await;
    // One call in twenty goes wrong, in ways that leave work behind.
    let faults = ["cut_before_effect", "cut_after_effect", "probe_signature", "html_502", "cut_in_body"];
    let rules: Vec<Value> = faults.map(|kind| json!({"share": 0.01, "fault": {"kind": kind}})).into();
    ground.sandbox.tell(reqwest::Method::PUT, "faults", &json!({"rules": rules})).await;
    ground.instance.launch().await;
    ground.instance.wait_ready(true).await;
    let pid = ground.instance.pid();
    let series = ground.instance.series().await.len();

    let (begun, mut samples, mut sampled) = (Instant::now(), Vec::new(), Instant::now());
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut sent = 0;
    while begun.elapsed() < Duration::from_secs(60 * minutes as u64) {
        tick.tick().await;
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as usize;
        ground.publish(sent, due).await;
        sent = due;
        if sampled.elapsed() >= SAMPLE {
            sampled = Instant::now();
            samples.push(Sample::take(pid, begun));
        }
    }
    let reported_meanwhile = *ground.reported.borrow();
    ground.reach(sent).await;
    let drained = begun.elapsed();
    // The first half is warming up: beside pools and the allocator, the broker's client goes through each of its rings of
    // frames for the first time, and the one for acknowledgements, 4 MB of some 20 bytes each, takes 200,000 commands.
    let settled = &samples[samples.len() / 2..];
    let hours = settled.last().unwrap().hours - settled[0].hours;
    let (memory, files) = (slope(settled, |at| at.kib), slope(settled, |at| at.files));
    let most = settled.iter().map(|at| at.kib).fold(0.0, f64::max);
    let figures = format!(
        "{sent} commands in {minutes} min ({:.0}/s), one call in twenty gone wrong; the last reported {:.1} s later; \
         resident at most {:.1} MiB, {:+.2} MiB/h; open files {:.0}, {:+.2}/h",
        sent as f64 / (60.0 * minutes as f64),
        drained.as_secs_f64() - 60.0 * minutes as f64,
        most / 1024.0,
        memory / 1024.0,
        settled.last().unwrap().files,
        files,
    );
    println!("soak: {figures}; over {hours:.2} h, {reported_meanwhile} reported meanwhile");
    // What went wrong waits ten seconds in the first delay queue, and little else does.
    let behind = sent.saturating_sub(reported_meanwhile);
    assert!(behind < rate * LAG_SECONDS_MAX, "{behind} of {sent} not reported yet at the end");
    ground.judge(sent).await;
    assert_eq!(ground.instance.series().await.len(), series, "the number of series grew");
    // What a leak of 100 bytes for each command would be, and a tenth of it is still seen.
    let grown = memory * 1024.0 / (rate * 3_600) as f64;
    assert!(grown < 10.0, "{grown:.1} bytes more for each command");
    assert!(files * hours < 4.0, "{:.1} files more", files * hours);
    record::row("soak", &figures);
    ground.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_a_long_night() {
    let _alone = ALONE.lock().await;
    let backlog = number("BACKLOG", 100_000);
    let mut ground = Ground::new("backlog").await;
    for from in (0..backlog).step_by(1_000) {
        ground.publish(from, (from + 1_000).min(backlog)).await;
    }
    ground.instance.launch().await;
    let (begun, pid) = (Instant::now(), ground.instance.pid());
    ground.instance.wait_ready(true).await;
    let first = Sample::take(pid, begun);
    ground.reach(backlog).await;
    let (took, last) = (begun.elapsed(), Sample::take(pid, begun));
    let figures = format!(
        "{backlog} commands drained in {:.1} s ({:.0}/s), none lost, none twice; resident {:.1} MiB when ready, at \
         most {:.1} MiB",
        took.as_secs_f64(),
        backlog as f64 / took.as_secs_f64(),
        first.kib / 1024.0,
        last.most_kib / 1024.0,
    );
    println!("backlog: {figures}");
    ground.judge(backlog).await;
    // Prefetched commands and their replies, not the backlog: that would be twice as much for its bodies alone.
    assert!(last.most_kib < first.kib + 40.0 * 1024.0, "{} KiB, {} KiB at most", first.kib, last.most_kib);
    record::row("backlog", &figures);
    ground.end().await;
}

/// Commands whose deadline passes at one moment while no call can be made: each has its event within a minute of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_past_its_deadline_while_calls_are_held_back() {
    let _alone = ALONE.lock().await;
    let flood = number("FLOOD", 100_000);
    for (fault, cause) in [
        (json!({"kind": "html_502"}), "server_error"),
        (json!({"kind": "status", "status": 401}), "unauthenticated"),
    ] {
        let mut ground = Ground::new(&format!("late-{cause}")).await;
        let script = json!({"rules": [{"fault": fault}]});
        ground.sandbox.tell(reqwest::Method::PUT, "faults", &script).await;
        ground.instance.launch().await;
        // These have a day.
        ground.publish(0, 100).await;
        let held_back = format!("redeemer_circuit_open_cause{{cause=\"{cause}\"}}");
        let held = ground.instance.wait_metric(&held_back, |held| held == 1.0, PATIENCE).await;
        assert!(held.is_some(), "calls are not held back");
        let deadline = Timestamp::now() + SignedDuration::from_secs(30 + flood as i64 / 2_000);
        for from in (100..100 + flood).step_by(1_000) {
            ground.publish_until((from, (from + 1_000).min(100 + flood)), Some(deadline)).await;
        }
        let left = deadline.duration_since(Timestamp::now());
        assert!(left.is_positive(), "the deadline passed before the last was published");
        ground.reach(flood).await;
        let late = ground.latest.lock().unwrap().unwrap().duration_since(deadline).as_secs_f64();
        assert_eq!(ground.instance.metric(&held_back).await, Some(1.0), "still held back");
        let outcomes = ground.outcomes.lock().unwrap().clone();
        let figures = format!(
            "{flood} commands past one deadline under {cause}: the last event {late:.1} s after it ({:.0}/s)",
            flood as f64 / late
        );
        println!("late: {figures}");
        assert_eq!(outcomes, BTreeMap::from([("unresolved".to_owned(), flood)]));
        assert!(late < 60.0, "{late:.1} s after its deadline");
        record::row(&format!("late, {cause}"), &figures);
        ground.end().await;
    }
}

/// What the process takes at one time.
struct Sample {
    hours: f64,
    kib: f64,
    most_kib: f64,
    files: f64,
}

impl Sample {
    fn take(pid: u32, since: Instant) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as f64;
        let hours = since.elapsed().as_secs_f64() / 3_600.0;
        Self { hours, kib: line("VmRSS:"), most_kib: line("VmHWM:"), files }
    }
}

/// Least squares, per hour.
fn slope(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let count = samples.len() as f64;
    let (x, y) = (
        samples.iter().map(|at| at.hours).sum::<f64>() / count,
        samples.iter().map(&of).sum::<f64>() / count,
    );
    let above = samples.iter().map(|at| (at.hours - x) * (of(at) - y)).sum::<f64>();
    above / samples.iter().map(|at| (at.hours - x).powi(2)).sum::<f64>()
}

/// Broker, sandbox, one instance, a publisher and a subscriber.
struct Ground {
    dir: PathBuf,
    config: Config,
    sandbox: Sandbox,
    instance: Service,
    channel: Channel,
    reported: watch::Receiver<usize>,
    outcomes: Arc<Mutex<BTreeMap<String, usize>>>,
    /// The latest time of an event.
    latest: Arc<Mutex<Option<Timestamp>>>,
    _connection: Connection,
    _broker: Broker,
}

impl Ground {
    async fn new(name: &str) -> Self {
        let broker = tokio::task::spawn_blocking(Broker::start).await.unwrap();
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let sandbox = Sandbox::start_with(&dir.join("sandbox"), 1, &["--fast-signatures"]).await;
        let config = configure(&dir.join("sandbox"), &sandbox, broker.uri());
        std::fs::write(dir.join("redeemer.toml"), toml::to_string(&config).unwrap()).unwrap();
        let connection = Connection::connect(broker.uri(), ConnectionProperties::default()).await.unwrap();
        establish(&connection, &config.topology(), Mode::Create).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let outcomes = Arc::new(Mutex::new(BTreeMap::new()));
        let latest = Arc::new(Mutex::new(None));
        let results = &config.broker.names.results;
        let reported = subscribe(broker.uri(), results, outcomes.clone(), latest.clone()).await;
        let instance = Service::new(name, &dir);
        Self {
            dir,
            config,
            sandbox,
            instance,
            channel,
            reported,
            outcomes,
            latest,
            _connection: connection,
            _broker: broker,
        }
    }

    /// Issues coupons and publishes a command for each, all confirmed at the end.
    async fn publish(&self, from: usize, to: usize) {
        self.publish_until((from, to), None).await;
    }

    /// The same with a deadline.
    async fn publish_until(&self, (from, to): (usize, usize), deadline: Option<Timestamp>) {
        if from == to {
            return;
        }
        let mut headers = FieldTable::default();
        if let Some(deadline) = deadline {
            headers.insert(DEADLINE.into(), AMQPValue::LongString(deadline.to_string().into()));
        }
        let coupon = |nth: usize| {
            json!({
                "openid": OPENID, "coupon_code": format!("C{nth:07}"), "appid": "wx233544546545989",
                "brand_id": "120344", "product_coupon_id": "1000000013", "stock_id": "1000000013001",
            })
        };
        let coupons: Vec<Value> = (from..to).map(coupon).collect();
        self.sandbox.tell(reqwest::Method::POST, "coupons", &json!(coupons)).await;
        let exchange = self.config.broker.names.commands.as_str();
        let mut confirms = Vec::with_capacity(to - from);
        for nth in from..to {
            let mut command = coupon(nth);
            command["use_time"] = json!("2025-07-24T00:00:00+08:00");
            command["out_request_no"] = json!(format!("USE_{nth:07}"));
            command["associated_order_info"] = json!({"transaction_id": "4200000000123456789123456789"});
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers.clone());
            let body = command.to_string();
            let publishing = self.channel.basic_publish(
                exchange.into(),
                "use".into(),
                options,
                body.as_bytes(),
                properties,
            );
            confirms.push(publishing.await.unwrap());
        }
        for confirmed in join_all(confirms).await {
            assert!(confirmed.unwrap().is_ack());
        }
    }

    async fn reach(&mut self, commands: usize) {
        let reported = timeout(PATIENCE, self.reported.wait_for(|reported| *reported >= commands)).await;
        assert!(reported.is_ok(), "not all of {commands} reported after {PATIENCE:?}");
    }

    /// Each reported once as redeemed, each used once.
    async fn judge(&self, commands: usize) {
        assert_eq!(*self.outcomes.lock().unwrap(), BTreeMap::from([("redeemed".to_owned(), commands)]));
        let effects = self.sandbox.ask("effects").await;
        let mut used = HashSet::new();
        for effect in effects.as_array().unwrap().iter().filter(|effect| effect["kind"] == "used") {
            assert!(used.insert(effect["coupon_code"].to_string()), "used twice: {effect}");
        }
        assert_eq!(used.len(), commands);
    }

    async fn end(mut self) {
        self.instance.ask_to_stop().await;
        assert!(self.instance.ended(PATIENCE).await.is_some_and(|status| status.success()));
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

const OPENID: &str = "oh-394z-6CGkNoJrsDLTTUKiAnp4";

/// Counts distinct events by outcome, for ever.
async fn subscribe(
    uri: &str,
    exchange: &str,
    outcomes: Arc<Mutex<BTreeMap<String, usize>>>,
    latest: Arc<Mutex<Option<Timestamp>>>,
) -> watch::Receiver<usize> {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("soak.results".into(), options, arguments).await.unwrap();
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind("soak.results".into(), exchange.into(), "redemption.#".into(), options, arguments)
        .await
        .unwrap();
    channel.basic_qos(1_000, BasicQosOptions::default()).await.unwrap();
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer =
        channel.basic_consume("soak.results".into(), "".into(), options, arguments).await.unwrap();
    let (progress, reported) = watch::channel(0);
    tokio::spawn(async move {
        let _connection = connection;
        let mut seen = HashSet::new();
        while let Some(Ok(delivery)) = consumer.next().await {
            let event: Value = serde_json::from_slice(&delivery.data).unwrap();
            let id: uuid::Uuid = event["id"].as_str().unwrap().parse().unwrap();
            if seen.insert(id) {
                let time: Timestamp = event["time"].as_str().unwrap().parse().unwrap();
                let mut latest = latest.lock().unwrap();
                *latest = latest.max(Some(time));
                drop(latest);
                let outcome = event["data"]["outcome"].as_str().unwrap().to_owned();
                *outcomes.lock().unwrap().entry(outcome).or_default() += 1;
                progress.send_replace(seen.len());
            }
            delivery.ack(BasicAckOptions::default()).await.unwrap();
        }
    });
    reported
}

fn configure(keys: &Path, sandbox: &Sandbox, uri: &str) -> Config {
    let mut config = service::configure(keys, &sandbox.card, sandbox.port());
    config.broker.uri = uri.to_owned();
    // Room for the queries that the faults call for.
    config.rate_limit.calls_per_second = 1_000;
    config.log.filter = "warn,lapin=off".to_owned();
    config
}
