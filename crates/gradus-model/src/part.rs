//! What of a model one rank holds: some of its layers, with embedding and head or without, and of each layer its share.
//!
//! Pipelines cut a model between blocks; tensor parallelism (Shoeybi et al. 2019, section 3) cuts the blocks themselves: of
//! layers whose outputs are cut (queries, keys, values, up) a rank has rows of the weight, of those whose inputs are cut
//! (attention's output, down) columns, of embedding and head rows of the vocabulary. Norms, biases after cut inputs and
//! positions are whole on every rank. Between the cut layers, where each rank would do the same, ranks share out the rows of
//! a batch instead (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.2.2).

use crate::config::ModelConfig;
use gradus_error::{Error, Result};
use gradus_memory::Span;
use std::ops::Range;

/// The vocabulary is cut between blocks of this many tokens, as it is padded to.
const VOCABULARY_BLOCK: usize = 64;

/// Which share a rank has of what is shared out among several, each a range of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub rank: usize,
    pub ranks: usize,
}

impl Share {
    /// Whether nothing is shared out.
    pub fn is_all(self) -> bool {
        self.ranks == 1
    }

    /// This rank's share of `count` things: as many as every other's, or one more or less.
    pub fn of(self, count: usize) -> Range<usize> {
        count * self.rank / self.ranks..count * (self.rank + 1) / self.ranks
    }

    /// How many of `count` things the rank has that has most.
    pub fn most(self, count: usize) -> usize {
        count.div_ceil(self.ranks)
    }
}

/// What of a model a rank holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its blocks.
    pub layers: Range<usize>,
    /// Whether it begins with the embedding.
    pub embedding: bool,
    /// Whether it ends with the final norm and the head.
    pub head: bool,
    /// Which share of every layer it has.
    pub tensor_rank: usize,
    /// Among how many ranks layers are shared out.
    pub tensor_ranks: usize,
}

impl Part {
    /// All of a model.
    pub fn whole(config: &ModelConfig) -> Self {
        Self { layers: 0..config.layers, embedding: true, head: true, tensor_rank: 0, tensor_ranks: 1 }
    }

    /// Whether it is all of the model.
    pub fn is_whole(&self, config: &ModelConfig) -> bool {
        *self == Self::whole(config)
    }

    /// Whether it has the embedding's table: a tied head needs it, too.
    pub fn has_table(&self, config: &ModelConfig) -> bool {
        self.embedding || (self.head && config.tied)
    }

    /// Whether layers of these sizes can be cut so.
    ///
    /// # Errors
    /// `Invalid` where a rank would have a part of a head, or where there is no such rank.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<()> {
        let sizes = [config.heads, config.kv_heads, config.feed_forward];
        let even = self.tensor_ranks > 0 && sizes.iter().all(|size| size.is_multiple_of(self.tensor_ranks));
        if even && self.tensor_rank < self.tensor_ranks {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "share {} of {} of each layer: {} heads, {} key-value heads and a feed-forward width of {} must be multiples of the shares",
            self.tensor_rank, self.tensor_ranks, config.heads, config.kv_heads, config.feed_forward
        )))
    }

    /// Which share of layers and rows this rank has.
    pub(crate) fn share(&self) -> Share {
        Share { rank: self.tensor_rank, ranks: self.tensor_ranks }
    }

    /// The rows of a batch of so many whose residual stream this rank has: not always whole sequences.
    pub fn rows(&self, rows: usize) -> Range<usize> {
        self.share().of(rows)
    }

    /// The rows of embedding and head, padding included, that this rank has: none, where there are more ranks than blocks.
    pub fn vocabulary(&self, config: &ModelConfig) -> Range<usize> {
        let blocks = self.share().of(config.padded_vocabulary() / VOCABULARY_BLOCK);
        blocks.start * VOCABULARY_BLOCK..blocks.end * VOCABULARY_BLOCK
    }

    /// How many of them the rank has that has most.
    pub(crate) fn most_vocabulary(&self, config: &ModelConfig) -> usize {
        self.share().most(config.padded_vocabulary() / VOCABULARY_BLOCK) * VOCABULARY_BLOCK
    }

    /// The sizes of what is held: heads, feed-forward width, vocabulary and layers of this part.
    pub(crate) fn local(&self, config: &ModelConfig) -> ModelConfig {
        let vocabulary = self.vocabulary(config);
        ModelConfig {
            layers: self.layers.len(),
            heads: config.heads / self.tensor_ranks,
            kv_heads: config.kv_heads / self.tensor_ranks,
            feed_forward: config.feed_forward / self.tensor_ranks,
            // Only the last block of a vocabulary has padding.
            vocabulary: vocabulary.end.min(config.vocabulary) - vocabulary.start,
            ..config.clone()
        }
    }
}

/// Which rows and columns of a whole tensor a part has; a vector is a matrix of one column.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    /// Rows of the whole, from the top down.
    pub rows: Vec<Range<usize>>,
    pub columns: Range<usize>,
    /// Columns of the whole.
    pub whole_columns: usize,
    /// Whether ranks share it out; else each has all of it.
    pub cut: bool,
}

impl Slice {
    /// Number of rows of the part.
    pub fn row_count(&self) -> usize {
        self.rows.iter().map(ExactSizeIterator::len).sum()
    }

    /// Elements that follow each other both in the part, which begins at `local`, and in the whole, which begins at `whole`.
    pub fn runs(&self, local: usize, whole: usize) -> Vec<Run> {
        let width = self.columns.len();
        let is_whole = width == self.whole_columns;
        let mut runs = Vec::new();
        let mut row = 0;
        for rows in &self.rows {
            let (pieces, len) = if is_whole { (1, rows.len() * width) } else { (rows.len(), width) };
            for piece in 0..pieces {
                let first = whole + (rows.start + piece) * self.whole_columns + self.columns.start;
                runs.push(Run { whole: Span::new(first, len), local: local + (row + piece) * width });
            }
            row += rows.len();
        }
        runs
    }
}

/// Elements that follow each other in the layout of a whole model and in that of a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where in the whole.
    pub whole: Span,
    /// Where in the part they begin.
    pub local: usize,
}
