//! When a failed request is sent again: a pure machine, told the time and a draw.
//!
//! Pauses double from the first one to a bound, each drawn from its upper half, so that clients which failed together do
//! not come back together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: equal jitter). A
//! request has a budget of sendings and of time. Invariant: whatever fails, an operation ends within its budget.

use std::time::Duration;

/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// What an operation may spend on failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Most sendings, the first included.
    pub(super) attempts: u32,
    /// Longest time from the first sending to the last.
    pub(super) total: Duration,
    /// The pause after the first failure.
    pub(super) pause: Duration,
}

/// The failures of one operation.
#[derive(Debug, Clone)]
pub(super) struct Retry {
    budget: Budget,
    started: Duration,
    failures: u32,
}

impl Retry {
    /// An operation that begins at `now`.
    pub(super) fn new(budget: Budget, now: Duration) -> Self {
        Self { budget, started: now, failures: 0 }
    }

    /// The pause after another failure, by a draw from 0 to 1; `None` when the budget is spent.
    pub(super) fn failed(&mut self, now: Duration, draw: f64) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.budget.attempts {
            return None;
        }
        let doublings = (self.failures - 1).min(16);
        let pause = self.budget.pause.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
        let pause = pause.mul_f64(0.5 + draw.clamp(0.0, 1.0) / 2.0);
        let ends = now.saturating_sub(self.started).saturating_add(pause);
        (ends <= self.budget.total).then_some(pause)
    }

    /// Time that was not the operation's own.
    pub(super) fn leave_out(&mut self, waited: Duration) {
        self.started = self.started.saturating_add(waited);
    }

    /// Failures so far.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Time since the beginning, without what was left out.
    pub(super) fn elapsed(&self, now: Duration) -> Duration {
        now.saturating_sub(self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUDGET: Budget =
        Budget { attempts: 5, total: Duration::from_secs(60), pause: Duration::from_millis(100) };

    #[test]
    fn pauses_double_within_their_halves() {
        let mut retry = Retry::new(BUDGET, Duration::ZERO);
        for (least, draw) in [(50, 0.0), (200, 1.0), (200, 0.0), (800, 1.0)] {
            assert_eq!(retry.failed(Duration::ZERO, draw), Some(Duration::from_millis(least)));
        }
        assert_eq!(retry.failed(Duration::ZERO, 0.5), None, "five sendings are all");
    }

    #[test]
    fn time_in_a_queue_is_not_counted() {
        let mut retry = Retry::new(BUDGET, Duration::ZERO);
        retry.leave_out(Duration::from_secs(500));
        assert!(retry.failed(Duration::from_secs(559), 0.5).is_some());
        assert_eq!(retry.elapsed(Duration::from_secs(559)), Duration::from_secs(59));
        assert!(retry.failed(Duration::from_secs(560), 0.5).is_none());
    }

    #[test]
    fn no_pause_goes_beyond_the_total_time() {
        let mut retry = Retry::new(BUDGET, Duration::from_secs(10));
        assert!(retry.failed(Duration::from_secs(69), 0.5).is_some());
        assert!(retry.failed(Duration::from_secs(70), 0.5).is_none());
    }

    proptest! {
        #[test]
        fn every_operation_ends_within_its_budget(
            attempts in 1u32..50, total_ms in 0u64..100_000, pause_ms in 0u64..60_000, draws in prop::collection::vec(0.0..1.0, 60)
        ) {
            let total = Duration::from_millis(total_ms);
            let budget = Budget { attempts, total, pause: Duration::from_millis(pause_ms) };
            let (mut retry, mut now, mut sendings) = (Retry::new(budget, Duration::ZERO), Duration::ZERO, 1);
            for draw in draws {
                match retry.failed(now, draw) {
                    Some(pause) => (now, sendings) = (now + pause, sendings + 1),
                    None => break,
                }
            }
            prop_assert!(sendings <= attempts && now <= total && retry.failures() == sendings);
        }
    }
}
