//! The loss on the held-out split: microbatches from all over it, which ranks share out as they do a step's.

use crate::batches::{BatchBuffer, DocumentRule};
use crate::learner::Microbatches;
use gradus_error::Result;
use gradus_model::Batch;
use gradus_store::TokenSplit;
use std::ops::Range;

/// What an evaluation reads.
pub(crate) struct Evaluation<'a> {
    pub split: &'a TokenSplit,
    pub buffer: &'a mut BatchBuffer,
    /// Sequences at once.
    pub batch: usize,
    /// `T`.
    pub sequence: usize,
    pub rule: DocumentRule,
    /// Tokens to read at most; 0: all.
    pub tokens: u64,
}

impl Microbatches for Evaluation<'_> {
    fn count(&self) -> usize {
        self.samples().div_ceil(self.batch as u64) as usize
    }

    fn load(&mut self, index: usize) -> Result<Batch<'_>> {
        let (samples, all) = (self.samples(), self.split.samples());
        self.buffer.load(
            self.split,
            self.chosen(index).map(|index| spread(index, samples, all)),
            self.rule,
        )?;
        Ok(self.buffer.batch())
    }

    fn tokens(&mut self, index: usize) -> Result<usize> {
        let chosen = self.chosen(index);
        Ok((chosen.end - chosen.start) as usize * self.sequence)
    }
}

impl Evaluation<'_> {
    /// The samples of a microbatch, of those that are chosen.
    fn chosen(&self, index: usize) -> Range<u64> {
        let first = (index * self.batch) as u64;
        first..(first + self.batch as u64).min(self.samples())
    }

    fn samples(&self) -> u64 {
        let limit = if self.tokens == 0 { u64::MAX } else { self.tokens.div_ceil(self.sequence as u64) };
        self.split.samples().min(limit)
    }
}

/// Sample `index` of `chosen` that lie evenly over `all`: a limit must not leave out all but the first documents.
fn spread(index: u64, chosen: u64, all: u64) -> u64 {
    // Widened, since the product may exceed 64 bits; the quotient is below `all`.
    (u128::from(index) * u128::from(all) / u128::from(chosen)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_samples_differ_and_reach_over_the_whole_split() {
        let chosen: Vec<u64> = (0..7).map(|index| spread(index, 7, 100)).collect();
        assert_eq!(chosen, [0, 14, 28, 42, 57, 71, 85]);
        assert!((0..9).map(|index| spread(index, 9, 9)).eq(0..9));
        assert_eq!(spread(u64::MAX / 2, u64::MAX, u64::MAX), u64::MAX / 2);
    }
}
