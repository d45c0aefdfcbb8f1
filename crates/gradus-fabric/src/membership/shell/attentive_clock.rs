//! A coordinator's time.
//!
//! A coordinator that was stopped (with its run, by Ctrl-Z or a batch system), or that stood at a disk that took its time,
//! heard nobody meanwhile and has nobody to blame for it. Time in which it was not there does not count: its clock runs behind the real one from then on. That
//! is safe, for whoever waits longer than a lease waits long enough.

use super::hall::LONGEST_WAIT;
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

impl<C: Clock> AttentiveClock<C> {
    /// The time of `clock`; what takes longer by `tolerance` than was waited for counts as absence.
    pub(super) fn new(clock: C, tolerance: Duration) -> Self {
        let looked = clock.now();
        Self { clock, tolerance, looked, absent: Duration::ZERO }
    }

    /// The time that counts.
    pub(super) fn now(&self) -> Duration {
        self.clock.now().saturating_sub(self.absent)
    }

    /// When it will be a moment of the time that counts, by the real clock.
    pub(super) fn to_real(&self, moment: Duration) -> Duration {
        moment.saturating_add(self.absent)
    }

    /// A wait until `deadline`, by the real clock, and for [`LONGEST_WAIT`] at most, is over: what it took beyond that was
    /// absence.
    pub(super) fn has_waited_for(&mut self, deadline: Duration) {
        let now = self.clock.now();
        let expected = deadline.clamp(self.looked, self.looked + LONGEST_WAIT);
        let beyond = now.saturating_sub(expected);
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
        let mut clock = AttentiveClock::new(&hand, Duration::from_secs(2));
        let mut wait = |deadline: u64, until: u64| {
            hand.0.store(until, Relaxed);
            clock.has_waited_for(Duration::from_secs(deadline));
            clock.now().as_secs()
        };
        assert_eq!(wait(110, 110), 110);
        assert_eq!(wait(120, 113), 113, "news came early");
        assert_eq!(wait(123, 125), 125, "it was slow to wake");
        assert_eq!(wait(135, 1135), 135, "it was stopped for a thousand seconds");
        assert_eq!(wait(1145, 1145), 145);
        assert_eq!(wait(0, 1146), 146, "there was no time to wait");
        assert_eq!(wait(u64::MAX, 1306), 206, "nobody waits for longer than a minute");
        assert_eq!(clock.to_real(Duration::from_secs(300)).as_secs(), 1400);
    }
}
