//! Where RabbitMQ 3.x and 4.x differ, or might: each of these tests names the version that it ran on, says what that
//! version does, and shows that the service comes through. `make test-rabbitmq4` runs them on 4.x.

#![allow(clippy::print_stdout)] // which version did what is worth a line

use std::time::{Duration, Instant};

use crate::bed;
use crate::bed::{Bed, command, next, until};
use crate::broker::{Broker, shared};
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, BasicRejectOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::json;
use tokio::task::spawn_blocking;

fn version(broker: &Broker) -> String {
    broker.ctl(&["version"]).trim().to_owned()
}

/// Major and minor number.
fn numbers(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// A quorum queue of the test's own.
async fn declare(channel: &Channel, what: &str, more: &[(&str, AMQPValue)]) -> String {
    let name = format!("t{}.{what}", std::process::id());
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    for (argument, value) in more {
        arguments.insert((*argument).into(), value.clone());
    }
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.as_str().into(), options, arguments).await.unwrap();
    name
}

async fn put(channel: &Channel, queue: &str, properties: BasicProperties) {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let publishing =
        channel.basic_publish("".into(), queue.into(), options, b"x", properties.with_delivery_mode(2));
    assert!(publishing.await.unwrap().await.unwrap().is_ack());
}

/// 4.x gives a quorum queue without a limit one of 20, and drops what exceeds it; 3.x gives none. That is why the
/// service sets a limit, and a dead-letter exchange with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_without_a_limit_has_one_of_twenty_on_4_and_none_on_3() {
    const TRIES: u32 = 30;
    /// How long a message that was given back may be on its way.
    const GONE: Duration = Duration::from_secs(5);
    let version = spawn_blocking(|| version(shared())).await.unwrap();
    let bed = Bed::new().await;
    let queue = declare(bed.channel(), "without-a-limit", &[]).await;
    put(bed.channel(), &queue, BasicProperties::default()).await;
    let (mut deliveries, mut last) = (0, Instant::now());
    while deliveries < TRIES && last.elapsed() < GONE {
        let got = bed.channel().basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap();
        if let Some(got) = got {
            (deliveries, last) = (deliveries + 1, Instant::now());
            got.delivery.acker.reject(BasicRejectOptions { requeue: true }).await.unwrap();
        }
    }
    println!("RabbitMQ {version}: without a limit delivered {deliveries} times, of {TRIES} tries");
    assert_eq!(deliveries, if numbers(&version).0 >= 4 { 21 } else { TRIES });
    bed.channel().queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
}

