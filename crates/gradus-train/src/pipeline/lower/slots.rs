//! Which memory a microbatch's activations lie in: the lowest free slot of its chunk, or of its rank where chunks share.

use crate::pipeline::program::Sharing;
use gradus_error::{Error, Result};

/// Who has which slot of one rank.
pub(super) struct Slots {
    /// For each chunk, or for all together, for each slot: chunk and microbatch.
    taken: Vec<Vec<Option<(usize, usize)>>>,
    now: usize,
    most: usize,
}

impl Slots {
    /// Of `chunks` chunks, nothing taken yet.
    pub(super) fn new(chunks: usize, sharing: Sharing) -> Self {
        let pools = if sharing == Sharing::Rank { 1 } else { chunks };
        Self { taken: vec![Vec::new(); pools], now: 0, most: 0 }
    }

    /// Where `chunk` has its slots.
    fn pool(&self, chunk: usize) -> usize {
        chunk.min(self.taken.len() - 1)
    }

    /// The slot that `microbatch` has in `chunk` from now on.
    pub(super) fn take(&mut self, chunk: usize, microbatch: usize) -> usize {
        self.now += 1;
        self.most = self.most.max(self.now);
        let pool = self.pool(chunk);
        let slots = &mut self.taken[pool];
        let slot = slots.iter().position(Option::is_none).unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        slots[slot] = Some((chunk, microbatch));
        slot
    }

    /// The slot that `microbatch` has in `chunk`.
    ///
    /// # Errors
    /// `Internal` where it has none.
    pub(super) fn of(&self, chunk: usize, microbatch: usize) -> Result<usize> {
        let slot =
            self.taken[self.pool(chunk)].iter().position(|holder| *holder == Some((chunk, microbatch)));
        slot.ok_or_else(|| Error::internal(format!("microbatch {microbatch} has no slot in chunk {chunk}")))
    }

    /// Frees the slot that `microbatch` has in `chunk`.
    ///
    /// # Errors
    /// `Internal` where it has none.
    pub(super) fn release(&mut self, chunk: usize, microbatch: usize) -> Result<()> {
        let slot = self.of(chunk, microbatch)?;
        let pool = self.pool(chunk);
        self.taken[pool][slot] = None;
        self.now -= 1;
        Ok(())
    }

    /// How many slots each chunk needs, or all together, and how many are taken at once at most.
    pub(super) fn needed(&self) -> (Vec<usize>, usize) {
        (self.taken.iter().map(Vec::len).collect(), self.most)
    }
}
