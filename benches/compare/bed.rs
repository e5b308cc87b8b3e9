//! What all contenders share: one private broker, one sandbox, and the harness's own place at both.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use redeemer::wechat::client::Prepared;
use redeemer::wechat::keys::{MerchantKey, read_secret};
use redeemer::wechat::sign::{Merchant, sign};
use redeemer::wire::command::decode;
use serde_json::{Value, json};

use crate::broker::Broker;
use crate::process::{Machine, Meter, Process};

/// The longest wait for one more event.
const PATIENCE: Duration = Duration::from_secs(60);

/// Broker, sandbox, and our channels.
pub(crate) struct Bed {
    pub dir: PathBuf,
    pub broker: Broker,
    pub identity: Value,
    pub base_url: String,
    sandbox: Process,
    broker_meter: Meter,
    own_meter: Meter,
    publishing: Channel,
    consuming: Channel,
    http: reqwest::Client,
    _connections: [Connection; 2],
}

/// The exchange and queues of one contender.
#[derive(Clone)]
pub(crate) struct Names {
    pub commands: String,
    pub results: String,
    reported: String,
}

/// How long the provider's replies are.
#[derive(Clone, Copy)]
pub(crate) enum Replies {
    /// As short as the sandbox makes them.
    Lean,
    /// With this many bytes more than usual.
    Padded(usize),
}

/// Processor time so far of all that a round uses beside the contender.
#[derive(Clone, Copy)]
pub(crate) struct Spent {
    pub broker: Duration,
    pub sandbox: Duration,
    pub harness: Duration,
    pub machine: Machine,
}

/// Where a contender's events arrive.
pub(crate) struct ReceivedEvent {
    consumer: Consumer,
}

/// Events of one run: when each came, by coupon code. Each code once, however often it was reported.
pub(crate) type Arrivals = HashMap<Box<str>, Instant>;

impl Bed {
    pub(crate) async fn start(dir: PathBuf) -> Result<Self> {
        let broker = Broker::start();
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_redeemer"));
        command
            .args([
                "sandbox",
                "--with-parent",
                "--auto-issue",
                "--fast-signatures",
                "--listen",
                "127.0.0.1:0",
            ])
            .arg("--dir")
            .arg(dir.join("sandbox"))
            .stdin(Stdio::piped());
        let sandbox = Process::start(&mut command, &dir.join("sandbox.log"))?;
        let card = dir.join("sandbox/identity.json");
        let identity = until("the sandbox", async || {
            let identity: Value = serde_json::from_str(&fs::read_to_string(&card).ok()?).ok()?;
            identity["base_url"].as_str().is_some_and(|url| !url.is_empty()).then_some(identity)
        })
        .await?;
        let base_url = identity["base_url"].as_str().context("no base_url")?.to_owned();
        let pid = fs::read_to_string(broker.dir().join("node.pid"))?;
        let pid = pid.split_whitespace().next().context("the broker has no pid")?.parse()?;
        let connect = || Connection::connect(broker.uri(), ConnectionProperties::default());
        let connections = [connect().await?, connect().await?];
        let publishing = connections[0].create_channel().await?;
        publishing.confirm_select(ConfirmSelectOptions::default()).await?;
        let consuming = connections[1].create_channel().await?;
        Ok(Self {
            dir,
            broker,
            identity,
            base_url,
            sandbox,
            broker_meter: Meter::of(pid),
            own_meter: Meter::of(std::process::id()),
            publishing,
            consuming,
            http: reqwest::Client::builder().no_proxy().build()?,
            _connections: connections,
        })
    }

    pub(crate) fn identity(&self, name: &str) -> String {
        self.identity[name].as_str().unwrap_or_default().to_owned()
    }

