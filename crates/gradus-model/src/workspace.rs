//! The memory that one microbatch in flight needs: what forward leaves for backward, and scratch.
//!
//! Planned once for a batch size and sequence length, before the first step; nothing is allocated afterwards.

use crate::config::ModelConfig;
use gradus_compute::Device;
use gradus_error::Result;
use gradus_memory::Span;

/// Logits of one chunk of rows: 2^21 elements are 8 MiB, which stay in cache between loss and gradients.
const LOGITS_CHUNK: usize = 1 << 21;

/// But so many rows at least: of fewer, packing the head's weights would take as long as multiplying them.
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
    pub qkv: Span,
    pub attention: Span,
    pub log_sum_exp: Span,
    pub middle: Span,
    pub feed_forward_statistics: Span,
    pub up: Span,
    /// What comes out of one norm after the other.
    pub normal: Span,
    /// What the feed-forward part's activation puts out.
    pub activated: Span,
}

impl BlockSaved {
    /// One for each of `blocks` blocks.
    fn allocate(
        device: &dyn Device,
        config: &ModelConfig,
        rows: usize,
        blocks: usize,
        (normal, inner): (Span, Span),
    ) -> Result<Vec<Self>> {
        let matrix = |width: usize| device.allocate(rows * width);
        let activated = inner.part(0, rows * config.feed_forward);
        let block = || {
            Ok(Self {
                attention_statistics: matrix(2)?,
                qkv: matrix(config.qkv_width())?,
                attention: matrix(config.query_width())?,
                log_sum_exp: matrix(config.heads)?,
                middle: matrix(config.width)?,
                feed_forward_statistics: matrix(2)?,
                up: matrix(config.up_width())?,
                normal,
                activated,
            })
        };
        (0..blocks).map(|_| block()).collect()
    }
}

/// Gradients of a block's outputs, which its weights' gradients are made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockGradients {
    /// Of the block's output.
    pub out: Span,
    /// Of the block's input: the block below finds its `out` here.
    pub input: Span,
    pub middle: Span,
    pub up: Span,
    pub qkv: Span,
    /// The workspace's [`Workspace::inner`].
    pub inner: Span,
}

impl BlockGradients {
    fn allocate(device: &dyn Device, config: &ModelConfig, rows: usize, inner: Span) -> Result<Self> {
        let matrix = |width: usize| device.allocate(rows * width);
        Ok(Self {
            out: matrix(config.width)?,
            input: matrix(config.width)?,
            middle: matrix(config.width)?,
            up: matrix(config.up_width())?,
            qkv: matrix(config.qkv_width())?,
            inner,
        })
    }
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
    pub(crate) normal: Span,
    /// Scratch of the widest of `C`, `H D` and `F`: what a block's activation puts out, or a gradient inside of a block.
    inner: Span,
    pub(crate) statistics: Span,
    pub(crate) logits: Span,
    pub(crate) losses: Span,
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
        let kept = if recompute { 1 } else { config.layers };
        let mut workspace = Self::allocate(device, config, rows, config.layers + 1, kept)?;
        workspace.recompute = recompute;
        workspace.gradients = Some(BlockGradients::allocate(device, config, rows, workspace.inner)?);
        Ok(workspace)
    }

    /// Memory to run forward with `rows` tokens at once.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub fn for_inference(device: &dyn Device, config: &ModelConfig, rows: usize) -> Result<Self> {
        // Two inputs take turns: a block reads one and writes the other.
        Self::allocate(device, config, rows, 2, 1)
    }

    fn allocate(
        device: &dyn Device,
        config: &ModelConfig,
        rows: usize,
        inputs: usize,
        saved: usize,
    ) -> Result<Self> {
        let chunk = logits_rows(config.padded_vocabulary(), rows);
        let normal = device.allocate(rows * config.width)?;
        let widest = config.width.max(config.query_width()).max(config.feed_forward);
        let inner = device.allocate(rows * widest)?;
        Ok(Self {
            rows,
            recompute: false,
            inputs: (0..inputs).map(|_| device.allocate(rows * config.width)).collect::<Result<_>>()?,
            saved: BlockSaved::allocate(device, config, rows, saved, (normal, inner))?,
            gradients: None,
            normal,
            inner,
            statistics: device.allocate(rows * 2)?,
            logits: device.allocate(chunk * config.padded_vocabulary())?,
            losses: device.allocate(rows)?,
        })
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
