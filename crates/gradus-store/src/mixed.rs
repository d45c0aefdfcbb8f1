//! Several prepared datasets read as one, each as often as its weight says.
//!
//! What: [`Mixed`] holds them against each other (tokens of one tokenizer, in windows of one length), and says in which order
//! their samples come: to learn from, those of a [`Mixture`]; of what each holds out, [`Portions`] by the same weights. Samples
//! are numbered one dataset after another, as [`Index::join`](crate::Index::join) numbers them.

use crate::dataset::Dataset;
use crate::digest::finish;
use crate::manifest::{Manifest, Split};
use crate::order::{Mixture, Order, OrderSettings, Portions};
use crate::summary::{DataSummary, PartSummary};
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// One dataset of several.
pub struct MixedPart {
    /// Where it is, as a person wrote it.
    pub name: String,
    /// What was prepared there.
    pub dataset: Dataset,
    /// How often it comes, beside the others' weights.
    pub weight: f64,
}

/// Datasets that are read as one.
pub struct Mixed {
    parts: Vec<MixedPart>,
    order: Arc<MixedOrder>,
}

/// In which order the samples of datasets come, and what they are called.
#[derive(Debug)]
pub struct MixedOrder {
    names: Vec<String>,
    mixture: Mixture,
}

/// How far a run is with one dataset of a mixture.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MixtureProgress {
    /// Where it is, as the settings name it.
    pub prepared: String,
    /// Part of all positions that are its, 0 to 1.
    pub share: f64,
    /// Samples of it that were learned from, by all ranks.
    pub samples: u64,
    /// The same in epochs of its own.
    pub epochs: f64,
}

impl Mixed {
    /// Datasets, each ordered as `settings` say, under `seed`.
    ///
    /// # Errors
    /// `Invalid`, naming the dataset, without any, for one that has no sample to learn from, or other tokens or lengths than the
    /// first, and for weights that cannot be.
    pub fn new(parts: Vec<MixedPart>, settings: &OrderSettings, seed: u64) -> Result<Self> {
        let first = parts.first().ok_or_else(|| Error::invalid("a mixture of nothing"))?;
        for part in &parts {
            part.check_like(first)?;
        }
        let train = |part: &MixedPart| (part.dataset.split(Split::Train).samples(), part.weight);
        let mixture = settings.mixture(seed, &parts.iter().map(train).collect::<Vec<_>>())?;
        let names = parts.iter().map(|part| part.name.clone()).collect();
        Ok(Self { parts, order: Arc::new(MixedOrder { names, mixture }) })
    }

    /// The datasets.
    pub fn parts(&self) -> &[MixedPart] {
        &self.parts
    }

    /// The order in which samples are learned from.
    pub fn order(&self) -> Arc<MixedOrder> {
        self.order.clone()
    }

    /// What an evaluation reads, at most `most` samples; `None` where nothing is held out.
    pub fn held_out(&self, most: u64) -> Option<Portions> {
        Portions::new(most, &self.parts.iter().map(MixedPart::held_out).collect::<Vec<_>>())
    }

    /// What a run is to know of it, whose evaluations read at most `most` samples.
    pub fn summary(&self, most: u64) -> DataSummary {
        let first = &self.parts[0].dataset;
        let tokens = |split| self.parts.iter().map(|part| part.dataset.split(split).tokens()).sum();
        let held_out = self.held_out(most);
        let held_out_samples = held_out.as_ref().map_or(0, Order::samples);
        DataSummary {
            sequence_length: first.sequence_length(),
            end_of_text: first.end_of_text(),
            digest: self.digest(),
            train: PartSummary {
                samples: self.order.samples(),
                tokens: tokens(Split::Train),
                bytes_per_token: None,
            },
            held_out: PartSummary {
                samples: held_out_samples,
                tokens: tokens(Split::HeldOut),
                bytes_per_token: held_out.and_then(|chosen| self.bytes_per_token(&chosen)),
            },
            mixture: Some(self.order()),
        }
    }

    /// Bytes for each token that an evaluation reads; nothing where one dataset does not know its own.
    fn bytes_per_token(&self, chosen: &Portions) -> Option<f64> {
        let present = self.parts.iter().map(|part| part.dataset.split(Split::HeldOut));
        let present = present.filter(|split| split.samples() > 0);
        let bytes = present
            .zip(chosen.chosen())
            .map(|(split, samples)| Some(split.bytes_per_token()? * samples as f64));
        Some(bytes.sum::<Option<f64>>()? / chosen.samples() as f64)
    }

    /// Of the samples of all, and their shares: with other ones a position holds another sample.
    fn digest(&self) -> String {
        let mut hasher = Sha256::new_with_prefix("mixture");
        for (index, part) in self.parts.iter().enumerate() {
            let (own, all) = self.order.mixture.share_of(index);
            hasher.update(part.dataset.digest());
            hasher.update(own.to_le_bytes());
            hasher.update(all.to_le_bytes());
        }
        finish(hasher)
    }
}

impl MixedPart {
    fn held_out(&self) -> (u64, f64) {
        (self.dataset.split(Split::HeldOut).samples(), self.weight)
    }

    /// Whether a model can learn from both.
    fn check_like(&self, first: &Self) -> Result<()> {
        let refuse = |what: String| Err(Error::invalid(format!("{}: {what}", self.name)));
        let (own, theirs) = (self.dataset.manifest(), first.dataset.manifest());
        if !(self.weight.is_finite() && self.weight > 0.0) {
            return refuse(format!("its weight in the mixture is {}: give a number above 0", self.weight));
        }
        if own.sequence_length != theirs.sequence_length {
            return refuse(format!(
                "its samples have {} tokens, those of {} have {}: prepare both with one data.sequence_length",
                own.sequence_length, first.name, theirs.sequence_length
            ));
        }
        if tokens_of(own) != tokens_of(theirs) {
            return refuse(format!(
                "its tokens are not those of {}: prepare it with that tokenizer (data.tokenizer)",
                first.name
            ));
        }
        if self.dataset.split(Split::Train).samples() == 0 {
            return refuse(
                "it holds no whole sample to learn from: give it more text, or leave it out".to_owned(),
            );
        }
        Ok(())
    }
}

/// What decides what a token means, and how it is stored.
fn tokens_of(manifest: &Manifest) -> impl PartialEq + '_ {
    let Manifest { tokenizer_sha256, vocabulary, token_type, end_of_text, .. } = manifest;
    (tokenizer_sha256, vocabulary, token_type, end_of_text)
}

impl MixedOrder {
    /// How far a run is that has learned from all positions before `position`.
    pub fn progress(&self, position: u64) -> Vec<MixtureProgress> {
        let of_one = |(index, name): (usize, &String)| {
            let (own, all) = self.mixture.share_of(index);
            let (samples, each) =
                (self.mixture.positions_before(index, position), self.mixture.samples_of(index));
            MixtureProgress {
                prepared: name.clone(),
                share: own as f64 / all as f64,
                samples,
                epochs: samples as f64 / (each.end - each.start) as f64,
            }
        };
        self.names.iter().enumerate().map(of_one).collect()
    }
}

impl Order for MixedOrder {
    fn samples(&self) -> u64 {
        self.mixture.samples()
    }

    fn sample_at(&self, position: u64) -> u64 {
        self.mixture.sample_at(position)
    }

    fn next_position(&self, sample: u64, from: u64) -> Option<u64> {
        self.mixture.next_position(sample, from)
    }
}
