//! Virtual time, for shells, and the clocks of simulated nodes, which disagree.

use crate::clock::Clock;
use crate::random::Stream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A clock whose time passes only when somebody sleeps on it or sets it forward; copies show the same time.
#[derive(Debug, Clone, Default)]
pub struct SimulatedClock {
    nanoseconds: Arc<AtomicU64>,
}

impl SimulatedClock {
    /// A clock that shows zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the clock forward to `now`; it never goes back.
    pub fn advance_to(&self, now: Duration) {
        self.nanoseconds.fetch_max(nanoseconds(now), Ordering::SeqCst);
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::SeqCst))
    }

    fn calendar(&self) -> Duration {
        self.now()
    }

    fn sleep(&self, duration: Duration) {
        self.nanoseconds.fetch_add(nanoseconds(duration), Ordering::SeqCst);
    }
}

/// A span as nanoseconds; 584 years are enough for any simulation.
pub(super) fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Parts per million by which a node's clock may run too fast or too slow: 1%, a hundred times what quartz does.
const MOST_DRIFT_PPM: u64 = 10_000;

/// What one process reads from its clock: it starts anywhere and runs at a rate of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalClock {
    offset: u64,
    drift_ppm: i64,
}

impl LocalClock {
    pub(super) fn draw(chance: &mut Stream) -> Self {
        let offset = chance.next_below(1_000_000_000_000);
        let drift_ppm = chance.next_below(2 * MOST_DRIFT_PPM + 1) as i64 - MOST_DRIFT_PPM as i64;
        Self { offset, drift_ppm }
    }

    /// What this clock shows at the true time `now`.
    pub(super) fn local(self, now: Duration) -> Duration {
        let elapsed = i128::from(nanoseconds(now));
        let drifted = elapsed + elapsed * i128::from(self.drift_ppm) / 1_000_000;
        Duration::from_nanos(self.offset + drifted as u64)
    }

    /// A true time at which this clock shows at least `local`, and at most microseconds more.
    pub(super) fn true_time(self, local: Duration) -> Duration {
        let drifted = u128::from(nanoseconds(local).saturating_sub(self.offset));
        let elapsed = drifted * 1_000_000 / (1_000_000 + self.drift_ppm) as u128;
        Duration::from_nanos(elapsed as u64 + 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_is_all_that_makes_time_pass() {
        let clock = SimulatedClock::new();
        let copy = clock.clone();
        copy.sleep(Duration::from_secs(3600));
        clock.advance_to(Duration::from_secs(1));
        assert_eq!((clock.now(), copy.calendar()), (Duration::from_secs(3600), Duration::from_secs(3600)));
    }

    #[test]
    fn a_deadline_of_a_local_clock_has_come_at_its_true_time() {
        let mut chance = Stream::new(1, 1);
        for _ in 0..1000 {
            let clock = LocalClock::draw(&mut chance);
            let local = clock.local(Duration::from_nanos(chance.next_below(1 << 40)));
            let reached = clock.local(clock.true_time(local));
            assert!(reached >= local && reached - local < Duration::from_micros(3), "{clock:?}");
        }
    }
}
