//! What it costs ranks of one host to work on each other's memory.
//!
//! What a byte costs depends on whose memory it lies in, on what is done with it, and on how large the buffer is: a small
//! one is handed from one processor's caches to another's, a large one comes from memory. So each kind of touch has a
//! *curve*: rates by size.

use super::figures::at_least;
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Most sizes of a curve.
const MOST_SIZES: usize = 64;

/// Bytes per second by how many bytes the collective works on, by growing size. Between two sizes seconds per byte change
/// evenly with the size's logarithm; beyond the first and the last these two count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Curve(pub Vec<(u64, f64)>);

impl Curve {
    /// The same rate for all sizes.
    pub fn uniform(bytes_per_s: f64) -> Self {
        Self(vec![(1, bytes_per_s)])
    }

    /// Seconds for a byte of a collective on so many bytes; `None` where nothing is known.
    pub fn seconds_per_byte(&self, buffer_bytes: u64) -> Option<f64> {
        let points = &self.0;
        let larger = points.partition_point(|(bytes, _)| *bytes < buffer_bytes);
        let below = larger.checked_sub(1).map(|below| points[below]);
        match (below, points.get(larger)) {
            (None, None) => None,
            (Some((_, rate)), None) | (None, Some(&(_, rate))) => Some(1.0 / rate),
            (Some((low, slow)), Some((high, fast))) => {
                let log = |bytes: u64| (bytes.max(1) as f64).log2();
                let part = (log(buffer_bytes) - log(low)) / (log(*high) - log(low));
                Some((1.0 - part) / slow + part / fast)
            }
        }
    }

    fn validate(&self, name: &str) -> Result<()> {
        if self.0.len() > MOST_SIZES || !self.0.is_sorted_by(|one, next| one.0 < next.0) {
            return Err(Error::invalid(format!(
                "{name} must list {MOST_SIZES} sizes at most, by growing size, each once"
            )));
        }
        self.0.iter().try_for_each(|(bytes, rate)| {
            at_least(&format!("{name} at {bytes} bytes"), *rate, f64::MIN_POSITIVE)
        })
    }
}

/// What ranks do with memory, and whose it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Touches {
    /// A rank's own, copied or combined, into its slot for staged bytes or elsewhere.
    pub own: Curve,
    /// What a peer has staged, copied.
    pub staged_copied: Curve,
    /// What a peer has staged, combined.
    pub staged_combined: Curve,
    /// What a peer has registered, combined.
    pub registered_combined: Curve,
    /// What is written into memory that a peer has registered.
    pub registered_given: Curve,
    /// A peer's private memory, read through the system and combined.
    pub private_combined: Curve,
    /// The same, copied: what the peer has written a moment before.
    pub private_copied: Curve,
}

/// All that programs among neighbours are priced by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeighbourFigures {
    /// Microseconds that a collective as such takes of every rank.
    pub start_us: f64,
    /// Microseconds that a signal takes of the time of either end.
    pub signal_us: f64,
    /// Microseconds from a signal's being shown to its being seen on another processor.
    pub hop_us: f64,
    /// Processors that the ranks share; 0: each has its own.
    pub processors: usize,
    /// Microseconds until another rank of the same processor has its turn.
    pub switch_us: f64,
    /// Bytes per second.
    pub bytes_per_s: Touches,
}

impl Default for NeighbourFigures {
    /// Of the order of two processors of one die.
    fn default() -> Self {
        let curve =
            |small: f64, large: f64| Curve(vec![(1 << 16, small), (4 << 20, small), (64 << 20, large)]);
        Self {
            start_us: 0.05,
            signal_us: 0.02,
            hop_us: 0.1,
            processors: 0,
            switch_us: 1.0,
            bytes_per_s: Touches {
                own: curve(60e9, 20e9),
                staged_copied: curve(30e9, 30e9),
                staged_combined: curve(30e9, 30e9),
                registered_combined: curve(40e9, 15e9),
                registered_given: curve(40e9, 15e9),
                private_combined: curve(15e9, 8e9),
                private_copied: curve(15e9, 8e9),
            },
        }
    }
}

impl NeighbourFigures {
    /// Nothing costs anything, but no rate is known: no program that moves bytes has a price.
    pub fn unknown() -> Self {
        let bytes_per_s = Touches::all(&Curve(Vec::new()));
        Self { start_us: 0.0, signal_us: 0.0, hop_us: 0.0, processors: 0, switch_us: 0.0, bytes_per_s }
    }

    /// Processors that so many ranks work on.
    pub(crate) const fn processors_of(&self, ranks: usize) -> usize {
        if self.processors == 0 || self.processors > ranks { ranks } else { self.processors }
    }

    /// Refuses what no ranks are like.
    ///
    /// # Errors
    /// `Invalid`, naming the figure.
    pub fn validate(&self) -> Result<()> {
        at_least("neighbours.start_us", self.start_us, 0.0)?;
        at_least("neighbours.signal_us", self.signal_us, 0.0)?;
        at_least("neighbours.hop_us", self.hop_us, 0.0)?;
        at_least("neighbours.switch_us", self.switch_us, 0.0)?;
        self.bytes_per_s.curves().into_iter().try_for_each(|(name, curve)| curve.validate(name))
    }
}

impl Touches {
    /// The same rate for all.
    pub fn uniform(bytes_per_s: f64) -> Self {
        Self::all(&Curve::uniform(bytes_per_s))
    }

    fn all(curve: &Curve) -> Self {
        let curve = || curve.clone();
        Self {
            own: curve(),
            staged_copied: curve(),
            staged_combined: curve(),
            registered_combined: curve(),
            registered_given: curve(),
            private_combined: curve(),
            private_copied: curve(),
        }
    }

    const fn curves(&self) -> [(&'static str, &Curve); 7] {
        [
            ("own", &self.own),
            ("staged_copied", &self.staged_copied),
            ("staged_combined", &self.staged_combined),
            ("registered_combined", &self.registered_combined),
            ("registered_given", &self.registered_given),
            ("private_combined", &self.private_combined),
            ("private_copied", &self.private_copied),
        ]
    }
}
