//! A test bed: the service in this process, a sandbox, and a real broker, with names of the test's own.
#![allow(dead_code)] // each test binary uses its own part of it
#![allow(clippy::unwrap_used)] // a test bed that cannot be made fails the test

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use redeemer::amqp::topology::{self, Object};
use redeemer::config::{self, Config};
use redeemer::runtime::shutdown::{self, Trigger};
use redeemer::wire::schema;
use redeemer_sandbox::{NewCoupon, Sandbox, Settings};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::broker::{Broker, shared};

/// The longest wait for any one fact.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A sandbox, a broker, and the service when it is started.
pub(crate) struct Bed {
    pub sandbox: Sandbox,
    pub config: Config,
    pub dir: PathBuf,
    /// The longest wait for a result event or a parked command.
    pub patience: Duration,
    wires: Wires,
}

/// The test's own connection.
struct Wires {
    uri: String,
    channel: Channel,
    _connection: Connection,
    results: Consumer,
    parked: Consumer,
}

/// A running service.
pub(crate) struct Service {
    pub admin: String,
    trigger: Trigger,
    task: JoinHandle<Result<(), redeemer::app::StartRefusal>>,
}

/// A result event with what came around it.
#[derive(Debug)]
pub(crate) struct ReceivedEvent {
    pub event: Value,
    pub routing_key: String,
    pub properties: BasicProperties,
}

impl ReceivedEvent {
    /// A field of `data`, by JSON pointer.
    pub(crate) fn data(&self, pointer: &str) -> &Value {
        self.event["data"].pointer(pointer).unwrap_or(&Value::Null)
    }

    /// Outcome, reason and coupon state in one line.
    pub(crate) fn gist(&self) -> String {
        let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let data = &self.event["data"];
        format!(
            "{} {} {}",
            word(&data["outcome"]),
            word(&data["problem"]["reason"]),
            word(&data["coupon_state"])
        )
    }
}

impl Bed {
    /// A bed on the broker that this test binary shares.
    pub(crate) async fn new() -> Self {
        let broker = tokio::task::spawn_blocking(shared).await.unwrap();
        Self::on(broker).await
    }

    /// A bed on a broker of its own.
    pub(crate) async fn on(broker: &Broker) -> Self {
        Self::with(broker, Settings::default()).await
    }

