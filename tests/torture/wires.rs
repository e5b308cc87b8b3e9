//! The rig's own connections: a publisher that goes on until each command is confirmed, and a reader that keeps every
//! event. Both outlive the broker.

#[path = "../support/raw_amqp.rs"]
mod raw_amqp;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use redeemer::amqp::publisher::{PARKED_AT, PARKED_REASON};
use redeemer::config::Config;
use redeemer::wire::retry_message::DEADLINE;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::broker::{self, Broker, COUNTED_WITHIN};
use crate::commands::{Command, RawProperties};

use raw_amqp::{Properties, Published, RawPublisher, nested};

/// The queue that is bound to all results from the start.
pub(crate) const RESULTS: &str = "torture.results";
/// How long a hopeless command may be worked on.
const HOPELESS: SignedDuration = SignedDuration::from_secs(4);
const LIMIT: Duration = Duration::from_secs(20);
/// Where a connection dies at the wrong moment the client may never answer: after this long the reader begins again, or it
/// would take its own silence for the service's.
const QUIET: Duration = Duration::from_secs(10);
const ACKED_WITHIN: Duration = Duration::from_secs(5);

/// One event, as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The command that it answers.
    pub command: String,
    /// The event's id.
    pub id: String,
    /// Its outcome.
    pub outcome: String,
    /// Its reason, or nothing.
    pub reason: String,
    /// The coupon's state that it contains, or nothing.
    pub state: String,
    /// The coupon that it names.
    pub code: String,
    /// The request number that it names.
    pub number: String,
    /// When it was made.
    pub time: Option<Timestamp>,
    /// Whether the broker had handed it to the rig before.
    pub again: bool,
}

/// All events so far, and for how many commands there are some.
#[derive(Clone)]
pub(crate) struct ReceivedEvent {
    seen: Arc<Mutex<Vec<Seen>>>,
    commands: watch::Sender<usize>,
}

