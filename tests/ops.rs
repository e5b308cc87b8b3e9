//! What operators look at, against a real Prometheus: every panel of the dashboards finds data while the service is
//! under load, and every alert fires once its cause is caused.
//!
//! The services run with their sandboxes in this process, but for the one that leaks, on private brokers, one for each
//! kind of trouble; Prometheus distinguishes them by their admin ports. It looks every second, and the rules it is given
//! differ from those of `deploy/prometheus` in one thing: `for:` is nothing, so that what would take minutes takes
//! seconds. That `for:`, too, is as it should be is shown by promtool and its cases (tests/rules.rs). `make test-ops`
//! runs all of this.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // in the helpers too; and it reports as it goes

#[path = "support/bed.rs"]
mod bed;
#[path = "support/broker.rs"]
mod broker;
#[path = "support/prometheus.rs"]
mod prometheus;
#[path = "torture/service.rs"]
#[allow(dead_code)] // the fault rig's, of which this uses a little
mod process;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bed::{Bed, Service, command, until};
use broker::Broker;
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use redeemer::config::Span;
use redeemer::wechat::client::Prepared;
use redeemer::wire::{command as wire_command, retry_message};
use redeemer_sandbox::Tuning;
use serde_json::{Value, json};

use process::Service as Process;
use prometheus::Prometheus;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rules() -> String {
    fs::read_to_string(root().join("deploy/prometheus/redeemer.rules.yml")).unwrap()
}

/// The rules without the time that a cause must last.
fn hasty(rules: &str) -> String {
    let hasty = |line: &str| match line.trim_start().starts_with("for: ") {
        true => format!("{}for: 0s\n", " ".repeat(line.len() - line.trim_start().len())),
        false => format!("{line}\n"),
    };
    rules.lines().map(hasty).collect()
}

// ---- panels and alerts

/// Everything that the troubles below share.
struct Watch {
    prometheus: Prometheus,
    targets: Mutex<Vec<String>>,
    seen: Mutex<BTreeSet<String>>,
    began: Instant,
}

impl Watch {
    /// Starts the service of a bed and waits until Prometheus has looked at it twice: what grows from here on is seen
    /// to grow.
    async fn over(&self, bed: &Bed) -> Service {
        let service = bed.start_unready().await;
        self.looks_at(&service.admin).await;
        service
    }

    /// Has Prometheus look at one more admin port, and waits until it has done so twice.
    async fn looks_at(&self, admin: &str) {
        let targets = {
            let mut targets = self.targets.lock().unwrap();
            targets.push(admin.to_owned());
            targets.clone()
        };
        self.prometheus.scrape(&targets.iter().map(String::as_str).collect::<Vec<_>>());
        let looks = format!("count_over_time(redeemer_build_info{{instance=\"{admin}\"}}[1m]) >= 2");
        until("two looks of Prometheus", async || self.prometheus.finds(&looks).await).await;
    }

    async fn is_firing(&self, alert: &str, labels: &str) -> bool {
        let query = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\",{labels}}} == 1");
        self.prometheus.finds(&query).await
    }

    /// That an alert does not fire for this service, or its cause would prove nothing.
    async fn quiet(&self, alert: &str, service: &Service) {
        let labels = format!("instance=\"{}\"", service.admin);
        self.quiet_for(alert, &labels).await;
    }

    async fn quiet_for(&self, alert: &str, labels: &str) {
        assert!(!self.is_firing(alert, labels).await, "{alert} fires before its cause");
    }

    /// Waits until an alert fires for this service.
    async fn fires(&self, alert: &str, service: &Service) {
        self.fires_for(alert, &format!("instance=\"{}\"", service.admin)).await;
    }

    async fn fires_for(&self, alert: &str, labels: &str) {
        let fact = async || self.is_firing(alert, labels).await;
        until(&format!("{alert} to fire for {labels}"), fact).await;
        println!("{:5.1} s  {alert} fires", self.began.elapsed().as_secs_f64());
        self.seen.lock().unwrap().insert(alert.to_owned());
    }

    /// Waits until an alert no longer fires for this service.
    async fn ends(&self, alert: &str, service: &Service) {
        let labels = format!("instance=\"{}\"", service.admin);
        until(&format!("{alert} to end"), async || !self.is_firing(alert, &labels).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn panels_find_data_under_load_and_alerts_fire_for_their_causes() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("prometheus-{}", std::process::id()));
    let watch = Watch {
        prometheus: Prometheus::start(&dir, &hasty(&rules())),
        targets: Mutex::default(),
        seen: Mutex::default(),
        began: Instant::now(),
    };
    tokio::join!(
        load(&watch),
        wrong_key_and_late_copies(&watch),
        payment_api(&watch),
        deadline(&watch),
        results(&watch),
        brands(&watch),
        common_rejection(&watch),
        broker_in_trouble(&watch),
        leak(&watch),
    );
    let seen = watch.seen.lock().unwrap().clone();
    let rules = rules();
    let all = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    assert_eq!(seen, all.map(str::to_owned).collect(), "alerts seen to fire, and alerts in the rules");
    println!("{}", watch.prometheus.log());
}

