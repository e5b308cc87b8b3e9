//! What goes wrong in a run, in which order: made whole from the seed before anything begins.

use std::fmt;

use redeemer::runtime::failpoints::Failpoint;

use crate::commands::is_rare;
use crate::dice::Dice;

/// How many instances of the service run.
pub(crate) const INSTANCES: usize = 2;

/// How much goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Commands published.
    pub commands: usize,
    /// Kills of the service; at least one for each failpoint.
    pub kills: usize,
    /// Kills of the broker.
    pub broker_kills: usize,
    /// Calls to the payment API that go wrong, in percent.
    pub faults_percent: usize,
}

impl Size {
    /// Whether so much happens that every kind of fault must have come, and every kill.
    pub(crate) fn is_long(self) -> bool {
        self.commands >= 5_000
    }
}

/// A piece of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Kills the instance that first reaches a point for the nth time.
    Kill {
        /// Where.
        point: Failpoint,
        /// The how manieth time.
        nth: usize,
    },
    /// Kills an instance after this many milliseconds, wherever it is.
    KillAnywhere {
        /// Which instance.
        instance: usize,
        /// When.
        after_ms: u64,
    },
    /// Stops an instance in good order.
    Stop {
        /// Which instance.
        instance: usize,
    },
    /// Stops an instance in good order again and again, with commands in its hands.
    Restarts {
        /// Which instance.
        instance: usize,
    },
    /// Kills the broker, and perhaps an instance while it is down.
    KillBroker {
        /// The instance killed as well.
        with: Option<usize>,
    },
    /// Stops the broker in good order.
    StopBroker,
    /// A memory alarm of the broker.
    Alarm,
    /// The broker's management closes every connection.
    CloseConnections,
    /// The network in front of the broker or the payment API misbehaves.
    Network {
        /// In front of what.
        at: Place,
        /// How.
        trouble: Trouble,
    },
    /// A fault of our own at the broker that stays until somebody removes it.
    Standing(Standing),
}

/// What the service may not do, or does not find, for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its right to publish results is taken away.
    ResultsRight,
    /// Its right to publish refusals is missing: a topic permission.
    RefusedKeys,
    /// The exchange of the delay queues is deleted.
    RetryExchange,
    /// No message as large as an event is taken.
    MessageSize,
    /// It may open fewer channels than it needs.
    Channels,
}

impl Standing {
    /// Every one.
    pub(crate) const ALL: [Self; 5] =
        [Self::ResultsRight, Self::RefusedKeys, Self::RetryExchange, Self::MessageSize, Self::Channels];
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ResultsRight => "the right to publish results is missing",
            Self::RefusedKeys => "the right to publish refusals is missing",
            Self::RetryExchange => "the exchange of the delay queues is deleted",
            Self::MessageSize => "no message as large as an event is taken",
            Self::Channels => "too few channels are allowed",
        })
    }
}

/// Where a proxy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before the broker.
    Broker,
    /// Before the payment API.
    Provider,
}

/// What a proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Closes every connection.
    Cut,
    /// Closes connections half-way through what passes.
    Halve,
    /// Closes connections just before an acknowledgement: what it acknowledges is done, and comes again.
    AtAck,
    /// Accepts, and stays silent.
    Silence,
    /// Passes everything on late.
    Slowness,
    /// Closes new connections at once.
    Refusal,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { point, nth } => write!(f, "kill an instance {} (nth: {nth})", point.as_str()),
            Self::KillAnywhere { instance, after_ms } => {
                write!(f, "kill instance {instance} after {after_ms} ms")
            }
            Self::Stop { instance } => write!(f, "stop instance {instance}"),
            Self::Restarts { instance } => write!(f, "restart instance {instance} several times"),
            Self::KillBroker { with: None } => f.write_str("kill the broker"),
            Self::KillBroker { with: Some(instance) } => write!(f, "kill the broker and instance {instance}"),
            Self::StopBroker => f.write_str("stop the broker"),
            Self::Alarm => f.write_str("memory alarm"),
            Self::CloseConnections => f.write_str("management closes all connections"),
            Self::Network { at, trouble } => write!(f, "network before the {at}: {trouble}"),
            Self::Standing(fault) => fault.fmt(f),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broker => "broker",
            Self::Provider => "payment API",
        })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cut => "every connection cut",
            Self::Halve => "cut half-way through what passes",
            Self::AtAck => "cut before an acknowledgement",
            Self::Silence => "accepts and stays silent",
            Self::Slowness => "150 ms slower",
            Self::Refusal => "refuses connections",
        })
    }
}

/// Every failpoint once, then everything else in the order of the dice.
pub(crate) fn make(size: Size, dice: &mut Dice) -> Vec<Act> {
    let mut first: Vec<Act> = Failpoint::ALL.into_iter().map(|point| Act::Kill { point, nth: 1 }).collect();
    dice.shuffle(&mut first);

    let troubles = [Trouble::Cut, Trouble::Halve, Trouble::Silence, Trouble::Slowness, Trouble::Refusal];
    let mut others: Vec<Act> = vec![Act::StopBroker, Act::Alarm, Act::CloseConnections];
    others.extend(troubles.map(|trouble| Act::Network { at: Place::Broker, trouble }));
    others.extend(troubles.map(|trouble| Act::Network { at: Place::Provider, trouble }));
    others.push(Act::Network { at: Place::Broker, trouble: Trouble::AtAck });
    others.push(Act::Restarts { instance: dice.below(INSTANCES) });
    others.extend(Standing::ALL.map(Act::Standing));
    dice.shuffle(&mut others);
    // A short run takes every second kind; which ones is the seed's choice.
    let wanted = (size.kills / 2).max(6);
    let mut rest: Vec<Act> = others.iter().copied().cycle().take(wanted).collect();
    let with = |dice: &mut Dice| (dice.below(4) == 0).then(|| dice.below(INSTANCES));
    let broker_kills = (0..size.broker_kills).map(|_| Act::KillBroker { with: with(dice) });
    rest.extend(broker_kills.collect::<Vec<_>>());
    let along = rest.iter().filter(|act| matches!(act, Act::KillBroker { with: Some(_) })).count();
    for _ in 0..size.kills.saturating_sub(first.len() + along) {
        rest.push(kill(dice));
    }
    rest.extend((0..size.kills / 10 + 1).map(|_| Act::Stop { instance: dice.below(INSTANCES) }));
    dice.shuffle(&mut rest);
    first.extend(rest);
    first
}

/// How many commands an act needs to find its occasion.
pub(crate) fn commands_for(act: &Act) -> usize {
    match act {
        Act::Kill { point, nth, .. } if is_rare(*point) => 40 * nth,
        Act::Kill { nth, .. } => 10 + 2 * nth,
        Act::KillAnywhere { .. } | Act::Stop { .. } => 15,
        Act::KillBroker { .. } | Act::StopBroker => 60,
        Act::Restarts { .. } => 40,
        Act::Alarm | Act::CloseConnections | Act::Network { .. } | Act::Standing(_) => 20,
    }
}

fn kill(dice: &mut Dice) -> Act {
    if dice.below(4) == 0 {
        let instance = dice.below(INSTANCES);
        return Act::KillAnywhere { instance, after_ms: dice.below(1500) as u64 };
    }
    let point = dice.pick(&Failpoint::ALL);
    let nth = match point {
        Failpoint::Draining => 1,
        point if is_rare(point) => dice.between(1, 2),
        _ => dice.between(1, 20),
    };
    Act::Kill { point, nth }
}
