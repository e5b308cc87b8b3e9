//! A broker *session*: one pair of connections and everything on them.
//!
//! The client's own recovery stays off. After it a channel that the broker closed leaves its consumer waiting forever, and
//! old delivery tags acknowledge other messages; so every failure ends the session, and [`crate::runtime::supervisor`]
//! establishes a new one, from the handshake to the consumer. One connection consumes and one publishes, because an alarm
//! of the broker stops *every* write on a connection that publishes, acknowledgements included.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use lapin::Channel;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::amqp::confirm::{PublishFailure, PublishRejection};
use crate::amqp::connection::{
    ACCESS_REFUSED, AmqpSettings, BrokerConnection, CannotConnect, Health, PUBLISHED_FRAME_BYTES_MAX,
    address, connect, lost, mark_lost, watch_events,
};
use crate::amqp::delivery::{ConsumerChannel, Delivery};
use crate::amqp::probe;
use crate::amqp::publisher::Publisher;
use crate::amqp::session_end::SessionEnd;
use crate::amqp::topology::{Names, TopologyFault, establish};

/// A pair of connections with everything on them.
///
/// It opens every channel before it consumes: a user's limit on channels ends a whole connection when it is exceeded, and no
/// delivery must be unsettled then.
pub struct Session {
    consuming: BrokerConnection,
    publishing: Arc<BrokerConnection>,
    consumer_channel: Arc<ConsumerChannel>,
    /// Queue depths and consumers are read on it; the broker closes it if a queue is missing.
    auxiliary: tokio::sync::Mutex<Auxiliary>,
    publisher: Publisher,
    /// The number of our own consumers of the command queue.
    consumers: AtomicU32,
    health: watch::Sender<Health>,
    at: String,
    settings: AmqpSettings,
}

/// The channels that may fail without ending the session.
struct Auxiliary {
    channel: Channel,
    opened: Instant,
    /// Our consumer of the instances queue, on a channel of its own: a missing queue must not end it.
    instance: Instance,
}

/// Whether this process is counted among the instances.
enum Instance {
    NotJoined(Channel),
    Joined { _channel: Channel, _consumer: lapin::Consumer },
}

impl Session {
    /// Connects and establishes the topology; [`Session::confirm_publishing`] comes next. `nth` chooses among several nodes.
    ///
    /// # Errors
    /// [`CannotConnect`] says which step failed and where.
    pub async fn establish(settings: &AmqpSettings, nth: usize) -> Result<Self, CannotConnect> {
        let (uri, at) = address(settings, nth)?;
        let limit = settings.connect_timeout;
        let mut publishing = uri.clone();
        publishing.query.frame_max = publishing.query.frame_max.min(Some(PUBLISHED_FRAME_BYTES_MAX));

        let (consuming, publishing) = tokio::try_join!(
            connect(&uri, "redeemer consume", &at, settings),
            connect(&publishing, "redeemer publish", &at, settings)
        )?;
        let bytes = publishing.configuration().frame_max();
        if (1..PUBLISHED_FRAME_BYTES_MAX).contains(&bytes) {
            return Err(CannotConnect::Frames { at, bytes, least: PUBLISHED_FRAME_BYTES_MAX });
        }
        let publishing = Arc::new(publishing);
        let health = watch::Sender::new(Health::default());
        watch_events(&consuming, &health, false);
        watch_events(&publishing, &health, true);

        let refused = |source| CannotConnect::Refused { at: at.clone(), source };
        let steps = async {
            establish(&publishing, &settings.topology, settings.mode)
                .await
                .map_err(|source| topology_fault(settings, &at, source))?;
            let consumer_channel = ConsumerChannel::new(consuming.create_channel().await.map_err(refused)?);
            let channel = consuming.create_channel().await.map_err(refused)?;
            let instance = Instance::NotJoined(consuming.create_channel().await.map_err(refused)?);
            let auxiliary = Auxiliary { channel, opened: Instant::now(), instance };
            let (names, confirm_timeout) = (&settings.topology.names, settings.confirm_timeout);
            let publisher = Publisher::open(&publishing, health.subscribe(), confirm_timeout, names).await;
            Ok::<_, CannotConnect>((consumer_channel, auxiliary, publisher.map_err(refused)?))
        };
        let built = tokio::select! {
            // The client may never complete a request on a connection that ends meanwhile.
            biased;
            built = timeout(limit, steps) => built,
            why = lost(&health) => return Err(CannotConnect::Lost { at, why }),
        };
        let (consumer_channel, auxiliary, publisher) = built.map_err(|_| CannotConnect::TimedOut {
            at: at.clone(),
            step: "the topology check",
            limit,
        })??;
        let (auxiliary, settings) = (tokio::sync::Mutex::new(auxiliary), settings.clone());
        let consumers = AtomicU32::new(0);
        Ok(Self {
            consuming,
            publishing,
            consumer_channel,
            auxiliary,
            publisher,
            consumers,
            health,
            at,
            settings,
        })
    }

