//! Every time span of membership, from one setting.
//!
//! Timeouts that are tuned against each other by hand are wrong in one of their combinations. Here a person chooses one
//! span, `failure_detection`: how long a member may be silent before it is taken for dead. Everything else is a fixed
//! share of it.

use gradus_error::{Error, Result};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Below a tenth of a second a busy host looks dead; beyond an hour nobody would wait.
const POSSIBLE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// The spans that follow from `failure_detection`, D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// D: a member that was not heard for so long is dead.
    pub detection: Duration,
    /// D / 8: how often a member gives a sign of life. Three may be lost in a row, and a fourth delayed, within a lease.
    pub heartbeat: Duration,
    /// D / 2: how long a member may act after it sent the last sign of life that was answered. It is over before
    /// anybody acts without that member, even where clocks run at rates that differ by half.
    pub lease: Duration,
    /// 5 D / 8: how long the coordinator waits, from a member's last sign of life, until that member's lease is surely
    /// over: the lease and a quarter, for clocks that differ. Less than D.
    pub lease_over: Duration,
    /// D / 4: how long one attempt to connect may take, so that two fit into a lease.
    pub connect: Duration,
    /// D / 4: how long a member whose connection broke may take to give a sign of life over a new one.
    pub reconnect: Duration,
    /// D / 4: how long to wait for the reason once a peer has gone without one, and how long to go on hearing others once
    /// one cannot take part: what they say travels on other connections.
    pub afterword: Duration,
    /// D: how long a member may take, from hearing that its epoch is broken, to let go of what is in flight and
    /// acknowledge the next one.
    pub abort: Duration,
}

impl Timeouts {
    /// The spans that follow from `failure_detection`.
    ///
    /// # Errors
    /// `Invalid` when it is below 100 ms or beyond an hour.
    pub fn from(failure_detection: Duration) -> Result<Self> {
        if !POSSIBLE.contains(&failure_detection) {
            return Err(Error::invalid(format!(
                "failure_detection is {failure_detection:?}: give 100 ms to one hour"
            )));
        }
        let eighth = failure_detection / 8;
        Ok(Self {
            detection: failure_detection,
            heartbeat: eighth,
            lease: eighth * 4,
            lease_over: eighth * 5,
            connect: eighth * 2,
            reconnect: eighth * 2,
            afterword: eighth * 2,
            abort: failure_detection,
        })
    }

    /// Whether another span, such as `launch.stall_timeout`, leaves room for finding out that a member is dead: a
    /// shorter one would blame the living for what the dead have not done.
    ///
    /// # Errors
    /// `Invalid`, naming both settings.
    pub fn check_longer(&self, name: &str, span: Duration) -> Result<()> {
        if span >= self.detection {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{name} is {span:?}, shorter than network.failure_detection ({:?}): a dead member would not be found out \
             before it is over; raise {name} or lower network.failure_detection",
            self.detection
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn spans_stand_in_their_order_whatever_is_chosen() {
        for milliseconds in [100, 101, 999, 10_000, 3_600_000] {
            let timeouts = Timeouts::from(Duration::from_millis(milliseconds)).unwrap();
            assert!(timeouts.heartbeat * 4 <= timeouts.lease);
            assert!(timeouts.lease < timeouts.lease_over && timeouts.lease_over < timeouts.detection);
            assert!(timeouts.connect * 2 <= timeouts.lease && timeouts.reconnect >= timeouts.heartbeat * 2);
        }
    }

    #[test]
    fn impossible_and_inconsistent_spans_are_named() {
        for wrong in [Duration::ZERO, Duration::from_millis(99), Duration::from_secs(3601)] {
            let error = Timeouts::from(wrong).unwrap_err();
            assert_eq!(*error.kind(), Kind::Invalid);
            assert!(error.to_string().contains("failure_detection"));
        }
        let timeouts = Timeouts::from(Duration::from_secs(10)).unwrap();
        timeouts.check_longer("launch.stall_timeout", Duration::from_secs(10)).unwrap();
        let error = timeouts.check_longer("launch.stall_timeout", Duration::from_secs(9)).unwrap_err();
        assert_eq!(*error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("launch.stall_timeout"));
        assert!(error.to_string().contains("failure_detection"));
    }
}
