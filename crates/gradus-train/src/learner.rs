//! One step on one rank: the passes of its microbatches, the sum of gradients over the ranks, the vote, the update.

mod account;
pub(crate) mod checks;
mod passes;
mod seams;
mod state;
mod vote;

pub use account::{Computed, Spent};
pub use state::FirstWeights;

use crate::axis::{AxisRanks, again};
use crate::exposed::Exposed;
use crate::mesh::{Coordinates, Mesh, MeshRanks};
use crate::pipeline::{Program, Shape, Sharing, lower};
use crate::settings::{OptimizerKind, OptimizerSettings, ParallelSettings};
use crate::stage::{Stage, StageRanks, StageSettings};
use crate::stages;
use crate::tensor_parallel::TensorParallel;
use account::Account;
use gradus_collective::{Collective, Communicator, Memory, Reduction as How};
use gradus_compute::Device;
use gradus_compute::cpu::VARIABLE as KERNELS;
use gradus_error::{Error, Kind, Result};
use gradus_memory::Span;
use gradus_model::{Batch, LossSum, ModelConfig, Part, StageMemory, Transformer, Unit};
use passes::Passes;
use std::ops::Range;
use std::sync::Arc;
use vote::{Ballot, Vote};

/// The microbatches of one step, numbered over all ranks.
pub trait Microbatches {
    /// How many there are.
    fn count(&self) -> usize;
    /// Loads one; a rank asks for its own only, and for some more than once.
    ///
    /// # Errors
    /// What the data say.
    fn load(&mut self, index: usize) -> Result<Batch<'_>>;
    /// How many tokens one has: asked more often than it is loaded, by stages that hand each other its rows.
    ///
    /// # Errors
    /// As [`Microbatches::load`].
    fn tokens(&mut self, index: usize) -> Result<usize> {
        Ok(self.load(index)?.tokens.len())
    }
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

/// How a learner splits its work, and what it takes memory for.
#[derive(Debug, Clone)]
pub struct LearnerSettings {
    /// The optimizer.
    pub optimizer: OptimizerSettings,
    /// The axes.
    pub parallel: ParallelSettings,
    /// The layers of each stage, over all ranks.
    pub stages: Vec<Range<usize>>,
    /// Tokens of the largest microbatch.
    pub rows: usize,
    /// Microbatches of a step, over all ranks.
    pub microbatches: usize,
    /// Whether blocks run forward again before they run backward.
    pub recompute: bool,
    /// Gradients that are not sharded are summed in ranges of about this many bytes.
    pub bucket_bytes: usize,
}

/// A model that learns: what this rank holds of it, and the other ranks.
pub struct Learner {
    // Communicators are dropped before the devices that hold their memory: stages last.
    world: Communicator,
    vote: Vote,
    pp: AxisRanks,
    tp: TensorParallel,
    /// The first and the last stage, where both have the table of a tied head.
    tied: Option<AxisRanks>,
    /// The ranks that keep the same weights as this one.
    alike: Communicator,
    stages: Vec<Stage>,
    mesh: Mesh,
    place: Coordinates,
    config: ModelConfig,
    program: Program,
    shape: Shape,
    passes: Passes,
    /// Ranges of each stage's layout whose squares this rank adds to the norm: all ranks together add each element once.
    counted: Vec<Vec<Span>>,
    clip_norm: f64,
    /// Time that this rank has waited since it last told of it, seconds.
    untold_s: f64,
    /// Whether ranks are still to find out that their kernels make the same updates.
    unproven: bool,
    /// How long this rank computes, if anybody asks.
    account: Option<Account>,
    /// What ended it: after a failure memory may still be in others' hands, and nothing is begun any more.
    over: Option<(Kind, String)>,
}

impl Learner {
    /// Takes memory for this rank's part of the model, all weights zero.
    ///
    /// # Errors
    /// `Invalid` for impossible settings; `Exhausted` where memory does not suffice.
    pub fn new(
        config: ModelConfig,
        device: &Arc<dyn Device>,
        mut world: Communicator,
        settings: LearnerSettings,
    ) -> Result<Self> {
        let LearnerSettings {
            optimizer,
            parallel,
            stages: layers,
            rows,
            microbatches,
            recompute,
            bucket_bytes,
        } = settings;
        let mesh = Mesh::from_settings(&parallel, world.world_size())?;
        mesh.check_model(&config, parallel.stages_per_rank)?;
        checks::check(&config, &mesh, &optimizer, &parallel)?;
        if microbatches < mesh.data_ranks() {
            return Err(Error::invalid(format!(
                "parallel.dp {} x parallel.fsdp {} ranks share {microbatches} microbatches: give more of them (a smaller \
                 train.microbatch, a larger train.global_batch), or fewer ranks",
                mesh.dp, mesh.fsdp
            )));
        }
        let place = mesh.coordinates(world.rank());
        let data_rank = mesh.data_rank(world.rank());
        let share = passes::Share::new(microbatches, data_rank, &mesh, &parallel);
        let shape =
            Shape { ranks: mesh.pp, chunks_per_rank: parallel.stages_per_rank, microbatches: share.passes };
        let program = lower(&parallel.order().generate(shape)?, Sharing::Chunk)?.swap_remove(place.pp);
        let tied = tied_table(&mut world, &config, &mesh, place)?;
        let parts = stages::parts(&layers, (place.tp, mesh.tp));
        assert_eq!(parts.len(), shape.stages(), "each stage has its layers");
        let split_backward = program.splits_backward();
        let mut stages = Vec::new();
        for (chunk, slots) in program.slots.iter().enumerate() {
            let part = parts[shape.stage(place.pp, chunk)].clone();
            let memory = StageMemory { rows, recompute, split_backward, slots: (*slots).max(1) };
            let parallel = parallel.clone();
            let kept = StageSettings { parallel, optimizer: optimizer.clone(), memory, bucket_bytes };
            let ranks = MeshRanks::new(again(&mut world)?, &mesh)?;
            let own = StageRanks { dp: ranks.dp, fsdp: ranks.fsdp, world: ranks.world };
            stages.push(Stage::new(&config, part, device, own, &kept)?);
        }
        let ranks = MeshRanks::new(again(&mut world)?, &mesh)?;
        let alike = if parallel.shards_parameters() { ranks.dp } else { ranks.data };
        let counted = stages.iter().map(|stage| counted(stage, place)).collect();
        Ok(Self {
            world,
            vote: Vote::new(ranks.world),
            pp: AxisRanks::new(ranks.pp),
            tp: TensorParallel::new(AxisRanks::new(ranks.tp)),
            tied,
            alike,
            stages,
            mesh,
            place,
            config,
            passes: Passes::new(share, &program),
            program,
            shape,
            counted,
            clip_norm: optimizer.clip_norm,
            untold_s: 0.0,
            unproven: optimizer.kind == OptimizerKind::Muon,
            account: None,
            over: None,
        })
    }
}

/// The ranks of the first and the last stage that have the same part of a tied table as this one, if it is one of them.
fn tied_table(
    world: &mut Communicator,
    config: &ModelConfig,
    mesh: &Mesh,
    place: Coordinates,
) -> Result<Option<AxisRanks>> {
    let ends = [0, mesh.pp - 1];
    if mesh.pp == 1 || !config.tied || !ends.contains(&place.pp) {
        return Ok(None);
    }
    let ranks = ends.map(|pp| mesh.rank_at(Coordinates { pp, ..place }));
    Ok(Some(AxisRanks::new(world.group(&ranks)?)))
}

/// What of a stage's layout this rank counts: its shard, on the first replica; of what ranks of `tp` have alike on the first,
/// of a table that two stages have on the one with the embedding.
fn counted(stage: &Stage, place: Coordinates) -> Vec<Span> {
    if place.dp > 0 {
        return Vec::new();
    }
    let parameters = stage.model.parameters();
    let mut others: Vec<Span> = if place.tp > 0 { parameters.whole_on_all_ranks() } else { Vec::new() };
    if !stage.model.part().embedding {
        others.push(parameters.unit(Unit::Embedding));
    }
    others.sort_by_key(|span| span.start);
    stage.owned().into_iter().flat_map(|owned| without(owned, &others)).collect()
}

/// What is left of a range without others, which come by growing start.
fn without(range: Span, others: &[Span]) -> Vec<Span> {
    let (mut left, mut start) = (Vec::new(), range.start);
    for other in others.iter().filter(|other| other.overlaps(&range)) {
        left.push(Span::new(start, other.start.max(start) - start));
        start = start.max(other.end());
    }
    left.push(Span::new(start, range.end().saturating_sub(start)));
    left.into_iter().filter(|span| !span.is_empty()).collect()
}

impl Learner {
    /// The whole model with all its weights, if this rank has it.
    pub fn whole_model(&self) -> Option<&Transformer> {
        let [stage] = self.stages.as_slice() else { return None };
        let is_whole = stage.model.part().is_whole(&self.config) && stage.keeps_weights();
        is_whole.then_some(&stage.model)
    }

