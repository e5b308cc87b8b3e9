//! The attempt machine, checked over every order of events in small worlds.
//!
//! The service's own functions run unchanged: [`redeemer::policy::classify::judge`], all of [`redeemer::policy::attempt::Progress`], what
//! retry messages carry ([`redeemer::wire::retry_message`]), the ids of events. What surrounds them is a model: the provider
//! ([`provider`]), the broker, the network and the instances ([`world`]). Time goes by seconds, and the waits are short.
//! What the model does not have: times within a second, more than one coupon and number, signatures and the clock.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]
#![allow(clippy::print_stdout, reason = "figures and paths, for who runs it")]

mod lanes;
mod provider;
#[path = "../support/record.rs"]
mod record;
mod report;
mod search;
mod state;
mod words;
mod world;
mod worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::thread;

use search::{Figures, search};
use state::{Cause, Exception, Violation};
use words::Language;

/// What was found in one world.
struct Found {
    name: &'static str,
    figures: Figures,
    violations: Vec<(Violation, String)>,
    exceptions: BTreeMap<(Exception, Vec<Cause>), Path>,
    covered: BTreeSet<[&'static str; 4]>,
}

/// A shortest path to an exception.
#[derive(Debug, Clone)]
struct Path {
    actions: usize,
    /// As a sequence diagram, in English and in Chinese.
    diagrams: (String, String),
}

/// More than any world within the bounds of `make test` has.
const STATES_MAX: usize = 20_000_000;

fn explore(world: &world::World) -> Found {
    let mut violations = BTreeMap::new();
    let mut exceptions = BTreeMap::new();
    let reached = search(world, STATES_MAX, |met| {
        for violation in &met.state.violations {
            violations.entry(*violation).or_insert(met.node);
        }
        for exception in &met.state.exceptions {
            let causes = met.state.causes.iter().copied().collect::<Vec<_>>();
            exceptions.entry((*exception, causes)).or_insert(met.node);
        }
    });
    let violations = violations.into_iter().map(|(violation, node)| {
        let (first, actions) = reached.path(node);
        (violation, format!("{:?}\n{}", actions, report::diagram(world, first, &actions, Language::English)))
    });
    let exceptions = exceptions.into_iter().map(|(key, node)| {
        let (first, actions) = reached.path(node);
        let diagram = |language| report::diagram(world, first, &actions, language);
        let diagrams = (diagram(Language::English), diagram(Language::Chinese));
        (key, Path { actions: actions.len(), diagrams })
    });
    Found {
        name: world.name,
        figures: reached.figures,
        violations: violations.collect(),
        exceptions: exceptions.collect(),
        covered: world.covered.borrow().clone(),
    }
}

/// Every world, two at a time, in the order in which they stand.
fn explore_all(more: u8) -> Vec<Found> {
    let count = worlds::all(more).len();
    let next = Mutex::new(0..count);
    let found = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(nth) = { next.lock().unwrap().next() } {
                    let explored = explore(&worlds::all(more)[nth]);
                    println!("{:40} {}", explored.name, report::in_words(&explored.figures));
                    found.lock().unwrap().push((nth, explored));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|(nth, _)| *nth);
    found.into_iter().map(|(_, found)| found).collect()
}

fn bounds() -> u8 {
    std::env::var("MODEL_MORE").map_or(0, |more| more.parse().expect("MODEL_MORE is a small number"))
}

/// Every promise holds in every order of events, but for the exceptions that the documents show.
#[test]
fn promises_hold_in_every_order_of_events() {
    let more = bounds();
    let found = explore_all(more);
    for Found { name, violations, .. } in &found {
        for (violation, path) in violations {
            println!("{name}: {violation:?}\n{path}");
        }
    }
    let broken: Vec<_> =
        found.iter().flat_map(|found| found.violations.iter().map(|(what, _)| (found.name, *what))).collect();
    assert_eq!(broken, [], "the shortest path to each is above");
    assert!(found.iter().all(|found| found.figures.whole), "more states than are looked at");
    assert_eq!(
        report::joint(&found),
        [],
        "exceptions that take several causes at once are not in the documents"
    );
    if more > 0 {
        let beyond = report::beyond(&found, &explore_all(0));
        assert_eq!(beyond, [], "exceptions that the bounds of `make test` do not show, nor the documents");
        record::row("model", &report::row(&found, more));
    } else {
        report::check_coverage(&found);
        report::check_pages(&found);
    }
}
