//! The lanes, through every order of arrivals, beginnings and ends up to a length, against a plain list.

use std::collections::BTreeSet;

use redeemer::runtime::lanes::Lanes;

/// What may be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// An item of this lane arrives; 0 is no lane.
    Arrive(usize),
    Begin,
    /// The nth of those that are worked on is done.
    Leave(usize),
    /// Every second item is past its deadline, and waits for its lane no longer.
    EndLate,
    Clear,
}

const LANES: [Option<&str>; 3] = [None, Some("a"), Some("b")];
/// The most items of one lane.
const LONGEST: usize = 3;
const ACTS_MAX: usize = 7;

/// A list of what arrived and has not left: which lane, and whether it is worked on.
#[derive(Debug, Default, Clone)]
struct Held(Vec<(usize, u32, bool)>);

impl Held {
    fn of(&self, lane: usize) -> impl Iterator<Item = &(usize, u32, bool)> {
        self.0.iter().filter(move |(of, ..)| *of == lane)
    }

    /// What may begin: whatever has no lane, and the first of each lane of which nothing is worked on.
    fn may_begin(&self) -> BTreeSet<u32> {
        let free = self.of(0).filter(|(.., at_work)| !at_work).map(|(_, item, _)| *item);
        let first = (1..LANES.len()).filter_map(|lane| self.of(lane).next().filter(|(.., at_work)| !at_work));
        free.chain(first.map(|(_, item, _)| *item)).collect()
    }

    fn acts(&self) -> Vec<Act> {
        let at_work = self.0.iter().filter(|(.., at_work)| *at_work).count();
        let mut acts: Vec<_> = (0..LANES.len()).map(Act::Arrive).collect();
        acts.extend([Act::Begin, Act::Clear]);
        let waits = (1..LANES.len()).any(|lane| self.of(lane).count() > 1);
        acts.extend(waits.then_some(Act::EndLate));
        acts.extend((0..at_work).map(Act::Leave));
        acts
    }
}

/// Does all of `acts`, and holds the lanes against the list after each.
fn perform(acts: &[Act]) -> Held {
    let (mut lanes, mut held, mut at_work) = (Lanes::new(LONGEST), Held::default(), Vec::new());
    for (nth, act) in acts.iter().enumerate() {
        let item = nth as u32;
        match *act {
            Act::Arrive(lane) => {
                lanes.push(LANES[lane], item);
                held.0.push((lane, item, false));
            }
            Act::Begin => match lanes.start() {
                None => assert_eq!(held.may_begin(), BTreeSet::new(), "stuck: {acts:?}"),
                Some((lane, item)) => {
                    assert!(held.may_begin().contains(&item), "out of turn: {acts:?}");
                    let begun = held.0.iter_mut().find(|(_, of, _)| *of == item).unwrap();
                    assert_eq!(LANES[begun.0], lane.as_deref());
                    begun.2 = true;
                    at_work.push((lane, item));
                }
            },
            Act::Leave(nth) => {
                let (lane, item) = at_work.remove(nth);
                lanes.finish(lane);
                held.0.retain(|(_, of, _)| *of != item);
            }
            Act::EndLate => {
                let is_late = |item: &u32| item.is_multiple_of(2);
                let removed: BTreeSet<u32> = lanes.remove_waiting(is_late).into_iter().collect();
                // The first of a lane may begin, or has begun.
                let behind =
                    (1..LANES.len()).flat_map(|lane| held.of(lane).skip(1)).map(|(_, item, _)| *item);
                assert_eq!(removed, behind.filter(is_late).collect(), "{acts:?}");
                held.0.retain(|(_, item, _)| !removed.contains(item));
            }
            Act::Clear => {
                let cleared: BTreeSet<u32> = lanes.clear().into_iter().collect();
                let waiting = held.0.iter().filter(|(.., at_work)| !at_work).map(|(_, item, _)| *item);
                assert_eq!(cleared, waiting.collect(), "{acts:?}");
                held.0.retain(|(.., at_work)| *at_work);
            }
        }
        assert_eq!(lanes.held(), held.0.len(), "{acts:?}");
        for (number, lane) in LANES.iter().enumerate().skip(1) {
            let full = held.of(number).count() >= LONGEST;
            assert_eq!(lanes.is_full(lane.unwrap()), full, "{lane:?} {acts:?}");
        }
    }
    held
}

/// No command is stuck, none overtakes in its lane, and two of one lane are never worked on at once.
#[test]
fn lanes_keep_their_order_whatever_comes() {
    let (mut open, mut count) = (vec![Vec::new()], 0);
    while let Some(acts) = open.pop() {
        let held = perform(&acts);
        count += 1;
        if acts.len() < ACTS_MAX {
            open.extend(held.acts().into_iter().map(|act| {
                let mut further = acts.clone();
                further.push(act);
                further
            }));
        }
    }
    println!("lanes: {count} orders of up to {ACTS_MAX}");
    assert!(count > 50_000);
}
