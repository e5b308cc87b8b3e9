//! The broker's edge: one *session* is one pair of connections and everything on them.
//!
//! The client's own recovery stays off. A channel that the broker closed leaves its consumer waiting for ever, and
//! old delivery tags acknowledge other messages after a reconnect; so whatever goes wrong ends the session, and
//! [`crate::runtime::supervisor`] builds a new one, from the handshake to the consumer. One connection consumes and one publishes,
//! because an alarm of the broker stops *every* write on a connection that publishes, acknowledgements included.

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
use crate::amqp::topology::{Names, TopologyFault, establish};

/// A pair of connections with everything on them.
///
/// It opens every channel before it consumes: a user's limit on channels ends a whole connection when it is exceeded, and
/// nothing must be in hand then.
pub struct Session {
    consuming: BrokerConnection,
    publishing: Arc<BrokerConnection>,
    inlet: Arc<ConsumerChannel>,
    /// Where queues are counted; the broker closes it over one that is missing.
    auxiliary: tokio::sync::Mutex<Auxiliary>,
    publisher: Publisher,
    /// How many consumers of the command queue are our own.
    consumers: AtomicU32,
    health: watch::Sender<Health>,
    at: String,
    settings: AmqpSettings,
}

/// The channel that may fail without harm.
struct Auxiliary {
    channel: Channel,
    opened: Instant,
    /// What makes us count among the instances, on a channel of its own: a queue that is missing must not end it.
    instance: Instance,
}

