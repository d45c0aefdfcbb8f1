//! The programs there are, as data: what is chosen among, and what a choice records.

use super::act::Program;
use super::all_reduce::{Sum, flat_all_reduce, pull_all_reduce, push_all_reduce, staged_all_reduce};
use super::barrier::flat_barrier;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Ranks that meet at once: beyond, what each must read of all others outweighs the hops saved.
pub const MOST_AT_ONCE: usize = 16;

/// Bytes that a rank reads of all others together for one flat hop: beyond, reading its share only is worth a second hop.
const FLAT_BYTES: usize = 64 << 10;

/// Bytes beyond which a program of blocks would be longer than is worth keeping.
const MOST_BYTES: usize = 1 << 30;

/// Registered memory below this is better staged: one hop less.
const REGISTERED_BYTES: usize = 16 << 10;

/// Private buffers beyond this are better streamed: their pages fall out of the cache between being read and being used.
const PULL_BYTES: std::ops::RangeInclusive<usize> = 64 << 10..=16 << 20;

/// What ranks of one host reach of the memory that a sum works on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// Whether every rank has registered it.
    pub registered: bool,
    /// Whether every rank may read every other's private memory, and does so fast.
    pub reads_private: bool,
}

/// A way to work among ranks that reach each other's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OneSided {
    /// [`flat_all_reduce`].
    Flat,
    /// [`staged_all_reduce`].
    Staged,
    /// [`push_all_reduce`].
    Push,
    /// [`pull_all_reduce`].
    Pull,
    /// [`flat_barrier`].
    Barrier,
}

impl OneSided {
    /// What sums so many bytes where nobody has measured; `None` where streams serve better.
    pub fn by_size(world_size: usize, bytes: usize, reach: Reach) -> Option<Self> {
        match bytes {
            _ if !(2..=MOST_AT_ONCE).contains(&world_size) => None,
            _ if bytes > MOST_BYTES => None,
            _ if reach.registered && bytes >= REGISTERED_BYTES => Some(Self::Push),
            _ if reach.reads_private && PULL_BYTES.contains(&bytes) => Some(Self::Pull),
            _ if world_size == 2 || bytes * (world_size - 1) <= FLAT_BYTES => Some(Self::Flat),
            _ => Some(Self::Staged),
        }
    }

    /// All that could sum so many bytes, what fewer hops take first.
    pub fn possible(world_size: usize, bytes: usize, reach: Reach) -> Vec<Self> {
        let (registered, pulls) = (reach.registered, reach.reads_private && !reach.registered);
        let all = [
            (Self::Flat, world_size == 2 || bytes <= FLAT_BYTES),
            (Self::Staged, world_size > 2),
            (Self::Push, registered && bytes >= REGISTERED_BYTES),
            (Self::Pull, pulls && PULL_BYTES.contains(&bytes)),
        ];
        let fits = |(kind, fits): (Self, bool)| fits.then_some(kind);
        if (2..=MOST_AT_ONCE).contains(&world_size) && bytes <= MOST_BYTES {
            all.into_iter().filter_map(fits).collect()
        } else {
            Vec::new()
        }
    }

    /// Whether it makes a difference that so many bytes are registered.
    pub(crate) const fn may_use_registered(bytes: usize) -> bool {
        bytes >= REGISTERED_BYTES
    }

    /// What one rank does.
    pub fn program(self, rank: usize, world_size: usize, sum: Sum) -> Program {
        let generate = match self {
            Self::Flat => flat_all_reduce,
            Self::Staged => staged_all_reduce,
            Self::Push => push_all_reduce,
            Self::Pull => pull_all_reduce,
            Self::Barrier => return flat_barrier(rank, world_size),
        };
        generate(rank, world_size, sum)
    }

    /// What all ranks do, by rank.
    pub fn programs(self, world_size: usize, sum: Sum) -> Vec<Program> {
        (0..world_size).map(|rank| self.program(rank, world_size, sum)).collect()
    }
}

impl fmt::Display for OneSided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flat => "one-sided, flat",
            Self::Staged => "one-sided, staged",
            Self::Push => "one-sided, pushed into registered memory",
            Self::Pull => "one-sided, pulled from private memory",
            Self::Barrier => "one-sided, all to all",
        })
    }
}