    /// Probes, without publishing anything, whether events, delayed retries and parked commands may be published. A restored
    /// permission takes effect at the next call.
    ///
    /// # Errors
    /// [`CannotConnect::MayNotPublish`] for the first that is rejected; [`CannotConnect::Lost`].
    pub async fn probe_publish_rights(&self) -> Result<(), CannotConnect> {
        let rights = probe::needed_to_publish(&self.settings.topology);
        let probing = async {
            // Each on a channel of its own, and all of them open at once: if the user's limit allows these, it also allows
            // another one in place of any that the broker closes later.
            let channels = try_join_all(rights.iter().map(|_| self.publishing.create_channel())).await?;
            let probes = channels.iter().zip(&rights);
            try_join_all(probes.map(|(channel, right)| probe::rejection_on(channel, right))).await
        };
        let lost = |why| CannotConnect::Lost { at: self.at.clone(), why };
        let rejections = self.bounded(probing).await.map_err(lost)?;
        let rejections = rejections.map_err(|error| lost(SessionEnd::Connection(error)))?;
        rejections
            .into_iter()
            .flatten()
            .next()
            .map_or(Ok(()), |rejection| Err(self.may_not_publish(rejection)))
    }

    fn may_not_publish(&self, rejection: PublishRejection) -> CannotConnect {
        let remedy = remedy(&rejection, &self.settings);
        CannotConnect::MayNotPublish { at: self.at.clone(), rejection: Box::new(rejection), remedy }
    }

    /// The remedy for a rejection.
    pub fn remedy(&self, rejection: &PublishRejection) -> String {
        remedy(rejection, &self.settings)
    }

    /// Waits for the confirm of a probe. While the broker raises an alarm there is no confirm, and [`Session::is_blocked`] is true:
    /// then call this again, on the same connections. The broker notices the end of a connection that it has blocked only
    /// after the alarm, so each connection that was abandoned meanwhile would stay open there.
    ///
    /// # Errors
    /// [`CannotConnect::NoConfirms`]; [`CannotConnect::MayNotPublish`]
    pub async fn confirm_publishing(&self) -> Result<(), CannotConnect> {
        let (limit, blocked) = (self.settings.connect_timeout, self.is_blocked());
        let mut health = self.health();
        let confirming = async {
            if blocked {
                // The probes that were not confirmed in time have used up their channels.
                let _ = health.wait_for(|now| now.blocked.is_none() || now.lost.is_some()).await;
            }
            if blocked || self.publisher.needs_channel() {
                let renewed = self.publisher.renew(&self.publishing).await;
                renewed.map_err(|error| PublishFailure::Connection(error.to_string()))?;
            }
            self.publisher.confirm_probe().await
        };
        let confirmed = timeout(limit, confirming).await.unwrap_or(Err(PublishFailure::TimedOut(limit)));
        confirmed.map(drop).map_err(|source| match source {
            PublishFailure::Rejected(rejection) => self.may_not_publish(rejection),
            source => CannotConnect::NoConfirms { at: self.at.clone(), source },
        })
    }

    /// Whether the broker blocks publishing now, and the connections live.
    pub fn is_blocked(&self) -> bool {
        let health = self.health.borrow();
        health.blocked.is_some() && health.lost.is_none()
    }

    /// Host, port and virtual host.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// The publisher of this session.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Replaces the publishing channels, because the broker may reject every message on the present ones. If that fails, they
    /// are kept.
    pub async fn renew_channels(&self) {
        if !matches!(self.bounded(self.publisher.renew(&self.publishing)).await, Ok(Ok(()))) {
            debug!("publishing channels not renewed");
        }
    }

    /// Follows the health of this session.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Ends the session for a reason that only its user can see: a failed ack, a missing confirm.
    pub fn abort(&self, why: SessionEnd) {
        mark_lost(&self.health, why);
    }

    /// Bounds a request, also by the life of the connections: the client may never complete a request on a connection that
    /// ends meanwhile.
    async fn bounded<T>(&self, request: impl Future<Output = T>) -> Result<T, SessionEnd> {
        tokio::select! {
            response = timeout(self.settings.connect_timeout, request) => {
                response.map_err(|_| SessionEnd::NoResponse(self.settings.connect_timeout))
            }
            why = lost(&self.health) => Err(why),
        }
    }

