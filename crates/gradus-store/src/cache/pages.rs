//! What the cache's pages are about: each holds a block, and knows its checksum once somebody has asked.

use crate::blocks::Block;
use crate::crc32c::crc32c;
use gradus_memory::pages;
use std::sync::OnceLock;

pub use gradus_memory::pages::Waker;

/// A page that holds a block, or will.
pub(super) type Page = pages::Page<Content>;

/// The right to write a block.
pub(super) type Filling = pages::Filling<Content>;

/// What a page is about.
pub(super) struct Content {
    pub block: Block,
    checksum: OnceLock<u32>,
}

impl Content {
    pub(super) fn of(block: Block) -> Self {
        Self { block, checksum: OnceLock::new() }
    }

    /// CRC-32C of the block's bytes, which are `bytes`, worked out once.
    pub(super) fn checksum(&self, bytes: &[u8]) -> u32 {
        *self.checksum.get_or_init(|| crc32c(bytes))
    }
}
