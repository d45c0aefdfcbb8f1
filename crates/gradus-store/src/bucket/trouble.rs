//! When it is said that a store refuses or fails requests: a pure machine, told the time.
//!
//! One failed request in a million is sent again and nobody needs to know; a store that slows a run down should be named
//! while it does, but not a thousand times. So the first failure is told of at once, and those that follow together, at
//! most twice a minute. Invariant: every failure is in exactly one notice, but for those after the last.

use std::time::Duration;

/// Least time from one notice to the next.
const BETWEEN: Duration = Duration::from_secs(30);

/// What went wrong since the last notice.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    throttled: u64,
    failed: u64,
    told_at: Option<Duration>,
}

/// Failures that are told of together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Notice {
    /// Requests that were refused because there were too many.
    pub(super) throttled: u64,
    /// Requests that failed otherwise and are sent again.
    pub(super) failed: u64,
}

impl Trouble {
    /// A request has failed at `now` and is sent again; returns what is to be told, if it is time.
    pub(super) fn met(&mut self, throttled: bool, now: Duration) -> Option<Notice> {
        *(if throttled { &mut self.throttled } else { &mut self.failed }) += 1;
        if self.told_at.is_some_and(|before| now.saturating_sub(before) < BETWEEN) {
            return None;
        }
        self.told_at = Some(now);
        Some(Notice {
            throttled: std::mem::take(&mut self.throttled),
            failed: std::mem::take(&mut self.failed),
        })
    }
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counted = |count: u64| format!("{count} request{}", if count == 1 { "" } else { "s" });
        match (self.throttled, self.failed) {
            (throttled, 0) => write!(f, "refused {} because there are too many", counted(throttled)),
            (0, failed) => write!(f, "failed {}", counted(failed)),
            (throttled, failed) => {
                write!(f, "refused {} because there are too many and failed {failed}", counted(throttled))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_told_at_once_and_those_after_it_together() {
        let mut trouble = Trouble::default();
        let at = Duration::from_secs;
        assert_eq!(trouble.met(true, at(5)), Some(Notice { throttled: 1, failed: 0 }));
        assert_eq!(trouble.met(true, at(6)), None);
        assert_eq!(trouble.met(false, at(34)), None);
        assert_eq!(trouble.met(true, at(35)), Some(Notice { throttled: 2, failed: 1 }));
        assert_eq!(trouble.met(false, at(64)), None);
        assert_eq!(trouble.met(false, at(900)), Some(Notice { throttled: 0, failed: 2 }));
    }
}