impl ReceivedEvent {
    /// A copy of all events.
    pub(crate) fn all(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Follows for how many commands there are events.
    pub(crate) fn progress(&self) -> watch::Receiver<usize> {
        self.commands.subscribe()
    }
}

/// Connects to one of the nodes, whatever it takes.
async fn connect(uris: &str) -> (Connection, Channel) {
    for uri in uris.split_whitespace().cycle() {
        let attempt = async {
            let connection = Connection::connect(uri, ConnectionProperties::default()).await.ok()?;
            let channel = connection.create_channel().await.ok()?;
            Some((connection, channel))
        };
        if let Ok(Some(wires)) = timeout(Duration::from_secs(5), attempt).await {
            return wires;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("no URI");
}

/// Declares the service's topology and the rig's own queue.
pub(crate) async fn establish(uri: &str, config: &Config) {
    let (connection, channel) = connect(uri).await;
    let topology = config.topology();
    redeemer::amqp::topology::establish(&connection, &topology, redeemer::amqp::topology::Mode::Create)
        .await
        .unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(RESULTS.into(), options, arguments).await.unwrap();
    let (exchange, all) = (topology.names.results.as_str(), "redemption.#");
    let options = QueueBindOptions::default();
    channel
        .queue_bind(RESULTS.into(), exchange.into(), all.into(), options, FieldTable::default())
        .await
        .unwrap();
}

/// Deletes an exchange, and with it what was bound to it.
pub(crate) async fn delete_exchange(uri: &str, name: &str) {
    let (_connection, channel) = connect(uri).await;
    channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.unwrap();
}

/// Reads events until the runtime ends.
pub(crate) fn read(uri: String) -> ReceivedEvent {
    let reported = ReceivedEvent { seen: Arc::default(), commands: watch::Sender::new(0) };
    let reading = reported.clone();
    tokio::spawn(async move {
        let mut commands = BTreeSet::new();
        loop {
            let (connection, channel) = connect(&uri).await;
            // Whatever goes wrong here, the next connection begins again.
            let _ = read_on(&channel, &reading, &mut commands).await;
            let _ = timeout(ACKED_WITHIN, connection.close(200, "again".into())).await;
        }
    });
    reported
}

async fn read_on(
    channel: &Channel,
    reported: &ReceivedEvent,
    commands: &mut BTreeSet<String>,
) -> lapin::Result<()> {
    let beginning = async {
        channel.basic_qos(200, BasicQosOptions::default()).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        channel.basic_consume(RESULTS.into(), "".into(), options, arguments).await
    };
    let Ok(begun) = timeout(QUIET, beginning).await else { return Ok(()) };
    let mut consumer = begun?;
    while let Ok(Some(delivery)) = timeout(QUIET, consumer.next()).await {
        let delivery = delivery?;
        let event: Value = serde_json::from_slice(&delivery.data).unwrap_or_default();
        let text =
            |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let correlation = delivery.properties.correlation_id().as_ref();
        let seen = Seen {
            command: correlation.map(|id| id.to_string()).unwrap_or_default(),
            id: text("/id"),
            outcome: text("/data/outcome"),
            reason: text("/data/problem/reason"),
            state: text("/data/coupon_state"),
            code: text("/data/coupon_code"),
            number: text("/data/out_request_no"),
            time: text("/time").parse().ok(),
            again: delivery.redelivered,
        };
        commands.insert(seen.command.clone());
        reported.seen.lock().unwrap().push(seen);
        reported.commands.send_replace(commands.len());
        let Ok(acked) = timeout(ACKED_WITHIN, delivery.ack(BasicAckOptions::default())).await else { break };
        acked?;
    }
    Ok(())
}

/// What was published.
#[derive(Debug, Default)]
pub(crate) struct Publication {
    /// Request numbers of commands that were published more than once: the broker may hold them twice, each time as new.
    pub twice: BTreeSet<String>,
    /// The last deadline of each command that has one, by its id.
    #[allow(dead_code)] // for the torture alone
    pub deadlines: BTreeMap<String, Timestamp>,
}

/// Publishes the commands in order, never beyond the allowance, each until it is confirmed.
pub(crate) async fn publish(
    uri: String,
    exchange: String,
    commands: Vec<Command>,
    mut allowance: watch::Receiver<usize>,
) -> Publication {
    let (mut wires, mut done) = (None, Publication::default());
    for (nth, command) in commands.iter().enumerate() {
        if allowance.wait_for(|allowed| *allowed > nth).await.is_err() {
            break;
        }
        loop {
            let (connection, channel) = match wires.take() {
                Some(wires) => wires,
                None => connect(&uri).await,
            };
            let deadline = command.hopeless.then(|| Timestamp::now() + HOPELESS);
            if let Some(deadline) = deadline {
                done.deadlines.insert(command.id.clone(), deadline);
            }
            let published = match &command.raw {
                Some(raw) => publish_raw(&uri, &exchange, command, raw).await,
                None => try_publish(&channel, &exchange, command, deadline).await,
            };
            if published {
                wires = Some((connection, channel));
                break;
            }
            done.twice.insert(command.number.clone());
            sleep(Duration::from_millis(100)).await;
        }
    }
    done
}

/// Parks commands, as the service does those past their deadline.
#[allow(dead_code)] // for the torture alone
pub(crate) async fn park(uri: &str, exchange: &str, commands: &[Command]) {
    let (_connection, channel) = connect(uri).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for command in commands {
        let mut headers = FieldTable::default();
        for (name, text) in
            [(PARKED_REASON, "deadline_passed".to_owned()), (PARKED_AT, Timestamp::now().to_string())]
        {
            headers.insert(name.into(), AMQPValue::LongString(text.into()));
        }
        let id = command.id.as_str().into();
        let properties =
            BasicProperties::default().with_delivery_mode(2).with_message_id(id).with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publishing =
            channel.basic_publish(exchange.into(), "".into(), options, &command.body, properties);
        let confirmation = publishing.await.unwrap().await.unwrap();
        assert!(matches!(confirmation, Confirmation::Ack(None)), "{confirmation:?}");
    }
}

/// On a connection of its own, by hand: false if the broker is away.
async fn publish_raw(uris: &str, exchange: &str, command: &Command, raw: &RawProperties) -> bool {
    let message_id = Some(command.id.clone());
    let properties = match raw {
        RawProperties::Nested(kind, levels) => {
            Properties { headers: nested(*kind, *levels), message_id, ..Properties::default() }
        }
        RawProperties::NoText => {
            Properties { reply_to: Some(b"\xff\xfe".to_vec()), message_id, ..Properties::default() }
        }
    };
    let uri = uris.split_whitespace().next().unwrap_or_default().to_owned();
    let (exchange, body) = (exchange.to_owned(), command.body.clone());
    let publishing = spawn_blocking(move || {
        RawPublisher::connect(&uri).publish_with(&exchange, "use", &properties, &body)
    });
    matches!(publishing.await, Ok(Published::Acked))
}

async fn try_publish(
    channel: &Channel,
    exchange: &str,
    command: &Command,
    deadline: Option<Timestamp>,
) -> bool {
    let mut properties =
        BasicProperties::default().with_delivery_mode(2).with_message_id(command.id.as_str().into());
    if let Some(deadline) = deadline {
        let mut headers = FieldTable::default();
        headers.insert(DEADLINE.into(), AMQPValue::LongString(deadline.to_string().into()));
        properties = properties.with_headers(headers);
    }
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let publishing = async {
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        channel.basic_publish(exchange.into(), "use".into(), options, &command.body, properties).await?.await
    };
    matches!(timeout(LIMIT, publishing).await, Ok(Ok(Confirmation::Ack(None))))
}

/// Waits until every queue but the parked one is empty and nothing is unacknowledged: then nothing more can happen. What
/// a list shows is of no one moment, and a copy may be on its way from one queue to the next: it takes two empty lists,
/// further apart than a count may be old. The node is one of [`Broker::start_counting`].
pub(crate) async fn wait_empty(broker: &Broker, parked: &str, patience: Duration) -> Result<(), Vec<String>> {
    let since = Instant::now();
    let mut empty_since = None;
    loop {
        let (dir, asked) = (broker.dir().to_owned(), Instant::now());
        let columns = ["-q", "list_queues", "name", "messages", "messages_ready", "messages_unacknowledged"];
        let listed = spawn_blocking(move || broker::run("ctl", &dir, &columns)).await.unwrap().unwrap();
        let left: Vec<_> = listed
            .lines()
            .filter(|line| !line.starts_with("name") && !line.starts_with(parked))
            .filter(|line| line.split_whitespace().skip(1).any(|count| count != "0"))
            .map(str::to_owned)
            .collect();
        if !left.is_empty() {
            empty_since = None;
        } else if asked.duration_since(*empty_since.get_or_insert_with(Instant::now)) > COUNTED_WITHIN {
            return Ok(());
        }
        // An empty list only wants its second, however long a busy machine takes to make one.
        if since.elapsed() > patience && !left.is_empty() {
            return Err(left);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Takes everything out of a queue: bodies, and the header of this name.
pub(crate) async fn empty(uri: &str, queue: &str, header: &str) -> Vec<(Vec<u8>, String)> {
    let (_connection, channel) = connect(uri).await;
    let mut found = Vec::new();
    while let Some(got) = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap() {
        let headers = got.delivery.properties.headers().clone().unwrap_or_default();
        let word = match headers.inner().get(header) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            _ => String::new(),
        };
        found.push((got.delivery.data.clone(), word));
        got.delivery.ack(BasicAckOptions::default()).await.unwrap();
    }
    found
}
