//! The models that are measured, as their sizes: plain arithmetic, so that the task runner needs none of the crates.

use clap::ValueEnum;
use serde_json::Value;
use std::fmt;

/// Sizes, batches and learning rates, which our worker and the peer's read too.
const SHAPES: &str = include_str!("../../../benches/shapes.json");

/// A model and its batch, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// A GPT of 13.9M parameters.
    Gpt,
    /// SmolLM2-135M: Llama's family, grouped queries, a tied head.
    Smollm2,
}

/// Sizes, with the letters of the code's legend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// `V`.
    pub vocabulary: usize,
    /// `C`.
    pub width: usize,
    /// `L`.
    pub layers: usize,
    /// `H`.
    pub heads: usize,
    /// `K`.
    pub kv_heads: usize,
    /// `D`.
    pub head_size: usize,
    /// `F`.
    pub feed_forward: usize,
    /// `T`.
    pub sequence: usize,
    /// Sequences of a step.
    pub batch: usize,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Gpt, Self::Smollm2];

    /// The name that the command line takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Smollm2 => "smollm2",
        }
    }

    /// Its sizes.
    pub fn sizes(self) -> Sizes {
        let all: Value = serde_json::from_str(SHAPES).expect("benches/shapes.json is JSON");
        let size =
            |key: &str| all[self.name()][key].as_u64().expect("benches/shapes.json has all sizes") as usize;
        Sizes {
            vocabulary: size("vocabulary"),
            width: size("width"),
            layers: size("layers"),
            heads: size("heads"),
            kv_heads: size("kv_heads"),
            head_size: size("head_size"),
            feed_forward: size("feed_forward"),
            sequence: size("sequence"),
            batch: size("batch"),
        }
    }

    /// Elements that are trained.
    pub fn parameters(self) -> usize {
        let s = self.sizes();
        let qkv = (s.heads + 2 * s.kv_heads) * s.head_size;
        let (matrices, vectors) = match self {
            Self::Gpt => (qkv + s.width + 2 * s.feed_forward, qkv + s.feed_forward + 6 * s.width),
            Self::Smollm2 => (qkv + s.width + 3 * s.feed_forward, 2 * s.width),
        };
        let rest = match self {
            Self::Gpt => (2 * s.vocabulary + s.sequence + 2) * s.width,
            Self::Smollm2 => (s.vocabulary + 1) * s.width,
        };
        s.layers * (matrices * s.width + vectors) + rest
    }
}

impl Sizes {
    /// `M`: tokens of a step.
    pub fn rows(self) -> usize {
        self.batch * self.sequence
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sizes { vocabulary: v, width: c, layers: l, heads: h, kv_heads: k, feed_forward: ff, .. } =
            self.sizes();
        let Sizes { sequence: t, batch, head_size: d, .. } = self.sizes();
        let name = if *self == Self::Gpt { "GPT" } else { "SmolLM2-135M" };
        let millions = self.parameters() as f64 / 1e6;
        write!(
            f,
            "{name} V={v} C={c} L={l} H={h} K={k} D={d} F={ff} T={t}, batch {batch}, {millions:.1}M parameters"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_of_the_published_and_the_built_model() {
        assert_eq!(Shape::Gpt.parameters(), 13_891_584);
        assert_eq!(Shape::Smollm2.parameters(), 134_515_008);
    }
}
