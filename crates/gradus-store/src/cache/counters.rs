//! What the cache did, counted.

/// Counts since the cache was opened. A page is memory for one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheCounters {
    /// Accesses that were decided: those told that memory is full are not among them.
    pub accesses: u64,
    /// Accesses to blocks of the memory tier.
    pub memory_hits: u64,
    /// Accesses to blocks of the disk tier that the memory tier has not.
    pub disk_hits: u64,
    /// Accesses to blocks of neither tier: with the clairvoyant policy, as few as there can be.
    pub misses: u64,
    /// Disk hits and misses whose block was in a page nonetheless, because a reader was not done with it, or it had been
    /// fetched along with what lies beside it: nothing was read or fetched for them.
    pub shared: u64,
    /// Misses that no tier took in.
    pub bypassed: u64,
    /// Blocks that left the memory tier for others.
    pub memory_evictions: u64,
    /// Blocks that left the disk tier for others.
    pub disk_evictions: u64,
    /// Accesses that were told that no page is free.
    pub full: u64,
    /// Blocks fetched, and their bytes.
    pub fetched_blocks: u64,
    /// Bytes of them.
    pub fetched_bytes: u64,
    /// Fetches that failed.
    pub failed_fetches: u64,
    /// Blocks read from disk, whole and undamaged.
    pub disk_reads: u64,
    /// Bytes of them.
    pub disk_read_bytes: u64,
    /// Blocks written to disk.
    pub disk_writes: u64,
    /// Bytes of them.
    pub disk_written_bytes: u64,
    /// Blocks that were not written because the disk did not keep up.
    pub skipped_writes: u64,
    /// Blocks on disk that were damaged or could not be read, and were fetched again.
    pub damaged_blocks: u64,
    /// Blocks that an earlier run left on disk.
    pub restored_blocks: u64,
    /// Whether the disk tier takes in no more, because it could not be written.
    pub disk_full: bool,
    /// Blocks of the memory tier now.
    pub memory_blocks: u64,
    /// Blocks of the disk tier now.
    pub disk_blocks: u64,
    /// Pages that there are.
    pub pages: u64,
    /// Pages that hold nothing now.
    pub free_pages: u64,
    /// Pages in use now by readers, fetches or writes for blocks that no longer, or never, were of the memory tier.
    pub transit_pages: u64,
}
