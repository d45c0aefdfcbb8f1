//! The whole model: embedding, blocks, final norm, head and loss, forth and back.

use crate::block::{BackwardObserver, Block, Pass};
use crate::cache::KeyValueCache;
use crate::config::ModelConfig;
use crate::initial;
use crate::parameters::Parameters;
use crate::weights::Weights;
use crate::workspace::{BlockGradients, BlockSaved, Workspace};
use gradus_compute::{
    CrossEntropy, Device, Embedding, Epilogue, IGNORED, Linear, Matrix, Precision, Through,
};
use gradus_error::{Error, Result};
use gradus_memory::Span;
use std::ops::AddAssign;
use std::sync::{Arc, Mutex, PoisonError};

/// Losses that are read at once: 16 KiB of stack.
const LOSSES_CHUNK: usize = 4096;

/// Sequences to learn from.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// `B`.
    pub batch: usize,
    /// `T`.
    pub sequence: usize,
    /// `B * T` tokens.
    pub tokens: &'a [u32],
    /// The token that follows each, or [`IGNORED`].
    pub targets: &'a [u32],
    /// A number per row that only rows of one document share and that never falls within a sequence; attention then
    /// stays within a document. `None` lets it cross.
    pub documents: Option<&'a [u32]>,
}

/// Losses of several targets, summed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSum {
    /// Sum of losses, nats.
    pub nats: f64,
    /// Targets that counted.
    pub targets: u64,
}

impl LossSum {
    /// Loss per target; not a number without targets.
    pub fn mean(&self) -> f64 {
        self.nats / self.targets as f64
    }
}

impl AddAssign for LossSum {
    fn add_assign(&mut self, other: Self) {
        self.nats += other.nats;
        self.targets += other.targets;
    }
}

/// A model with its weights on a device.
pub struct Transformer {
    config: ModelConfig,
    parameters: Parameters,
    device: Arc<dyn Device>,
    weights: Weights,
    /// Positions of one sequence as long as the context: 0, 1, ...
    positions: Vec<u32>,
    /// Positions of the batches seen last.
    batches: Mutex<BatchPositions>,
}

/// Position of each row of a batch: 0, 1, ..., T - 1 for each of its sequences. Kept from batch to batch, for most have
/// the same shape, and a step should allocate nothing.
struct BatchPositions {
    /// `T`.
    sequence: usize,
    /// Of the largest such batch so far.
    rows: Arc<[u32]>,
}

impl Transformer {
    /// A model whose weights are all zero, and can learn.
    ///
    /// # Errors
    /// `Invalid` for impossible sizes; `Exhausted` when the device has no room.
    pub fn new(config: ModelConfig, device: Arc<dyn Device>) -> Result<Self> {
        Self::with(config, device, Weights::masters)
    }

    /// A model that only runs, whose weights are all zero. Where the device multiplies in bf16 its matrices are kept so, with
    /// half the memory: products round them anyway; embeddings, which are only looked up, are rounded too.
    ///
    /// # Errors
    /// As [`Transformer::new`].
    pub fn for_inference(config: ModelConfig, device: Arc<dyn Device>) -> Result<Self> {
        // Files are read part by part: with an odd width a part of a matrix might begin in the middle of a pair.
        let halves = device.precision() == Precision::Bf16 && config.width.is_multiple_of(2);
        Self::with(config, device, if halves { Weights::halves } else { Weights::masters })
    }

    /// The same model with each linear layer's weight rounded and packed once for each change, where its device multiplies in
    /// bf16: products then need not do it each time, for as much memory again as the weights take (twice as much where the
    /// device does not multiply pairs).
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub fn with_prepared_weights(mut self) -> Result<Self> {
        self.weights.prepare(self.device.as_ref(), &self.config, &self.parameters)?;
        Ok(self)
    }

    fn with(
        config: ModelConfig,
        device: Arc<dyn Device>,
        weights: impl Fn(&dyn Device, &Parameters) -> Result<Weights>,
    ) -> Result<Self> {
        config.check()?;
        let parameters = Parameters::new(&config);
        let weights = weights(device.as_ref(), &parameters)?;
        let positions = (0..config.context as u32).collect();
        let batches = Mutex::new(BatchPositions { sequence: 0, rows: Arc::new([]) });
        Ok(Self { config, parameters, device, weights, positions, batches })
    }

