//! Which sequences a rank learns from in a step.
//!
//! A step's global batch is `global_batch` consecutive positions of the sample order; a microbatch is a run of them;
//! ranks take runs of microbatches, as even as can be. All of it is a pure function of step, world size and seed.

use gradus_compute::IGNORED;
use gradus_error::Result;
use gradus_model::Batch;
use gradus_store::Tokens;
use std::ops::Range;

/// The microbatches that `rank` takes of `microbatches`, numbered from 0.
///
/// Ranks differ by at most one.
pub fn share(microbatches: usize, rank: usize, world_size: usize) -> Range<usize> {
    microbatches * rank / world_size..microbatches * (rank + 1) / world_size
}

/// Positions in the sample order of one microbatch of one step (steps from 1).
pub fn positions(
    step: u64,
    microbatch: usize,
    microbatch_sequences: usize,
    global_batch: usize,
) -> Range<u64> {
    let first = (step - 1) * global_batch as u64;
    let end = first + global_batch as u64;
    let start = first + (microbatch * microbatch_sequences) as u64;
    start.min(end)..(start + microbatch_sequences as u64).min(end)
}

/// Sequences copied out of a split, with what the model needs to know of them.
#[derive(Debug, Default)]
pub struct BatchBuffer {
    sequence: usize,
    row: Vec<u32>,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    documents: Option<Vec<u32>>,
}

impl BatchBuffer {
    /// A buffer for sequences of `sequence` tokens.
    pub fn new(sequence: usize) -> Self {
        Self { sequence, row: vec![0; sequence + 1], ..Default::default() }
    }

    /// Loads the samples at `positions`.
    ///
    /// # Errors
    /// What is said of a sample that cannot be read.
    pub fn load(&mut self, tokens: &mut dyn Tokens, positions: Range<u64>, rule: DocumentRule) -> Result<()> {
        self.tokens.clear();
        self.targets.clear();
        let mut documents = Vec::new();
        tokens.expect(positions.clone())?;
        for position in positions {
            tokens.read(position, &mut self.row)?;
            self.tokens.extend_from_slice(&self.row[..self.sequence]);
            self.targets.extend_from_slice(&self.row[1..]);
            rule.number(&self.row[..self.sequence], &mut documents);
        }
        self.documents = rule.end_of_text.is_some().then_some(documents);
        Ok(())
    }

    /// The loaded sequences.
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            batch: self.tokens.len() / self.sequence,
            sequence: self.sequence,
            tokens: &self.tokens,
            targets: &self.targets,
            documents: self.documents.as_deref(),
        }
    }
}

/// The microbatches of a step that were loaded: some passes want one again, and a sample is asked for once.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The first of them hold the microbatches numbered in `held`; all are kept for the next step.
    buffers: Vec<BatchBuffer>,
    held: Vec<usize>,
}

impl Loaded {
    /// Forgets what was loaded.
    pub fn clear(&mut self) {
        self.held.clear();
    }

    /// Microbatch `index`: as it was loaded before, or as `load` fills a buffer that `make` makes where none is free.
    ///
    /// # Errors
    /// Those of `load`; nothing is held then.
    pub fn get(
        &mut self,
        index: usize,
        make: impl FnOnce() -> BatchBuffer,
        load: impl FnOnce(&mut BatchBuffer) -> Result<()>,
    ) -> Result<Batch<'_>> {
        let place = match self.held.iter().position(|held| *held == index) {
            Some(place) => place,
            None => {
                let place = self.held.len();
                if place == self.buffers.len() {
                    self.buffers.push(make());
                }
                load(&mut self.buffers[place])?;
                self.held.push(index);
                place
            }
        };
        Ok(self.buffers[place].batch())
    }
}

/// Whether and where documents part.
#[derive(Debug, Clone, Copy)]
pub struct DocumentRule {
    end_of_text: Option<u32>,
}

impl DocumentRule {
    /// With `end_of_text` each token also gets the number of its document within its sequence.
    pub fn new(end_of_text: Option<u32>) -> Self {
        Self { end_of_text }
    }

    /// Appends the document number of each token; the end-of-text token belongs to the document that it ends.
    fn number(self, tokens: &[u32], documents: &mut Vec<u32>) {
        let Some(end_of_text) = self.end_of_text else { return };
        let mut document = 0;
        for token in tokens {
            documents.push(document);
            document += u32::from(*token == end_of_text);
        }
    }
}

/// Targets that count in a batch.
pub fn counted(targets: &[u32]) -> u64 {
    targets.iter().filter(|target| **target != IGNORED).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_microbatch_has_one_rank_and_shares_differ_by_at_most_one() {
        for microbatches in 1..20 {
            for world_size in 1..=microbatches {
                let shares: Vec<_> =
                    (0..world_size).map(|rank| share(microbatches, rank, world_size)).collect();
                let all: Vec<_> = shares.iter().cloned().flatten().collect();
                assert_eq!(all, (0..microbatches).collect::<Vec<_>>());
                let sizes = shares.iter().map(ExactSizeIterator::len);
                assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn a_steps_positions_follow_the_last_steps_and_the_rest_is_a_short_microbatch() {
        let of = |step| (0..3).flat_map(move |m| positions(step, m, 3, 8));
        assert_eq!(of(1).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        assert_eq!(of(2).collect::<Vec<_>>(), (8..16).collect::<Vec<_>>());
        assert_eq!(positions(1, 2, 3, 8), 6..8);
    }

    #[test]
    fn the_end_of_text_belongs_to_the_document_it_ends() {
        let mut documents = Vec::new();
        DocumentRule { end_of_text: Some(9) }.number(&[1, 2, 9, 3, 9, 9, 4], &mut documents);
        assert_eq!(documents, [0, 0, 0, 1, 1, 2, 3]);
    }
}