/// Whether this process counts among the instances.
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
            let inlet = ConsumerChannel::new(consuming.create_channel().await.map_err(refused)?);
            let channel = consuming.create_channel().await.map_err(refused)?;
            let instance = Instance::NotJoined(consuming.create_channel().await.map_err(refused)?);
            let auxiliary = Auxiliary { channel, opened: Instant::now(), instance };
            let (names, confirm_timeout) = (&settings.topology.names, settings.confirm_timeout);
            let publisher = Publisher::open(&publishing, health.subscribe(), confirm_timeout, names).await;
            Ok::<_, CannotConnect>((inlet, auxiliary, publisher.map_err(refused)?))
        };
        let built = tokio::select! {
            // The client does not always answer for a connection that ends while it is asked.
            biased;
            built = timeout(limit, steps) => built,
            why = lost(&health) => return Err(CannotConnect::Lost { at, why }),
        };
        let (inlet, auxiliary, publisher) = built.map_err(|_| CannotConnect::TimedOut {
            at: at.clone(),
            step: "looking at the topology",
            limit,
        })??;
        let (auxiliary, settings) = (tokio::sync::Mutex::new(auxiliary), settings.clone());
        let consumers = AtomicU32::new(0);
        Ok(Self { consuming, publishing, inlet, auxiliary, publisher, consumers, health, at, settings })
    }

    /// Tries with probes that publish nothing whether events, delayed retries and parked commands may be published. A right
    /// that was given back is felt by the next call.
    ///
    /// # Errors
    /// [`CannotConnect::MayNotPublish`] for the first that is rejected; [`CannotConnect::Lost`].
    pub async fn probe_publish_rights(&self) -> Result<(), CannotConnect> {
        let rights = probe::needed_to_publish(&self.settings.topology);
        let probing = async {
            // Each on a channel of its own, and all of them open at once: that there is room for these shows that there is
            // room for another one in place of any that the broker closes later.
            let channels = try_join_all(rights.iter().map(|_| self.publishing.create_channel())).await?;
            let probes = channels.iter().zip(&rights);
            try_join_all(probes.map(|(channel, right)| probe::rejection_on(channel, right))).await
        };
        let lost = |why| CannotConnect::Lost { at: self.at.clone(), why };
        let rejections = self.bounded(probing).await.map_err(lost)?;
        let rejections = rejections.map_err(|error| lost(error.to_string()))?;
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

    /// The command that helps against a rejection.
    pub fn remedy(&self, rejection: &PublishRejection) -> String {
        remedy(rejection, &self.settings)
    }

    /// Proves that confirms come. While the broker raises an alarm they do not, and [`Session::is_blocked`] says so: then
    /// this is to be called again, on the same connections. The broker looks at one that it has blocked only when the
    /// alarm is over, so each one that was given up meanwhile would stay with it.
    ///
    /// # Errors
    /// [`CannotConnect::NoConfirms`]; [`CannotConnect::MayNotPublish`]
    pub async fn confirm_publishing(&self) -> Result<(), CannotConnect> {
        let (limit, blocked) = (self.settings.connect_timeout, self.is_blocked());
        let mut health = self.health();
        let proving = async {
            if blocked {
                // What was not confirmed in time has used up its channels.
                let _ = health.wait_for(|now| now.blocked.is_none() || now.lost.is_some()).await;
            }
            if blocked || self.publisher.needs_channel() {
                let renewed = self.publisher.renew(&self.publishing).await;
                renewed.map_err(|error| PublishFailure::Connection(error.to_string()))?;
            }
            self.publisher.confirm_probe().await
        };
        let proved = timeout(limit, proving).await.unwrap_or(Err(PublishFailure::TimedOut(limit)));
        proved.map(drop).map_err(|source| match source {
            PublishFailure::Rejected(rejection) => self.may_not_publish(rejection),
            source => CannotConnect::NoConfirms { at: self.at.clone(), source },
        })
    }

    /// Whether the broker lets us publish nothing now, and the connections live.
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

    /// Publishes by other channels from now on: the broker may go on refusing what comes by these. Where that fails, it
    /// goes on as before.
    pub async fn renew_channels(&self) {
        if !matches!(self.bounded(self.publisher.renew(&self.publishing)).await, Ok(Ok(()))) {
            debug!("no other channels to publish by");
        }
    }

    /// Follows the health of this session.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Ends the session for a reason that only its user could see: a failed ack, a missing confirm.
    pub fn abort(&self, why: &str) {
        mark_lost(&self.health, why);
    }

    /// Waits within the bound, and no longer than the connections live: the client does not always answer what was asked of
    /// one that has just ended.
    async fn bounded<T>(&self, asked: impl Future<Output = T>) -> Result<T, String> {
        tokio::select! {
            answer = timeout(self.settings.connect_timeout, asked) => {
                answer.map_err(|_| format!("no answer within {:?}", self.settings.connect_timeout))
            }
            why = lost(&self.health) => Err(why),
        }
    }

    /// Why the consumer has ended, in the broker's own words: with its connection or its channel, whose reason may come a
    /// moment later, or by itself.
    pub async fn ended(&self) -> String {
        let mut health = self.health();
        let known = health.wait_for(|now| now.lost.is_some() || now.consumer_channel.is_some());
        let known = timeout(REASON_WITHIN, known).await;
        let known =
            known.ok().and_then(Result::ok).map(|now| (now.lost.clone(), now.consumer_channel.clone()));
        match known {
            Some((Some(lost), _)) => lost,
            Some((None, Some(words))) => format!(
                "the broker closed the consumer's channel: {words}; where a delivery timed out, a command was held \
                 for longer than the broker's consumer_timeout: look for results or retries that it does not accept"
            ),
            _ => format!(
                "the broker canceled the consumer: queue {} was deleted, or a command was held for longer than \
                 the broker's consumer_timeout (RabbitMQ 4.3 and later)",
                self.settings.topology.names.commands
            ),
        }
    }

    /// Begins to consume commands, at most `prefetch` of them unsettled.
    ///
    /// # Errors
    /// What stops it, in words. It ends the session.
    pub async fn consume(&self, prefetch: u16) -> Result<Deliveries, String> {
        self.join_instances().await;
        let mut deliveries = Deliveries::new(&self.inlet, &self.settings.topology.names.commands);
        self.set_prefetch(&mut deliveries, prefetch).await?;
        Ok(deliveries)
    }

    /// Lets `prefetch` commands be unsettled at once, if that is more than before.
    ///
    /// # Errors
    /// As for [`Session::consume`].
    pub async fn set_prefetch(&self, deliveries: &mut Deliveries, prefetch: u16) -> Result<(), String> {
        let queue = self.settings.topology.names.commands.as_str();
        let widened = self.bounded(deliveries.set_prefetch(prefetch)).await;
        let widened = widened.and_then(|widened| widened.map_err(|error| error.to_string()));
        let own = u32::try_from(deliveries.consumers.len()).unwrap_or(u32::MAX);
        self.consumers.store(own, Ordering::Relaxed);
        widened.map_err(|why| format!("cannot consume {queue}: {why}"))
    }

    /// Counts among the instances from now on. If the user may not, commands are consumed all the same: the broker
    /// closes nothing but the auxiliary channel.
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
                remedy = probe::granting(&self.settings, self.settings.mode),
                "instances cannot be counted; consumers of the command queue are counted instead"
            ),
        }
    }

    /// How many instances there are, and how many commands wait; `None` if it cannot be said.
    pub async fn consumer_count(&self) -> Option<(u32, u32)> {
        let Names { commands, instances, .. } = &self.settings.topology.names;
        let joined = matches!(self.auxiliary.lock().await.instance, Instance::Joined { .. });
        let (consumers, messages) = self.count(commands).await?;
        match joined {
            true => Some((self.count(instances).await?.0, messages)),
            // Each instance has as many as its prefetch was widened, all of them about alike.
            false => Some((consumers.div_ceil(self.consumers.load(Ordering::Relaxed).max(1)), messages)),
        }
    }

    /// Messages that are ready in a queue; `None` if it cannot be said.
    pub async fn messages(&self, queue: &str) -> Option<u32> {
        Some(self.count(queue).await?.1)
    }

    /// Consumers of a queue and messages in it. The broker closes the channel over a queue that is missing, or that we may
    /// not see; another one is opened after a while, because a user's limit still counts the old one for a moment.
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
        let look = auxiliary.channel.queue_declare(queue.into(), options, FieldTable::default());
        let queue = self.bounded(look).await.ok()?.ok()?;
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

