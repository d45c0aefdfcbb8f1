//! What the links of a world are worth, pair by pair, before anything is trained over them.
//!
//! [`survey`] measures every pair of ranks: time of a round trip, bandwidth each way, how far clocks are apart. Pairs take
//! turns so that none disturbs another ([`rounds`]). [`judge`] is a pure function of what was measured: it names links and
//! ranks that stand out from the others of their kind.

mod judge;
mod measure;
mod schedule;

pub use judge::{Fault, Limits, Reference, Verdict, judge};
pub use measure::survey;
#[cfg(feature = "fuzzing")]
pub(crate) use measure::{as_leader, follow_one, hear_all};
pub use schedule::rounds;

use serde::{Deserialize, Serialize};

/// Where a rank runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seated {
    /// Equal for ranks of one host only.
    pub host_mark: u64,
    /// The host's name, for a person.
    pub host: String,
    /// Where peers reach the rank; empty where they share memory.
    pub address: String,
}

/// What was measured of two ranks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The lower rank, which measured.
    pub one: usize,
    /// The other.
    pub other: usize,
    /// The fastest round trip of 4 bytes, microseconds.
    pub round_trip_us: f64,
    /// From `one` to `other`.
    pub there_bytes_per_s: f64,
    /// From `other` to `one`.
    pub back_bytes_per_s: f64,
    /// How far the clock of `other` is ahead of that of `one`, milliseconds.
    pub clock_ahead_ms: f64,
    /// By how much that may be wrong: half of the round trip in which the clock was asked.
    pub clock_error_ms: f64,
}

/// What was measured of a world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// By rank.
    pub ranks: Vec<Seated>,
    /// Every pair once.
    pub pairs: Vec<Pair>,
}

impl Survey {
    /// Whether two ranks share a host.
    pub fn is_inside(&self, one: usize, other: usize) -> bool {
        self.ranks[one].host_mark == self.ranks[other].host_mark
    }
}