    /// Kind and sizes of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The parts of the model that this rank has.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.stages.iter().map(|stage| stage.model.part())
    }

    /// What this rank computes on.
    pub fn device(&self) -> &Arc<dyn Device> {
        self.stages[0].model.device()
    }

    /// How the work is split.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The pipeline that this rank is in; one of a single rank, where the layers are not cut. Its microbatches are those that pass
    /// through it in a step.
    pub fn pipeline(&self) -> Shape {
        self.shape
    }

    /// Whether the other ranks reach this one's gradients where they lie.
    pub fn shares_gradients(&self) -> bool {
        self.stages.iter().all(|stage| stage.reduction.are_shared())
    }

    /// Which optimizer it is.
    pub fn optimizer_kind(&self) -> OptimizerKind {
        self.stages[0].optimizer.kind()
    }

    /// Updates made so far; skipped steps make none.
    pub fn updates(&self) -> u64 {
        self.stages[0].optimizer.updates()
    }

    /// All ranks, between steps.
    pub fn communicator(&mut self) -> &mut Communicator {
        &mut self.world
    }

    /// Time that compute has waited for others since the learner was made.
    pub fn exposed(&self) -> Exposed {
        let seconds = |ns: u64| ns as f64 * 1e-9;
        let [dp, fsdp] = self.stages.iter().fold([0, 0], |[dp, fsdp], stage| {
            let [own_dp, own_fsdp] = stage.waited_ns();
            [dp + own_dp, fsdp + own_fsdp]
        });
        let tied = self.tied.as_ref().map_or(0, AxisRanks::waited_ns);
        Exposed {
            pp: seconds(self.pp.waited_ns() + tied),
            dp: seconds(dp),
            fsdp: seconds(fsdp),
            tp: seconds(self.tp.waited_ns()),
            vote: seconds(self.vote.waited_ns()),
        }
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
        self.unless_over(|learner| learner.take_step(microbatches, learning_rate, stop))
    }

