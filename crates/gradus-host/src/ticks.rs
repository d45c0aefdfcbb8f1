//! A counter that is read in some nanoseconds, where a clock takes some tens: for what happens a million times a second.
//!
//! On x86-64 it is the time stamp counter, elsewhere the system's clock. A [`TickScale`] turns ticks into time, by what the
//! clock said at its beginning and says when it is asked for its rate.

use crate::clock::Clock;
use std::time::Duration;

/// A reading of the counter, or the difference of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticks(u64);

impl Ticks {
    /// No time at all.
    pub const NONE: Self = Self(0);

    /// Reads the counter.
    #[inline]
    pub fn now() -> Self {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has the instruction, and user programs may use it on Linux unless they have
        // asked not to (PR_SET_TSC).
        let ticks = unsafe { core::arch::x86_64::_rdtsc() };
        #[cfg(not(target_arch = "x86_64"))]
        let ticks = elsewhere();
        Self(ticks)
    }

    /// What has passed since an earlier reading; nothing if the counter went back.
    #[inline]
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::AddAssign for Ticks {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.saturating_add(other.0);
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[allow(clippy::disallowed_methods, reason = "the room in which real time is at home")]
fn elsewhere() -> u64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed().as_nanos() as u64
}

/// What ticks are in the time of a clock.
#[derive(Debug, Clone, Copy)]
pub struct TickScale {
    ticks: Ticks,
    time: Duration,
}

impl TickScale {
    /// A scale that begins now.
    pub fn new(clock: &dyn Clock) -> Self {
        Self { ticks: Ticks::now(), time: clock.now() }
    }

    /// The rate since this scale began: one for all readings that are to be compared.
    pub fn rate(&self, clock: &dyn Clock) -> TickRate {
        let (passed, time) = (Ticks::now().since(self.ticks), clock.now().saturating_sub(self.time));
        TickRate { scale: *self, seconds_per_tick: time.as_secs_f64() / passed.0.max(1) as f64 }
    }
}

/// Ticks as time.
#[derive(Debug, Clone, Copy)]
pub struct TickRate {
    scale: TickScale,
    seconds_per_tick: f64,
}

impl TickRate {
    /// How long some ticks took.
    pub fn duration(&self, ticks: Ticks) -> Duration {
        Duration::try_from_secs_f64(ticks.0 as f64 * self.seconds_per_tick).unwrap_or(Duration::MAX)
    }

    /// When a reading was taken, by the clock.
    pub fn moment(&self, reading: Ticks) -> Duration {
        self.scale.time.saturating_add(self.duration(reading.since(self.scale.ticks)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RealClock;

    #[test]
    fn readings_stand_in_the_order_of_the_clock() {
        let clock = RealClock::new();
        let scale = TickScale::new(&clock);
        let before = clock.now();
        let reading = Ticks::now();
        let after = clock.now();
        // Rates are known to a thousandth after this long.
        while clock.now() - after < Duration::from_millis(20) {}
        let rate = scale.rate(&clock);
        let moment = rate.moment(reading);
        let slack = Duration::from_millis(20);
        assert!(moment + slack >= before && moment <= after + slack, "{before:?} {moment:?} {after:?}");
        assert_eq!(rate.duration(Ticks::NONE), Duration::ZERO);
        assert_eq!(Ticks::NONE.since(reading), Ticks::NONE);
    }
}
