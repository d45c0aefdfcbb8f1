//! The size of a cache's blocks.
//!
//! What: one size for all blocks of a feed, chosen before it is opened, and by nodes that share blocks together. Why: what of a
//! block is not asked for is fetched in vain, or for later; the more blocks, the more requests and bookkeeping.

use crate::cache::{CacheSettings, folder_block_bytes};
use crate::index::Index;
use crate::order::Shuffle;
use std::path::Path;

/// Size of a block where nothing asks for another: a request's overhead is small beside it.
const BLOCK_BYTES: u64 = 1 << 20;

/// Size of a block where any sample may come next and the cache keeps them all: each block is fetched once, whatever the
/// order, so the fewer the better; but the first samples wait for the whole of theirs.
const KEPT_BLOCK_BYTES: u64 = 256 << 10;

/// Blocks of that size that memory has room for at least if they are chosen: as many may be on their way at once.
const KEPT_BLOCKS_IN_MEMORY: u64 = 256;

/// Smallest block that is chosen: a small part of a request's overhead at a gigabyte a second.
const LEAST_BLOCK_BYTES: u64 = 32 << 10;

/// Blocks of a sample where the cache does not keep all: so little is fetched beside it that is not asked for.
const BLOCKS_OF_SAMPLE: u64 = 4;

/// Most blocks of a cache for which small ones are chosen: each takes some hundred bytes of memory.
const MOST_BLOCKS: u64 = 1 << 22;

/// Blocks that each tier has room for at least if the size of its folder's is kept: fewer would hardly be a cache.
const LEAST_BLOCKS: u64 = 8;

/// The cache for a dataset: with blocks of the size that is set, or that its folder has, or that suits the order.
pub fn cache_for(index: &Index, cache: CacheSettings, shuffle: Shuffle) -> CacheSettings {
    let chosen = || chosen_block_bytes(index, &cache, shuffle, 1);
    let block_bytes = known_block_bytes(&cache).unwrap_or_else(chosen);
    CacheSettings { block_bytes, ..cache }
}

/// Size of a cache's blocks where it need not be chosen: what is set, else what its folder has, whose blocks would be given
/// up for any other, if the budgets have room for such blocks.
pub fn known_block_bytes(cache: &CacheSettings) -> Option<u64> {
    if cache.block_bytes > 0 || !cache.has_disk() {
        return Some(cache.block_bytes).filter(|bytes| *bytes > 0);
    }
    let least_budget = |block_bytes: u64| block_bytes.saturating_mul(LEAST_BLOCKS);
    let fits = |bytes: &u64| least_budget(*bytes) <= cache.memory_bytes.min(cache.disk_bytes);
    folder_block_bytes(Path::new(&cache.folder)).filter(fits)
}

/// Size of blocks that suits an order, for so many nodes that share what they keep. Where neighbours are read together,
/// large blocks serve all of them. Where any sample may come next, what is fetched beside it is for later: that spares a
/// request if it is kept until then, and is in vain if it is not.
pub fn chosen_block_bytes(index: &Index, cache: &CacheSettings, shuffle: Shuffle, nodes: u64) -> u64 {
    if shuffle != Shuffle::Whole {
        return BLOCK_BYTES;
    }
    let kept = cache.memory_bytes.max(if cache.has_disk() { cache.disk_bytes } else { 0 });
    if keeps_all(index, kept.saturating_mul(nodes))
        && cache.memory_bytes >= KEPT_BLOCKS_IN_MEMORY * KEPT_BLOCK_BYTES
    {
        return KEPT_BLOCK_BYTES;
    }
    let stored: u64 = index.objects().iter().map(|object| object.bytes).sum();
    let mean = stored / index.samples().max(1);
    let of_samples = 1 << (mean / BLOCKS_OF_SAMPLE).max(1).ilog2();
    let of_cache = (kept / MOST_BLOCKS).max(1).next_power_of_two();
    of_cache.max(of_samples).clamp(LEAST_BLOCK_BYTES, BLOCK_BYTES)
}

/// Whether there is room for every block of the size for that case. Each takes as much, also the last of an object.
fn keeps_all(index: &Index, kept_bytes: u64) -> bool {
    let blocks = index.objects().iter().map(|object| object.bytes.div_ceil(KEPT_BLOCK_BYTES));
    blocks.sum::<u64>().saturating_mul(KEPT_BLOCK_BYTES) <= kept_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, Bucket, IndexSettings};
    use std::fmt::Write;

    /// One object of lines of so many bytes.
    fn index(lines: u64, bytes: usize) -> Index {
        let folder = tempfile::tempdir().unwrap();
        let text = (0..lines).fold(String::new(), |mut text, _| {
            writeln!(text, "[\"{}\"]", "x".repeat(bytes - 4)).unwrap();
            text
        });
        std::fs::write(folder.path().join("a.jsonl"), text).unwrap();
        let address = Address::parse(folder.path().to_str().unwrap()).unwrap();
        let bucket = Bucket::open(&address, &Default::default(), &|_| None).unwrap();
        Index::build(&bucket, &address.to_string(), &IndexSettings::default(), &|_| ()).unwrap()
    }

    fn cache(memory_bytes: u64, disk_bytes: u64) -> CacheSettings {
        let folder = if disk_bytes > 0 { "tier0".to_owned() } else { String::new() };
        CacheSettings { folder, memory_bytes, disk_bytes, ..CacheSettings::default() }
    }

    #[test]
    fn blocks_are_large_where_neighbours_are_read_together_or_all_is_kept() {
        let index = index(4, 100 << 10);
        let roomy = KEPT_BLOCKS_IN_MEMORY * KEPT_BLOCK_BYTES;
        let size = |cache: &CacheSettings, nodes| chosen_block_bytes(&index, cache, Shuffle::Whole, nodes);
        assert_eq!(chosen_block_bytes(&index, &cache(roomy, 0), Shuffle::Blocks, 1), BLOCK_BYTES);
        assert_eq!(size(&cache(roomy, 0), 1), KEPT_BLOCK_BYTES);
        assert_eq!(size(&cache(roomy - 1, 0), 1), LEAST_BLOCK_BYTES, "too few on their way at once");
        let large = self::index(3, 30 << 20);
        let of_nodes =
            [1, 2].map(|nodes| chosen_block_bytes(&large, &cache(roomy, 0), Shuffle::Whole, nodes));
        assert_eq!(of_nodes, [BLOCK_BYTES, KEPT_BLOCK_BYTES], "90 MiB, and 64 MiB of memory on each node");
    }

    #[test]
    fn a_block_is_a_part_of_a_sample_where_not_all_is_kept() {
        let size = |index: &Index, cache| chosen_block_bytes(index, &cache, Shuffle::Whole, 1);
        let (small, large) = (index(100, 100), index(2, 300 << 10));
        assert_eq!(size(&small, cache(1 << 20, 0)), LEAST_BLOCK_BYTES);
        assert_eq!(size(&large, cache(1 << 20, 0)), 64 << 10);
        let huge = MOST_BLOCKS * (128 << 10);
        assert_eq!(size(&large, CacheSettings { memory_bytes: 1 << 20, ..cache(0, huge) }), 128 << 10);
    }
}
