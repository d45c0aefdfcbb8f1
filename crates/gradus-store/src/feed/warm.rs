//! Filling the disk tier before anybody reads.
//!
//! Blocks are fetched in the order in which a run uses them first, as many as the folder has room for: so that what does
//! not fit is what is needed last. What an earlier run left is read and checked, fetched again where it is damaged, and
//! gives way where it is needed later.

use super::depth::Depth;
use super::origin::Source;
use super::unit::{Loading, Origin};
use super::walk::begin_in_runs;
use super::{FIRST_DEPTH_BYTES, PAGE_PATIENCE, window_bytes};
use crate::blocks::{Block, BlockMap};
use crate::cache::{Access, CacheCounters, CacheSettings, Held, Tier0};
use crate::index::Index;
use crate::order::Order;
use gradus_error::{Error, Result};
use gradus_host::Clock;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Blocks on their way at once: enough to keep a bucket's connections busy.
const MOST_ON_THEIR_WAY: u64 = 256;

/// What was filled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warmed {
    /// Blocks of the dataset that the order comes to, if all fit; else as many as were looked at.
    pub wanted: u64,
    /// Whether the folder had no room for all.
    pub is_full: bool,
    /// What the cache did.
    pub cache: CacheCounters,
}

/// Fills the folder of `cache` with what is read at the positions of `order` before `end`, as far as it does not lie in files
/// of this host; `progress` is told the bytes that are there, and all that there may come to be.
///
/// # Errors
/// `Invalid` for a cache without a folder, or settings that cannot be; `Exhausted` when the disk is full; what the bucket
/// says in the end; what [`Tier0::open`] says.
pub fn warm(
    (index, order, end): (&Index, &dyn Order, u64),
    source: &Source,
    cache: &CacheSettings,
    clock: Arc<dyn Clock>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Warmed> {
    if !cache.has_disk() {
        return Err(Error::invalid("cache.folder is not set: there is nothing to fill"));
    }
    let map = Arc::new(BlockMap::new(index.objects().to_vec(), cache.block_bytes)?);
    let window = (window_bytes(cache) / cache.block_bytes).min(map.blocks());
    let mut first_use = |block: Block| {
        let samples = index.samples_in(map.object_of(block) as u32, map.range_of(block));
        let first = |sample| order.next_position(sample, 0);
        samples.filter_map(first).min()
    };
    let tier = Tier0::open(map.clone(), cache, window)?;
    tier.begin(&mut first_use);
    let depth = Arc::new(Mutex::new(Depth::new(FIRST_DEPTH_BYTES, window_bytes(cache))));
    let origin = source.origin(map.clone(), depth, clock);
    let far = index.objects().iter().enumerate().filter(|(object, _)| !origin.is_near(*object as u32));
    let (all_blocks, all_bytes) = far.fold((0, 0), |(blocks, bytes), (object, info)| {
        (blocks + map.covering(object, 0..info.bytes).len() as u64, bytes + info.bytes)
    });
    let room = (cache.disk_bytes / cache.block_bytes).min(all_blocks);
    let mut filling = Filling {
        tier: &tier,
        origin: origin.as_ref(),
        most: window.clamp(1, MOST_ON_THEIR_WAY) as usize,
        room,
        all_blocks,
        seen: vec![false; map.blocks() as usize],
        wanted: 0,
        is_full: false,
        under_way: VecDeque::new(),
        done_bytes: 0,
    };
    filling
        .until((index, order, end), &mut |done| progress(done, all_bytes.min(room * cache.block_bytes)))?;
    tier.flush();
    let counters = tier.counters();
    if counters.disk_full {
        return Err(Error::exhausted(format!(
            "the disk of {} takes no more: it has {} blocks of {} bytes; set cache.disk_bytes to what is free there",
            cache.folder, counters.disk_blocks, cache.block_bytes
        )));
    }
    Ok(Warmed { wanted: filling.wanted, is_full: filling.is_full, cache: counters })
}

struct Filling<'a> {
    tier: &'a Tier0,
    origin: &'a dyn Origin,
    /// Blocks that may be on their way.
    most: usize,
    /// Blocks that the folder has room for.
    room: u64,
    /// Blocks that could be wanted.
    all_blocks: u64,
    seen: Vec<bool>,
    wanted: u64,
    is_full: bool,
    under_way: VecDeque<Held>,
    done_bytes: u64,
}

impl Filling<'_> {
    /// Sees to the coming of what is read before `end`, until there is no more room, or nothing more to come.
    fn until(
        &mut self,
        (index, order, end): (&Index, &dyn Order, u64),
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        for position in 0..end {
            let place = index.sample(order.sample_at(position));
            if self.origin.is_near(place.object) {
                continue;
            }
            let fresh = self.fresh(self.tier.map().covering(place.object as usize, place.unit));
            self.begin(&fresh, position)?;
            progress(self.done_bytes);
            if self.is_full || self.wanted == self.all_blocks || self.tier.counters().disk_full {
                break;
            }
        }
        self.wait_until(0)?;
        progress(self.done_bytes);
        Ok(())
    }

    /// Those of a sample's blocks that were not looked at before and have room.
    fn fresh(&mut self, blocks: impl Iterator<Item = Block>) -> Vec<Block> {
        let mut fresh = Vec::new();
        for block in blocks {
            if std::mem::replace(&mut self.seen[block.0 as usize], true) {
                continue;
            }
            if self.wanted == self.room {
                self.is_full = true;
                break;
            }
            self.wanted += 1;
            fresh.push(block);
        }
        fresh
    }

    /// Sees to the coming of blocks of one object, which are first used at `position`.
    fn begin(&mut self, blocks: &[Block], position: u64) -> Result<()> {
        let mut missing = Vec::new();
        for block in blocks {
            loop {
                match self.tier.access(*block, || Some(position)) {
                    Access::Held(held) => self.under_way.push_back(held),
                    Access::OnDisk(load) => {
                        let loading = Loading::new(load);
                        loading.carry_out(self.origin);
                        self.under_way.push_back(loading.held());
                    }
                    Access::Missing(fill) => {
                        self.under_way.push_back(fill.held());
                        missing.push(fill);
                    }
                    Access::Full => {
                        // What is waited for must have been asked for.
                        begin_in_runs(std::mem::take(&mut missing), self.origin);
                        self.wait_until(0)?;
                        // The writer lets go of one.
                        while !self.tier.wait_until_free(PAGE_PATIENCE) {}
                        continue;
                    }
                }
                break;
            }
        }
        begin_in_runs(missing, self.origin);
        self.wait_until(self.most)
    }

    /// Waits until no more than `most` blocks are on their way.
    fn wait_until(&mut self, most: usize) -> Result<()> {
        while self.under_way.len() > most {
            let Some(held) = self.under_way.pop_front() else { break };
            held.wait()?;
            self.done_bytes += held.bytes().len() as u64;
        }
        Ok(())
    }
}
