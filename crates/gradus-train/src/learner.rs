//! One step on one rank: gradients of its microbatches, their sum over the ranks, the vote, the update.

use crate::batches;
use crate::data_parallel::DataParallel;
use crate::gradients::Gradients;
use crate::optimizer::{Optimizer, Piece};
use crate::settings::{OptimizerKind, OptimizerSettings};
use gradus_collective::Communicator;
use gradus_compute::cpu::VARIABLE as KERNELS;
use gradus_error::{Error, Kind, Result};
use gradus_memory::Span;
use gradus_model::{Batch, LossSum, Seams, Transformer, Workspace};
use std::sync::Arc;

/// The microbatches of one step, numbered over all ranks.
pub trait Microbatches {
    /// How many there are.
    fn count(&self) -> usize;
    /// Loads one; a rank asks for its own only.
    ///
    /// # Errors
    /// What the data say.
    fn load(&mut self, index: usize) -> Result<Batch<'_>>;
}

/// What one step gave, the same on every rank.
#[derive(Debug, Clone, Copy)]
pub struct StepResult {
    /// Loss over all ranks' targets, before the update.
    pub loss: LossSum,
    /// Norm of the mean gradient, before clipping.
    pub gradient_norm: f64,
    /// Whether the gradient was not finite, so that no update was made.
    pub skipped: bool,
    /// Whether any rank voted to stop.
    pub asked_to_stop: bool,
}

/// A model that learns: its weights, gradients and moments on this rank, and the other ranks.
pub struct Learner {
    // Declared first so that it is dropped first: it may hold addresses of the device's memory.
    ranks: DataParallel,
    model: Transformer,
    gradients: Gradients,
    optimizer: Optimizer,
    workspace: Workspace,
    clip_norm: f64,
    /// Whether ranks are still to find out that their kernels make the same updates.
    unproven: bool,
}

/// Sizes that a learner takes memory for.
#[derive(Debug, Clone, Copy)]
pub struct LearnerSizes {
    /// Tokens of the largest microbatch.
    pub rows: usize,
    /// Whether blocks run forward again before they run backward.
    pub recompute: bool,
    /// Gradients are summed in ranges of about this many bytes.
    pub bucket_bytes: usize,
}

impl Learner {
    /// Takes all memory that steps will need.
    ///
    /// # Errors
    /// `Invalid` for impossible settings; `Exhausted` where memory does not suffice.
    pub fn new(
        model: Transformer,
        mut communicator: Communicator,
        settings: &OptimizerSettings,
        sizes: LearnerSizes,
    ) -> Result<Self> {
        // Who runs blocks twice to save memory does without copies, too.
        let model = if sizes.recompute { model } else { model.with_prepared_weights()? };
        let device = Arc::clone(model.device());
        let layout = &model.parameters().layout;
        let gradients = Gradients::new(device.as_ref(), layout.len(), &mut communicator)?;
        let whole = Piece::whole(layout, model.weights(), gradients.span());
        let optimizer = Optimizer::new(device.as_ref(), layout, &[whole], settings.clone())?;
        let workspace =
            Workspace::for_training(device.as_ref(), model.config(), sizes.rows, sizes.recompute).map_err(|error| {
                error.within(format!(
                    "memory for microbatches of {} tokens (a smaller train.microbatch or train.recompute takes less)",
                    sizes.rows
                ))
            })?;
        let ranks = DataParallel::new(communicator, layout.len(), sizes.bucket_bytes);
        let unproven = settings.kind == OptimizerKind::Muon;
        Ok(Self { ranks, model, gradients, optimizer, workspace, clip_norm: settings.clip_norm, unproven })
    }

    /// Whether the other ranks reach this one's gradients where they lie.
    pub fn shares_gradients(&self) -> bool {
        self.gradients.are_shared()
    }

    /// The model as it is now.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// Its moments.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Model and moments, to be restored.
    pub fn restore(&mut self) -> (&Transformer, &mut Optimizer) {
        (&self.model, &mut self.optimizer)
    }

    /// The ranks, between steps.
    pub fn communicator(&mut self) -> &mut Communicator {
        self.ranks.communicator()
    }

    /// What an evaluation needs, between steps.
    pub fn for_evaluation(&mut self) -> (&Transformer, &Workspace, &mut Communicator) {
        (&self.model, &self.workspace, self.ranks.communicator())
    }

