//! The memory that one microbatch in flight needs: what forward leaves for backward, and scratch.
//!
//! What: planned once for a batch size and sequence length, before the first step, and taken as one range; nothing is
//! allocated afterwards. How: every tensor says from when to when it is needed, in *moments*: each block forward is one, then
//! the head with its loss, then each block backward, then the embedding's backward; [`liveness`](crate::liveness) lays
//! those that never meet over each other. A workspace is therefore made twice: once to hear what it wants, once with
//! places.
//! What products read is kept in bf16 by who trains on a device that multiplies in it (with an odd width, head size or
//! feed-forward width, and by who only runs, in f32); the residual stream and its gradient are f32.

use crate::config::ModelConfig;
use crate::liveness::{Lifetime, plan};
use gradus_compute::{Device, Format, Matrix, Precision};
use gradus_error::Result;
use gradus_memory::Span;
use std::ops::RangeInclusive;

/// Logits of one chunk of rows: 2^21 elements are 8 MiB, which stay in cache between loss and gradients. Chunks are of rows and
/// hold the whole vocabulary: of a part of the vocabulary (Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language
/// Models") every logit is made twice, since its gradient wants the sum over all, which is a third more of the head's work.
const LOGITS_CHUNK: usize = 1 << 21;

/// But so many rows at least: of fewer, adding to the gradient of the head's weights, which goes through memory once for each
/// chunk, would take as long as multiplying.
const LEAST_LOGITS_ROWS: usize = 256;

/// Rows, of `rows`, whose logits are made at once.
pub fn logits_rows(padded_vocabulary: usize, rows: usize) -> usize {
    (LOGITS_CHUNK / padded_vocabulary).max(LEAST_LOGITS_ROWS).min(rows.max(1))
}

/// What a block's forward leaves for its backward, besides its input; and two matrices that all blocks share, for they are
/// made again when they are needed: a norm or an activation takes a hundredth of the products around it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockSaved {
    pub attention_statistics: Span,
    pub qkv: Matrix,
    pub attention: Matrix,
    pub log_sum_exp: Span,
    pub middle: Span,
    pub feed_forward_statistics: Span,
    pub up: Matrix,
    /// What comes out of one norm after the other.
    pub normal: Matrix,
    /// What the feed-forward part's activation puts out.
    pub activated: Matrix,
}

/// Gradients of a block's outputs, which its weights' gradients are made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockGradients {
    /// Of the block's output.
    pub out: Span,
    /// Of the block's input: the block below finds its `out` here.
    pub input: Span,
    pub middle: Span,
    pub up: Matrix,
    pub qkv: Matrix,
    /// A gradient inside of a block: of what a norm or attention put out. Then what the activation put out, made again.
    pub inner: Matrix,
}

/// Memory for one microbatch of up to `rows` tokens.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// `B * T` at most.
    pub(crate) rows: usize,
    /// Whether blocks run forward again before they run backward.
    pub(crate) recompute: bool,
    /// Input of each block, and the last block's output.
    pub(crate) inputs: Vec<Span>,
    /// One for each block, or one for all with `recompute`.
    pub(crate) saved: Vec<BlockSaved>,
    pub(crate) gradients: Option<BlockGradients>,
    /// What comes out of the final norm; before that, and after the head is done, what comes out of blocks' norms.
    pub(crate) normal: Matrix,
    pub(crate) statistics: Span,
    pub(crate) logits: Span,
    pub(crate) losses: Span,
}

/// What a workspace is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Training { recompute: bool },
    Inference,
}

/// Numbers of the moments of one pass.
#[derive(Debug, Clone, Copy)]
struct Moments {
    layers: usize,
}

impl Moments {
    fn forward(self, layer: usize) -> usize {
        layer
    }

    fn head(self) -> usize {
        self.layers
    }

    fn backward(self, layer: usize) -> usize {
        2 * self.layers - layer
    }

    fn embedding_backward(self) -> usize {
        2 * self.layers + 1
    }
}

/// Hears what is wanted, and later hands out its places in the same order.
struct Places {
    wanted: Vec<Lifetime>,
    planned: Vec<Span>,
}

impl Places {
    /// Room for `len` elements during `moments`.
    fn take(&mut self, len: usize, format: Format, moments: RangeInclusive<usize>) -> Matrix {
        let len = format.places(len);
        let number = self.wanted.len();
        self.wanted.push(Lifetime { len, first: *moments.start(), last: *moments.end() });
        Matrix { span: self.planned.get(number).copied().unwrap_or_default(), format }
    }
}

/// A workspace in the making.
struct Builder<'a> {
    config: &'a ModelConfig,
    rows: usize,
    purpose: Purpose,
    /// How what products read is kept.
    kept: Format,
    moments: Moments,
    places: Places,
}

