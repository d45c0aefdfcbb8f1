//! Which blocks of a dataset a node has on its disk, as nodes tell each other when they meet.

use crate::blocks::Block;
use gradus_error::{Error, Result};

/// One bit for each block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    blocks: u64,
    bits: Vec<u8>,
}

impl Holdings {
    /// Nothing of `blocks` blocks.
    pub fn none(blocks: u64) -> Self {
        Self { blocks, bits: vec![0; blocks.div_ceil(8) as usize] }
    }

    /// As another node has told it, by [`Holdings::as_bytes`].
    ///
    /// # Errors
    /// `Corrupt` when it is not of `blocks` blocks.
    pub fn from_bytes(bytes: Vec<u8>, blocks: u64) -> Result<Self> {
        let spare_bits = bytes.len() as u64 * 8 - blocks.min(bytes.len() as u64 * 8);
        let is_clean =
            bytes.last().is_none_or(|last| spare_bits == 0 || last.leading_zeros() as u64 >= spare_bits);
        if bytes.len() as u64 != blocks.div_ceil(8) || !is_clean {
            return Err(Error::corrupt(format!(
                "what a node holds is told in {} bytes, which are not those of {blocks} blocks",
                bytes.len()
            )));
        }
        Ok(Self { blocks, bits: bytes })
    }

    /// For other nodes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Adds a block.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn add(&mut self, block: Block) {
        assert!(block.0 < self.blocks, "{block:?} of {}", self.blocks);
        self.bits[(block.0 / 8) as usize] |= 1 << (block.0 % 8);
    }

    /// Blocks of the dataset.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether it is held.
    pub(super) fn has(&self, block: u64) -> bool {
        self.bits[(block / 8) as usize] >> (block % 8) & 1 == 1
    }
}