/// A topology that is not as it must be, with the command that grants a missing right.
pub(super) fn topology_fault(settings: &AmqpSettings, at: &str, source: TopologyFault) -> CannotConnect {
    let remedy = match &source {
        TopologyFault::Refused { code: ACCESS_REFUSED, .. } => {
            format!("; grant what is missing: {}", probe::granting(settings, settings.mode))
        }
        _ => String::new(),
    };
    CannotConnect::Topology { at: at.to_owned(), source: Box::new(source), remedy }
}

/// What helps against a rejection: a right is granted, an exchange is made, a limit is raised.
fn remedy(rejection: &PublishRejection, settings: &AmqpSettings) -> String {
    match rejection.code {
        403 => {
            let vhost = settings.vhost().unwrap_or_default();
            format!(
                "look at rabbitmqctl list_topic_permissions -p '{vhost}'; grant what is missing: {}",
                probe::granting(settings, settings.mode)
            )
        }
        404 => "make it: redeemer topology apply".to_owned(),
        406 => "look at max_message_size in rabbitmq.conf".to_owned(),
        _ => "look at the broker's log".to_owned(),
    }
}

/// How long after it was opened a channel that the broker closed is replaced.
const REOPEN_AFTER: Duration = Duration::from_secs(5);

/// How long after a consumer its connection may be known to have ended.
const REASON_WITHIN: Duration = Duration::from_millis(500);

/// The deliveries of a command queue. What may be unsettled grows by further consumers: a broker does not change the
/// prefetch of one, and one that is canceled while messages are on their way to it has them counted as delivered in vain.
pub struct Deliveries {
    consumers: Vec<lapin::Consumer>,
    inlet: Arc<ConsumerChannel>,
    queue: String,
    prefetch: u16,
}

impl Deliveries {
    fn new(inlet: &Arc<ConsumerChannel>, queue: &str) -> Self {
        Self { consumers: Vec::new(), inlet: inlet.clone(), queue: queue.to_owned(), prefetch: 0 }
    }

    /// How many may be unsettled at once.
    pub fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// Lets this many be unsettled at once, if that is more than before.
    async fn set_prefetch(&mut self, prefetch: u16) -> lapin::Result<()> {
        let more = prefetch.saturating_sub(self.prefetch);
        if more == 0 {
            return Ok(());
        }
        let channel = self.inlet.channel();
        channel.basic_qos(more, BasicQosOptions::default()).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer =
            channel.basic_consume(self.queue.as_str().into(), "".into(), options, arguments).await?;
        self.consumers.push(consumer);
        self.prefetch = prefetch;
        Ok(())
    }

    /// The next delivery. `None` is final: the queue was deleted, the broker canceled a consumer, or the connection is
    /// gone. After it, nothing more may be asked.
    pub async fn next(&mut self) -> Option<Delivery> {
        let delivery = poll_fn(|context| {
            for consumer in &mut self.consumers {
                if let Poll::Ready(next) = consumer.poll_next_unpin(context) {
                    return Poll::Ready(next);
                }
            }
            Poll::Pending
        });
        Some(Delivery::new(delivery.await?.ok()?, &self.inlet))
    }

    /// Stops the consumers and gives back what they had already handed over but nobody has taken.
    ///
    /// # Errors
    /// If the broker does not confirm in time. What it had handed over then stays unsettled, so the session
    /// must end.
    pub async fn cancel(mut self, limit: Duration) -> Result<Vec<Delivery>, String> {
        let canceling = async {
            for consumer in &self.consumers {
                self.inlet.channel().basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
            }
            Ok::<_, lapin::Error>(())
        };
        match timeout(limit, canceling).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("the consumer could not be stopped: {error}")),
            Err(_) => return Err(format!("the broker did not stop the consumer within {limit:?}")),
        }
        let mut left = Vec::new();
        for consumer in &mut self.consumers {
            while let Ok(Some(Ok(delivery))) = timeout(limit, consumer.next()).await {
                left.push(Delivery::new(delivery, &self.inlet));
            }
        }
        Ok(left)
    }
}
