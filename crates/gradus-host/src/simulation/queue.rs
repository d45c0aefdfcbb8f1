//! What is due, in the order of time; what is due at the same time comes in the order in which it was planned.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

struct Entry<T> {
    at: Duration,
    number: u64,
    what: T,
}

impl<T> Entry<T> {
    fn key(&self) -> (Duration, u64) {
        (self.at, self.number)
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// A calendar of things to come.
pub(super) struct Queue<T> {
    entries: BinaryHeap<Reverse<Entry<T>>>,
    planned: u64,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { entries: BinaryHeap::new(), planned: 0 }
    }

    pub(super) fn plan(&mut self, at: Duration, what: T) {
        self.planned += 1;
        self.entries.push(Reverse(Entry { at, number: self.planned, what }));
    }

    /// The next thing, if it is due by `until`.
    pub(super) fn next(&mut self, until: Duration) -> Option<(Duration, T)> {
        if self.entries.peek()?.0.at > until {
            return None;
        }
        self.entries.pop().map(|Reverse(entry)| (entry.at, entry.what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_decides_and_then_the_order_of_planning() {
        let mut queue = Queue::new();
        for (at, what) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b'), (9, 'x')] {
            queue.plan(Duration::from_secs(at), what);
        }
        let due: String =
            std::iter::from_fn(|| queue.next(Duration::from_secs(5))).map(|(_, what)| what).collect();
        assert_eq!(due, "abcd");
    }
}
