//! How far ahead to read: as deep as latency times rate asks, within a budget.
//!
//! What: the bytes that should be under way or waiting, so that a reader finds its sample there. How: Little's law
//! ("A proof for the queuing formula L = λW", Operations Research 9(3), 1961) over the latency that fetches were measured
//! to have, and the rate at which readers take bytes *while they do not wait*: a reader that waits is slowed by us, and a
//! rate that counted its waiting would find that little is needed because little is given. A stall doubles what is asked
//! for, until reading has gone well for long.
//!
//! Invariant: a pure machine: the same events give the same depth, and it is never beyond the budget.

use std::time::Duration;

/// Fetches vary: the depth covers twice the latency that was seen.
const SLACK: f64 = 2.0;

/// What is left of a peak of latency with each fetch that stays below it: a half after seventy fetches.
const FADING: f64 = 0.99;

/// The part of the rate that a new measurement takes.
const SMOOTHING: f64 = 0.2;

/// Bytes that readers take, at least, between two measurements of their rate.
const MEASURED_BYTES: u64 = 4 << 20;

/// How much more than the law's a stall may come to ask for.
const LARGEST_BOOST: f64 = 16.0;

/// Decides how many bytes to read ahead.
#[derive(Debug, Clone)]
pub(crate) struct Depth {
    first: u64,
    most: u64,
    latency_s: f64,
    /// Bytes a second of readers that do not wait; 0 while nothing is known.
    rate: f64,
    boost: f64,
    taken: u64,
    busy_s: f64,
}

impl Depth {
    /// Asks for `first` bytes until it knows better, and for `most` at most.
    pub fn new(first: u64, most: u64) -> Self {
        Self { first: first.min(most), most, latency_s: 0.0, rate: 0.0, boost: 1.0, taken: 0, busy_s: 0.0 }
    }

    /// A fetch came back after `latency`.
    pub fn fetched(&mut self, latency: Duration) {
        self.latency_s = latency.as_secs_f64().max(self.latency_s * FADING);
    }

    /// Readers took `bytes`, `busy` after the last ones, of which they did not wait.
    pub fn taken(&mut self, bytes: u64, busy: Duration) {
        self.taken += bytes;
        self.busy_s += busy.as_secs_f64();
        if self.taken < MEASURED_BYTES || self.busy_s <= 0.0 {
            return;
        }
        let measured = self.taken as f64 / self.busy_s;
        let known = self.rate > 0.0;
        self.rate = if known { self.rate + SMOOTHING * (measured - self.rate) } else { measured };
        self.boost = (self.boost * FADING).max(1.0);
        (self.taken, self.busy_s) = (0, 0.0);
    }

    /// A reader had to wait for a fetch.
    pub fn stalled(&mut self) {
        self.boost = (self.boost * 2.0).min(LARGEST_BOOST);
    }

    /// Bytes that it ever asks for, at most.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Bytes that should be under way or waiting.
    pub fn bytes(&self) -> u64 {
        let law = SLACK * self.latency_s * self.rate;
        // Conversion saturates, and a rate that nothing is known of is 0.
        ((law * self.boost) as u64).max(self.first).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn reading(depth: &mut Depth, bytes_per_s: f64, latency_ms: u64) {
        for _ in 0..200 {
            depth.fetched(Duration::from_millis(latency_ms));
            depth.taken(MIB, Duration::from_secs_f64(MIB as f64 / bytes_per_s));
        }
    }

    #[test]
    fn it_is_twice_latency_times_rate() {
        let mut depth = Depth::new(MIB, 1 << 40);
        assert_eq!(depth.bytes(), MIB);
        reading(&mut depth, 500e6, 50);
        let asked = 2.0 * 0.05 * 500e6;
        assert!((depth.bytes() as f64 / asked - 1.0).abs() < 0.01, "{} of {asked}", depth.bytes());
    }

    #[test]
    fn it_follows_a_latency_that_grows_at_once_and_one_that_falls_slowly() {
        let mut depth = Depth::new(MIB, 1 << 40);
        reading(&mut depth, 100e6, 10);
        let before = depth.bytes();
        depth.fetched(Duration::from_millis(200));
        assert!(depth.bytes() > 15 * before);
        depth.fetched(Duration::from_millis(10));
        assert!(depth.bytes() > 15 * before);
        reading(&mut depth, 100e6, 10);
        reading(&mut depth, 100e6, 10);
        assert!(depth.bytes() < before * 11 / 10);
    }

    #[test]
    fn a_stall_asks_for_more_and_time_for_less_again() {
        let mut depth = Depth::new(MIB, 1 << 40);
        reading(&mut depth, 100e6, 100);
        let before = depth.bytes();
        depth.stalled();
        assert_eq!(depth.bytes() / before, 2);
        for _ in 0..10 {
            reading(&mut depth, 100e6, 100);
        }
        assert!(depth.bytes() < before * 11 / 10);
    }

    proptest! {
        #[test]
        fn it_is_never_beyond_the_budget(
            first in 1u64..1 << 40, most in 1u64..1 << 40, events in prop::collection::vec((0u8..3, any::<u64>()), 0..200),
        ) {
            let mut depth = Depth::new(first, most);
            for (kind, value) in events {
                match kind {
                    0 => depth.fetched(Duration::from_nanos(value)),
                    1 => depth.taken(value >> 20, Duration::from_nanos(value)),
                    _ => depth.stalled(),
                }
                prop_assert!(depth.bytes() <= most && depth.bytes() >= first.min(most));
            }
        }
    }
}
