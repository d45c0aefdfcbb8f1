//! Which tensors a model has, and their places in the flat layout.
//!
//! The order is that in which the backward pass finishes gradients: free head, final norm, blocks from last to first
//! (within each: feed-forward, then attention), positions, embedding. A tied head's gradient is final with the
//! embedding's, last.

use crate::config::{Family, ModelConfig};
use gradus_memory::{Layout, LayoutBuilder, Span};

/// A norm's tensors, as ranges of the layout.
#[derive(Debug, Clone, Copy)]
pub struct NormTensors {
    /// `[C]`.
    pub weight: Span,
    /// `[C]`; GPT-2 family only.
    pub bias: Option<Span>,
}

/// A linear layer's tensors, as ranges of the layout.
#[derive(Debug, Clone, Copy)]
pub struct LinearTensors {
    /// `[N, K]`.
    pub weight: Span,
    /// `[N]`.
    pub bias: Option<Span>,
}

/// A block's tensors, as ranges of the layout.
#[derive(Debug, Clone, Copy)]
pub struct BlockTensors {
    /// Before attention.
    pub attention_norm: NormTensors,
    /// Queries, keys and values: `[(H + 2K) D, C]`, in this order.
    pub qkv: LinearTensors,
    /// `[C, H D]`.
    pub attention_out: LinearTensors,
    /// Before the feed-forward part.
    pub feed_forward_norm: NormTensors,
    /// `[F, C]`, or gate then up: `[2F, C]`.
    pub up: LinearTensors,
    /// `[C, F]`.
    pub down: LinearTensors,
}

/// All tensors of a model.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Names, shapes and places.
    pub layout: Layout,
    /// From first block to last.
    pub blocks: Vec<BlockTensors>,
    /// After the last block.
    pub final_norm: NormTensors,
    /// `[V padded, C]`; of a tied head, the same range as `embedding`.
    pub head: Span,
    /// `[V padded, C]`.
    pub embedding: Span,
    /// `[T, C]`; GPT-2 family only.
    pub positions: Option<Span>,
}

impl Parameters {
    /// The tensors of a model of these sizes.
    pub fn new(config: &ModelConfig) -> Self {
        let mut builder = Builder { layout: LayoutBuilder::default(), config };
        let free_head =
            (!config.tied).then(|| builder.table("head.weight", config.padded_vocabulary(), true));
        let final_norm = builder.norm("final_norm");
        let mut blocks: Vec<_> = (0..config.layers).rev().map(|layer| builder.block(layer)).collect();
        blocks.reverse();
        let positions =
            (config.family == Family::Gpt2).then(|| builder.table("positions.weight", config.context, false));
        let embedding = builder.table("embedding.weight", config.padded_vocabulary(), false);
        let head = free_head.unwrap_or(embedding);
        Self { layout: builder.layout.finish(), blocks, final_norm, head, embedding, positions }
    }

    /// One past the last element whose gradient is final once the backward pass has left block `layer`.
    pub fn end_of_block(&self, layer: usize) -> usize {
        let norm = self.blocks[layer].attention_norm;
        norm.bias.unwrap_or(norm.weight).end()
    }

    /// One past the last element that is final once the head and the final norm are done.
    pub fn end_of_head(&self) -> usize {
        self.final_norm.bias.unwrap_or(self.final_norm.weight).end()
    }
}

struct Builder<'a> {
    layout: LayoutBuilder,
    config: &'a ModelConfig,
}

impl Builder<'_> {
    fn tensor(&mut self, name: String, shape: &[usize], decay: bool) -> Span {
        self.layout.push(name, shape, decay)
    }

    fn table(&mut self, name: &str, rows: usize, decay: bool) -> Span {
        self.tensor(name.to_owned(), &[rows, self.config.width], decay)
    }

    fn norm(&mut self, name: &str) -> NormTensors {
        let width = self.config.width;
        let weight = self.tensor(format!("{name}.weight"), &[width], false);
        let biased = self.config.family == Family::Gpt2;
        NormTensors { weight, bias: biased.then(|| self.tensor(format!("{name}.bias"), &[width], false)) }
    }

    /// Layers of so many outputs each, which share their inputs.
    fn linear(&mut self, name: &str, outputs: &[usize], inputs: usize, bias: bool) -> LinearTensors {
        let weight = self.layout.push_matrices(format!("{name}.weight"), outputs, inputs);
        let outputs = outputs.iter().sum();
        LinearTensors { weight, bias: bias.then(|| self.tensor(format!("{name}.bias"), &[outputs], false)) }
    }

    fn block(&mut self, layer: usize) -> BlockTensors {
        let config = self.config;
        let biased = config.family == Family::Gpt2;
        let name = |part: &str| format!("blocks.{layer}.{part}");
        let up_name = if biased { "feed_forward.up" } else { "feed_forward.gate_up" };
        let gate_and_up = [config.feed_forward; 2];
        let up = if biased { &gate_and_up[..1] } else { &gate_and_up };
        let qkv = [config.query_width(), config.kv_width(), config.kv_width()];
        let down = self.linear(&name("feed_forward.down"), &[config.width], config.feed_forward, biased);
        let up = self.linear(&name(up_name), up, config.width, biased);
        let feed_forward_norm = self.norm(&name("feed_forward.norm"));
        let attention_out =
            self.linear(&name("attention.out"), &[config.width], config.query_width(), biased);
        let qkv = self.linear(&name("attention.qkv"), &qkv, config.width, biased || config.qkv_bias);
        let attention_norm = self.norm(&name("attention.norm"));
        BlockTensors { attention_norm, qkv, attention_out, feed_forward_norm, up, down }
    }
}
