//! What reading data costs a run: time in which a rank waited for them, and where they came from.

use gradus_store::{Brought, Cause, FeedCounters, MixtureProgress, Stalls};
use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// Time that a rank has waited for data, by what it waited for, seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataWaits {
    /// For the bucket.
    pub bucket: f64,
    /// For the local disk.
    pub disk: f64,
    /// For another node.
    pub peer: f64,
    /// For decompression.
    pub decode: f64,
    /// For a place in the cache's memory.
    pub memory: f64,
    /// For the rank that reads for this node; what it waits for is known to it alone.
    pub keeper: f64,
}

impl DataWaits {
    /// What a reader counted from `before` to `now`.
    pub fn between(before: &Stalls, now: &Stalls) -> Self {
        let since = now.since(before);
        // Sums of different lengths may differ in their last bits.
        let of = |cause| since.of(cause).max(0.0);
        Self {
            bucket: of(Cause::Bucket),
            disk: of(Cause::Disk),
            peer: of(Cause::Peer),
            decode: of(Cause::Decode),
            memory: of(Cause::Memory),
            keeper: of(Cause::Keeper),
        }
    }

    /// For whatever.
    pub fn total(&self) -> f64 {
        self.named().iter().map(|(_, time_s)| time_s).sum()
    }

    /// Each cause with its name, in reports' order.
    pub fn named(&self) -> [(&'static str, f64); Cause::ALL.len()] {
        [
            (Cause::Bucket.name(), self.bucket),
            (Cause::Disk.name(), self.disk),
            (Cause::Peer.name(), self.peer),
            (Cause::Decode.name(), self.decode),
            (Cause::Memory.name(), self.memory),
            (Cause::Keeper.name(), self.keeper),
        ]
    }
}

impl AddAssign for DataWaits {
    fn add_assign(&mut self, more: Self) {
        self.bucket += more.bucket;
        self.disk += more.disk;
        self.peer += more.peer;
        self.decode += more.decode;
        self.memory += more.memory;
        self.keeper += more.keeper;
    }
}

/// Bytes by where they were found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BytesBySource {
    /// In memory, or on their way there for another sample.
    pub memory: u64,
    /// On the local disk.
    pub disk: u64,
    /// With another node.
    pub peer: u64,
    /// In the bucket.
    pub bucket: u64,
}

impl BytesBySource {
    /// From wherever.
    pub fn total(&self) -> u64 {
        self.memory + self.disk + self.peer + self.bucket
    }
}

impl From<Brought> for BytesBySource {
    fn from(brought: Brought) -> Self {
        let Brought { memory, disk, peer, bucket } = brought;
        Self { memory, disk, peer, bucket }
    }
}

/// What the node of rank 0 has read so far in this life of a run, training and held-out data together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataRecord {
    /// Steps done.
    pub step: u64,
    /// Samples that the ranks of the node took.
    pub samples: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Where the bytes were found, those read ahead included.
    pub bytes_by_source: BytesBySource,
    /// What the ranks of the node waited for.
    pub wait_by_cause_s: DataWaits,
    /// Part of the accesses to blocks that found them in memory, 0 to 1.
    pub memory_hit_rate: f64,
    /// Part of the accesses that found them on disk.
    pub disk_hit_rate: f64,
    /// Accesses to blocks of neither.
    pub misses: u64,
    /// Bytes of blocks that were fetched.
    pub fetched_bytes: u64,
    /// Blocks that left memory for others.
    pub memory_evictions: u64,
    /// Blocks that left the disk for others.
    pub disk_evictions: u64,
    /// Blocks on disk that were damaged, and fetched again.
    pub damaged_blocks: u64,
    /// Whether the disk takes in no more.
    pub disk_full: bool,
    /// Requests sent to the bucket, of any kind.
    pub requests: u64,
    /// Of them, those sent again after a failure.
    pub retries: u64,
    /// Refusals because of too many requests.
    pub throttled: u64,
    /// Bytes that came from the bucket, descriptions of the data among them.
    pub bucket_bytes: u64,
    /// What requests and bytes cost, at the prices that are set.
    pub cost: f64,
    /// Bytes that are read ahead of the training data's readers, as things stand.
    pub depth_bytes: u64,
    /// Bytes that wait for readers or are on their way to them.
    pub waiting_bytes: u64,
    /// The datasets that are mixed, and how far all ranks are with each; empty where a run reads one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<MixtureProgress>,
}

