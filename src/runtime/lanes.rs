//! The order of work: the commands of one coupon go one at a time.
//!
//! A plain value, owned by the task that receives deliveries. A busy coupon does not delay others: its lane has a limit,
//! and commands beyond it are not held, or they would fill the prefetch.

use std::collections::{HashMap, VecDeque};

/// The order of work.
#[derive(Debug)]
pub struct Lanes<T> {
    busy: HashMap<Box<str>, VecDeque<T>>,
    ready: VecDeque<(Option<Box<str>>, T)>,
    held: usize,
    /// The per-coupon limit.
    per_lane: usize,
}

impl<T> Lanes<T> {
    /// Lanes with at most `per_lane` items each.
    pub fn new(per_lane: usize) -> Self {
        Self { busy: HashMap::new(), ready: VecDeque::new(), held: 0, per_lane }
    }

    /// Whether this lane has reached its limit.
    pub fn is_full(&self, lane: &str) -> bool {
        // The waiting ones and the first, which is ready or in work.
        self.busy.get(lane).is_some_and(|waiting| waiting.len() + 1 >= self.per_lane)
    }

    /// Adds an item. `lane` is the coupon; an item without one does not wait.
    pub fn push(&mut self, lane: Option<&str>, item: T) {
        self.held += 1;
        match lane {
            None => self.ready.push_back((None, item)),
            Some(lane) => match self.busy.get_mut(lane) {
                Some(waiting) => waiting.push_back(item),
                None => {
                    self.busy.insert(lane.into(), VecDeque::new());
                    self.ready.push_back((Some(lane.into()), item));
                }
            },
        }
    }

    /// Counts an item that starts at once, beside its lane: it is held until [`Lanes::finish`].
    pub fn push_unlaned(&mut self) {
        self.held += 1;
    }

    /// The next item and its lane, which [`Lanes::finish`] needs.
    pub fn start(&mut self) -> Option<(Option<Box<str>>, T)> {
        self.ready.pop_front()
    }

    /// Ends the work on an item: the next of its lane is ready.
    pub fn finish(&mut self, lane: Option<Box<str>>) {
        self.held -= 1;
        let Some(lane) = lane else { return };
        match self.busy.get_mut(&lane).and_then(VecDeque::pop_front) {
            Some(item) => self.ready.push_back((Some(lane), item)),
            None => {
                self.busy.remove(&lane);
            }
        }
    }

    /// Removes the waiting items that match, from behind the first of their lanes. They are no longer held.
    pub fn remove_waiting(&mut self, matches: impl Fn(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for queue in self.busy.values_mut().filter(|queue| queue.iter().any(&matches)) {
            let (found, kept) = std::mem::take(queue).into_iter().partition(|item| matches(item));
            *queue = kept;
            removed.extend::<VecDeque<T>>(found);
        }
        self.held -= removed.len();
        removed
    }

    /// Removes everything that is not in work yet.
    pub fn clear(&mut self) -> Vec<T> {
        let mut waiting: Vec<T> = Vec::new();
        for (lane, item) in std::mem::take(&mut self.ready) {
            waiting.push(item);
            // A lane whose first item was only ready has none in work.
            if let Some(lane) = lane {
                waiting.extend(self.busy.remove(&lane).into_iter().flatten());
            }
        }
        for queue in self.busy.values_mut() {
            waiting.extend(queue.drain(..));
        }
        self.held -= waiting.len();
        waiting
    }

    /// How many items are held, in work or not.
    pub fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(items: &[(&str, u32)]) -> Lanes<u32> {
        let mut lanes = Lanes::new(3);
        for (lane, item) in items {
            lanes.push(Some(lane), *item);
        }
        lanes
    }

    #[test]
    fn lane_keeps_its_order_and_delays_no_other() {
        let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3)]);
        let first = lanes.start().unwrap();
        let second = lanes.start().unwrap();
        assert_eq!((first.1, second.1), (1, 3));
        assert!(lanes.start().is_none());
        lanes.finish(first.0);
        assert_eq!(lanes.start().unwrap().1, 2);
        assert_eq!(lanes.held(), 2);
    }

    #[test]
    fn lane_has_room_again_once_an_item_has_left() {
        let mut lanes = lanes(&[("a", 1), ("a", 2)]);
        assert!(!lanes.is_full("a"));
        lanes.push(Some("a"), 3);
        assert!(lanes.is_full("a") && !lanes.is_full("b"));
        let (lane, _) = lanes.start().unwrap();
        assert!(lanes.is_full("a"), "what is worked on counts");
        lanes.finish(lane);
        assert!(!lanes.is_full("a"));
        lanes.push_unlaned();
        assert_eq!(lanes.held(), 3);
        lanes.finish(None);
        assert_eq!(lanes.held(), 2);
    }

    #[test]
    fn clearing_leaves_only_what_is_being_worked_on() {
        let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3), ("b", 4)]);
        lanes.push(None, 5);
        let (lane, _) = lanes.start().unwrap();
        let mut cleared = lanes.clear();
        cleared.sort_unstable();
        assert_eq!(cleared, [2, 3, 4, 5]);
        assert_eq!(lanes.held(), 1);
        lanes.finish(lane);
        assert_eq!((lanes.held(), lanes.busy.len()), (0, 0));
        lanes.push(Some("b"), 6);
        assert_eq!(lanes.start().unwrap().1, 6);
    }
}
