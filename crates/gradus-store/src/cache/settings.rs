//! The section `[cache]`.

use super::policy::PolicyKind;
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Pages set aside for blocks that wait to be written to disk: enough to keep a disk busy.
const MOST_WAITING_WRITES: u64 = 32;

/// Where blocks are kept, and how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheSettings {
    /// The folder of the disk tier; empty: there is none.
    pub folder: String,
    /// What the blocks in the folder may take; 64 bytes beside each are not counted.
    pub disk_bytes: u64,
    /// What blocks may take in memory, those that readers are about to use included.
    pub memory_bytes: u64,
    /// Size of a block: a power of two from 4 KiB to 64 MiB; 0: not chosen yet; [`crate::cache_for`]
    /// chooses by the samples and their order.
    pub block_bytes: u64,
    /// Who goes when a tier is full.
    pub policy: PolicyKind,
    /// Whether nodes of a run ask each other for blocks, so that each comes from the bucket once for all of them.
    pub share: bool,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            folder: String::new(),
            disk_bytes: 64 << 30,
            memory_bytes: 1 << 30,
            block_bytes: 0,
            policy: PolicyKind::default(),
            share: true,
        }
    }
}

/// How many blocks there is room for, and to what end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Pages of memory.
    pub pages: u64,
    /// Pages of the memory tier: the others are for blocks that are on their way.
    pub memory_blocks: u64,
    /// Slots on disk.
    pub disk_blocks: u64,
}

impl CacheSettings {
    /// Whether there is a disk tier.
    pub fn has_disk(&self) -> bool {
        !self.folder.is_empty()
    }

    /// Least `memory_bytes` with which `window_blocks` blocks can be in use or on their way at once.
    pub fn least_memory_bytes(&self, window_blocks: u64) -> u64 {
        (window_blocks.max(1) + u64::from(self.has_disk())).saturating_mul(self.block_bytes)
    }

    /// Shares the budgets out for a dataset of `blocks` blocks, `window_blocks` of which can be in use at once.
    ///
    /// # Errors
    /// `Invalid`, naming the key, for a budget that is too small.
    pub(super) fn room(&self, blocks: u64, window_blocks: u64) -> Result<Room> {
        let window = window_blocks.max(1);
        let least = self.least_memory_bytes(window);
        if self.memory_bytes < least {
            return Err(Error::invalid(format!(
                "cache.memory_bytes is {}: {window} blocks of {} bytes are in use at once, which takes at least {least}",
                self.memory_bytes, self.block_bytes
            )));
        }
        if self.has_disk() && self.disk_bytes < self.block_bytes {
            return Err(Error::invalid(format!(
                "cache.disk_bytes is {}, less than one block of {} bytes (cache.block_bytes)",
                self.disk_bytes, self.block_bytes
            )));
        }
        let budget = self.memory_bytes / self.block_bytes;
        let waiting_writes =
            if self.has_disk() { ((budget - window) / 4).clamp(1, MOST_WAITING_WRITES) } else { 0 };
        // Where every block has its page, none is on its way to another.
        let memory_blocks = if budget >= blocks { blocks } else { budget - window - waiting_writes };
        Ok(Room {
            pages: budget.min(blocks.saturating_add(window)),
            memory_blocks,
            disk_blocks: if self.has_disk() { (self.disk_bytes / self.block_bytes).min(blocks) } else { 0 },
        })
    }
}