fn span(millis: u64) -> Span {
    Span(Duration::from_millis(millis))
}

/// A bed whose waits are short: tenths of seconds if the defaults have seconds.
fn quick(mut bed: Bed) -> Bed {
    bed.config.retry.initial = span(50);
    bed.config.retry.query_delay = span(200);
    bed.config.retry.in_process_max = span(800);
    bed.config.retry.delays = vec![span(500), span(2_000)];
    bed.config.wechat.reload_every = span(100);
    bed
}

async fn publish(bed: &Bed, prefix: &str, count: usize) {
    let publish = async |nth: usize| {
        let code = format!("{prefix}{nth}");
        bed.issue(&code, json!({}));
        bed.publish(&command(&code, &format!("USE_{code}"))).await;
    };
    join_all((0..count).map(publish)).await;
}

/// Commands of every kind of end, and every panel. The merchant certificate of this service ends in ten days.
async fn load(watch: &Watch) {
    let mut bed = quick(Bed::new().await);
    let certificate = bed.dir.join("soon.pem");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-subj", "/CN=merchant", "-days", "10", "-set_serial"])
        .arg(format!("0x{}", bed.sandbox.card().merchant_serial))
        .arg("-key")
        .arg(bed.dir.join("merchant_key.pem"))
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    bed.config.wechat.merchant_serial = String::new();
    bed.config.wechat.merchant_certificate_file = certificate.display().to_string();
    // So often that one of them waits in a delay queue.
    bed.faults(json!([{"coupon_prefix": "SLOW", "share": 0.9, "fault": {"kind": "cut_before_effect"}}]));
    let service = watch.over(&bed).await;
    watch.fires("KeyExpiringSoon", &service).await;

    let mut missing = panels();
    assert!(missing.len() >= 24, "{missing:?}");
    let deadline = Instant::now() + bed::PATIENCE;
    for round in 0.. {
        publish(&bed, &format!("GOOD_{round}_"), 4).await;
        publish(&bed, &format!("SLOW_{round}_"), 1).await;
        bed.publish(&command(&format!("ABSENT_{round}"), &format!("USE_ABSENT_{round}"))).await;
        bed.publish(&json!({})).await;
        let ended = r#"redeemer_outcomes_total{outcome="redeemed",reason=""}"#;
        until("the load to be worked on", async || service.metric(ended).await >= f64::from(round * 4)).await;
        let mut still = Vec::new();
        for (panel, query) in missing {
            if !watch.prometheus.finds(&query).await {
                still.push((panel, query));
            }
        }
        missing = still;
        if missing.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "no data for {missing:#?}");
    }
    println!("{:5.1} s  every panel has found data", watch.began.elapsed().as_secs_f64());
    bed.faults(json!([]));
    service.stop().await;
}