    /// Gives every tensor its first values, which depend on `seed` and the tensor's name alone.
    pub fn initialise(&self, seed: u64) {
        initial::initial(&self.config, &self.parameters, seed, &mut |span, values| self.put(span, values));
    }

    /// Kind and sizes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Names and places of the tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// All weights, in the order of the layout, to be changed before the next pass: copies that products take are then made
    /// anew. Ask again for every change.
    ///
    /// # Panics
    /// If the model was made for inference: it may not have them so.
    pub fn weights(&self) -> Span {
        self.weights.changed();
        self.masters()
    }

    fn masters(&self) -> Span {
        self.weights.span().expect("a model that learns keeps f32")
    }

    /// Bytes of memory that all weights take, without copies that products take.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Sets a range of the layout that lies in one tensor; in a matrix it begins with an even element.
    pub fn put(&self, span: Span, values: &[f32]) {
        self.weights.put(self.device.as_ref(), span, values);
    }

    /// Reads a range of the layout.
    ///
    /// # Panics
    /// As [`Transformer::weights`].
    pub fn get(&self, span: Span) -> Vec<f32> {
        let mut values = vec![0.0; span.len];
        self.device.read(self.masters().part(span.start, span.len), &mut values);
        values
    }

    /// The held-out way: forward only, the loss summed.
    ///
    /// # Errors
    /// `Invalid` for a batch that does not fit the model or the workspace.
    pub fn loss(&self, workspace: &Workspace, batch: Batch) -> Result<LossSum> {
        self.check(workspace, batch)?;
        let positions = self.batch_positions(batch);
        let pass = self.pass(batch, &positions, &());
        self.forward(pass, workspace, batch.tokens, None);
        self.head_loss(pass, workspace, batch.targets, None);
        Ok(self.loss_sum(workspace, batch.targets))
    }

    /// Forward and backward. Adds the gradient of the *sum* of losses to `gradients`, which holds the whole layout;
    /// `observer` learns which ranges are final.
    ///
    /// # Errors
    /// `Invalid` for a batch that does not fit the model or the workspace.
    pub fn forward_backward(
        &self,
        workspace: &Workspace,
        batch: Batch,
        gradients: Span,
        observer: &dyn BackwardObserver,
    ) -> Result<LossSum> {
        self.check(workspace, batch)?;
        let (Some(slot), Some(_)) = (workspace.gradients, self.weights.span()) else {
            return Err(Error::internal("a model or workspace for inference was used for training"));
        };
        let positions = self.batch_positions(batch);
        let pass = self.pass(batch, &positions, observer);
        self.forward(pass, workspace, batch.tokens, None);
        self.head_loss(pass, workspace, batch.targets, Some((slot, gradients)));
        let d_embedded = self.backward_blocks(pass, workspace, slot, gradients);
        self.backward_embedding(pass, batch.tokens, d_embedded, gradients);
        Ok(self.loss_sum(workspace, batch.targets))
    }

    /// Runs `tokens` forward, after what `cache` holds, and returns the logits `[rows, V]` of the last `rows`.
    ///
    /// # Errors
    /// `Invalid` when the tokens do not fit the model, the workspace or the cache.
    pub fn logits(
        &self,
        workspace: &Workspace,
        tokens: &[u32],
        cache: &mut KeyValueCache,
        rows: usize,
    ) -> Result<Vec<f32>> {
        let targets = vec![IGNORED; tokens.len()];
        let batch = Batch { batch: 1, sequence: tokens.len(), tokens, targets: &targets, documents: None };
        self.check(workspace, batch)?;
        let first = cache.len();
        cache.advance(tokens.len())?;
        let pass = self.pass(batch, &self.positions[first..first + tokens.len()], &());
        self.forward(pass, workspace, tokens, Some(cache));
        let mut logits = Vec::with_capacity(rows * self.config.vocabulary);
        let (normal, chunk_rows) = (workspace.normal, workspace.chunk_rows(&self.config));
        for (start, len) in chunks(tokens.len() - rows, tokens.len(), chunk_rows) {
            let chunk =
                self.head(normal.part(start * self.config.width, len * self.config.width), workspace, len);
            let mut values = vec![0.0; chunk.len];
            self.device.read(chunk, &mut values);
            let real = values.chunks_exact(self.config.padded_vocabulary());
            real.for_each(|row| logits.extend_from_slice(&row[..self.config.vocabulary]));
        }
        Ok(logits)
    }