    /// A file of the sandbox's identity.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join("sandbox").join(name)
    }

    /// Processor time so far.
    pub(crate) fn spent(&self) -> Result<Spent> {
        Ok(Spent {
            broker: self.broker_meter.cpu()?,
            sandbox: self.sandbox.cpu()?,
            harness: self.own_meter.cpu()?,
            machine: Machine::now()?,
        })
    }

    /// Sets the provider's latency; forgets its attempts, so that it does not grow from round to round.
    pub(crate) async fn provider(&self, latency: Duration, replies: Replies) -> Result<()> {
        let millis = u64::try_from(latency.as_millis())?;
        let faults = match replies {
            Replies::Lean => json!({ "rules": [{ "fault": { "kind": "lean_body" } }] }),
            Replies::Padded(0) => json!({ "rules": [] }),
            Replies::Padded(bytes) => {
                json!({ "rules": [{ "fault": { "kind": "huge_body", "bytes": bytes } }] })
            }
        };
        for (path, body) in [("settings", json!({ "latency_ms": millis })), ("faults", faults)] {
            let url = format!("{}/_sandbox/{path}", self.base_url);
            let reply = self.http.put(url).body(body.to_string()).send().await?;
            ensure!(reply.status() == 200, "/_sandbox/{path}: {}", reply.text().await?);
        }
        self.http.delete(format!("{}/_sandbox/ledger", self.base_url)).send().await?.error_for_status()?;
        Ok(())
    }

    /// How long a reply is: that of the sandbox's last answer with its present settings, by a repeat of our own.
    pub(crate) async fn reply_bytes(&self) -> Result<usize> {
        let key = MerchantKey::from_pem(&read_secret(&self.file("merchant_key.pem"))?, "the merchant key")?;
        let merchant = Merchant { mchid: self.identity("mchid"), serial: self.identity("merchant_serial") };
        let redemption = decode(&command("auto_size")).map_err(|rejected| anyhow!("{rejected:?}"))?;
        let body = Prepared::new(&redemption).body().clone();
        let openid = redemption.openid.as_str();
        let target = format!("/v3/marketing/partner/product-coupon/users/{openid}/coupons/auto_size/use");
        let signed = sign(&key, &merchant, "POST", &target, &body, Timestamp::now(), rand::random())?;
        let request = self.http.post(format!("{}{target}", self.base_url)).header("user-agent", "bench");
        let request = request.header("accept", "application/json").header("content-type", "application/json");
        let reply = request.header("authorization", signed.into_header()).body(body).send().await?;
        Ok(reply.error_for_status()?.bytes().await?.len())
    }

    /// Listens for the events of a contender, whose exchanges and queues are there.
    pub(crate) async fn listen(&self, name: &str) -> Result<(Names, ReceivedEvent)> {
        let names = Names {
            commands: format!("bench.{name}.commands"),
            results: format!("bench.{name}.results"),
            reported: format!("bench.{name}.reported"),
        };
        let (channel, reported) = (&self.consuming, names.reported.as_str());
        let mut quorum = FieldTable::default();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(reported.into(), durable, quorum).await?;
        let (results, options) = (names.results.as_str().into(), QueueBindOptions::default());
        channel.queue_bind(reported.into(), results, "#".into(), options, FieldTable::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumer =
            channel.basic_consume(reported.into(), "".into(), options, FieldTable::default()).await?;
        Ok((names, ReceivedEvent { consumer }))
    }

    /// Waits until this many consumers are there, with a look at whether the program still runs.
    pub(crate) async fn consumers(&self, names: &Names, wanted: u32, process: &mut Process) -> Result<()> {
        until(&format!("{wanted} consumers of {}", names.commands), async || {
            if !process.runs() {
                return Some(false);
            }
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            let queue = names.commands.as_str().into();
            let queue = self.consuming.queue_declare(queue, passive, FieldTable::default()).await.ok()?;
            (queue.consumer_count() >= wanted).then_some(true)
        })
        .await
        .and_then(|runs| if runs { Ok(()) } else { bail!("the program has ended") })
    }

    /// Publishes commands for these coupons; all are confirmed when it returns.
    pub(crate) async fn publish(&self, names: &Names, codes: &[Box<str>]) -> Result<()> {
        // Confirms are awaited in crowds, so that a million commands do not all wait at once.
        for crowd in codes.chunks(1_000) {
            let mut confirms = Vec::with_capacity(crowd.len());
            for code in crowd {
                confirms.push(self.send(names, code).await?);
            }
            for confirm in confirms {
                confirm.await?;
            }
        }
        Ok(())
    }

    /// Publishes commands at an even pace; gives the time each was due, so that whatever held the publishing up counts
    /// as well.
    pub(crate) async fn publish_paced(
        &self,
        names: &Names,
        codes: &[Box<str>],
        per_second: f64,
    ) -> Result<Arrivals> {
        let start = Instant::now();
        let mut due = HashMap::with_capacity(codes.len());
        for (nth, code) in codes.iter().enumerate() {
            let at = start + Duration::from_secs_f64(nth as f64 / per_second);
            tokio::time::sleep_until(at.into()).await;
            due.insert(code.clone(), at);
            drop(self.send(names, code).await?);
        }
        Ok(due)
    }

    async fn send(
        &self,
        names: &Names,
        code: &str,
    ) -> Result<impl Future<Output = lapin::Result<Confirmation>>> {
        let properties = AMQPProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_message_id(code.into());
        let exchange = names.commands.as_str().into();
        let body = command(code);
        let options = BasicPublishOptions::default();
        Ok(self.publishing.basic_publish(exchange, "redeem".into(), options, &body, properties).await?)
    }

    /// Ends the sandbox and the broker.
    pub(crate) fn end(self) -> Result<()> {
        self.sandbox.end()
    }
}

