//! Where a dataset is, and what is needed to read it: settings become a bucket, an index, a cache.

use crate::commands::environment;
use crate::run_settings::Settings;
use gradus_error::{Kind, Result};
use gradus_store::cache::folder_block_bytes;
use gradus_store::index::{Format, INDEX_FILE, Objects};
use gradus_store::{Address, Bucket, CacheSettings, Index, IndexSettings, Shuffle, Source, Split};
use std::path::Path;

/// Size of a block where nothing asks for another: a request's overhead is small beside it.
const BLOCK_BYTES: u64 = 1 << 20;

/// Smallest block that is chosen: half a request's overhead at a gigabyte a second.
const LEAST_BLOCK_BYTES: u64 = 64 << 10;

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
        match self.index_beside() {
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
        Index::build(&self.bucket, &self.address(), &settings, &|_| ())
    }

    /// The index that lies at the address, if there is one.
    ///
    /// # Errors
    /// `Invalid` and `Corrupt` where it does not hold; the store's.
    fn index_beside(&self) -> Result<Option<Index>> {
        let listed = Objects::list(&self.bucket, &self.address())?;
        let beside = self.address.join(INDEX_FILE).to_string();
        let Some(file) = listed.iter().find(|object| object.address == beside) else { return Ok(None) };
        let index = Index::read_object(&self.bucket, file)?;
        index.check_objects(&listed)?;
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
    let block_bytes = known_block_bytes(&cache).unwrap_or_else(|| block_bytes(index, &cache, shuffle));
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

/// Where neighbours are read together, large blocks serve all of them. Where any sample may come next, most of a block that
/// is larger than a sample is fetched for later: too much of it at the beginning, and in vain if the cache cannot keep it.
fn block_bytes(index: &Index, cache: &CacheSettings, shuffle: Shuffle) -> u64 {
    if shuffle != Shuffle::Whole {
        return BLOCK_BYTES;
    }
    let kept = if cache.folder.is_empty() { cache.memory_bytes } else { cache.disk_bytes };
    let sizes = index.sizes();
    let mean = (sizes.total / index.samples().max(1)).max(1);
    let of_samples = 1 << mean.ilog2();
    let of_cache = (kept / MOST_BLOCKS).max(1).next_power_of_two();
    of_cache.max(of_samples).clamp(LEAST_BLOCK_BYTES, BLOCK_BYTES)
}