    fn check(&self, workspace: &Workspace, batch: Batch) -> Result<()> {
        let rows = batch.batch * batch.sequence;
        if rows == 0 || rows > workspace.rows || batch.tokens.len() != rows || batch.targets.len() != rows {
            return Err(Error::invalid(format!(
                "{} sequences of {} tokens do not fit a workspace for {} tokens",
                batch.batch, batch.sequence, workspace.rows
            )));
        }
        if batch.sequence > self.config.context {
            return Err(Error::invalid(format!(
                "a sequence of {} tokens is longer than the model's context of {}",
                batch.sequence, self.config.context
            )));
        }
        let known = |token: &&u32| (**token as usize) < self.config.vocabulary;
        let unknown_target = batch.targets.iter().find(|target| **target != IGNORED && !known(target));
        match batch.tokens.iter().find(|token| !known(token)).or(unknown_target) {
            Some(token) => Err(Error::invalid(format!(
                "token {token} is beyond the model's vocabulary of {}: data and model must share a tokenizer",
                self.config.vocabulary
            ))),
            None => Ok(()),
        }
    }

    /// Position of each row of `batch`, or of more rows of sequences as long.
    fn batch_positions(&self, batch: Batch) -> Arc<[u32]> {
        let rows = batch.batch * batch.sequence;
        let mut kept = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.sequence != batch.sequence || kept.rows.len() < rows {
            let rows = self.positions[..batch.sequence].repeat(batch.batch);
            *kept = BatchPositions { sequence: batch.sequence, rows: rows.into() };
        }
        Arc::clone(&kept.rows)
    }

