//! Which memory a microbatch's activations lie in: a free slot of its chunk, or of its rank where chunks share; the lowest of
//! those that have *rested*. What a slot's last microbatch left is sent from there, and whoever takes the slot waits for
//! that; once its rank has computed something since, the wait is over or short.

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
    rested: BTreeSet<usize>,
    tired: BTreeSet<usize>,
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
        let free = pool.rested.pop_first().or_else(|| pool.tired.pop_first());
        let slot = free.unwrap_or(pool.count);
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
        self.pool(chunk).tired.insert(slot);
        Ok(())
    }

    /// Notes that the rank has computed something since the slots that are free now were released.
    pub(super) fn rest(&mut self) {
        self.pools.iter_mut().for_each(|pool| pool.rested.append(&mut pool.tired));
    }

    /// Whether `chunk` has a rested slot among as many as `counts` says.
    pub(super) fn has_rested(&mut self, chunk: usize, counts: &[usize]) -> bool {
        let most = counts[chunk.min(counts.len() - 1)];
        let pool = self.pool(chunk);
        !pool.rested.is_empty() || pool.count < most
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