impl DataRecord {
    /// After `step`, of the feeds of both parts of the data, the one to learn from first; nothing where neither counts.
    pub fn of(step: u64, feeds: [Option<FeedCounters>; 2]) -> Option<Self> {
        let mut feeds = feeds.into_iter().flatten();
        let first = feeds.next()?;
        // All feeds of a process read through one bucket: its figures are those of all.
        let bucket = &first.bucket;
        let mut record = Self {
            step,
            requests: bucket.gets + bucket.heads + bucket.puts + bucket.lists + bucket.deletes,
            retries: bucket.retries,
            throttled: bucket.throttled,
            bucket_bytes: bucket.bytes_read,
            cost: bucket.cost,
            depth_bytes: first.depth_bytes,
            ..Self::default()
        };
        let (mut brought, mut hits, mut accesses) = (Brought::default(), [0, 0], 0);
        for feed in std::iter::once(first).chain(feeds) {
            record.add(&feed);
            brought += feed.brought;
            hits = [hits[0] + feed.cache.memory_hits, hits[1] + feed.cache.disk_hits];
            accesses += feed.cache.accesses;
        }
        record.bytes_by_source = brought.into();
        [record.memory_hit_rate, record.disk_hit_rate] =
            hits.map(|hits| hits as f64 / accesses.max(1) as f64);
        Some(record)
    }

    fn add(&mut self, feed: &FeedCounters) {
        self.samples += feed.samples;
        self.bytes += feed.bytes;
        self.wait_by_cause_s += DataWaits::between(&Stalls::default(), &feed.stalls);
        self.waiting_bytes += feed.waiting_bytes;
        self.misses += feed.cache.misses;
        self.fetched_bytes += feed.cache.fetched_bytes;
        self.memory_evictions += feed.cache.memory_evictions;
        self.disk_evictions += feed.cache.disk_evictions;
        self.damaged_blocks += feed.cache.damaged_blocks;
        self.disk_full |= feed.cache.disk_full;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_store::{BucketCounters, CacheCounters};

    #[test]
    fn both_parts_add_up_and_the_bucket_that_they_share_counts_once() {
        let feed = |memory_hits, disk_full| FeedCounters {
            samples: 3,
            bytes: 300,
            brought: Brought { memory: 100, disk: 150, peer: 0, bucket: 50 },
            stalls: Stalls { seconds: [1.0, 0.5, 0.0, 0.25, 0.0, 0.0], times: [1; 6] },
            depth_bytes: 64,
            cache: CacheCounters {
                accesses: 10,
                memory_hits,
                disk_hits: 2,
                misses: 4,
                disk_full,
                ..CacheCounters::default()
            },
            bucket: BucketCounters {
                gets: 7,
                lists: 1,
                retries: 2,
                bytes_read: 90,
                cost: 0.5,
                ..Default::default()
            },
            ..FeedCounters::default()
        };
        let record = DataRecord::of(9, [Some(feed(4, false)), Some(feed(6, true))]).unwrap();
        assert_eq!((record.step, record.samples, record.bytes, record.misses), (9, 6, 600, 8));
        assert_eq!(record.bytes_by_source, BytesBySource { memory: 200, disk: 300, peer: 0, bucket: 100 });
        assert_eq!(
            record.wait_by_cause_s,
            DataWaits { bucket: 2.0, disk: 1.0, decode: 0.5, ..Default::default() }
        );
        assert_eq!((record.memory_hit_rate, record.disk_hit_rate, record.disk_full), (0.5, 0.2, true));
        assert_eq!((record.requests, record.retries, record.bucket_bytes), (8, 2, 90));
        assert_eq!((record.cost, record.depth_bytes), (0.5, 64));
        assert_eq!(DataRecord::of(9, [None, None]), None);
    }

    #[test]
    fn waits_are_those_between_two_readings() {
        let before = Stalls { seconds: [1.0, 0.0, 0.0, 0.0, 0.0, 2.0], times: [1; 6] };
        let now = Stalls { seconds: [1.5, 0.0, 0.25, 0.0, 0.5, 2.0], times: [1; 6] };
        let waits = DataWaits::between(&before, &now);
        assert_eq!(waits, DataWaits { bucket: 0.5, peer: 0.25, memory: 0.5, ..Default::default() });
        assert_eq!(waits.total(), 1.25);
        assert_eq!(DataWaits::between(&now, &before).total(), 0.0);
    }
}
