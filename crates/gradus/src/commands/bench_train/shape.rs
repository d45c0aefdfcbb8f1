//! The models that are measured, with their batches.

use anyhow::{Context, Result};
use gradus_model::{Family, ModelConfig, PRESETS};
use serde::Deserialize;

/// Sizes, batches and learning rates, which the task runner and the peer read too.
const SHAPES: &str = include_str!("../../../../../benches/shapes.json");

/// A model, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// A GPT of 13.9M parameters.
    Gpt,
    /// SmolLM2-135M.
    Smollm2,
}

/// What is measured, with the letters of the code's legend where a size has one.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sizes {
    vocabulary: usize,
    pub width: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    feed_forward: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Sequences that a rank takes in a step, where nothing else is said.
    pub batch: usize,
    /// Without a warm-up, 3e-4 throws the loss of thirty layers from 11 to 13 within four steps; on such a spike rounding
    /// alone makes half a percent, and losses of two programs say nothing of each other.
    pub learning_rate: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllSizes {
    gpt: Sizes,
    smollm2: Sizes,
}

impl Shape {
    pub(super) fn sizes(self) -> Sizes {
        let all: AllSizes = serde_json::from_str(SHAPES).expect("a test reads it");
        match self {
            Self::Gpt => all.gpt,
            Self::Smollm2 => all.smollm2,
        }
    }

    pub(super) fn model(self) -> Result<ModelConfig> {
        match self {
            Self::Gpt => Ok(self.sizes().gpt()),
            Self::Smollm2 => {
                let found = PRESETS.iter().find(|(name, _)| *name == "smollm2-135m");
                Ok(found.context("the preset is gone")?.1.clone())
            }
        }
    }
}

impl Sizes {
    /// The benchmark's own model.
    fn gpt(self) -> ModelConfig {
        ModelConfig {
            family: Family::Gpt2,
            vocabulary: self.vocabulary,
            context: self.sequence,
            width: self.width,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_size: self.head_size,
            feed_forward: self.feed_forward,
            tied: false,
            qkv_bias: true,
            norm_epsilon: 1e-5,
            rope_theta: 10_000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_models_that_run() {
        for shape in [Shape::Gpt, Shape::Smollm2] {
            let (sizes, model) = (shape.sizes(), shape.model().unwrap());
            assert_eq!(
                [sizes.vocabulary, sizes.width, sizes.layers, sizes.heads, sizes.kv_heads, sizes.head_size],
                [model.vocabulary, model.width, model.layers, model.heads, model.kv_heads, model.head_size]
            );
            assert!(sizes.feed_forward == model.feed_forward && sizes.sequence <= model.context, "{shape:?}");
        }
    }
}
