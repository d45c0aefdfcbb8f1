//! Where a dataset is, and what is needed to read it: settings become a bucket, an index, a cache.

use crate::commands::environment;
use crate::run_settings::Settings;
use gradus_error::{Kind, Result};
use gradus_store::cache::folder_block_bytes;
use gradus_store::index::{Format, INDEX_FILE, Objects};
use gradus_store::{Address, Bucket, CacheSettings, Index, IndexSettings, ObjectInfo, Shuffle, Source, Split};
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

/// A dataset at an address.
pub struct DataSource {
    address: Address,
    bucket: Bucket,
}

impl DataSource {
    /// Finds out how to reach it.
    ///
    /// # Errors
    /// `Invalid` for what is no address or a bad setting; `Denied` where no credentials are found.
    pub fn open(address: &str, settings: &Settings) -> Result<Self> {
        let address = Address::parse(address)?;
        let bucket = Bucket::open(&address, &settings.bucket, &environment)?;
        Ok(Self { address, bucket })
    }

    /// The address, as it is written.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Whether it lies in a bucket, which all hosts see.
    pub fn is_remote(&self) -> bool {
        self.address.is_remote()
    }

    /// What its objects are reached through.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// The dataset's description: as it was written down beside it, if that still holds, or made now.
    ///
    /// # Errors
    /// What [`Index::build`] says.
    pub fn index(&self, split: Split) -> Result<Index> {
        let listed = Objects::list(&self.bucket, &self.address())?;
        match self.index_beside(&listed) {
            // What is described of prepared tokens depends on the split, and their manifest says all of it.
            Ok(Some(index)) if !matches!(index.format(), Format::Tokens { .. }) => return Ok(index),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Corrupt) => {
                tracing::warn!(
                    "the index beside the data is passed over, and they are indexed anew: {error}"
                );
            }
            Err(error) => return Err(error),
        }
        let settings = IndexSettings { split, ..IndexSettings::default() };
        Index::build_listed(&self.bucket, &self.address(), &listed, &settings, &|_| ())
    }

    /// The index among what lies at the address, if there is one.
    ///
    /// # Errors
    /// `Invalid` and `Corrupt` where it does not hold; the store's.
    fn index_beside(&self, listed: &[ObjectInfo]) -> Result<Option<Index>> {
        let beside = self.address.join(INDEX_FILE).to_string();
        let Some(file) = listed.iter().find(|object| object.address == beside) else { return Ok(None) };
        let index = Index::read_object(&self.bucket, file)?;
        index.check_objects(listed)?;
        Ok(Some(index))
    }

    /// Where a feed gets its bytes.
    pub fn source(&self) -> Source {
        match self.address {
            Address::File(_) => Source::Files,
            Address::S3 { .. } => Source::Bucket(self.bucket.clone()),
        }
    }
}

/// The cache for a dataset: with blocks of the size that is set, or that its folder has, or that suits the order.
pub fn cache_for(index: &Index, cache: CacheSettings, shuffle: Shuffle) -> CacheSettings {
    let chosen = || chosen_block_bytes(index, &cache, shuffle, 1);
    let block_bytes = known_block_bytes(&cache).unwrap_or_else(chosen);
    CacheSettings { block_bytes, ..cache }
}

/// Size of a cache's blocks where it need not be chosen: what is set, else what its folder has, whose blocks would be given
/// up for any other, if the budgets have room for such blocks.
pub fn known_block_bytes(cache: &CacheSettings) -> Option<u64> {
    if cache.block_bytes > 0 || cache.folder.is_empty() {
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
    let kept = if cache.folder.is_empty() { cache.memory_bytes } else { cache.disk_bytes };
    if keeps_all(index, kept.saturating_mul(nodes))
        && cache.memory_bytes >= KEPT_BLOCKS_IN_MEMORY * KEPT_BLOCK_BYTES
    {
        return KEPT_BLOCK_BYTES;
    }
    let mean = index.sizes().total / index.samples().max(1);
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
    use std::fmt::Write;

    /// One object of lines of so many bytes.
    fn index(lines: u64, bytes: usize) -> Index {
        let folder = tempfile::tempdir().unwrap();
        let text = (0..lines).fold(String::new(), |mut text, _| {
            writeln!(text, "\"{}\"", "x".repeat(bytes - 2)).unwrap();
            text
        });
        std::fs::write(folder.path().join("a.jsonl"), text).unwrap();
        let address = Address::parse(folder.path().to_str().unwrap()).unwrap();
        let bucket = Bucket::open(&address, &Default::default(), &environment).unwrap();
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
        let one = cache(roomy, KEPT_BLOCK_BYTES);
        assert_eq!([size(&one, 1), size(&one, 2)], [LEAST_BLOCK_BYTES, KEPT_BLOCK_BYTES], "400 KiB in two blocks");
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
