//! A coordinator's time.
//!
//! A coordinator that was stopped (with its run, by Ctrl-Z or a batch system) heard nobody meanwhile and has nobody to
//! blame for it. Time in which it was not there does not count: its clock runs behind the real one from then on. That
//! is safe, for whoever waits longer than a lease waits long enough.

use gradus_host::{Clock, RealClock};
use std::time::Duration;

/// Time since it was made, less the time in which this process did not run while it waited.
pub(super) struct AttentiveClock<C = RealClock> {
    clock: C,
    /// A process that is merely slow to wake was there.
    tolerance: Duration,
    /// The real time at which it looked last.
    looked: Duration,
    absent: Duration,
}

impl AttentiveClock {
    /// One that counts waits as absence that take longer by `tolerance` than was asked for.
    pub(super) fn new(tolerance: Duration) -> Self {
        Self::over(RealClock::new(), tolerance)
    }
}

impl<C: Clock> AttentiveClock<C> {
    fn over(clock: C, tolerance: Duration) -> Self {
        let looked = clock.now();
        Self { clock, tolerance, looked, absent: Duration::ZERO }
    }

    /// The time that counts.
    pub(super) fn now(&self) -> Duration {
        self.clock.now().saturating_sub(self.absent)
    }

    /// A wait of `limit` at most is over: what it took beyond that was absence.
    pub(super) fn has_waited(&mut self, limit: Duration) {
        let now = self.clock.now();
        let beyond = (now - self.looked).saturating_sub(limit);
        self.looked = now;
        if beyond > self.tolerance {
            self.absent += beyond;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    /// Seconds that a test sets.
    struct Hand(AtomicU64);

    impl Clock for &Hand {
        fn now(&self) -> Duration {
            Duration::from_secs(self.0.load(Relaxed))
        }

        fn calendar(&self) -> Duration {
            self.now()
        }

        fn sleep(&self, _: Duration) {}
    }

    #[test]
    fn time_in_which_it_was_stopped_does_not_count() {
        let hand = Hand(AtomicU64::new(100));
        let mut clock = AttentiveClock::over(&hand, Duration::from_secs(2));
        let mut wait = |limit: u64, until: u64| {
            hand.0.store(until, Relaxed);
            clock.has_waited(Duration::from_secs(limit));
            clock.now().as_secs()
        };
        assert_eq!(wait(10, 110), 110);
        assert_eq!(wait(10, 113), 113, "news came early");
        assert_eq!(wait(10, 125), 125, "it was slow to wake");
        assert_eq!(wait(10, 1135), 135, "it was stopped for a thousand seconds");
        assert_eq!(wait(10, 1145), 145);
    }
}