    /// Does something, unless something has failed before; a failure is told to the other ranks, and is the last.
    fn unless_over<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Some((kind, text)) = &self.over {
            return Err(Error::new(kind.clone(), format!("this rank has failed before: {text}")));
        }
        act(self).inspect_err(|error| {
            self.world.give_up(error);
            self.over = Some((error.kind().clone(), error.to_string()));
        })
    }

    fn take_step(
        &mut self,
        microbatches: &mut dyn Microbatches,
        learning_rate: f64,
        stop: bool,
    ) -> Result<StepResult> {
        let before = self.exposed();
        let loss = self.run_passes(microbatches)?;
        self.sum_gradients()?;
        let at_vote = self.exposed();
        let own = Ballot { loss, stop, squares: self.sum_of_squares() };
        // How long this vote takes is known to the next.
        let Ballot { loss, stop, squares } =
            self.vote.hold(own, self.untold_s + at_vote.since(&before).total())?;

        // Every rank holds the same sums, so all of them take the step or none does.
        let targets = loss.targets.max(1) as f64;
        let gradient_norm = squares.sqrt() / targets;
        let skipped = !gradient_norm.is_finite();
        if !skipped {
            let scale = clip(self.clip_norm, gradient_norm) / targets;
            let begun = self.begin_work();
            let (stages, tp) = (&mut self.stages, &self.tp);
            stages.iter_mut().try_for_each(|stage| stage.update(tp, learning_rate, scale))?;
            self.end_work(begun, |computed, seconds| computed.update_s += seconds);
            self.check_first_update()?;
        }
        self.untold_s = self.exposed().since(&at_vote).total();
        Ok(StepResult { loss, gradient_norm, skipped, asked_to_stop: stop })
    }

    /// How long each rank has waited for others, by rank: in the last step until its vote, and from the vote before to the end
    /// of its step. What lies between steps is not counted. The same on every rank.
    pub fn waits(&self) -> &[f64] {
        self.vote.waits()
    }

    /// Waits for what is under way; then stages that have one table add up what each has for it.
    fn sum_gradients(&mut self) -> Result<()> {
        self.stages.iter().try_for_each(Stage::finish)?;
        let Some(tied) = &self.tied else { return Ok(()) };
        for stage in &self.stages {
            let Some(own) = stage.own_of(Unit::Embedding).filter(|own| !own.is_empty()) else { continue };
            let table = stage.model.device().raw(stage.reduction.place(own));
            // SAFETY: nobody else touches gradients between the passes and the update, and it is waited for at once.
            let handle =
                unsafe { tied.start(&Collective::all_reduce(How::Sum), Memory::InPlace(table.into())) }?;
            tied.wait(handle)?;
        }
        Ok(())
    }

    /// This rank's part of the sum of the squares of all gradients.
    fn sum_of_squares(&self) -> f64 {
        let of_stage = |(stage, counted): (&Stage, &Vec<Span>)| {
            let device = stage.model.device();
            counted.iter().map(|own| device.sum_of_squares(stage.reduction.place(*own))).sum::<f64>()
        };
        self.stages.iter().zip(&self.counted).map(of_stage).sum()
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
                self.device().describe()
            )),
            _ => error,
        })
    }
}

/// Factor that brings a gradient's norm down to `limit`, as torch's `clip_grad_norm_` computes it; 0: no limit.
fn clip(limit: f64, norm: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_only_shrinks() {
        assert_eq!(clip(1.0, 0.5), 1.0);
        assert!((clip(1.0, 4.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip(0.0, 1e9), 1.0);
    }

    #[test]
    fn what_is_counted_elsewhere_is_left_out() {
        let spans = |others: &[(usize, usize)]| {
            let others: Vec<_> = others.iter().map(|(start, len)| Span::new(*start, *len)).collect();
            let left = without(Span::new(10, 10), &others);
            left.iter().map(|span| (span.start, span.len)).collect::<Vec<_>>()
        };
        assert_eq!(spans(&[]), [(10, 10)]);
        assert_eq!(spans(&[(0, 5), (12, 3), (18, 9)]), [(10, 2), (15, 3)]);
        assert_eq!(spans(&[(5, 20)]), []);
        assert_eq!(spans(&[(8, 4), (12, 2)]), [(14, 6)]);
    }
}
