//! What ends a transport's waiting from outside: news that no connection of its own brings.
//!
//! A peer that was stopped, or is cut off, closes nothing, so that nothing in a transport tells of it. Whoever knows
//! (the membership of its group) raises the alarm. It is raised once and stays raised: a descriptor that is readable from
//! then on wakes whoever sleeps, a failure says why.

use gradus_error::{Error, IoContext, Kind, Result};
use gradus_host::{Clock, RealClock};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Longer than any wait (a year), and short enough that as many of them as are ever counted do not overflow.
const LEAP: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// See the module.
pub(crate) struct Alarm {
    bell: OwnedFd,
    failure: OnceLock<(Kind, String)>,
}

impl Alarm {
    /// One that is not raised.
    ///
    /// # Errors
    /// The system's failure to make a descriptor.
    pub(crate) fn new() -> Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self { bell: bell.context(|| "cannot make an alarm".to_owned())?, failure: OnceLock::new() })
    }

    /// Raises it; only the first reason counts.
    pub(crate) fn raise(&self, reason: &Error) {
        if self.failure.set((reason.kind().clone(), reason.to_string())).is_ok() {
            // A counter at 0 has room for 1; should the system fail, whoever sleeps wakes by its own limit.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// Whether it was raised. Costs one load.
    pub(crate) fn is_raised(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Nothing as long as it was not raised. Costs one load.
    ///
    /// # Errors
    /// The reason for which it was raised.
    pub(crate) fn check(&self) -> Result<()> {
        match self.failure.get() {
            None => Ok(()),
            Some((kind, message)) => Err(Error::new(kind.clone(), message.clone())),
        }
    }
}

impl AsFd for Alarm {
    /// Readable once it was raised.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// A clock that leaps ahead with every look once an alarm was raised: every deadline, also one that is set after that, is
/// over with the next look, and whatever waits by it ends.
pub(crate) struct Impatient<'a> {
    clock: RealClock,
    alarm: &'a Alarm,
    leaps: AtomicU32,
}

impl<'a> Impatient<'a> {
    pub(crate) fn new(clock: RealClock, alarm: &'a Alarm) -> Self {
        Self { clock, alarm, leaps: AtomicU32::new(0) }
    }
}

impl Clock for Impatient<'_> {
    fn now(&self) -> Duration {
        if !self.alarm.is_raised() {
            return self.clock.now();
        }
        self.clock.now() + LEAP * (self.leaps.fetch_add(1, Relaxed).saturating_add(1))
    }

    fn calendar(&self) -> Duration {
        self.clock.calendar()
    }

    fn sleep(&self, duration: Duration) {
        if !self.alarm.is_raised() {
            self.clock.sleep(duration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn rings(alarm: &Alarm) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(alarm, PollFlags::IN)], Some(&now)).unwrap() == 1
    }

    #[test]
    fn an_alarm_is_raised_once_and_for_good() {
        let alarm = Alarm::new().unwrap();
        let clock = Impatient::new(RealClock::new(), &alarm);
        alarm.check().unwrap();
        let until = clock.now() + LEAP / 2;
        assert!(!rings(&alarm) && clock.now() < until);
        alarm.raise(&Error::peer_lost(3, "the first"));
        alarm.raise(&Error::closed("the second"));
        for _ in 0..2 {
            let error = alarm.check().unwrap_err();
            assert_eq!(
                (error.kind(), error.to_string().as_str()),
                (&Kind::PeerLost { rank: 3 }, "the first")
            );
            assert!(rings(&alarm) && clock.now() > until);
        }
        // Also what is begun only now has no time.
        for _ in 0..3 {
            let until = clock.now() + LEAP / 2;
            assert!(clock.now() > until);
        }
    }
}
