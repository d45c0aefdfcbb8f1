//! The memory that microbatches in flight need: what forward leaves for backward, and scratch.
//!
//! What: planned once for a batch size and sequence length, before the first step, and taken as one range; nothing is
//! allocated afterwards. How: every tensor says from when to when it is needed, in *moments*: each block forward is one, then
//! the head with its loss, then each block backward, then the embedding's backward; [`liveness`](crate::liveness) lays
//! those that never meet over each other. A workspace is therefore made twice: once to hear what it wants, once with
//! places.
//! Of several microbatches in flight (pipelines) each has what it needs *across* the passes of others, that is between its own
//! passes; what is needed within a pass only is there once, for one pass runs at a time.
//! What products read is kept in bf16 by who trains on a device that multiplies in it (with an odd width, head size or
//! feed-forward width, and by who only runs, in f32); the residual stream and its gradient are f32.

mod builder;

use crate::config::ModelConfig;
use crate::liveness::plan;
use crate::part::{Part, Share};
use builder::{Builder, Moments, Places, Purpose, Wish};
use gradus_compute::{Device, Format, Matrix, Precision};
use gradus_error::Result;
use gradus_memory::Span;

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
    /// As [`Workspace::partial`].
    pub partial: Span,
}

/// Gradients inside of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InnerGradients {
    /// Of the block's output, all rows; `None` where own rows are all.
    pub all_out: Option<Span>,
    pub middle: Span,
    pub up: Matrix,
    pub qkv: Matrix,
    pub inner: Matrix,
}

/// Gradients of a block's outputs, which its weights' gradients are made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockGradients {
    /// Of the block's output, own rows.
    pub out: Span,
    /// The same, all rows, once they have been gathered.
    pub all_out: Span,
    /// Of the block's input, own rows: the block below finds its `out` here.
    pub input: Span,
    /// All rows.
    pub middle: Span,
    pub up: Matrix,
    pub qkv: Matrix,
    /// Of what a norm put out, all rows.
    pub normal: Matrix,
    /// A gradient inside of a block: of what attention put out, or a norm. Then what the activation put out, made again.
    pub inner: Matrix,
}

/// Memory for one microbatch of up to `rows` tokens.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// `B * T` at most.
    pub(crate) rows: usize,
    /// Of the rows of the residual stream, and of layers.
    pub(crate) share: Share,
    /// Whether blocks run forward again before they run backward.
    pub(crate) recompute: bool,
    /// Input of each block, and the last block's output.
    pub(crate) inputs: Vec<Span>,
    /// One for each block, or one for all with `recompute`.
    pub(crate) saved: Vec<BlockSaved>,
    /// Gradients of the blocks' inputs and of the last block's output: two that take turns, or one for each.
    pub(crate) residuals: Vec<Span>,
    /// Other gradients of a block: one for all, or one for each. None for inference.
    pub(crate) gradients: Vec<InnerGradients>,
    /// What comes out of the final norm; before that, and after the head is done, what comes out of blocks' norms.
    pub(crate) normal: Matrix,
    pub(crate) statistics: Span,
    pub(crate) logits: Span,
    /// Rows whose logits are made at once, on all tensor ranks.
    pub(crate) chunk_rows: usize,
    pub(crate) losses: Span,
    /// A summand of all rows, that is of what tensor ranks sum; or all rows of what is gathered for one operation.
    pub(crate) partial: Span,
    /// What tensor ranks exchange about the losses of such rows.
    pub(crate) exchanged: Span,
}

/// What a stage's microbatches take memory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageMemory {
    /// Tokens of the largest microbatch.
    pub rows: usize,
    /// Whether blocks run forward again before they run backward.
    pub recompute: bool,
    /// Whether the gradients of weights come in a pass of their own.
    pub split_backward: bool,
    /// Microbatches in flight at most.
    pub slots: usize,
}

/// Elements that a stage's workspaces take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkspaceSize {
    /// Of each microbatch in flight.
    pub slot: usize,
    /// Of all of them together, besides.
    pub shared: usize,
}

impl Workspace {
    /// Memory to train a whole model with `rows` tokens in a microbatch.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room: choose a smaller batch, or recompute.
    pub fn for_training(
        device: &dyn Device,
        config: &ModelConfig,
        rows: usize,
        recompute: bool,
    ) -> Result<Self> {
        let memory = StageMemory { rows, recompute, split_backward: false, slots: 1 };
        let mut one = Self::for_stage(device, config, &Part::whole(config), memory)?;
        Ok(one.remove(0))
    }

    /// Memory to train a part of a model, for each microbatch in flight.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room: choose a smaller batch, or recompute.
    pub fn for_stage(
        device: &dyn Device,
        config: &ModelConfig,
        part: &Part,
        memory: StageMemory,
    ) -> Result<Vec<Self>> {
        let plan = StagePlan::new(config, part, memory, device.precision());
        let shared = device.allocate(plan.size.shared)?;
        (0..memory.slots).map(|_| Ok(plan.workspace(shared, device.allocate(plan.size.slot)?))).collect()
    }

    /// Elements that [`Workspace::for_stage`] takes of a device of this precision.
    pub fn size_of_stage(
        config: &ModelConfig,
        part: &Part,
        memory: StageMemory,
        precision: Precision,
    ) -> WorkspaceSize {
        StagePlan::new(config, part, memory, precision).size
    }