    fn pass<'a>(
        &'a self,
        batch: Batch<'a>,
        positions: &'a [u32],
        observer: &'a dyn BackwardObserver,
    ) -> Pass<'a> {
        self.weights.refresh(self.device.as_ref());
        Pass {
            device: self.device.as_ref(),
            config: &self.config,
            weights: &self.weights,
            batch: batch.batch,
            sequence: batch.sequence,
            positions: &positions[..batch.batch * batch.sequence],
            documents: batch.documents,
            observer,
        }
    }

    /// Embedding, blocks and final norm.
    fn forward(&self, pass: Pass, workspace: &Workspace, tokens: &[u32], cache: Option<&KeyValueCache>) {
        let (rows, width) = (pass.rows(), self.config.width);
        let shape = Embedding { tokens, positions: pass.positions, width };
        let positions = self.parameters.positions.map(|table| self.weights.table(table));
        let x = workspace.input(0, rows, width);
        self.device.embedding_forward(shape, self.weights.table(self.parameters.embedding), positions, x);
        for layer in 0..self.config.layers {
            let (x, out) = (workspace.input(layer, rows, width), workspace.input(layer + 1, rows, width));
            self.block(pass, *workspace.saved(layer), layer).forward(
                x,
                out,
                cache.map(|cache| (cache, layer)),
            );
        }
        let x = workspace.input(self.config.layers, rows, width);
        let (normal, statistics) =
            (workspace.normal.part(0, rows * width), workspace.statistics.part(0, rows * 2));
        pass.norm_forward(self.parameters.final_norm, x, normal, statistics);
    }

    fn block<'a>(&'a self, pass: Pass<'a>, saved: BlockSaved, layer: usize) -> Block<'a> {
        Block { pass, tensors: &self.parameters.blocks[layer], saved }
    }

    fn head_shape(&self, rows: usize) -> Linear {
        Linear { rows, inputs: self.config.width, outputs: self.config.padded_vocabulary() }
    }

    /// Logits of `rows` rows of the final norm's output.
    fn head(&self, normal: Matrix, workspace: &Workspace, rows: usize) -> Span {
        let logits = workspace.logits.part(0, rows * self.config.padded_vocabulary());
        self.device.linear_forward(
            self.head_shape(rows),
            normal,
            self.weights.weight(self.parameters.head, true),
            None,
            None,
            Epilogue::None,
            logits.into(),
        );
        logits
    }

    /// Losses of all rows, chunk by chunk: the logits of a whole batch are never stored. With a slot also the gradients
    /// of head and final norm; `slot.out` then holds that of the last block's output.
    fn head_loss(
        &self,
        pass: Pass,
        workspace: &Workspace,
        targets: &[u32],
        backward: Option<(BlockGradients, Span)>,
    ) {
        let width = self.config.width;
        for (start, len) in chunks(0, pass.rows(), workspace.chunk_rows(&self.config)) {
            let normal = workspace.normal.part(start * width, len * width);
            let logits = self.head(normal, workspace, len);
            let shape = CrossEntropy {
                targets: &targets[start..start + len],
                vocabulary: self.config.vocabulary,
                width: self.config.padded_vocabulary(),
            };
            self.device.cross_entropy(shape, logits, workspace.losses.part(start, len), backward.is_some());
            if let Some((slot, gradients)) = backward {
                let d_normal = slot.middle.part(start * width, len * width);
                let head = self.parameters.head;
                let (shape, weight, d_logits) =
                    (self.head_shape(len), self.weights.weight(head, false), logits.into());
                self.device.linear_backward_input(shape, d_logits, weight, Through::None, d_normal.into());
                let d_head = gradients.part(head.start, head.len);
                self.device.linear_backward_weight(shape, d_logits, normal, d_head, None);
                pass.observer.between_operations();
            }
        }
        if let Some((slot, gradients)) = backward {
            self.backward_final_norm(pass, workspace, slot, gradients);
        }
    }

    fn backward_final_norm(&self, pass: Pass, workspace: &Workspace, slot: BlockGradients, gradients: Span) {
        let (rows, width) = (pass.rows(), self.config.width);
        let x = workspace.input(self.config.layers, rows, width);
        let (d_normal, d_x) = (slot.middle.part(0, rows * width), slot.out.part(0, rows * width));
        let statistics = workspace.statistics.part(0, rows * 2);
        pass.norm_backward(self.parameters.final_norm, x, statistics, d_normal.into(), None, d_x, gradients);
        pass.observer.final_up_to(self.parameters.end_of_head());
    }

    /// Blocks from last to first; returns the gradient of the embedding's output.
    fn backward_blocks(
        &self,
        pass: Pass,
        workspace: &Workspace,
        mut slot: BlockGradients,
        gradients: Span,
    ) -> Span {
        let (rows, width) = (pass.rows(), self.config.width);
        for layer in (0..self.config.layers).rev() {
            // What the activation puts out is made again where gradients inside of the block were.
            let saved = BlockSaved { activated: slot.inner, ..*workspace.saved(layer) };
            let block = self.block(pass, saved, layer);
            let x = workspace.input(layer, rows, width);
            if workspace.recompute {
                block.forward_again(x);
            }
            block.backward_input(x, &slot, gradients);
            block.backward_weight(x, &slot, gradients);
            std::mem::swap(&mut slot.out, &mut slot.input);
            pass.observer.final_up_to(self.parameters.end_of_block(layer));
        }
        slot.out.part(0, rows * width)
    }

    fn backward_embedding(&self, pass: Pass, tokens: &[u32], d_embedded: Span, gradients: Span) {
        let place = |tensor: Span| gradients.part(tensor.start, tensor.len);
        let shape = Embedding { tokens, positions: pass.positions, width: self.config.width };
        let (d_table, d_positions) = (place(self.parameters.embedding), self.parameters.positions.map(place));
        self.device.embedding_backward(shape, d_embedded, d_table, d_positions);
        pass.observer.final_up_to(self.parameters.layout.len());
    }

    /// Sums the rows' losses in their order, in f64.
    fn loss_sum(&self, workspace: &Workspace, targets: &[u32]) -> LossSum {
        let (mut nats, mut losses) = (0.0, [0.0; LOSSES_CHUNK]);
        for (start, len) in chunks(0, targets.len(), LOSSES_CHUNK) {
            self.device.read(workspace.losses.part(start, len), &mut losses[..len]);
            nats = losses[..len].iter().fold(nats, |sum, loss| sum + f64::from(*loss));
        }
        LossSum { nats, targets: targets.iter().filter(|target| **target != IGNORED).count() as u64 }
    }
}

/// `(start, len)` of consecutive chunks of at most `size` rows from `first` to `end`.
fn chunks(first: usize, end: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    (first..end).step_by(size).map(move |start| (start, size.min(end - start)))
}
