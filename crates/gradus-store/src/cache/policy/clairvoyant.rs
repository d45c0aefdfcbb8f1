//! Belady's MIN with bypass (Belady 1966; Mattson et al. 1970): the block whose next use is farthest away goes, and one that
//! is used later still is not taken in.
//!
//! Blocks of one sample have the same position, and are used in the order of their numbers: so a use is a position and a
//! number, and no two uses are alike.

use super::{Admission, Policy};
use crate::blocks::Block;
use std::collections::{BTreeMap, BTreeSet};

/// Positions end below it: a block that is never used again.
const NEVER: u64 = u64::MAX;

/// Residents in the order of their next use.
pub(in super::super) struct Clairvoyant {
    capacity: u64,
    uses: BTreeSet<(u64, Block)>,
    next_use: BTreeMap<Block, u64>,
}

impl Clairvoyant {
    pub(in super::super) fn new(capacity: u64) -> Self {
        Self { capacity, uses: BTreeSet::new(), next_use: BTreeMap::new() }
    }

    fn insert(&mut self, block: Block, position: u64) {
        self.uses.insert((position, block));
        self.next_use.insert(block, position);
    }
}

impl Policy for Clairvoyant {
    fn contains(&self, block: Block) -> bool {
        self.next_use.contains_key(&block)
    }

    fn len(&self) -> u64 {
        self.next_use.len() as u64
    }

    fn hit(&mut self, block: Block, next_use: Option<u64>) {
        self.remove(block);
        self.insert(block, next_use.unwrap_or(NEVER));
    }

    fn miss(&mut self, block: Block, next_use: Option<u64>) -> Admission {
        let position = next_use.unwrap_or(NEVER);
        let mut evicted = None;
        if self.len() >= self.capacity {
            match self.uses.last() {
                Some(farthest) if position != NEVER && (position, block) < *farthest => {
                    evicted = self.uses.pop_last().map(|(_, block)| block);
                }
                _ => return Admission::BYPASSED,
            }
        }
        if let Some(block) = evicted {
            self.next_use.remove(&block);
        }
        self.insert(block, position);
        Admission { admitted: true, evicted }
    }

    fn remove(&mut self, block: Block) {
        if let Some(position) = self.next_use.remove(&block) {
            self.uses.remove(&(position, block));
        }
    }
}