impl Builder<'_> {
    fn matrix(&mut self, width: usize, moments: RangeInclusive<usize>) -> Matrix {
        self.places.take(self.rows * width, self.kept, moments)
    }

    fn single(&mut self, width: usize, moments: RangeInclusive<usize>) -> Span {
        self.places.take(self.rows * width, Format::F32, moments).span
    }

    /// From the first moment to the last.
    fn always(&self) -> RangeInclusive<usize> {
        0..=self.moments.embedding_backward()
    }

    fn workspace(&mut self) -> Workspace {
        let (config, head) = (self.config, self.moments.head());
        let normal = self.matrix(config.width, self.always());
        let widest = config.width.max(config.query_width()).max(config.feed_forward);
        // In the backward pass it is made again in `BlockGradients::inner`.
        let activated = self.matrix(config.feed_forward, 0..=head - 1);
        let chunk = logits_rows(config.padded_vocabulary(), self.rows);
        let recompute = self.purpose == Purpose::Training { recompute: true };
        Workspace {
            rows: self.rows,
            recompute,
            inputs: self.inputs(),
            saved: self.all_saved(normal, activated),
            gradients: (self.purpose != Purpose::Inference).then(|| self.gradients(widest)),
            normal,
            statistics: self.single(2, head..=head),
            logits: self.places.take(chunk * config.padded_vocabulary(), Format::F32, head..=head).span,
            losses: self.single(1, self.always()),
        }
    }

    fn inputs(&mut self) -> Vec<Span> {
        let (width, moments) = (self.config.width, self.moments);
        if self.purpose == Purpose::Inference {
            // Two inputs take turns: a block reads one and writes the other.
            return (0..2).map(|_| self.single(width, 0..=moments.head())).collect();
        }
        let last = (0..moments.layers).map(|layer| moments.backward(layer)).chain([moments.head()]);
        let lives = last.enumerate().map(|(layer, last)| moments.forward(layer.saturating_sub(1))..=last);
        lives.collect::<Vec<_>>().into_iter().map(|life| self.single(width, life)).collect()
    }

    fn all_saved(&mut self, normal: Matrix, activated: Matrix) -> Vec<BlockSaved> {
        let moments = self.moments;
        match self.purpose {
            Purpose::Training { recompute: false } => (0..moments.layers)
                .map(|layer| self.saved(normal, activated, moments.forward(layer)..=moments.backward(layer)))
                .collect(),
            Purpose::Training { recompute: true } => vec![self.saved(normal, activated, self.always())],
            Purpose::Inference => vec![self.saved(normal, activated, 0..=moments.head() - 1)],
        }
    }

    fn saved(&mut self, normal: Matrix, activated: Matrix, life: RangeInclusive<usize>) -> BlockSaved {
        let config = self.config;
        BlockSaved {
            attention_statistics: self.single(2, life.clone()),
            qkv: self.matrix(config.qkv_width(), life.clone()),
            attention: self.matrix(config.query_width(), life.clone()),
            log_sum_exp: self.single(config.heads, life.clone()),
            middle: self.single(config.width, life.clone()),
            feed_forward_statistics: self.single(2, life.clone()),
            up: self.matrix(config.up_width(), life),
            normal,
            activated,
        }
    }

    fn gradients(&mut self, widest: usize) -> BlockGradients {
        let (config, moments) = (self.config, self.moments);
        let (head, end) = (moments.head(), moments.embedding_backward());
        let blocks = head + 1..=moments.backward(0);
        BlockGradients {
            out: self.single(config.width, head..=end),
            input: self.single(config.width, head + 1..=end),
            // At the head it holds the gradient of the final norm's output.
            middle: self.single(config.width, head..=moments.backward(0)),
            up: self.matrix(config.up_width(), blocks.clone()),
            qkv: self.matrix(config.qkv_width(), blocks.clone()),
            inner: self.matrix(widest, blocks),
        }
    }
}

impl Workspace {
    /// Memory to train with `rows` tokens in a microbatch.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room: choose a smaller batch, or recompute.
    pub fn for_training(
        device: &dyn Device,
        config: &ModelConfig,
        rows: usize,
        recompute: bool,
    ) -> Result<Self> {
        // Rows, and heads in them, then begin with a whole place.
        let even = [config.width, config.head_size, config.feed_forward].iter().all(|n| n.is_multiple_of(2));
        let kept = if even && device.precision() == Precision::Bf16 { Format::Bf16 } else { Format::F32 };
        Self::planned(device, config, rows, Purpose::Training { recompute }, kept)
    }

    /// Memory to run forward with `rows` tokens at once.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub fn for_inference(device: &dyn Device, config: &ModelConfig, rows: usize) -> Result<Self> {
        Self::planned(device, config, rows, Purpose::Inference, Format::F32)
    }

    fn planned(
        device: &dyn Device,
        config: &ModelConfig,
        rows: usize,
        purpose: Purpose,
        kept: Format,
    ) -> Result<Self> {
        let moments = Moments { layers: config.layers };
        let builder = |planned| Builder {
            config,
            rows,
            purpose,
            kept,
            moments,
            places: Places { wanted: Vec::new(), planned },
        };
        let mut wishes = builder(Vec::new());
        wishes.workspace();
        let wanted = wishes.places.wanted;
        let plan = plan(&wanted);
        let all = device.allocate(plan.len)?;
        let place = |(start, tensor): (&usize, &Lifetime)| all.part(*start, tensor.len);
        Ok(builder(plan.places.iter().zip(&wanted).map(place).collect()).workspace())
    }

    /// Rows whose logits are made at once.
    pub(crate) fn chunk_rows(&self, config: &ModelConfig) -> usize {
        self.logits.len / config.padded_vocabulary()
    }

    /// Input of block `layer`; of the layer after the last block, that block's output.
    pub(crate) fn input(&self, layer: usize, rows: usize, width: usize) -> Span {
        self.inputs[layer % self.inputs.len()].part(0, rows * width)
    }

    pub(crate) fn saved(&self, layer: usize) -> &BlockSaved {
        &self.saved[layer % self.saved.len()]
    }
}