    /// Why the consumer has ended: with its connection or its channel, whose reason may arrive a
    /// moment later, or because the broker canceled it.
    pub async fn end_reason(&self) -> SessionEnd {
        let mut health = self.health();
        let known = health.wait_for(|now| now.lost.is_some() || now.consumer_channel.is_some());
        let known = timeout(REASON_TIMEOUT, known).await;
        let known =
            known.ok().and_then(Result::ok).map(|now| (now.lost.clone(), now.consumer_channel.clone()));
        match known {
            Some((Some(lost), _)) => lost,
            Some((None, Some(error))) => SessionEnd::ConsumerChannelClosed(error),
            _ => SessionEnd::ConsumerCanceled { queue: self.settings.topology.names.commands.clone() },
        }
    }

    /// Starts to consume commands, at most `prefetch` of them unsettled.
    ///
    /// # Errors
    /// The reason. It ends the session.
    pub async fn consume(&self, prefetch: u16) -> Result<Deliveries, SessionEnd> {
        self.join_instances().await;
        let mut deliveries = Deliveries::new(&self.consumer_channel, &self.settings.topology.names.commands);
        self.set_prefetch(&mut deliveries, prefetch).await?;
        Ok(deliveries)
    }

    /// Lets `prefetch` commands be unsettled at once, if that is more than before.
    ///
    /// # Errors
    /// As for [`Session::consume`].
    pub async fn set_prefetch(&self, deliveries: &mut Deliveries, prefetch: u16) -> Result<(), SessionEnd> {
        let queue = self.settings.topology.names.commands.as_str();
        let widened = self.bounded(deliveries.set_prefetch(prefetch)).await;
        let widened = widened.and_then(|widened| widened.map_err(SessionEnd::Connection));
        let own = u32::try_from(deliveries.consumers.len()).unwrap_or(u32::MAX);
        self.consumers.store(own, Ordering::Relaxed);
        widened
            .map_err(|source| SessionEnd::CannotConsume { queue: queue.to_owned(), source: Box::new(source) })
    }

    /// Consumes the instances queue, to be counted among the instances. Without that permission commands are consumed all
    /// the same: the broker closes only this channel.
    async fn join_instances(&self) {
        let mut auxiliary = self.auxiliary.lock().await;
        let Instance::NotJoined(channel) = &auxiliary.instance else { return };
        let channel = channel.clone();
        let queue = self.settings.topology.names.instances.as_str();
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let joining = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        match self.bounded(joining).await {
            Ok(Ok(consumer)) => {
                auxiliary.instance = Instance::Joined { _channel: channel, _consumer: consumer };
            }
            Ok(Err(_)) | Err(_) => warn!(
                queue,
                remedy = probe::set_permissions_command(&self.settings, self.settings.mode),
                "instances cannot be counted; consumers of the command queue are counted instead"
            ),
        }
    }

    /// The number of instances and of waiting commands; `None` if it is unknown.
    pub async fn consumer_count(&self) -> Option<(u32, u32)> {
        let Names { commands, instances, .. } = &self.settings.topology.names;
        let joined = matches!(self.auxiliary.lock().await.instance, Instance::Joined { .. });
        let (consumers, messages) = self.count(commands).await?;
        match joined {
            true => Some((self.count(instances).await?.0, messages)),
            // Each instance has as many consumers as prefetch steps, about equally many.
            false => Some((consumers.div_ceil(self.consumers.load(Ordering::Relaxed).max(1)), messages)),
        }
    }

    /// Messages that are ready in a queue; `None` if it is unknown.
    pub async fn messages(&self, queue: &str) -> Option<u32> {
        Some(self.count(queue).await?.1)
    }

    /// Consumers of a queue and messages in it. The broker closes the channel if the queue is missing or not permitted;
    /// another one is opened after a while, because a user's limit still counts the old one for a moment.
    async fn count(&self, queue: &str) -> Option<(u32, u32)> {
        let mut auxiliary = self.auxiliary.lock().await;
        if !auxiliary.channel.status().connected() {
            if auxiliary.opened.elapsed() < REOPEN_AFTER {
                return None;
            }
            auxiliary.opened = Instant::now();
            auxiliary.channel = self.bounded(self.consuming.create_channel()).await.ok()?.ok()?;
        }
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declaring = auxiliary.channel.queue_declare(queue.into(), options, FieldTable::default());
        let queue = self.bounded(declaring).await.ok()?.ok()?;
        Some((queue.consumer_count(), queue.message_count()))
    }

