//! A breadth-first search over every state of a small world. What is found first is found on a shortest path.
//!
//! States are known by 64 bits of a hash: with five million of them a pair is taken for one with a chance of one in a
//! million, and then a state is left out, never made up.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

/// Something with states, in which one thing happens after the other.
pub(crate) trait Model {
    type State: Clone + Hash;
    type Action: Copy + fmt::Debug;

    fn first_states(&self) -> Vec<Self::State>;
    /// Everything that can happen next. Nothing means that it has come to rest.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;
    fn next(&self, state: &Self::State, action: Self::Action) -> Self::State;
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

/// A state as the search met it.
pub(crate) struct Met<'a, S> {
    pub node: u32,
    pub state: &'a S,
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

fn fingerprint(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Visits every state, those that take fewer actions first, and no more than `states_max`.
pub(crate) fn search<M: Model>(
    model: &M,
    states_max: usize,
    mut visit: impl FnMut(&Met<'_, M::State>),
) -> Reached<M::Action> {
    let began = Instant::now();
    let mut known: HashMap<u64, (), BuildHasherDefault<Spread>> = HashMap::default();
    let mut nodes = Vec::new();
    let mut level = Vec::new();
    for state in model.first_states() {
        if known.insert(fingerprint(&state), ()).is_none() {
            let node = nodes.len() as u32;
            nodes.push(Node { parent: node, action: None });
            level.push((node, state));
        }
    }
    let mut figures = Figures { whole: true, ..Figures::default() };
    while !level.is_empty() {
        let mut further = Vec::new();
        for (node, state) in level {
            let actions = model.actions(&state);
            visit(&Met { node, state: &state });
            if nodes.len() >= states_max {
                figures.whole = false;
                continue;
            }
            for action in actions {
                figures.transitions += 1;
                let next = model.next(&state, action);
                if let Entry::Vacant(place) = known.entry(fingerprint(&next)) {
                    place.insert(());
                    further.push((nodes.len() as u32, next));
                    nodes.push(Node { parent: node, action: Some(action) });
                }
            }
        }
        figures.depth += usize::from(!further.is_empty());
        level = further;
    }
    (figures.states, figures.took) = (nodes.len(), began.elapsed());
    Reached { nodes, figures }
}

impl<A: Copy + fmt::Debug> Reached<A> {
    /// What happened on the way to a state, and the first state of that way by its place.
    pub(crate) fn path(&self, node: u32) -> (usize, Vec<A>) {
        let (mut at, mut actions) = (node, Vec::new());
        while let Some(Node { parent, action: Some(action) }) = self.nodes.get(at as usize) {
            actions.push(*action);
            at = *parent;
        }
        actions.reverse();
        (at as usize, actions)
    }
}
