//! What ranks run on: how fast one computes, and what lies between two.

use super::split::Split;
use crate::mesh::Axis;
use gradus_error::{Error, Result};
use serde::Serialize;

/// A link between two ranks: one way, in both directions at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LinkRate {
    /// Microseconds of a message of nothing.
    pub latency_us: f64,
    /// Bytes per second that a rank sends.
    pub bytes_per_s: f64,
}

/// Ranks and their links.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Machine {
    /// Operations per second of a rank at best.
    pub peak_flops: f64,
    /// What of these its kernels reach while they compute.
    pub efficiency: f64,
    /// Ranks of each node, which follow each other.
    pub ranks_per_node: usize,
    /// Between ranks of one node.
    pub inside: LinkRate,
    /// Between ranks of different nodes.
    pub across: LinkRate,
}

impl Default for Machine {
    /// Nothing in particular: a TFLOP/s of which half is reached, and links as `gradus plan collective` takes them, of shared
    /// memory inside a node and a 100 Gb/s network that two ranks share.
    fn default() -> Self {
        Self {
            peak_flops: 1e12,
            efficiency: 0.5,
            ranks_per_node: usize::MAX,
            inside: LinkRate { latency_us: 1.0, bytes_per_s: 12e9 },
            across: LinkRate { latency_us: 15.0, bytes_per_s: 6e9 },
        }
    }
}

impl Machine {
    /// Refuses what no machine is like.
    ///
    /// # Errors
    /// `Invalid`, naming the figure.
    pub fn check(&self) -> Result<()> {
        let rates = [
            ("operations per second", self.peak_flops),
            ("bytes per second inside a node", self.inside.bytes_per_s),
            ("bytes per second across nodes", self.across.bytes_per_s),
        ];
        let latencies = [self.inside.latency_us, self.across.latency_us];
        let wrong = rates.into_iter().find(|(_, rate)| !(rate.is_finite() && *rate > 0.0));
        let refuse = |what: String| Err(Error::invalid(what));
        match wrong {
            Some((what, rate)) => refuse(format!("{rate} {what}: it must be a finite number above 0")),
            None if !(self.efficiency > 0.0 && self.efficiency <= 1.0) => {
                refuse(format!("an efficiency of {}: choose one above 0, and 1 at most", self.efficiency))
            }
            None if latencies.iter().any(|latency| !(latency.is_finite() && *latency >= 0.0)) => {
                refuse(format!("latencies of {latencies:?} us: they must be finite, and 0 or more"))
            }
            None if self.ranks_per_node == 0 => refuse("a node has a rank at least".to_owned()),
            None => Ok(()),
        }
    }

    /// Operations per second that a rank reaches.
    pub fn flops(&self) -> f64 {
        self.peak_flops * self.efficiency
    }

    /// Whether all groups of ranks along an axis lie inside nodes.
    pub fn is_inside(&self, split: &Split<'_>, axis: Axis) -> bool {
        let (ranks, stride) = split.ranks_and_stride(axis);
        split.mesh.world_size() <= self.ranks_per_node || self.ranks_per_node.is_multiple_of(ranks * stride)
    }

    /// The slowest link that a group along an axis has.
    pub fn link(&self, split: &Split<'_>, axis: Axis) -> &LinkRate {
        if self.is_inside(split, axis) { &self.inside } else { &self.across }
    }
}
