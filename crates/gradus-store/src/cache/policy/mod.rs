//! Who stays when a tier is full: one policy per file, each a pure machine over numbers of blocks.
//!
//! A policy knows who is resident, hears of every access in the order of the trace, and says who goes. It never waits:
//! what is in use keeps its memory until it is let go, but the policy has forgotten it, so that decisions are the same
//! however far ahead of its readers the trace is walked. Invariant: never more residents than the capacity.

mod clairvoyant;
mod lru;
mod queue;
mod s3_fifo;

pub(super) use clairvoyant::Clairvoyant;
pub(super) use lru::Lru;
pub(super) use s3_fifo::S3Fifo;

use crate::blocks::Block;
use serde::{Deserialize, Serialize};

/// Who goes when a tier of the cache is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyKind {
    /// The block whose next use is farthest away goes (Belady 1966), and one that is used later still is not taken in: no
    /// policy can miss less. It needs an order of samples that is a function, which Gradus has.
    #[default]
    Clairvoyant,
    /// The block that was used least recently goes.
    Lru,
    /// Three queues (Yang et al., SOSP 2023).
    S3Fifo,
}

impl PolicyKind {
    /// A policy of this kind for `capacity` blocks, of which none is resident.
    pub(super) fn of_capacity(self, capacity: u64) -> Box<dyn Policy> {
        match self {
            Self::Clairvoyant => Box::new(Clairvoyant::new(capacity)),
            Self::Lru => Box::new(Lru::new(capacity)),
            Self::S3Fifo => Box::new(S3Fifo::new(capacity)),
        }
    }
}

/// What becomes of a block that was not resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Admission {
    /// Whether it is resident now.
    pub admitted: bool,
    /// Who went for it.
    pub evicted: Option<Block>,
}

impl Admission {
    const BYPASSED: Self = Self { admitted: false, evicted: None };
}

/// Decides who is resident. `next_use` is the position of the block's next use after this one, nothing if there is none;
/// a policy that looks back ignores it.
pub(super) trait Policy: Send {
    /// Whether a block is resident.
    fn contains(&self, block: Block) -> bool;

    /// Number of residents.
    fn len(&self) -> u64;

    /// A resident is used.
    fn hit(&mut self, block: Block, next_use: Option<u64>);

    /// A block that is not resident is used.
    fn miss(&mut self, block: Block, next_use: Option<u64>) -> Admission;

    /// A block is resident no longer, though nothing took its place. Nothing happens if it was not.
    fn remove(&mut self, block: Block);
}

#[cfg(test)]
mod tests;