    /// Closes both connections, within a bound: a close can hang while the broker raises an alarm.
    pub async fn close(&self) {
        let both = async {
            let _ = self.consuming.close(200, "done".into()).await;
            let _ = self.publishing.close(200, "done".into()).await;
        };
        let _ = timeout(Duration::from_secs(2), both).await;
    }
}

/// A fault of the topology, with the command that grants a missing right.
pub(super) fn topology_fault(settings: &AmqpSettings, at: &str, source: TopologyFault) -> CannotConnect {
    let remedy = match &source {
        TopologyFault::Refused { code: ACCESS_REFUSED, .. } => {
            format!(
                "; grant the missing permissions: {}",
                probe::set_permissions_command(settings, settings.mode)
            )
        }
        _ => String::new(),
    };
    CannotConnect::Topology { at: at.to_owned(), source: Box::new(source), remedy }
}

/// The remedy for a rejection: grant a right, create an exchange, raise a limit.
fn remedy(rejection: &PublishRejection, settings: &AmqpSettings) -> String {
    match rejection.code {
        403 => {
            let vhost = settings.vhost().unwrap_or_default();
            format!(
                "check rabbitmqctl list_topic_permissions -p '{vhost}'; grant the missing permissions: {}",
                probe::set_permissions_command(settings, settings.mode)
            )
        }
        404 => "create it: redeemer topology apply".to_owned(),
        406 => "check max_message_size in rabbitmq.conf".to_owned(),
        _ => "check the log of the broker".to_owned(),
    }
}

/// The least time between two openings of the auxiliary channel.
const REOPEN_AFTER: Duration = Duration::from_secs(5);

/// How long after a consumer ends the reason of its connection or channel may arrive.
const REASON_TIMEOUT: Duration = Duration::from_millis(500);

/// The deliveries of a command queue. The prefetch grows by further consumers: the broker does not change the prefetch of a
/// consumer, and canceling one while messages are on their way to it counts them as failed deliveries.
pub struct Deliveries {
    consumers: Vec<lapin::Consumer>,
    consumer_channel: Arc<ConsumerChannel>,
    queue: String,
    prefetch: u16,
}

impl Deliveries {
    fn new(consumer_channel: &Arc<ConsumerChannel>, queue: &str) -> Self {
        Self {
            consumers: Vec::new(),
            consumer_channel: consumer_channel.clone(),
            queue: queue.to_owned(),
            prefetch: 0,
        }
    }

    /// How many may be unsettled at once.
    pub fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// Raises the prefetch to this many, if that is more than before.
    async fn set_prefetch(&mut self, prefetch: u16) -> lapin::Result<()> {
        let more = prefetch.saturating_sub(self.prefetch);
        if more == 0 {
            return Ok(());
        }
        let channel = self.consumer_channel.channel();
        channel.basic_qos(more, BasicQosOptions::default()).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer =
            channel.basic_consume(self.queue.as_str().into(), "".into(), options, arguments).await?;
        self.consumers.push(consumer);
        self.prefetch = prefetch;
        Ok(())
    }

    /// The next delivery. `None` is final: the queue was deleted, the broker canceled a consumer, or the connection is
    /// gone. Do not call it again then.
    pub async fn next(&mut self) -> Option<Delivery> {
        let delivery = poll_fn(|context| {
            for consumer in &mut self.consumers {
                if let Poll::Ready(next) = consumer.poll_next_unpin(context) {
                    return Poll::Ready(next);
                }
            }
            Poll::Pending
        });
        Some(Delivery::new(delivery.await?.ok()?, &self.consumer_channel))
    }

    /// Cancels the consumers and returns the deliveries that they already received.
    ///
    /// # Errors
    /// If the broker does not confirm in time. Deliveries then stay unsettled, so the session must end.
    pub async fn cancel(mut self, limit: Duration) -> Result<Vec<Delivery>, SessionEnd> {
        let canceling = async {
            for consumer in &self.consumers {
                self.consumer_channel
                    .channel()
                    .basic_cancel(consumer.tag(), BasicCancelOptions::default())
                    .await?;
            }
            Ok::<_, lapin::Error>(())
        };
        match timeout(limit, canceling).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(SessionEnd::CancelFailed(error)),
            Err(_) => return Err(SessionEnd::CancelTimedOut(limit)),
        }
        let mut left = Vec::new();
        for consumer in &mut self.consumers {
            while let Ok(Some(Ok(delivery))) = timeout(limit, consumer.next()).await {
                left.push(Delivery::new(delivery, &self.consumer_channel));
            }
        }
        Ok(left)
    }
}