/// What a client wrote into `x-death` is taken for the broker's own word by 3.x when it dead-letters the message, and
/// ignored by 4.x. That is why the service counts its attempts in headers of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_x_death_is_continued_by_3_and_ignored_by_4() {
    let version = spawn_blocking(|| version(shared())).await.unwrap();
    let bed = Bed::new().await;
    let dead = declare(bed.channel(), "dead", &[]).await;
    let short = declare(
        bed.channel(),
        "short",
        &[
            ("x-message-ttl", AMQPValue::LongInt(100)),
            ("x-dead-letter-exchange", AMQPValue::LongString("".into())),
            ("x-dead-letter-routing-key", AMQPValue::LongString(dead.as_str().into())),
        ],
    )
    .await;
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut death = FieldTable::default();
    death.insert("reason".into(), text("rejected"));
    death.insert("queue".into(), text("elsewhere"));
    death.insert("exchange".into(), text(""));
    death.insert("count".into(), AMQPValue::LongLongInt(1_000_000));
    death.insert("time".into(), AMQPValue::Timestamp(1_700_000_000));
    let mut keys = FieldArray::default();
    keys.push(text("elsewhere"));
    death.insert("routing-keys".into(), AMQPValue::FieldArray(keys));
    let mut deaths = FieldArray::default();
    deaths.push(AMQPValue::FieldTable(death));
    let mut headers = FieldTable::default();
    headers.insert("x-death".into(), AMQPValue::FieldArray(deaths));
    put(bed.channel(), &short, BasicProperties::default().with_headers(headers)).await;
    let (_connection, mut reader) = bed.consume_elsewhere(&dead).await;
    let delivery = next(&mut reader, "the dead-lettered message").await;
    delivery.ack(BasicAckOptions::default()).await.unwrap();
    let headers = delivery.properties.headers().clone().unwrap();
    let Some(AMQPValue::FieldArray(deaths)) = headers.inner().get("x-death") else { panic!("{headers:?}") };
    println!("RabbitMQ {version}: dead-lettered with {} deaths, one of them forged", deaths.as_slice().len());
    assert_eq!(deaths.as_slice().len(), if numbers(&version).0 >= 4 { 1 } else { 2 }, "{deaths:?}");
    for queue in [short, dead] {
        bed.channel().queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

/// Both count a delivery that was given back and one whose connection died, and both dead-letter what exceeds the limit. 4.x
/// has a limit of 20 where none is set, and drops what exceeds it where there is no dead-letter exchange: the service
/// sets both.
#[tokio::test(flavor = "multi_thread")]
async fn over_the_delivery_limit_a_command_is_dead_lettered() {
    const LIMIT: u32 = 4;
    let version = spawn_blocking(|| version(shared())).await.unwrap();
    let mut bed = Bed::new().await;
    bed.config.broker.delivery_limit = LIMIT;
    let bed = bed.relaid().await;
    bed.leave_parked().await;
    let queue = bed.config.broker.names.commands.clone();
    bed.publish(&command("C1", "USE_0001")).await;
    let mut deliveries = 0;
    let patience = Instant::now() + bed::PATIENCE;
    while bed.ready(&bed.config.broker.names.dead).await == 0 {
        assert!(
            Instant::now() < patience && deliveries <= 2 * LIMIT,
            "delivered {deliveries} times, not dead-lettered"
        );
        let connection =
            Connection::connect(&bed.config.broker.uri, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap();
        if let Some(got) = got {
            deliveries += 1;
            if deliveries % 2 == 0 {
                got.delivery.acker.nack(BasicNackOptions { requeue: true, multiple: false }).await.unwrap();
            }
        }
        connection.close(200, "gone with what it held".into()).await.unwrap();
    }
    println!("RabbitMQ {version}: dead-lettered after {deliveries} deliveries, with a limit of {LIMIT}");
    assert_eq!(deliveries, LIMIT + 1);
    let (_connection, mut dead) = bed.consume_elsewhere(&bed.config.broker.names.dead).await;
    let delivery = next(&mut dead, "the dead-lettered command").await;
    let headers = delivery.properties.headers().clone().unwrap();
    assert_eq!(bed::header(&headers, "x-first-death-reason"), "delivery_limit");
    assert!(matches!(headers.inner().get("x-death"), Some(AMQPValue::FieldArray(_))), "{headers:?}");
}

/// A client's own `x-death` counts for 3.x itself and not for 4.x, but both pass it on. To the service it means "may have
/// been tried before": it costs queries, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_x_death_costs_queries_at_most() {
    let version = spawn_blocking(|| version(shared())).await.unwrap();
    let mut bed = Bed::new().await;
    bed.issue("C1", json!({}));
    let service = bed.start().await;
    let mut death = FieldTable::default();
    death.insert("reason".into(), AMQPValue::LongString("delivery_limit".into()));
    death.insert("queue".into(), AMQPValue::LongString("elsewhere".into()));
    death.insert("count".into(), AMQPValue::LongLongInt(1_000_000));
    let mut deaths = FieldArray::default();
    deaths.push(AMQPValue::FieldTable(death));
    let mut headers = FieldTable::default();
    headers.insert("x-death".into(), AMQPValue::FieldArray(deaths));
    let properties = BasicProperties::default().with_headers(headers);
    bed.publish_bytes(command("C1", "USE_0001").to_string().as_bytes(), properties).await;
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "redeemed - USED");
    let first = reported.data("/evidence/0/operation").as_str().unwrap().to_owned();
    println!("RabbitMQ {version}: a forged x-death, and the first operation is {first}");
    assert_eq!(first, "query");
    assert_eq!(bed.uses().len(), 1);
    service.stop().await;
}

/// A command that is held longer than the broker's consumer timeout: up to 4.2 the broker closes the channel, later ones
/// cancel the consumer. Either way the session ends, the next one gets the command again, and nothing is done twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_the_broker_times_out_begins_again() {
    let broker = spawn_blocking(|| Broker::start_with(&["consumer_timeout = 2000"])).await.unwrap();
    // It looks once a minute.
    let eval = "application:set_env(rabbit, channel_tick_interval, 500).";
    tokio::task::block_in_place(|| broker.ctl(&["eval", eval]));
    let version = tokio::task::block_in_place(|| version(&broker));
    let bed = Bed::on(&broker).await;
    // Results are refused until somebody reads: that holds the command in its permit.
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let (full, options) = ("full", QueueDeclareOptions { durable: true, ..Default::default() });
    bed.channel().queue_declare(full.into(), options, arguments).await.unwrap();
    let results = bed.config.broker.names.results.clone();
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    bed.channel()
        .queue_bind(full.into(), results.into(), "redemption.#".into(), options, arguments)
        .await
        .unwrap();
    let service = bed.start().await;
    for nth in 1..=3 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_000{nth}"))).await;
    }
    let sessions = async || service.metric("redeemer_broker_sessions_total").await;
    until("a session that the broker ended", async || sessions().await >= 2.0).await;
    println!("RabbitMQ {version}: held beyond the consumer timeout, and {} sessions", sessions().await);

    // Our own channel held results for as long. Up to 4.2 it is closed for that; later it stays, without its consumer.
    let closed = numbers(&version) < (4, 3);
    until("our own channel timed out", async || bed.channel().status().connected() != closed).await;
    println!("RabbitMQ {version}: the channel of a consumer that is timed out is closed: {closed}");

    // The subscriber reads at last. Our own channel was timed out as well, for what it had not acknowledged.
    let (_connection, mut reader) = bed.consume_elsewhere(full).await;
    let mut read = std::collections::BTreeSet::new();
    while read.len() < 3 {
        let delivery = next(&mut reader, "a result").await;
        read.insert(delivery.properties.message_id().as_ref().unwrap().to_string());
        delivery.ack(BasicAckOptions::default()).await.unwrap();
    }
    service.wait_ready().await;
    until("an empty hand", async || service.metric("redeemer_commands_in_flight").await == 0.0).await;
    assert_eq!(bed.uses().len(), 3);
    service.stop().await;
    tokio::task::block_in_place(|| drop(broker));
}
