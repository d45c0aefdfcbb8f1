//! A model, or a part of one, with its weights on a device.

use crate::cache::KeyValueCache;
use crate::config::ModelConfig;
use crate::initial;
use crate::parameters::{Parameters, Unit};
use crate::part::Part;
use crate::pass::Pass;
use crate::passes::{Backward, chunks};
use crate::places::Places;
use crate::seams::{Gradients, Seams};
use crate::weights::Weights;
use crate::workspace::Workspace;
use gradus_compute::{Device, Format, IGNORED, Precision};
use gradus_error::{Error, Result};
use gradus_memory::Span;
use std::ops::AddAssign;
use std::sync::{Arc, Mutex, PoisonError};

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

/// A model, or a part of one, with its weights on a device.
pub struct Transformer {
    /// Of the whole model.
    config: ModelConfig,
    /// Of what this part has of it.
    pub(crate) local: ModelConfig,
    pub(crate) part: Part,
    pub(crate) parameters: Parameters,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) weights: Weights,
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
        let part = Part::whole(&config);
        Self::of_part(config, part, device)
    }

    /// A part of a model, else as [`Transformer::new`].
    ///
    /// # Errors
    /// As [`Transformer::new`].
    pub fn of_part(config: ModelConfig, part: Part, device: Arc<dyn Device>) -> Result<Self> {
        Self::of_part_in(config, part, device, Format::F32)
    }

    /// A part of a model whose matrices, tables included, are kept in a format; else as [`Transformer::new`]. In bf16 whoever
    /// makes it learn rounds each update, and matrices have even widths.
    ///
    /// # Errors
    /// As [`Transformer::new`].
    pub fn of_part_in(
        config: ModelConfig,
        part: Part,
        device: Arc<dyn Device>,
        matrices: Format,
    ) -> Result<Self> {
        Self::with(config, part, device, |device, parameters| Weights::here(device, parameters, matrices))
    }

    /// A part of a model that keeps no weights: whoever runs its passes brings those of each unit ([`Seams::weights`]).
    ///
    /// # Errors
    /// `Invalid` for impossible sizes.
    pub fn visiting(config: ModelConfig, part: Part, device: Arc<dyn Device>) -> Result<Self> {
        Self::visiting_in(config, part, device, Format::F32)
    }

    /// As [`Transformer::visiting`], of units whose matrices come in a format: each unit as [`Transformer::places`] has it.
    ///
    /// # Errors
    /// `Invalid` for impossible sizes.
    pub fn visiting_in(
        config: ModelConfig,
        part: Part,
        device: Arc<dyn Device>,
        matrices: Format,
    ) -> Result<Self> {
        Self::with(config, part, device, |_, parameters| Ok(Weights::visiting(parameters, matrices)))
    }

    /// A model that only runs, whose weights are all zero. Where the device multiplies in bf16 its matrices are kept so, with
    /// half the memory: products round them anyway; embeddings, which are only looked up, are rounded too.
    ///
    /// # Errors
    /// As [`Transformer::new`].
    pub fn for_inference(config: ModelConfig, device: Arc<dyn Device>) -> Result<Self> {
        // Files are read part by part: with an odd width a part of a matrix might begin in the middle of a pair.
        let halves = device.precision() == Precision::Bf16 && config.width.is_multiple_of(2);
        let part = Part::whole(&config);
        Self::of_part_in(config, part, device, if halves { Format::Bf16 } else { Format::F32 })
    }

    /// The same model with each linear layer's weight rounded and packed once for each change, where its device multiplies in
    /// bf16: products then need not do it each time, for as much memory again as the weights take (twice as much where the
    /// device does not multiply pairs).
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub fn with_prepared_weights(mut self) -> Result<Self> {
        self.weights.prepare(self.device.as_ref(), &self.local, &self.parameters)?;
        Ok(self)
    }

    fn with(
        config: ModelConfig,
        part: Part,
        device: Arc<dyn Device>,
        weights: impl Fn(&dyn Device, &Parameters) -> Result<Weights>,
    ) -> Result<Self> {
        config.check()?;
        part.check(&config)?;
        let (parameters, local) = (Parameters::of(&config, &part), part.local(&config));
        let weights = weights(device.as_ref(), &parameters)?;
        let positions = (0..config.context as u32).collect();
        let batches = Mutex::new(BatchPositions { sequence: 0, rows: Arc::new([]) });
        Ok(Self { config, local, part, parameters, device, weights, positions, batches })
    }

    /// Gives every tensor its first values, which depend on `seed` and the tensor's name alone.
    ///
    /// # Panics
    /// If it is not a whole model: see [`Transformer::initial`].
    pub fn initialise(&self, seed: u64) {
        assert!(self.part.is_whole(&self.config), "a part takes what it has of initial values");
        Self::initial(&self.config, seed, &mut |span, values| self.put(span, values));
    }

    /// Hands the first values of every tensor of a whole model to `put`, each with its range of the whole layout.
    pub fn initial(config: &ModelConfig, seed: u64, put: &mut dyn FnMut(Span, &[f32])) {
        initial::initial(config, &Parameters::new(config), seed, put);
    }

    /// Kind and sizes of the whole model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What of the model this is.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// Names and places of its tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// All weights in f32, in the order of the layout, to be changed before the next pass: copies that products take are then
    /// made anew. Ask again for every change.
    ///
    /// # Panics
    /// If the model does not keep all of them so.
    pub fn weights(&self) -> Span {
        assert!(self.places().are_plain(), "matrices in bf16 are no f32");
        self.storage()
    }

    /// As [`Transformer::weights`], in whatever format: each where [`Transformer::places`] says.
    ///
    /// # Panics
    /// If the model keeps no weights.
    pub fn storage(&self) -> Span {
        self.weights.changed();
        self.weights.span().expect("a model that learns by itself keeps its weights")
    }

    /// Where each weight lies.
    pub fn places(&self) -> &Places {
        self.weights.places()
    }

    /// Bytes of memory that all weights take, without copies that products take.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Sets a range of the layout that lies in one tensor; in a matrix it begins with an even element.
    pub fn put(&self, span: Span, values: &[f32]) {
        self.weights.put(self.device.as_ref(), span, values);
    }

    /// Reads a range of the layout, which begins, in a matrix, with an even element.
    ///
    /// # Panics
    /// If the model keeps no weights.
    pub fn get(&self, span: Span) -> Vec<f32> {
        self.weights.get(self.device.as_ref(), span).expect("a model that is asked for weights keeps them")
    }

    /// The held-out way: forward only, the loss summed.
    ///
    /// # Errors
    /// `Invalid` for a batch that does not fit the model or the workspace.
    pub fn loss(&self, workspace: &Workspace, batch: Batch, seams: &dyn Seams) -> Result<LossSum> {
        self.forward(workspace, batch, seams)?;
        self.held_out_loss(workspace, batch, seams)
    }

    /// Forward and backward. Adds the gradient of the *sum* of losses to `gradients`; `seams` learns which are final.
    ///
    /// # Errors
    /// `Invalid` for a batch that does not fit the model or the workspace.
    pub fn forward_backward(
        &self,
        workspace: &Workspace,
        batch: Batch,
        gradients: impl Into<Gradients>,
        seams: &dyn Seams,
    ) -> Result<LossSum> {
        self.forward(workspace, batch, seams)?;
        self.backward(workspace, batch, Backward::Whole, gradients.into(), seams)
    }

    /// The part of a forward pass that this part of the model has: from tokens, or the input that the stage before has put
    /// into [`Workspace::received`], through all blocks to [`Workspace::sent`]. Head and loss belong to the way back.
    ///
    /// # Errors
    /// `Invalid` for a batch that does not fit the model or the workspace.
    pub fn forward(&self, workspace: &Workspace, batch: Batch, seams: &dyn Seams) -> Result<()> {
        self.check(workspace, batch)?;
        let positions = self.batch_positions(batch);
        self.run_blocks(self.pass(batch, &positions, seams), workspace, batch.tokens, None);
        Ok(())
    }

    /// The part of a backward pass that this part of the model has, after [`Transformer::forward`] in the same workspace: from
    /// the loss, or the gradient that the stage behind has put into [`Workspace::received_gradient`], to
    /// [`Workspace::sent_gradient`]. The loss is zero without head, and where only gradients of weights are made.
    ///
    /// # Errors
    /// `Invalid` for a batch that does not fit the model or the workspace.
    pub fn backward(
        &self,
        workspace: &Workspace,
        batch: Batch,
        how: Backward,
        gradients: Gradients,
        seams: &dyn Seams,
    ) -> Result<LossSum> {
        self.check(workspace, batch)?;
        if workspace.residuals.is_empty() {
            return Err(Error::internal("a workspace for inference was used for training"));
        }
        let positions = self.batch_positions(batch);
        let pass = self.pass(batch, &positions, seams);
        Ok(self.run_backward(pass, workspace, batch, how, gradients))
    }

    /// The losses of a batch that has run forward in this workspace; zero without head.
    ///
    /// # Errors
    /// `Invalid` for a batch that does not fit the model or the workspace.
    pub fn held_out_loss(&self, workspace: &Workspace, batch: Batch, seams: &dyn Seams) -> Result<LossSum> {
        self.check(workspace, batch)?;
        if !self.part.head {
            return Ok(LossSum::default());
        }
        let positions = self.batch_positions(batch);
        let pass = self.pass(batch, &positions, seams);
        self.visit(pass, self.units_of_head(), || {
            self.final_norm(pass, workspace);
            self.head_loss(pass, workspace, batch.targets, None);
        });
        Ok(self.loss_sum(workspace, batch.targets))
    }

    /// Units in the order in which a forward pass reads their weights.
    pub fn forward_visits(&self) -> Vec<Unit> {
        let blocks = (0..self.local.layers).map(Unit::Block);
        let embedding = self.units_of_embedding().iter().copied().filter(|unit| self.has(*unit));
        embedding.chain(blocks).collect()
    }

    /// Units whose weights a held-out loss reads after a forward pass.
    pub fn head_visits(&self) -> Vec<Unit> {
        self.units_of_head().iter().copied().filter(|unit| self.has(*unit)).collect()
    }

    /// Units in the order in which a backward pass reads their weights.
    pub fn backward_visits(&self, how: Backward) -> Vec<Unit> {
        let head = if how == Backward::Weight { &[] } else { self.units_of_head() };
        head.iter()
            .copied()
            .filter(|unit| self.has(*unit))
            .chain((0..self.local.layers).rev().map(Unit::Block))
            .collect()
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
        self.run_blocks(pass, workspace, tokens, Some(cache));
        self.final_norm(pass, workspace);
        let mut logits = Vec::with_capacity(rows * self.config.vocabulary);
        let (normal, chunk_rows) = (workspace.normal, workspace.chunk_rows);
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
        if rows < self.part.tensor_ranks {
            return Err(Error::invalid(format!(
                "{rows} tokens cannot be shared out among {} ranks: each wants one at least",
                self.part.tensor_ranks
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

    fn pass<'a>(&'a self, batch: Batch<'a>, positions: &'a [u32], seams: &'a dyn Seams) -> Pass<'a> {
        self.weights.refresh(self.device.as_ref());
        Pass {
            device: self.device.as_ref(),
            config: &self.local,
            weights: &self.weights,
            batch: batch.batch,
            sequence: batch.sequence,
            positions: &positions[..batch.batch * batch.sequence],
            share: self.part.share(),
            documents: batch.documents,
            seams,
        }
    }
}
