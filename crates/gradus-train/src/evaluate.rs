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
    /// The summed loss over the first samples of the split, the same on every rank.
    pub fn run(&self, communicator: &mut Communicator, buffer: &mut BatchBuffer) -> Result<LossSum> {
        let (rank, world_size) = (communicator.rank(), communicator.world_size());
        let samples = self.samples();
        let batches = samples.div_ceil(self.batch as u64) as usize;
        let mut sum = LossSum::default();
        for batch in batches::share(batches, rank, world_size) {
            let first = (batch * self.batch) as u64;
            buffer.load(self.split, first..(first + self.batch as u64).min(samples), self.rule)?;
            sum += self.model.loss(self.workspace, buffer.batch())?;
        }
        let mut sums = [sum.nats, sum.targets as f64];
        communicator.all_reduce_f64(&mut sums)?;
        Ok(LossSum { nats: sums[0], targets: sums[1] as u64 })
    }

    fn samples(&self) -> u64 {
        let limit = if self.tokens == 0 { u64::MAX } else { self.tokens.div_ceil(self.sequence as u64) };
        self.split.samples().min(limit)
    }
}
