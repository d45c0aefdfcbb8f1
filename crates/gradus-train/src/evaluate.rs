//! The loss on the held-out split: every rank takes a share, the sums are added.

use crate::batches::{self, BatchBuffer, DocumentRule};
use gradus_collective::Communicator;
use gradus_error::Result;
use gradus_model::{LossSum, Transformer, Workspace};
use gradus_store::TokenSplit;

/// What an evaluation reads.
pub(crate) struct Evaluation<'a> {
    pub model: &'a Transformer,
    pub workspace: &'a Workspace,
    pub split: &'a TokenSplit,
    /// Sequences at once.
    pub batch: usize,
    /// `T`.
    pub sequence: usize,
    pub rule: DocumentRule,
    /// Tokens to read at most; 0: all.
    pub tokens: u64,
}

impl Evaluation<'_> {
    /// The summed loss over samples from all over the split, the same on every rank.
    pub fn run(&self, communicator: &mut Communicator, buffer: &mut BatchBuffer) -> Result<LossSum> {
        let (rank, world_size) = (communicator.rank(), communicator.world_size());
        let samples = self.samples();
        let batches = samples.div_ceil(self.batch as u64) as usize;
        let mut sum = LossSum::default();
        for batch in batches::share(batches, rank, world_size) {
            let first = (batch * self.batch) as u64;
            let chosen = first..(first + self.batch as u64).min(samples);
            let spread = chosen.map(|index| spread(index, samples, self.split.samples()));
            buffer.load(self.split, spread, self.rule)?;
            sum += self.model.loss(self.workspace, buffer.batch(), &())?;
        }
        let mut sums = [sum.nats, sum.targets as f64];
        communicator.all_reduce(&mut sums)?;
        Ok(LossSum { nats: sums[0], targets: sums[1] as u64 })
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