/// Dashboard and title of every panel, with each of its queries. Outcomes by brand come from PostgreSQL, not from
/// Prometheus: tests/brands.rs judges them.
fn panels() -> Vec<(String, String)> {
    let mut panels = Vec::new();
    for entry in fs::read_dir(root().join("deploy/grafana/dashboards")).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("brands.json") {
            continue;
        }
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"].as_str().unwrap().replace("$__rate_interval", "1m");
                panels.push((format!("{}: {}", dashboard["title"], panel["title"]), query));
            }
        }
    }
    panels
}

/// How many copies have waited too long; against the commands of all others together, more than one in seven.
const LATE: usize = 800;

/// A wrong merchant key, found after copies had waited for more than a minute and commands have piled up behind it.
async fn wrong_key_and_late_copies(watch: &Watch) {
    let bed = quick(Bed::new().await);
    // This one makes the delay queues; it is gone before the copies come.
    bed.start().await.stop().await;
    for chunk in (0..LATE).collect::<Vec<_>>().chunks(100) {
        join_all(chunk.iter().map(|nth| put_copy(&bed, *nth))).await;
    }
    let (commands, all) = (&bed.config.broker.names.commands, u32::try_from(LATE).unwrap());
    until("the end of the copies' wait", async || bed.ready(commands).await == all).await;
    let waited_from = Instant::now();

    let key = bed.dir.join("merchant_key.pem");
    let right = fs::read(&key).unwrap();
    let wrong = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .output()
        .unwrap();
    assert!(wrong.status.success());
    // More than a minute late is what the alert asks for: nothing but the time itself can be waited for.
    tokio::time::sleep_until((waited_from + Duration::from_secs(62)).into()).await;
    fs::write(&key, &wrong.stdout).unwrap();
    let service = watch.over(&bed).await;
    watch.quiet("CommandBacklogGrowing", &service).await;
    watch.quiet("DelayedRetriesLate", &service).await;
    // These two are about all instances together.
    for alert in ["AgeObjectiveFastBurn", "AgeObjectiveSlowBurn"] {
        watch.quiet_for(alert, "").await;
    }
    watch.fires("SuspendedUnauthenticated", &service).await;
    watch.fires("NotConsuming", &service).await;
    // The alert looks at every fifth second: it must have seen the queue as it was to see it grow.
    let depth = format!("redeemer_queue_depth{{queue=\"commands\",instance=\"{}\"}}", service.admin);
    let seen = format!("count_over_time(({depth} >= 0)[10m:5s]) > 0");
    until("a look at the queue", async || watch.prometheus.finds(&seen).await).await;
    publish(&bed, "MORE", 600).await;
    watch.fires("CommandBacklogGrowing", &service).await;

    fs::write(&key, right).unwrap();
    watch.ends("SuspendedUnauthenticated", &service).await;
    watch.ends("NotConsuming", &service).await;
    watch.fires("DelayedRetriesLate", &service).await;
    watch.fires_for("AgeObjectiveFastBurn", "").await;
    watch.fires_for("AgeObjectiveSlowBurn", "").await;
    service.stop().await;
}

/// Puts a copy into a delay queue, as a service has that first saw the command ten minutes ago.
async fn put_copy(bed: &Bed, nth: usize) {
    let code = format!("LATE{nth}");
    bed.issue(&code, json!({}));
    let bytes = command(&code, &format!("USE_{code}")).to_string().into_bytes();
    let prepared = Prepared::new(&wire_command::decode(&bytes).unwrap());
    let now = Timestamp::now();
    let mut headers = FieldTable::default();
    for (name, text) in [
        (retry_message::ATTEMPTS, "3"),
        (retry_message::DELAYS_PASSED, "1"),
        (retry_message::FIRST_SEEN, &(now - SignedDuration::from_mins(10)).to_string()),
        (retry_message::DEADLINE, &(now + SignedDuration::from_hours(1)).to_string()),
        (retry_message::LAST_VERDICT, "unknown"),
        (retry_message::BODY_SHA256, prepared.body_sha256()),
        (retry_message::EVIDENCE, "[]"),
    ] {
        headers.insert(name.into(), AMQPValue::LongString(text.into()));
    }
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    let (exchange, options) = (bed.config.broker.names.retry.as_str(), BasicPublishOptions::default());
    let delay = "500ms".into();
    let confirm =
        bed.channel().basic_publish(exchange.into(), delay, options, &bytes, properties).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
}

