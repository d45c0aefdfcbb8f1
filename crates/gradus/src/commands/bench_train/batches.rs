//! The batches of the steps: a stream of sequences, cut evenly into steps, and those into microbatches.

use super::shape::Sizes;
use anyhow::{Context, Result};
use gradus_error::Error;
use gradus_model::Batch;
use gradus_train::Microbatches;
use std::path::Path;

/// Sequences that are made up where there is no file: enough that steps differ.
const MADE_UP: usize = 512;

/// How many sequences a step has, and into how many microbatches they are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Of a step, over all ranks.
    pub sequences: usize,
    /// Of a step, over all ranks.
    pub microbatches: usize,
}

impl Cut {
    /// A cut into microbatches of the same size.
    ///
    /// # Errors
    /// `Invalid`, naming the arguments, where there is none.
    pub fn new(sequences: usize, microbatches: usize) -> Result<Self, Error> {
        if microbatches > 0 && sequences > 0 && sequences.is_multiple_of(microbatches) {
            return Ok(Self { sequences, microbatches });
        }
        Err(Error::invalid(format!(
            "--sequences {sequences} --microbatches {microbatches}: choose microbatches that divide a step's sequences evenly"
        )))
    }

    /// Sequences of a microbatch.
    pub fn each(self) -> usize {
        self.sequences / self.microbatches
    }
}

/// Sequences one after another, over and over: microbatch `m` of step `s` begins with number
/// `sequences * s + sequences / microbatches * m`, whoever computes it.
pub(super) struct StoredBatches {
    pub sizes: Sizes,
    pub cut: Cut,
    /// Steps done.
    pub step: usize,
    /// `[sequences][T + 1]`.
    tokens: Vec<u32>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl StoredBatches {
    /// Those of a file, or made-up ones.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn open(sizes: Sizes, file: Option<&Path>, cut: Cut) -> Result<Self> {
        let row = sizes.sequence + 1;
        let tokens = match file {
            Some(path) => read_tokens(path, sizes.batch * row)?,
            // Any fixed tokens do where only the time counts.
            None => (0..(MADE_UP * row) as u32).map(|i| i.wrapping_mul(2_654_435_761) >> 20).collect(),
        };
        Ok(Self { sizes, cut, step: 0, tokens, inputs: Vec::new(), targets: Vec::new() })
    }

    /// Tokens that a step learns from, on all ranks.
    pub fn tokens_of_step(&self) -> usize {
        self.cut.sequences * self.sizes.sequence
    }
}

fn read_tokens(path: &Path, batch_tokens: usize) -> Result<Vec<u32>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.is_empty() || !bytes.len().is_multiple_of(2 * batch_tokens) {
        let text =
            format!("{} holds no whole number of batches of {batch_tokens} u16 tokens", path.display());
        return Err(Error::invalid(text).into());
    }
    Ok(bytes.chunks_exact(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))).collect())
}

impl Microbatches for StoredBatches {
    fn count(&self) -> usize {
        self.cut.microbatches
    }

    fn load(&mut self, index: usize) -> gradus_error::Result<Batch<'_>> {
        let (sequence, each) = (self.sizes.sequence, self.cut.each());
        let rows = self.tokens.len() / (sequence + 1);
        let first = self.cut.sequences * self.step + each * index;
        self.inputs.clear();
        self.targets.clear();
        for number in first..first + each {
            let row = &self.tokens[number % rows * (sequence + 1)..][..sequence + 1];
            self.inputs.extend_from_slice(&row[..sequence]);
            self.targets.extend_from_slice(&row[1..]);
        }
        let (tokens, targets) = (&self.inputs, &self.targets);
        Ok(Batch { batch: each, sequence, tokens, targets, documents: None })
    }

    fn tokens(&mut self, _index: usize) -> gradus_error::Result<usize> {
        Ok(self.cut.each() * self.sizes.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::Shape;
    use super::*;

    /// Tokens and targets of two steps.
    fn seen(microbatches: usize) -> [Vec<u32>; 2] {
        let cut = Cut::new(24, microbatches).unwrap();
        let mut batches = StoredBatches::open(Shape::Gpt.sizes(), None, cut).unwrap();
        let mut seen = [Vec::new(), Vec::new()];
        for _ in 0..2 {
            for index in 0..batches.count() {
                let batch = batches.load(index).unwrap();
                assert_eq!(batch.batch * batch.sequence, batch.tokens.len());
                seen[0].extend_from_slice(batch.tokens);
                seen[1].extend_from_slice(batch.targets);
            }
            batches.step += 1;
        }
        seen
    }

    #[test]
    fn however_a_step_is_cut_it_has_the_same_sequences() {
        let whole = seen(1);
        assert_eq!(whole[0].len(), 2 * 24 * 256);
        assert_eq!(whole[0][1..256], whole[1][..255]);
        assert!([2, 8, 24].into_iter().all(|microbatches| seen(microbatches) == whole));
    }

    #[test]
    fn uneven_cuts_are_refused() {
        for (sequences, microbatches) in [(8, 3), (8, 0), (0, 1), (8, 16)] {
            assert!(Cut::new(sequences, microbatches).is_err(), "{sequences} in {microbatches}");
        }
    }
}
