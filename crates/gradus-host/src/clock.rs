//! Time and sleep.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of time that only grows, of calendar time, and of sleep.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment; never goes back.
    fn now(&self) -> Duration;
    /// Calendar time since 1970-01-01 UTC; may jump.
    fn calendar(&self) -> Duration;
    /// Blocks the calling thread for `duration`.
    fn sleep(&self, duration: Duration);
}

/// The clock of the operating system.
#[derive(Debug, Clone, Copy)]
pub struct RealClock {
    start: Instant,
}

impl RealClock {
    /// A clock that counts from now.
    #[allow(clippy::disallowed_methods, reason = "the room in which real time is at home")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for RealClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for RealClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    #[allow(clippy::disallowed_methods, reason = "the room in which real time is at home")]
    fn calendar(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    #[allow(clippy::disallowed_methods, reason = "the room in which real time is at home")]
    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}
