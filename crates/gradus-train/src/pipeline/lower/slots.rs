//! Which memory a microbatch's activations lie in: the lowest free slot of its chunk, or of its rank where chunks share.

use crate::pipeline::program::Sharing;
use gradus_error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Who has which slot of one rank.
pub(super) struct Slots {
    /// For each chunk, or for all together.
    pools: Vec<Pool>,
    /// Of chunk and microbatch.
    taken: BTreeMap<(usize, usize), usize>,
    most: usize,
}

/// Slots that are numbered together.
#[derive(Default, Clone)]
struct Pool {
    free: BTreeSet<usize>,
    count: usize,
}

impl Slots {
    /// Of `chunks` chunks, nothing taken yet.
    pub(super) fn new(chunks: usize, sharing: Sharing) -> Self {
        let pools = if sharing == Sharing::Rank { 1 } else { chunks };
        Self { pools: vec![Pool::default(); pools], taken: BTreeMap::new(), most: 0 }
    }

    /// The slot that `microbatch` has in `chunk` from now on.
    pub(super) fn take(&mut self, chunk: usize, microbatch: usize) -> usize {
        let pool = self.pool(chunk);
        let slot = pool.free.pop_first().unwrap_or(pool.count);
        pool.count = pool.count.max(slot + 1);
        self.taken.insert((chunk, microbatch), slot);
        self.most = self.most.max(self.taken.len());
        slot
    }

    /// The slot that `microbatch` has in `chunk`.
    ///
    /// # Errors
    /// `Internal` where it has none.
    pub(super) fn of(&self, chunk: usize, microbatch: usize) -> Result<usize> {
        let slot = self.taken.get(&(chunk, microbatch)).copied();
        slot.ok_or_else(|| Error::internal(format!("microbatch {microbatch} has no slot in chunk {chunk}")))
    }

    /// Frees the slot that `microbatch` has in `chunk`.
    ///
    /// # Errors
    /// `Internal` where it has none.
    pub(super) fn release(&mut self, chunk: usize, microbatch: usize) -> Result<()> {
        let slot = self.of(chunk, microbatch)?;
        self.taken.remove(&(chunk, microbatch));
        self.pool(chunk).free.insert(slot);
        Ok(())
    }

    /// How many slots each chunk needs, or all together, and how many are taken at once at most.
    pub(super) fn needed(&self) -> (Vec<usize>, usize) {
        (self.pools.iter().map(|pool| pool.count).collect(), self.most)
    }

    fn pool(&mut self, chunk: usize) -> &mut Pool {
        let last = self.pools.len() - 1;
        &mut self.pools[chunk.min(last)]
    }
}