    /// A bed whose sandbox has settings of its own, but for its folder.
    pub(crate) async fn with(broker: &Broker, settings: Settings) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("bed-{}-{nth}", std::process::id()));
        let sandbox = Sandbox::start(Settings { dir: dir.clone(), ..settings }).await.unwrap();
        let mut config = config::parse("", "bed", std::iter::empty()).unwrap();
        config.broker.uri = broker.uri().to_owned();
        let name = |what: &str| format!("t{}.{nth}.{what}", std::process::id());
        config.broker.names.commands = name("commands");
        config.broker.names.retry = name("retry");
        config.broker.names.results = name("results");
        config.broker.names.unrouted = name("unrouted");
        config.broker.names.parked = name("parked");
        config.broker.names.dead = name("dead");
        config.broker.names.instances = name("instances");
        config.admin.listen = "127.0.0.1:0".to_owned();
        let card = sandbox.card();
        config.wechat.base_url = sandbox.base_url();
        config.wechat.backup_base_url = String::new();
        config.wechat.mchid = card.mchid.clone();
        config.wechat.merchant_serial = card.merchant_serial.clone();
        config.wechat.merchant_key_file = dir.join("merchant_key.pem").display().to_string();
        let key = dir.join("wechatpay_public_key.pem");
        config.wechat.public_keys.insert(card.public_key_id.clone(), key);

        let wires = Wires::new(broker.uri(), &config).await;
        Self { sandbox, config, dir, patience: PATIENCE, wires }
    }

    /// Lays the topology again, for a configuration that was changed: what stood there, empty, is removed.
    pub(crate) async fn relaid(mut self) -> Self {
        let settings = self.config.broker_settings().unwrap();
        let link = redeemer::amqp::client::Link::connect(&settings, "test").await.unwrap();
        link.delete(&self.config.topology()).await.unwrap();
        self.wires = Wires::new(&self.wires.uri.clone(), &self.config).await;
        self
    }

    /// Connects again after the broker was gone. A broker that takes connections again may still be choosing leaders
    /// for its quorum queues, and refuses consumers until then.
    pub(crate) async fn reconnect(mut self, broker: &Broker) -> Self {
        let deadline = Instant::now() + PATIENCE;
        self.wires = loop {
            match Wires::try_new(broker.uri(), &self.config).await {
                Ok(wires) => break wires,
                Err(error) => {
                    assert!(Instant::now() < deadline, "no connection again in {PATIENCE:?}: {error}")
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self
    }

    /// Starts the service and waits until it consumes.
    pub(crate) async fn start(&self) -> Service {
        let service = self.start_unready().await;
        service.wait_ready().await;
        service
    }

    /// Starts the service and does not wait.
    pub(crate) async fn start_unready(&self) -> Service {
        let (trigger, listener) = shutdown::channel();
        let (reported, admin) = tokio::sync::oneshot::channel();
        let config = self.config.clone();
        let _ = redeemer::telemetry::log::init(redeemer::telemetry::log::Format::Plain, "info,lapin=off");
        let task = tokio::spawn(redeemer::app::run(config, None, listener, |address| {
            let _ = reported.send(address.to_string());
        }));
        let admin = match admin.await {
            Ok(admin) => admin,
            Err(_) => panic!("the service does not start: {:?}", task.await),
        };
        Service { admin, trigger, task }
    }

    /// Issues a coupon in the sandbox.
    pub(crate) fn issue(&self, code: &str, more: Value) {
        let mut coupon = json!({
            "openid": OPENID, "coupon_code": code, "appid": "wx233544546545989", "brand_id": "120344",
            "product_coupon_id": "1000000013", "stock_id": "1000000013001",
        });
        for (key, value) in more.as_object().unwrap() {
            coupon[key] = value.clone();
        }
        let coupon: NewCoupon = serde_json::from_value(coupon).unwrap();
        self.sandbox.issue(vec![coupon]).unwrap();
    }

    /// Sets the sandbox's fault script.
    pub(crate) fn faults(&self, rules: Value) {
        self.sandbox.set_faults(serde_json::from_value(json!({ "rules": rules })).unwrap()).unwrap();
    }

    /// Publishes a command and waits for the confirm.
    pub(crate) async fn publish(&self, command: &Value) {
        self.publish_bytes(command.to_string().as_bytes(), BasicProperties::default()).await;
    }

    /// Publishes bytes with properties and waits for the confirm.
    pub(crate) async fn publish_bytes(&self, bytes: &[u8], properties: BasicProperties) {
        let exchange = self.config.broker.names.commands.as_str();
        let confirm = self
            .wires
            .channel
            .basic_publish(
                exchange.into(),
                "use".into(),
                BasicPublishOptions { mandatory: true, ..Default::default() },
                bytes,
                properties.with_delivery_mode(2),
            )
            .await
            .unwrap()
            .await
            .unwrap();
        assert!(confirm.is_ack(), "{confirm:?}");
    }

    /// The next result event.
    pub(crate) async fn next_event(&mut self) -> ReceivedEvent {
        let delivery = next_within(self.patience, &mut self.wires.results, "a result event").await;
        let event: Value = serde_json::from_slice(&delivery.data).unwrap();
        let reported = ReceivedEvent {
            event,
            routing_key: delivery.routing_key.to_string(),
            properties: delivery.properties.clone(),
        };
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        assert_eq!(reported.properties.message_id().as_ref().unwrap().as_str(), reported.event["id"]);
        keeps_the_contract(&reported.event);
        reported
    }

    /// The next parked command: its bytes and headers.
    pub(crate) async fn parked(&mut self) -> (Vec<u8>, FieldTable) {
        let delivery = next_within(self.patience, &mut self.wires.parked, "a parked command").await;
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        (delivery.data.clone(), delivery.properties.headers().clone().unwrap_or_default())
    }

    /// Leaves parked commands in their queue from now on; [`Bed::parked`] must not be asked any more.
    pub(crate) async fn leave_parked(&self) {
        let tag = self.wires.parked.tag();
        self.wires.channel.basic_cancel(tag, BasicCancelOptions::default()).await.unwrap();
    }

    /// Reads no results from now on, and lets the queue go that took them; [`Bed::reported`] must not be asked any more.
    pub(crate) async fn leave_results(&self) {
        let tag = self.wires.results.tag();
        self.wires.channel.basic_cancel(tag, BasicCancelOptions::default()).await.unwrap();
    }

    /// Writes the configuration to a file, for a program of its own.
    pub(crate) fn config_file(&self) -> PathBuf {
        let file = self.dir.join("config.toml");
        std::fs::write(&file, toml::to_string(&self.config).unwrap()).unwrap();
        file
    }

    /// The next command in the delay queue of this delay, which must then not come back.
    pub(crate) async fn in_delay(&self, wait: &str) -> Consumer {
        consume(&self.wires.channel, &format!("{}.{wait}", self.config.broker.names.retry)).await.unwrap()
    }

    /// How many messages are ready in a queue. A quorum queue that does not answer the broker within 250 ms, such as
    /// just after a restart, is reported as empty: wait for a count, do not take it by chance.
    pub(crate) async fn ready(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        self.wires
            .channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .unwrap()
            .message_count()
    }

    /// The effects in the sandbox's ledger: coupon code and request number of every use.
    pub(crate) fn uses(&self) -> Vec<(String, String)> {
        let effects = serde_json::to_value(self.sandbox.effects()).unwrap();
        let effects = effects.as_array().unwrap().iter().filter(|effect| effect["kind"] == "used");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        effects.map(|effect| (text(&effect["coupon_code"]), text(&effect["out_request_no"]))).collect()
    }

    /// The calls about one coupon in the sandbox's ledger, in order.
    pub(crate) fn attempts(&self, code: &str) -> Vec<Value> {
        let mut attempts = self.ledger()["attempts"].as_array().unwrap().clone();
        attempts.retain(|attempt| attempt["coupon_code"] == code);
        attempts
    }

    /// The whole ledger as JSON.
    pub(crate) fn ledger(&self) -> Value {
        serde_json::to_value(self.sandbox.ledger()).unwrap()
    }

    /// Binds a queue to the results under a routing key and consumes it.
    pub(crate) async fn bind_results(&self, routing_key: &str) -> Consumer {
        bind(&self.wires.channel, &self.config.broker.names.results, routing_key).await.unwrap()
    }

    /// Consumes a queue on a connection of its own, which dies with the value.
    pub(crate) async fn consume_elsewhere(&self, queue: &str) -> (Connection, Consumer) {
        let connection = Connection::connect(&self.wires.uri, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let consumer = consume(&channel, queue).await.unwrap();
        (connection, consumer)
    }

    /// The channel of the test's own connection.
    pub(crate) fn channel(&self) -> &Channel {
        &self.wires.channel
    }
}

impl Wires {
    /// Subscribers come first in these tests; that results wait for late ones is a test of its own.
    async fn new(uri: &str, config: &Config) -> Self {
        Self::try_new(uri, config).await.unwrap()
    }

    async fn try_new(uri: &str, config: &Config) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
        for object in config.topology().plan() {
            // Delays are left to the service, so that a test may set its own.
            let delay = |name: &str| name.starts_with(&format!("{}.", config.broker.names.retry));
            match &object {
                Object::Queue { name, .. } | Object::Binding { queue: name, .. } if delay(name) => {}
                object => topology::declare(&connection, object, false).await?,
            }
        }
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let results = bind(&channel, &config.broker.names.results, "redemption.#").await?;
        let parked = consume(&channel, &config.broker.names.parked).await?;
        Ok(Self { uri: uri.to_owned(), channel, _connection: connection, results, parked })
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Service {
    /// The URL of a path on the admin port.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// The body of a GET on the admin port, with its status.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("http://{}{path}", self.admin)).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// The value of a metric, labels included in the name.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        let line = line.unwrap_or_else(|| panic!("no metric {name} in\n{text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// The sum of all series of a metric that carry this label.
    pub(crate) async fn metric_sum(&self, name: &str, label: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let series =
            text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
        let values: Vec<f64> = series.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect();
        assert!(!values.is_empty(), "no metric {name} with {label} in\n{text}");
        values.iter().sum()
    }

    /// Waits until a metric has a value.
    pub(crate) async fn wait_metric(&self, name: &str, value: f64) {
        until(&format!("{name} = {value}"), async || self.metric(name).await == value).await;
    }

    /// Waits until the service says that it consumes.
    pub(crate) async fn wait_ready(&self) {
        until("readiness", async || self.get("/readyz").await.0 == 200).await;
    }

    /// Waits until the service says that it does not, and gives its reasons.
    pub(crate) async fn wait_unready(&self) -> String {
        until("unreadiness", async || self.get("/readyz").await.0 == 503).await;
        self.get("/readyz").await.1
    }

    /// Stops the service as SIGTERM would, and checks that it holds nothing.
    pub(crate) async fn stop(self) {
        until("an even ledger", async || self.metric("redeemer_unaccounted_deliveries").await == 0.0).await;
        self.trigger.request();
        timeout(PATIENCE, self.task).await.expect("it stops in time").unwrap().unwrap();
    }
}

/// Where the broker is that this test binary shares.
pub(crate) async fn broker_uri() -> String {
    tokio::task::spawn_blocking(shared).await.unwrap().uri().to_owned()
}

/// Waits for a fact, looking again and again.
pub(crate) async fn until(what: &str, fact: impl AsyncFn() -> bool) {
    let look = async {
        while !fact().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"));
}

/// Panics where a result or audit event is not what its schema says.
pub(crate) fn keeps_the_contract(event: &Value) {
    let faults = faults_by_contract(event);
    assert!(faults.is_empty(), "{faults:#?}\n{event:#}");
}

/// Where a result or audit event is not what its schema says, by JSON pointer, and why.
pub(crate) fn faults_by_contract(event: &Value) -> BTreeMap<String, String> {
    static SCHEMAS: LazyLock<[jsonschema::Validator; 3]> = LazyLock::new(|| {
        let dialect = schema::Dialect::Draft2020;
        [schema::event(dialect), schema::audit(dialect), schema::console(dialect)]
            .map(|schema| jsonschema::options().should_validate_formats(true).build(&schema).unwrap())
    });
    let kind = event["type"].as_str().unwrap_or_default();
    let audits = ["redemption.parked.", "redemption.console."];
    let nth = audits.iter().position(|audit| kind.starts_with(audit)).map_or(0, |nth| nth + 1);
    SCHEMAS[nth]
        .iter_errors(event)
        .map(|fault| (fault.instance_path().to_string(), fault.to_string()))
        .collect()
}

pub(crate) const OPENID: &str = "oh-394z-6CGkNoJrsDLTTUKiAnp4";

/// A good command for a coupon of [`Bed::issue`]: the golden one, for a coupon that is used once.
pub(crate) fn command(code: &str, number: &str) -> Value {
    let mut command: Value =
        serde_json::from_str(include_str!("../../docs/contract/examples/command.flat.json")).unwrap();
    command.as_object_mut().unwrap().remove("sequential_coupon_index");
    command["coupon_code"] = json!(code);
    command["out_request_no"] = json!(number);
    command["associated_order_info"] = json!({"transaction_id": "4200000000123456789123456789"});
    command
}

/// A header's text.
pub(crate) fn header<'a>(headers: &'a FieldTable, name: &str) -> &'a str {
    match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => std::str::from_utf8(text.as_bytes()).unwrap(),
        other => panic!("header {name} is {other:?}"),
    }
}

async fn bind(channel: &Channel, exchange: &str, routing_key: &str) -> lapin::Result<Consumer> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
    let name = queue.name().clone();
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(name.clone(), exchange.into(), routing_key.into(), options, arguments).await?;
    consume(channel, name.as_str()).await
}

async fn consume(channel: &Channel, queue: &str) -> lapin::Result<Consumer> {
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    channel.basic_consume(queue.into(), "".into(), options, arguments).await
}

/// The next delivery of a consumer.
pub(crate) async fn next(consumer: &mut Consumer, what: &str) -> lapin::message::Delivery {
    next_within(PATIENCE, consumer, what).await
}

async fn next_within(patience: Duration, consumer: &mut Consumer, what: &str) -> lapin::message::Delivery {
    timeout(patience, consumer.next())
        .await
        .unwrap_or_else(|_| panic!("waited {patience:?} for {what}"))
        .expect("the consumer lives")
        .unwrap()
}
