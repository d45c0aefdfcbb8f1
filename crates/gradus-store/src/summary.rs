//! What a run has to know of its data before it reads any: of one dataset, or of several that are mixed.

use crate::dataset::{Dataset, TokenSplit};
use crate::manifest::Split;
use crate::mixed::MixedOrder;
use std::sync::Arc;

/// See the module.
#[derive(Debug, Clone)]
pub struct DataSummary {
    /// `T`: a sample has one token more.
    pub sequence_length: usize,
    /// The token that parts documents, if it is known.
    pub end_of_text: Option<u32>,
    /// Where it is the same, so are the samples, and of a mixture the shares.
    pub digest: String,
    /// What is learned from.
    pub train: PartSummary,
    /// What is held out; no samples if nothing is.
    pub held_out: PartSummary,
    /// How they are mixed, if they are.
    pub mixture: Option<Arc<MixedOrder>>,
}

/// Of one part of the data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PartSummary {
    /// Samples; of what is held out of a mixture, those that an evaluation reads.
    pub samples: u64,
    /// Tokens of all of it.
    pub tokens: u64,
    /// Bytes of text for each token, end-of-text tokens counted in; nothing where they are not known.
    pub bytes_per_token: Option<f64>,
}

impl From<&Dataset> for DataSummary {
    fn from(dataset: &Dataset) -> Self {
        Self {
            sequence_length: dataset.sequence_length(),
            end_of_text: dataset.end_of_text(),
            digest: dataset.digest(),
            train: dataset.split(Split::Train).into(),
            held_out: dataset.split(Split::HeldOut).into(),
            mixture: None,
        }
    }
}

impl From<&TokenSplit> for PartSummary {
    fn from(split: &TokenSplit) -> Self {
        Self { samples: split.samples(), tokens: split.tokens(), bytes_per_token: split.bytes_per_token() }
    }
}
