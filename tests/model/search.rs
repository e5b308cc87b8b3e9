//! A breadth-first search over every state of a small world. What is found first is found on a shortest path.
//!
//! States are known by 64 bits of a hash: with five million of them a pair is taken for one with a chance of one in a
//! million, and then a state is left out, never made up. A state that was reached with fewer excuses is not looked at again
//! with more: whatever follows, it follows with fewer, too.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::thread;
use std::time::{Duration, Instant};

const THREADS: usize = 2;
/// The number of states that are followed before their successors are kept: the rest of these takes memory only that long.
const AT_ONCE: usize = 2_048;

/// Something with states, in which one thing happens after the other.
pub(crate) trait Model: Sync {
    type State: Send + Sync;
    type Action: Copy + fmt::Debug + Send;

    fn first_states(&self) -> Vec<Self::State>;
    /// Everything that can happen next. Nothing means that it has come to rest.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;
    fn next(&self, state: &Self::State, action: Self::Action) -> Self::State;
    /// The same for states that go on in the same way, whatever excuses them.
    fn fingerprint(&self, state: &Self::State) -> u64;
    /// Every selection of what excuses a state, the whole of it first.
    fn excuses(&self, state: &Self::State) -> impl Iterator<Item = u8>;
}

/// Where a state was reached from.
struct Node<A> {
    parent: u32,
    action: Option<A>,
}

/// Every state that was reached, as far as a path to it needs that.
pub(crate) struct Reached<A> {
    nodes: Vec<Node<A>>,
    pub figures: Figures,
}

/// What a search came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    pub states: usize,
    pub transitions: usize,
    /// Actions on the longest of the shortest paths.
    pub depth: usize,
    pub took: Duration,
    /// Whether every state was reached, rather than as many as were allowed.
    pub whole: bool,
}

/// What followed from a state.
pub(crate) struct Met<'a, S, A> {
    pub node: u32,
    pub action: A,
    pub next: &'a S,
}

/// A hash is spread already.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

pub(crate) fn fingerprint(part: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    part.hash(&mut hasher);
    hasher.finish()
}

/// One fingerprint of two, in this order.
pub(crate) fn mix(one: u64, other: u64) -> u64 {
    let folded = |left: u64, right: u64| {
        let product = u128::from(left) * u128::from(right);
        (product >> 64) as u64 ^ product as u64
    };
    folded(one ^ 0x9e37_79b9_7f4a_7c15, folded(other ^ 0xd1b5_4a32_d192_ed03, 0xa076_1d64_78bd_642f) | 1)
}

/// The states that were met.
#[derive(Default)]
struct Known(HashSet<u64, BuildHasherDefault<Spread>>);

impl Known {
    /// Whether a state is met for the first time, and was not met with fewer excuses either.
    fn insert<M: Model>(&mut self, model: &M, state: &M::State, fingerprint: u64) -> bool {
        let mut keys = model.excuses(state).map(|excuses| mix(fingerprint, u64::from(excuses)));
        let Some(whole) = keys.next() else { return false };
        !keys.any(|fewer| self.0.contains(&fewer)) && self.0.insert(whole)
    }
}

/// Visits everything that follows from every state, from those first that take fewer actions, and no more than `states_max`.
/// Once `visit` says no, nothing is looked at that takes more actions.
pub(crate) fn search<M: Model>(
    model: &M,
    states_max: usize,
    mut visit: impl FnMut(&Met<'_, M::State, M::Action>) -> bool,
) -> Reached<M::Action> {
    let began = Instant::now();
    let (mut known, mut nodes, mut level) = (Known::default(), Vec::new(), Vec::new());
    for state in model.first_states() {
        if known.insert(model, &state, model.fingerprint(&state)) {
            let node = nodes.len() as u32;
            nodes.push(Node { parent: node, action: None });
            level.push((node, state));
        }
    }
    let mut figures = Figures { whole: true, ..Figures::default() };
    while !level.is_empty() {
        let mut further = Vec::new();
        for some in level.chunks(AT_ONCE) {
            // The order is that of one thread.
            for (node, action, next, fingerprint) in follow(model, some) {
                figures.transitions += 1;
                figures.whole &= visit(&Met { node, action, next: &next }) && nodes.len() < states_max;
                if known.insert(model, &next, fingerprint) {
                    further.push((nodes.len() as u32, next));
                    nodes.push(Node { parent: node, action: Some(action) });
                }
            }
        }
        figures.depth += usize::from(!further.is_empty());
        level = if figures.whole { further } else { Vec::new() };
    }
    (figures.states, figures.took) = (nodes.len(), began.elapsed());
    Reached { nodes, figures }
}

/// A state that followed from that of a node, with its fingerprint.
type Next<M> = (u32, <M as Model>::Action, <M as Model>::State, u64);

/// Everything that follows from these states, found by a few threads.
fn follow<M: Model>(model: &M, states: &[(u32, M::State)]) -> Vec<Next<M>> {
    let follow_some = |states: &[(u32, M::State)]| {
        let mut all = Vec::new();
        for (node, state) in states {
            for action in model.actions(state) {
                let next = model.next(state, action);
                let fingerprint = model.fingerprint(&next);
                all.push((*node, action, next, fingerprint));
            }
        }
        all
    };
    if states.len() < THREADS * 8 {
        return follow_some(states);
    }
    thread::scope(|scope| {
        let parts = states.chunks(states.len().div_ceil(THREADS));
        let found: Vec<_> = parts.map(|part| scope.spawn(|| follow_some(part))).collect();
        found.into_iter().flat_map(|found| found.join().expect("a thread panicked")).collect()
    })
}

impl<A: Copy + fmt::Debug> Reached<A> {
    /// What happened on the way to a state and then, and the first state of that way by its place.
    pub(crate) fn path(&self, node: u32, last: A) -> (usize, Vec<A>) {
        let (mut at, mut actions) = (node, vec![last]);
        while let Some(Node { parent, action: Some(action) }) = self.nodes.get(at as usize) {
            actions.push(*action);
            at = *parent;
        }
        actions.reverse();
        (at as usize, actions)
    }
}