    /// Memory to run forward with `rows` tokens at once.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub fn for_inference(device: &dyn Device, config: &ModelConfig, rows: usize) -> Result<Self> {
        let whole = Part::whole(config);
        let plan = StagePlan::of(config, &whole, (rows, 1), Purpose::Inference, Format::F32);
        let shared = device.allocate(plan.size.shared)?;
        Ok(plan.workspace(shared, Span::default()))
    }

    /// Input of block `layer`; of the layer after the last block, that block's output: `rows` own rows.
    pub(crate) fn input(&self, layer: usize, rows: usize, width: usize) -> Span {
        self.inputs[layer % self.inputs.len()].part(0, rows * width)
    }

    /// What a tensor rank has of a tensor of the residual stream.
    fn own(&self, span: Span, rows: usize, config: &ModelConfig) -> Span {
        span.part(0, self.share.of(rows).len() * config.width)
    }

    /// Where a part without embedding takes its input from: what it has of `[rows, C]` ([`Part::rows`]).
    pub fn received(&self, rows: usize, config: &ModelConfig) -> Span {
        self.own(self.inputs[0], rows, config)
    }

    /// Where a part without head leaves its output: what it has of `[rows, C]`.
    pub fn sent(&self, rows: usize, config: &ModelConfig) -> Span {
        self.own(self.inputs[self.inputs.len() - 1], rows, config)
    }

    /// Where a part without head takes the gradient of its output from: what it has of `[rows, C]`.
    pub fn received_gradient(&self, rows: usize, config: &ModelConfig) -> Span {
        self.own(self.residual(self.inputs.len() - 1), rows, config)
    }

    /// Where a part without embedding leaves the gradient of its input: what it has of `[rows, C]`.
    pub fn sent_gradient(&self, rows: usize, config: &ModelConfig) -> Span {
        self.own(self.residual(0), rows, config)
    }

    pub(crate) fn saved(&self, layer: usize) -> &BlockSaved {
        &self.saved[layer % self.saved.len()]
    }

    /// Gradient of what [`Workspace::input`] names.
    pub(crate) fn residual(&self, layer: usize) -> Span {
        self.residuals[layer % self.residuals.len()]
    }

    /// Where block `layer` runs backward.
    pub(crate) fn gradients(&self, layer: usize) -> BlockGradients {
        let InnerGradients { all_out, middle, up, qkv, inner } = self.gradients[layer % self.gradients.len()];
        let (out, input) = (self.residual(layer + 1), self.residual(layer));
        let (all_out, normal) = all_out.map_or((out, inner), |all_out| (all_out, self.partial.into()));
        BlockGradients { out, all_out, input, middle, up, qkv, normal, inner }
    }
}

/// Where everything lies in the memory of a stage.
struct StagePlan<'a> {
    config: ModelConfig,
    part: &'a Part,
    rows: usize,
    /// Columns of the widest share of the logits.
    widest: usize,
    purpose: Purpose,
    kept: Format,
    size: WorkspaceSize,
    /// First element of each, and its length, in what is shared or in a slot.
    places: Vec<(bool, Span)>,
}

impl<'a> StagePlan<'a> {
    fn new(config: &ModelConfig, part: &'a Part, memory: StageMemory, precision: Precision) -> Self {
        let local = part.local(config);
        // Rows, and heads in them, then begin with a whole place.
        let even = [local.width, local.head_size, local.feed_forward].iter().all(|n| n.is_multiple_of(2));
        let kept = if even && precision == Precision::Bf16 { Format::Bf16 } else { Format::F32 };
        let StageMemory { rows, recompute, split_backward, slots } = memory;
        let purpose = Purpose::Training { recompute, split_backward };
        Self::of(config, part, (rows, slots), purpose, kept)
    }

    fn of(
        config: &ModelConfig,
        part: &'a Part,
        (rows, slots): (usize, usize),
        purpose: Purpose,
        kept: Format,
    ) -> Self {
        let size = WorkspaceSize { slot: 0, shared: 0 };
        let (local, widest) = (part.local(config), part.most_vocabulary(config));
        let mut plan = Self { config: local, part, rows, widest, purpose, kept, size, places: Vec::new() };
        let mut wishes = plan.builder(Vec::new());
        wishes.workspace();
        let mut wanted = wishes.places.wanted;
        if slots == 1 {
            // Nobody else's pass runs in between.
            wanted.iter_mut().for_each(|wish| wish.across = false);
        }
        plan.lay_out(&wanted);
        plan
    }

    fn lay_out(&mut self, wanted: &[Wish]) {
        let lives = |across| wanted.iter().filter(move |wish| wish.across == across).map(|wish| wish.life);
        let [shared, slot] = [false, true].map(|across| plan(&lives(across).collect::<Vec<_>>()));
        self.size = WorkspaceSize { slot: slot.len, shared: shared.len };
        let (mut shared, mut slot) = (shared.places.into_iter(), slot.places.into_iter());
        let place = |wish: &Wish| {
            let start = if wish.across { slot.next() } else { shared.next() };
            (wish.across, Span::new(start.expect("each wish has a place"), wish.life.len))
        };
        self.places = wanted.iter().map(place).collect();
    }

    fn builder(&self, planned: Vec<Span>) -> Builder<'_> {
        let split_backward = matches!(self.purpose, Purpose::Training { split_backward: true, .. });
        let moments = Moments { layers: self.config.layers, split_backward };
        Builder {
            config: &self.config,
            part: self.part,
            rows: self.rows,
            chunk_rows: logits_rows(self.widest, self.rows),
            purpose: self.purpose,
            kept: self.kept,
            moments,
            places: Places { wanted: Vec::new(), planned },
        }
    }

    fn workspace(&self, shared: Span, slot: Span) -> Workspace {
        let place =
            |(across, span): &(bool, Span)| if *across { slot } else { shared }.part(span.start, span.len);
        self.builder(self.places.iter().map(place).collect()).workspace()
    }
}
