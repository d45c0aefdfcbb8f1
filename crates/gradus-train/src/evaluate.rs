//! The loss on the held-out split: microbatches from all over it, which ranks share out as they do a step's.

use crate::batches::{BatchBuffer, DocumentRule};
use crate::learner::Microbatches;
use gradus_error::Result;
use gradus_model::Batch;
use gradus_store::Tokens;
use std::ops::Range;

/// What an evaluation reads.
pub(crate) struct Evaluation<'a> {
    /// In the order in which evaluations follow one another.
    pub tokens: &'a mut dyn Tokens,
    pub buffer: &'a mut BatchBuffer,
    /// How many evaluations went before.
    pub before: u64,
    /// Samples of each.
    pub samples: u64,
    /// Sequences at once.
    pub batch: usize,
    /// `T`.
    pub sequence: usize,
    pub rule: DocumentRule,
    /// The microbatch that the buffer holds.
    pub loaded: Option<usize>,
}

impl Microbatches for Evaluation<'_> {
    fn count(&self) -> usize {
        self.samples.div_ceil(self.batch as u64) as usize
    }

    fn load(&mut self, index: usize) -> Result<Batch<'_>> {
        // Each stage of a rank wants it, and a sample is asked for once.
        if self.loaded == Some(index) {
            return Ok(self.buffer.batch());
        }
        self.loaded = None;
        let first = self.before * self.samples;
        let chosen = self.chosen(index);
        self.buffer.load(self.tokens, first + chosen.start..first + chosen.end, self.rule)?;
        self.loaded = Some(index);
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
        first..(first + self.batch as u64).min(self.samples)
    }
}

/// How many samples an evaluation reads of a split that has `all`: so many that they hold `tokens`, or all for 0.
pub fn evaluated_samples(all: u64, tokens: u64, sequence: usize) -> u64 {
    if tokens == 0 { all } else { all.min(tokens.div_ceil(sequence as u64)) }
}
