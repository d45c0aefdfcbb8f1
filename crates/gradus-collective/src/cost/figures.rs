//! What links and ranks are like.

use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A link between two ranks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Microseconds from a byte's leaving to its arrival.
    pub latency_us: f64,
    /// Bytes per second of one stream, one way.
    pub bandwidth_bytes_per_s: f64,
    /// Microseconds that a message takes of the time of either end, besides its bytes.
    pub message_overhead_us: f64,
}

/// Links of two levels, and what shares them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkFigures {
    /// Between ranks of one node.
    pub inside: Link,
    /// Between ranks of different nodes.
    pub across: Link,
    /// Bytes that a rank adds to its own per second.
    pub reduction_bytes_per_s: f64,
    /// Bytes per second and direction that all ranks of a node together send to other nodes; none: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic_bytes_per_s: Option<f64>,
    /// Bytes per second that all ranks of a node together send each other; none: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus_bytes_per_s: Option<f64>,
    /// Bytes that a rank takes in before it passes them on.
    pub piece_bytes: u64,
    /// Microseconds that a collective takes of every rank besides its messages.
    #[serde(default)]
    pub start_us: f64,
    /// Whether one processor does all of a rank's sending, receiving and adding, one at a time; otherwise the three run
    /// side by side.
    pub one_at_a_time: bool,
}

impl Default for LinkFigures {
    /// Of the order of shared memory inside a host (a hop costs a microsecond with waking, a core moves 12 GB/s and adds
    /// as much), and of a 100 Gb/s network between hosts.
    fn default() -> Self {
        Self {
            inside: Link { latency_us: 1.0, bandwidth_bytes_per_s: 12e9, message_overhead_us: 0.1 },
            across: Link { latency_us: 15.0, bandwidth_bytes_per_s: 6e9, message_overhead_us: 1.0 },
            reduction_bytes_per_s: 12e9,
            nic_bytes_per_s: Some(12e9),
            bus_bytes_per_s: Some(60e9),
            piece_bytes: 128 << 10,
            start_us: 0.3,
            one_at_a_time: true,
        }
    }
}

impl LinkFigures {
    /// Refuses what no link is like.
    ///
    /// # Errors
    /// `Invalid`, naming the figure.
    pub fn validate(&self) -> Result<()> {
        let rate = |name: &str, value: f64| at_least(name, value, f64::MIN_POSITIVE);
        for (level, link) in [("inside", &self.inside), ("across", &self.across)] {
            at_least(&format!("{level}.latency_us"), link.latency_us, 0.0)?;
            at_least(&format!("{level}.message_overhead_us"), link.message_overhead_us, 0.0)?;
            rate(&format!("{level}.bandwidth_bytes_per_s"), link.bandwidth_bytes_per_s)?;
        }
        rate("reduction_bytes_per_s", self.reduction_bytes_per_s)?;
        self.nic_bytes_per_s.map_or(Ok(()), |nic| rate("nic_bytes_per_s", nic))?;
        self.bus_bytes_per_s.map_or(Ok(()), |bus| rate("bus_bytes_per_s", bus))?;
        at_least("start_us", self.start_us, 0.0)?;
        at_least("piece_bytes", self.piece_bytes as f64, 1.0)
    }

    /// The link of a level.
    pub(super) const fn link(&self, together: bool) -> &Link {
        if together { &self.inside } else { &self.across }
    }

    /// Seconds of a collective as such.
    pub(super) fn start(&self) -> f64 {
        self.start_us * 1e-6
    }

    /// Seconds to add a byte.
    pub(super) fn gamma(&self) -> f64 {
        1.0 / self.reduction_bytes_per_s
    }
}

impl Link {
    /// Seconds of a hop of nothing.
    pub(super) fn alpha(&self) -> f64 {
        self.latency_us * 1e-6
    }

    /// Seconds to move a byte.
    pub(super) fn beta(&self) -> f64 {
        1.0 / self.bandwidth_bytes_per_s
    }

    /// Seconds of a message for either end.
    pub(super) fn overhead(&self) -> f64 {
        self.message_overhead_us * 1e-6
    }
}

pub(super) fn at_least(name: &str, value: f64, least: f64) -> Result<()> {
    // A figure that is no number compares as nothing.
    if value.is_finite() && value >= least {
        return Ok(());
    }
    let wanted = if least > 0.0 { "above 0" } else { "0 or more" };
    Err(Error::invalid(format!("{name} is {value}: it must be a finite number {wanted}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn what_no_link_is_like_is_refused() {
        LinkFigures::default().validate().unwrap();
        let spoil: [fn(&mut LinkFigures); 8] = [
            |figures| figures.inside.latency_us = -1.0,
            |figures| figures.across.bandwidth_bytes_per_s = 0.0,
            |figures| figures.across.message_overhead_us = f64::NAN,
            |figures| figures.reduction_bytes_per_s = f64::INFINITY,
            |figures| figures.nic_bytes_per_s = Some(0.0),
            |figures| figures.bus_bytes_per_s = Some(-3.0),
            |figures| figures.piece_bytes = 0,
            |figures| figures.start_us = f64::NAN,
        ];
        for spoil in spoil {
            let mut figures = LinkFigures::default();
            spoil(&mut figures);
            assert_eq!(*figures.validate().unwrap_err().kind(), Kind::Invalid, "{figures:?}");
        }
    }
}