    /// Whether this rank holds the same bits as rank 0. Every rank calls it; each finds out for itself.
    ///
    /// # Errors
    /// `Internal` on the rank that differs; the communicator's.
    pub fn check_agreement(&mut self) -> Result<()> {
        let own = digest(&self.model.get(Span::new(0, self.model.parameters().layout.len())));
        let mut first = own.to_le_bytes();
        self.ranks.communicator().broadcast(0, &mut first)?;
        if u64::from_le_bytes(first) == own {
            return Ok(());
        }
        let rank = self.ranks.communicator().rank();
        Err(Error::internal(format!(
            "the weights of rank {rank} differ from those of rank 0 (digest {own:016x})"
        )))
    }

    /// One step at a learning rate; every rank calls it with the same microbatches.
    ///
    /// # Errors
    /// What the data say, and the communicator's: a lost peer, for one.
    pub fn step(
        &mut self,
        microbatches: &mut dyn Microbatches,
        learning_rate: f64,
        stop: bool,
    ) -> Result<StepResult> {
        let own = self.sum_gradients(microbatches)?;
        let mut votes = [own.nats, own.targets as f64, f64::from(u8::from(stop))];
        self.ranks.communicator().all_reduce(&mut votes)?;
        let loss = LossSum { nats: votes[0], targets: votes[1] as u64 };

        // Every rank holds the same sums, so all of them take the step or none does.
        let device = self.model.device();
        let targets = loss.targets.max(1) as f64;
        let gradient_norm = device.sum_of_squares(self.gradients.span()).sqrt() / targets;
        let skipped = !gradient_norm.is_finite();
        if !skipped {
            let scale = clip(self.clip_norm, gradient_norm) / targets;
            // Asking says that they change.
            self.model.weights();
            self.optimizer.update(device.as_ref(), learning_rate, scale);
            self.check_first_update()?;
        }
        Ok(StepResult { loss, gradient_norm, skipped, asked_to_stop: votes[2] > 0.0 })
    }

    /// Updates of elements have the same bits by AVX2 and by AVX-512, products of matrices need not: after the first
    /// update, whether all ranks hold the same weights.
    fn check_first_update(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.unproven) {
            return Ok(());
        }
        self.check_agreement().map_err(|error| match error.kind() {
            Kind::Internal => Error::invalid(format!(
                "{error}: with optimizer.kind \"muon\" all ranks need the same kernels, and this one's are \"{}\" (the \
                 variable {KERNELS} names them)",
                self.model.device().describe()
            )),
            _ => error,
        })
    }

    /// Runs this rank's microbatches and sums the gradients of all ranks; the sum begins while the last microbatch's
    /// backward pass goes on.
    fn sum_gradients(&mut self, microbatches: &mut dyn Microbatches) -> Result<LossSum> {
        let (rank, world_size) = (self.ranks.communicator().rank(), self.ranks.communicator().world_size());
        let mine = batches::share(microbatches.count(), rank, world_size);
        let device = self.model.device();
        device.fill(self.gradients.span(), 0.0);
        // SAFETY: the learner owns the device's memory and the ranks, and drops the ranks first; between here and
        // `finish` only the backward pass touches the gradients, and it reports a range after its last use.
        let sum = unsafe { self.ranks.begin(device.raw(self.gradients.span())) };
        let mut loss = LossSum::default();
        for index in mine.clone() {
            let seams: &dyn Seams = if index + 1 == mine.end { &sum } else { &() };
            let batch = microbatches.load(index)?;
            loss += self.model.forward_backward(&self.workspace, batch, self.gradients.span(), seams)?;
        }
        sum.finish()?;
        Ok(loss)
    }
}

/// FNV-1a over the words' bits, one word at a time (Fowler, Noll and Vo): enough to see that two copies differ.
fn digest(values: &[f32]) -> u64 {
    let step = |hash: u64, value: &f32| (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
    values.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Factor that brings a gradient's norm down to `limit`, as torch's `clip_grad_norm_` computes it; 0: no limit.
fn clip(limit: f64, norm: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_bit_changes_the_digest() {
        assert_ne!(digest(&[1.0, 0.0]), digest(&[1.0, -0.0]));
        assert_eq!(digest(&[1.0, 2.0]), digest(&[1.0, 2.0]));
    }

    #[test]
    fn clipping_only_shrinks() {
        assert_eq!(clip(1.0, 0.5), 1.0);
        assert!((clip(1.0, 4.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip(0.0, 1e9), 1.0);
    }
}