/// The payment API: its clock is off, it answers too often that we are too frequent, under an unknown key, that it is
/// in trouble, and at last not at all.
async fn payment_api(watch: &Watch) {
    let bed = quick(Bed::new().await);
    let service = watch.over(&bed).await;
    publish(&bed, "FIRST", 1).await;
    service.wait_metric(r#"redeemer_commands_settled_total{settlement="finished"}"#, 1.0).await;
    for alert in [
        "ClockSkewed",
        "RateLimitReduced",
        "SignatureVerificationFailing",
        "ResponsesUnverified",
        "CircuitOpen",
    ] {
        watch.quiet(alert, &service).await;
    }

    bed.sandbox.set_clock_offset(60);
    publish(&bed, "CLOCK", 1).await;
    watch.fires("ClockSkewed", &service).await;
    bed.sandbox.set_clock_offset(0);

    bed.faults(json!([{"fault": {"kind": "status", "status": 429}}]));
    // More than a third of a window, not one alone.
    publish(&bed, "FREQUENT", 200).await;
    watch.fires("RateLimitReduced", &service).await;

    bed.faults(json!([{"fault": {"kind": "unknown_serial"}}]));
    publish(&bed, "UNKNOWN", 40).await;
    watch.fires("SignatureVerificationFailing", &service).await;
    watch.fires("ResponsesUnverified", &service).await;
    held_back(watch, &service, "unverified").await;
    bed.faults(json!([]));
    watch.ends("CircuitOpen", &service).await;

    bed.faults(json!([{"fault": {"kind": "html_502"}}]));
    publish(&bed, "BROKEN", 40).await;
    held_back(watch, &service, "server_error").await;
    bed.faults(json!([]));
    watch.ends("CircuitOpen", &service).await;

    bed.faults(json!([{"fault": {"kind": "cut_before_effect"}}]));
    publish(&bed, "SILENT", 40).await;
    held_back(watch, &service, "no_response").await;
    bed.faults(json!([]));
    watch.ends("CircuitOpen", &service).await;
    service.stop().await;
}

async fn held_back(watch: &Watch, service: &Service, cause: &str) {
    let labels = format!("instance=\"{}\",cause=\"{cause}\"", service.admin);
    watch.fires_for("CircuitOpen", &labels).await;
}

/// A command whose deadline passes while its coupon's calls go nowhere.
async fn deadline(watch: &Watch) {
    let bed = quick(Bed::new().await);
    bed.leave_parked().await;
    bed.issue("C1", json!({}));
    bed.faults(json!([{"coupon_code": "C1", "fault": {"kind": "cut_before_effect"}}]));
    let service = watch.over(&bed).await;
    for alert in ["CommandsUnresolved", "ParkedCommandsGrowing", "ProviderUnreachable"] {
        watch.quiet(alert, &service).await;
    }
    let soon = (Timestamp::now() + SignedDuration::from_secs(8)).to_string();
    let mut headers = FieldTable::default();
    headers.insert(retry_message::DEADLINE.into(), AMQPValue::LongString(soon.into()));
    let properties = BasicProperties::default().with_headers(headers);
    bed.publish_bytes(command("C1", "USE_C1").to_string().as_bytes(), properties).await;
    watch.fires("ProviderUnreachable", &service).await;
    watch.fires("CommandsUnresolved", &service).await;
    watch.fires("ParkedCommandsGrowing", &service).await;
    service.stop().await;
}

/// The queue of unrouted results is deleted while nobody reads results; then one comes. At last the service is gone.
async fn results(watch: &Watch) {
    let bed = quick(Bed::new().await);
    let service = watch.over(&bed).await;
    service.wait_ready().await;
    for alert in ["QueueDepthUnknown", "PublishesReturned", "ResultsUnrouted", "DeadLettersWaiting"] {
        watch.quiet(alert, &service).await;
    }
    // A subscriber's queue is full: one dead letter is held for its event, and others wait behind it.
    let full = format!("{}.full", bed.config.broker.names.results);
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let channel = bed.channel();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(full.as_str().into(), durable, arguments).await.unwrap();
    let results = bed.config.broker.names.results.as_str();
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(full.as_str().into(), results.into(), "redemption.#".into(), options, none)
        .await
        .unwrap();
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    channel
        .basic_publish("".into(), full.as_str().into(), options, b"", properties)
        .await
        .unwrap()
        .await
        .unwrap();
    for nth in 0..3 {
        let expired = BasicProperties::default().with_expiration("0".into());
        bed.publish_bytes(command(&format!("D{nth}"), "USE_DEAD_1").to_string().as_bytes(), expired).await;
    }
    watch.fires("DeadLettersWaiting", &service).await;
    channel.queue_delete(full.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    watch.ends("DeadLettersWaiting", &service).await;
    bed.leave_results().await;
    let unrouted = bed.config.broker.names.unrouted.as_str();
    bed.channel().queue_delete(unrouted.into(), QueueDeleteOptions::default()).await.unwrap();
    watch.fires("QueueDepthUnknown", &service).await;
    publish(&bed, "C", 1).await;
    watch.fires("PublishesReturned", &service).await;
    // The service makes the queue again; what nobody has bound lies there.
    watch.fires("ResultsUnrouted", &service).await;
    watch.ends("QueueDepthUnknown", &service).await;

    watch.quiet("InstanceDown", &service).await;
    let labels = format!("instance=\"{}\"", service.admin);
    service.stop().await;
    watch.fires_for("InstanceDown", &labels).await;
}

/// Every brand has withdrawn its authorization.
async fn brands(watch: &Watch) {
    let bed = quick(Bed::new().await);
    let service = watch.over(&bed).await;
    watch.quiet("SuspendedUnauthorized", &service).await;
    let all = Some(["*".to_owned()].into());
    bed.sandbox.tune(Tuning { unauthorized_brands: all, ..Tuning::default() });
    for nth in 0..30 {
        let (code, brand) = (format!("C{nth}"), if nth % 2 == 0 { "120344" } else { "666666" });
        bed.issue(&code, json!({"brand_id": brand}));
        let mut command = command(&code, &format!("USE_{code}"));
        command["brand_id"] = json!(brand);
        bed.publish(&command).await;
    }
    watch.fires("SuspendedUnauthorized", &service).await;
    bed.sandbox.tune(Tuning { unauthorized_brands: Some([].into()), ..Tuning::default() });
    watch.ends("SuspendedUnauthorized", &service).await;
    service.stop().await;
}

/// Every call is rejected alike, for commands that share nothing.
async fn common_rejection(watch: &Watch) {
    let bed = quick(Bed::new().await);
    let service = watch.over(&bed).await;
    watch.quiet("SuspendedRejected", &service).await;
    bed.faults(json!([{"fault": {
        "kind": "status", "status": 400, "code": "PARAM_ERROR", "sub_code": 268_435_461, "signed": true
    }}]));
    for nth in 0..6 {
        let code = format!("C{nth}");
        let own = json!({
            "openid": format!("oUser_{nth}"), "brand_id": format!("{}", 700_000 + nth),
            "product_coupon_id": format!("10000001{nth:02}"), "stock_id": format!("10000001{nth:02}001"),
            "appid": format!("wx23354454654{nth:04}"),
        });
        bed.issue(&code, own.clone());
        let mut command = command(&code, &format!("USE_{code}"));
        own.as_object().unwrap().iter().for_each(|(name, value)| command[name] = value.clone());
        bed.publish(&command).await;
    }
    watch.fires("SuspendedRejected", &service).await;
    bed.faults(json!([]));
    watch.ends("SuspendedRejected", &service).await;
    service.stop().await;
}

/// A delivery is neither worked on nor settled. Only a defect would do that, so it is ordered; it takes a process of its
/// own, in a debug build.
async fn leak(watch: &Watch) {
    let mut bed = quick(Bed::new().await);
    fs::rename(bed.config_file(), bed.dir.join("redeemer.toml")).unwrap();
    let mut service = Process::new("leaking", &bed.dir);
    service.launch().await;
    watch.looks_at(service.admin()).await;
    publish(&bed, "KEPT", 1).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    let labels = format!("instance=\"{}\"", service.admin());
    // Prometheus has looked since, and has seen nothing amiss.
    let ended = format!("redeemer_commands_settled_total{{settlement=\"finished\",{labels}}} == 1");
    until("a look at the ended command", async || watch.prometheus.finds(&ended).await).await;
    watch.quiet_for("UnaccountedDeliveries", &labels).await;

    service.order_to_forget();
    publish(&bed, "FORGOTTEN", 1).await;
    watch.fires_for("UnaccountedDeliveries", &labels).await;
    assert_eq!(bed.uses().len(), 1, "the coupon of the forgotten command is not used");

    // The runbook's third step.
    service.ask_to_stop().await;
    assert!(service.ended(bed::PATIENCE).await.is_some_and(|status| status.success()));
    service.launch().await;
    let reported = bed.next_event().await;
    assert_eq!(reported.data("/out_request_no"), "USE_FORGOTTEN0", "{:#}", reported.event);
    assert_eq!(reported.gist(), "redeemed - USED");
    let even = async || service.metric("redeemer_unaccounted_deliveries").await == Some(0.0);
    until("an even ledger", even).await;
    service.kill().await;
}

/// A broker of its own: short of memory, cutting every connection, and gone.
async fn broker_in_trouble(watch: &Watch) {
    let broker = Arc::new(tokio::task::spawn_blocking(Broker::start).await.unwrap());
    let ctl = async |arguments: &'static [&'static str]| {
        let broker = broker.clone();
        tokio::task::spawn_blocking(move || broker.ctl(arguments)).await.unwrap()
    };
    let mut bed = quick(Bed::on(&broker).await);
    // The alarm below is raised while a call is on its way, however long a busy machine takes for that.
    bed.config.wechat.read_timeout = span(40_000);
    bed.config.wechat.total_timeout = span(40_000);
    let service = watch.over(&bed).await;
    service.wait_ready().await;
    for alert in ["BrokerBlocked", "BrokerReconnecting", "BrokerDisconnected"] {
        watch.quiet(alert, &service).await;
    }
    // The broker notifies a connection of the alarm when it publishes: a result that is on its way when the alarm is raised.
    bed.faults(json!([{"coupon_code": "C0", "operation": "use", "fault": {"kind": "slow", "ms": 15_000}}]));
    publish(&bed, "C", 1).await;
    until("the call on its way", async || service.metric("redeemer_concurrency_permits_used").await == 1.0)
        .await;
    ctl(&["set_vm_memory_high_watermark", "0.000001"]).await;
    watch.fires("BrokerBlocked", &service).await;
    ctl(&["set_vm_memory_high_watermark", "0.4"]).await;
    watch.ends("BrokerBlocked", &service).await;

    // It fires for a connection that breaks again and again, not for one that broke.
    for nth in 0..7 {
        let built = service.metric("redeemer_broker_sessions_total").await;
        ctl(&["close_all_connections", "maintenance"]).await;
        until("a new connection", async || {
            service.metric("redeemer_broker_sessions_total").await > built
                && service.metric("redeemer_broker_connected").await == 1.0
        })
        .await;
        if nth == 0 {
            watch.quiet("BrokerReconnecting", &service).await;
        }
    }
    watch.fires("BrokerReconnecting", &service).await;

    let stopped = broker.clone();
    tokio::task::spawn_blocking(move || stopped.stop()).await.unwrap();
    watch.fires("BrokerDisconnected", &service).await;
    watch.fires("NotConsuming", &service).await;
    service.stop().await;
    drop(bed);
    tokio::task::spawn_blocking(move || drop(broker)).await.unwrap();
}
