//! A confirm belongs to the message it was given for, also when many tasks publish at once on one channel.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::bed;
use crate::bed::{Bed, command};
use crate::broker::Broker;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use redeemer::amqp::confirm::EventsAccepted;
use redeemer::amqp::session::Session;
use redeemer::domain::outcome::OutcomeKind;
use redeemer::wire::result_event::Event;
use tokio::task::JoinSet;
use uuid::Uuid;

const TASKS: u128 = 8;
const EACH: u128 = 3_000;

/// Inside the client the confirm is registered and the frames are queued under different locks. Without a lock of
/// our own around both, tasks get each other's confirms: results would be acknowledged that were refused.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_confirmed_is_there_and_what_is_refused_is_not() {
    let bed = Bed::new().await;
    bed.publish(&command("C1", "USE_0001")).await;
    let settings = bed.config.broker_settings().unwrap();
    let session = Session::establish(&settings, 0).await.unwrap();
    let mut deliveries = session.consume(1).await.unwrap();
    let delivery = Arc::new(deliveries.next().await.unwrap());

    // A queue that refuses what does not fit, and a reader who is too slow for it.
    let channel = bed.channel();
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(200));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, arguments).await.unwrap().name().clone();
    let results = bed.config.broker.names.results.as_str();
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.clone(), results.into(), "proof.*".into(), options, arguments).await.unwrap();
    channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut reader = channel.basic_consume(queue, "".into(), options, arguments).await.unwrap();

    let mut publishing = JoinSet::new();
    for task in 0..TASKS {
        let (publisher, delivery) = (session.publisher().clone(), delivery.clone());
        publishing.spawn(async move {
            let mut confirmed = BTreeSet::new();
            for nth in 0..EACH {
                let id = Uuid::from_u128(task * EACH + nth);
                let routing_key = format!("proof.{task}");
                let event = Event { id, routing_key, kind: OutcomeKind::Redeemed, body: b"{}".to_vec() };
                if publisher.publish_event(&event, &delivery, None).await.is_ok() {
                    confirmed.insert(id.to_string());
                }
            }
            confirmed
        });
    }
    let read = tokio::spawn(async move {
        let mut there = BTreeSet::new();
        loop {
            let delivery = bed::next(&mut reader, "a message").await;
            let id = delivery.properties.message_id().as_ref().unwrap().to_string();
            delivery.ack(BasicAckOptions::default()).await.unwrap();
            if id == Uuid::max().to_string() {
                return there;
            }
            there.insert(id);
        }
    });
    let confirmed: BTreeSet<String> = publishing.join_all().await.into_iter().flatten().collect();
    let last = Event {
        id: Uuid::max(),
        routing_key: "proof.last".to_owned(),
        kind: OutcomeKind::Redeemed,
        body: b"{}".to_vec(),
    };
    // Refused while the queue is full.
    while session.publisher().publish_event(&last, &delivery, None).await.is_err() {}
    let there = read.await.unwrap();
    let all = usize::try_from(TASKS * EACH).unwrap();
    assert!(confirmed.len() < all, "nothing was refused: the test proves nothing");
    assert!(!confirmed.is_empty());
    let lost: Vec<_> = confirmed.difference(&there).collect();
    let denied: Vec<_> = there.difference(&confirmed).collect();
    assert_eq!((lost.len(), denied.len()), (0, 0), "lost {lost:?}, denied {denied:?}");
    session.close().await;
}

/// With several publishes waiting for their confirms the client can attach a return to another one. A copy that no
/// queue took would then look safe, and its command be acknowledged and lost.
#[tokio::test(flavor = "multi_thread")]
async fn unrouted_retry_message_is_never_confirmed_under_load() {
    let bed = Bed::new().await;
    bed.publish(&command("C1", "USE_0001")).await;
    let settings = bed.config.broker_settings().unwrap();
    let session = Session::establish(&settings, 0).await.unwrap();
    let mut deliveries = session.consume(1).await.unwrap();
    let delivery = Arc::new(deliveries.next().await.unwrap());

    let mut publishing = JoinSet::new();
    for task in 0..TASKS {
        let (publisher, command) = (session.publisher().clone(), delivery.clone());
        publishing.spawn(async move {
            let mut events = 0;
            for nth in 0..EACH / 4 {
                let id = Uuid::from_u128(task * EACH + nth);
                let routing_key = format!("redemption.redeemed.{task}");
                let event = Event { id, routing_key, kind: OutcomeKind::Redeemed, body: b"{}".to_vec() };
                events += usize::from(publisher.publish_event(&event, &command, None).await.is_ok());
            }
            (events, 0)
        });
        let (publisher, delivery) = (session.publisher().clone(), delivery.clone());
        publishing.spawn(async move {
            let mut copies = 0;
            for nth in 0..EACH / 8 {
                // No delay waits this long, and no queue is bound for it.
                let unheard_of = Duration::from_secs(77);
                let copied = publisher.publish_retry_message(&delivery, unheard_of, Vec::new()).await;
                copies += usize::from(copied.is_ok());
                if nth % 8 == 0 {
                    let wait = Duration::from_secs(7_200);
                    publisher.publish_retry_message(&delivery, wait, Vec::new()).await.unwrap();
                }
            }
            (0, copies)
        });
    }
    let (events, copies) = publishing
        .join_all()
        .await
        .into_iter()
        .fold((0, 0), |(events, copies), (event, copy)| (events + event, copies + copy));
    assert_eq!(copies, 0, "copies that nobody has");
    assert_eq!(events, usize::try_from(TASKS * (EACH / 4)).unwrap());
    session.close().await;
}

/// Whether the broker takes events can only be known by asking it. What could not be asked is unknown: neither a ground to
/// delay an event for its own sake nor one to hold all of them.
#[tokio::test(flavor = "multi_thread")]
async fn events_accepted_is_unknown_unless_the_broker_answers() {
    let broker = tokio::task::spawn_blocking(Broker::start).await.unwrap();
    let bed = Bed::on(&broker).await;
    let settings = bed.config.broker_settings().unwrap();
    let publisher_of = async || {
        let session = Session::establish(&settings, 0).await.unwrap();
        (session.publisher().clone(), session)
    };
    let (publisher, session) = publisher_of().await;
    assert_eq!(publisher.results_accept_events().await, EventsAccepted::Accepted);
    // Its session is gone, and the connection with it: nobody is asked, and what was known before is not reported again.
    session.close().await;
    drop(session);
    tokio::time::timeout(bed::PATIENCE, async {
        while publisher.results_accept_events().await != EventsAccepted::Unknown {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a remembered answer holds for a second");

    // The exchange is gone: the broker answers that it is.
    let results = bed.config.broker.names.results.as_str();
    let (publisher, _session) = publisher_of().await;
    bed.channel().exchange_delete(results.into(), ExchangeDeleteOptions::default()).await.unwrap();
    match publisher.results_accept_events().await {
        EventsAccepted::Rejected(rejection) => {
            assert_eq!((rejection.code, rejection.exchange.as_str()), (404, results))
        }
        other => panic!("{other:?}"),
    }

    // The broker dies, and the session does not end before it is asked.
    let (publisher, _session) = publisher_of().await;
    broker.kill9();
    assert_eq!(publisher.results_accept_events().await, EventsAccepted::Unknown);
    assert_eq!(publisher.results_accept_events().await, EventsAccepted::Unknown);
}