impl ReceivedEvent {
    /// Collects events until there is one for each of `count` coupons.
    pub(crate) async fn collect(&mut self, count: usize) -> Result<Arrivals> {
        let mut arrivals = Arrivals::with_capacity(count);
        while arrivals.len() < count {
            let next = tokio::time::timeout(PATIENCE, self.consumer.next());
            let Ok(next) = next.await else {
                bail!("{} of {count} events came, then none for {PATIENCE:?}", arrivals.len());
            };
            let delivery = next.context("the consumer of events ended")??;
            let at = Instant::now();
            let code = subject(&delivery.data).context("an event without a subject")?;
            ensure!(
                delivery.routing_key.as_str().starts_with("redemption.redeemed."),
                "{} has an event for {code}",
                delivery.routing_key
            );
            arrivals.entry(code.into()).or_insert(at);
        }
        Ok(arrivals)
    }
}

/// The coupon code of an event, found without reading all of it: the harness must not cost what it measures.
fn subject(event: &[u8]) -> Option<&str> {
    let head = std::str::from_utf8(event.get(..event.len().min(512))?)
        .or_else(|error| std::str::from_utf8(&event[..error.valid_up_to()]));
    let (_, rest) = head.ok()?.split_once("\"subject\":")?;
    rest.trim_start().strip_prefix('"')?.split('"').next()
}

/// Coupons that nobody has redeemed in this run: the provider answers a repeat from memory.
pub(crate) fn codes(contender: &str, count: usize) -> Vec<Box<str>> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let initials: String = contender.split(['-', ' ']).filter_map(|word| word.chars().next()).collect();
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    (0..count).map(|nth| format!("auto_{initials}{call}_{nth:07}").into()).collect()
}

/// A command as an order service would send it.
pub(crate) fn command(code: &str) -> Vec<u8> {
    json!({
        "openid": "oh-394z-6CGkNoJrsDLTTUKiAnp4",
        "coupon_code": code,
        "brand_id": "120344",
        "product_coupon_id": "1000000013",
        "stock_id": "1000000013001",
        "appid": "wx233544546545989",
        "use_time": "2026-03-05T12:30:45+08:00",
        "associated_order_info": {
            "transaction_id": "4200000000123456789123456789",
            "out_trade_no": format!("trade_{code}"),
            "mchid": "1900000109",
        },
        "out_request_no": format!("number_{code}"),
        "store_id": "100000001",
        "saved_amount": 2000,
    })
    .to_string()
    .into_bytes()
}

/// Looks again and again until there is something to be seen.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return Ok(seen);
        }
        if Instant::now() > give_up_at {
            bail!("not within {PATIENCE:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
