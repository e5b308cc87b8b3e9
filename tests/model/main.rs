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
use std::fs;
use std::path::Path;

use search::{Figures, search};
use state::{Cause, Exception, Violation};
use words::Language;
use world::World;

/// What was found in one world.
struct Found {
    name: &'static str,
    figures: Figures,
    violations: Vec<(Violation, String)>,
    exceptions: BTreeMap<(Exception, Vec<Cause>), Shortest>,
    covered: Vec<[&'static str; 4]>,
}

/// A shortest path to an exception.
#[derive(Debug, Clone)]
struct Shortest {
    actions: usize,
    /// As a sequence diagram, in English and in Chinese.
    diagrams: (String, String),
}

/// More than any world within the bounds of `make test` has.
const STATES_MAX: usize = 20_000_000;

fn explore(world: &World) -> Found {
    let mut violations = BTreeMap::new();
    let mut exceptions = BTreeMap::new();
    let reached = search(world, STATES_MAX, |met| {
        for violation in &met.next.violations {
            violations.entry(*violation).or_insert((met.node, met.action));
        }
        for exception in &met.next.exceptions {
            exceptions.entry((*exception, met.next.causes.to_list())).or_insert((met.node, met.action));
        }
        met.next.violations.is_empty()
    });
    let violations = violations.into_iter().map(|(violation, (node, last))| {
        let (first, actions) = reached.path(node, last);
        (violation, format!("{:?}\n{}", actions, report::diagram(world, first, &actions, Language::English)))
    });
    let exceptions = exceptions.into_iter().map(|(key, (node, last))| {
        let (first, actions) = reached.path(node, last);
        let diagram = |language| report::diagram(world, first, &actions, language);
        let diagrams = (diagram(Language::English), diagram(Language::Chinese));
        (key, Shortest { actions: actions.len(), diagrams })
    });
    Found {
        name: world.name,
        figures: reached.figures,
        violations: violations.collect(),
        exceptions: exceptions.collect(),
        covered: world.covered(),
    }
}

/// Every world, in the order in which they stand.
fn explore_all(more: u8) -> Vec<Found> {
    let explore = |world: World| {
        let found = explore(&world);
        println!("{:40} {}", found.name, report::in_words(&found.figures));
        found
    };
    worlds::all(more).into_iter().map(explore).collect()
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

/// Each property is broken by a patch in `tests/mutations`, which is caught only if this test names the property.
#[test]
fn every_property_is_broken_by_a_patch() {
    let patches = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutations");
    let files = fs::read_dir(patches).unwrap().map(|file| file.unwrap().path());
    let patches = files.filter(|file| file.extension().is_some_and(|end| end == "patch"));
    let shown: BTreeSet<String> = patches
        .filter_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            text.lines().find_map(|line| line.strip_prefix("Shows: ")).map(str::to_owned)
        })
        .collect();
    for property in Violation::ALL {
        assert!(shown.contains(&format!("{property:?}")), "{property:?} is broken by no patch");
    }
    // Of several outcomes, those that something else excuses are listed in the documents.
    assert!(shown.contains(&format!("{:?}", Exception::RefusedThenRedeemed)));
}
