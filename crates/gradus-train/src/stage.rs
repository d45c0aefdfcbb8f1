//! A stage: the part of the model that a rank holds in one piece, with its share of the weights, gradients and moments.
//!
//! Shards are those of `fsdp`: each rank owns a range of each unit of the part's layout, updates it, and brings it to the
//! others: after the update where all keep all weights (ZeRO-1 and 2), or for each visit (ZeRO-3).

use crate::axis::AxisRanks;
use crate::gathering::Gathering;
use crate::optimizer::{Moments, Optimizer, Piece};
use crate::reduction::{GradientMemory, Reduction, Staging, StagingSize};
use crate::settings::{OptimizerSettings, ParallelSettings};
use crate::sharding::Sharding;
use gradus_collective::{Collective, Communicator, Memory};
use gradus_compute::Device;
use gradus_error::Result;
use gradus_memory::{Layout, Span, Tensor};
use gradus_model::{ModelConfig, Parameters, Part, Run, StageMemory, Transformer, Unit, Workspace};
use std::sync::Arc;

/// What a step depends on, by element of the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantity {
    /// The f32 masters.
    Weights,
    /// The optimizer's first (0) or second (1) moments.
    Moment(usize),
}

/// How a stage is kept.
#[derive(Clone)]
pub(crate) struct StageSettings {
    pub parallel: ParallelSettings,
    pub optimizer: OptimizerSettings,
    pub memory: StageMemory,
    pub bucket_bytes: usize,
}

/// The ranks with which a stage shares its state.
pub(crate) struct StageRanks {
    /// The ranks that hold the same.
    pub dp: Communicator,
    /// The ranks that shard it.
    pub fsdp: Communicator,
}

/// A part of the model on this rank.
pub(crate) struct Stage {
    // Before what holds memory: communicators may hold its addresses, and are dropped first.
    pub reduction: Reduction,
    pub gathering: Option<Gathering>,
    fsdp: AxisRanks,
    pub model: Transformer,
    pub slots: Vec<Workspace>,
    pub optimizer: Optimizer,
    sharding: Sharding,
    /// How each unit's weights come together after an update, where all ranks keep all.
    gathers: Vec<Collective>,
    /// What of the whole model is where in this part.
    runs: Vec<Run>,
}

impl Stage {
    /// Takes the memory of a part.
    ///
    /// # Errors
    /// `Invalid` for impossible settings; `Exhausted` where memory does not suffice; those of communicators.
    pub fn new(
        config: &ModelConfig,
        part: Part,
        device: &Arc<dyn Device>,
        mut ranks: StageRanks,
        settings: &StageSettings,
    ) -> Result<Self> {
        let StageSettings { parallel, optimizer, memory, bucket_bytes } = settings;
        let parameters = Parameters::of(config, &part);
        let ranges: Vec<Span> = parameters.units().iter().map(|(_, range)| *range).collect();
        let sharding = Sharding::new(&parameters.layout, &ranges, ranks.fsdp.world_size(), optimizer.kind);
        let rank = ranks.fsdp.rank();
        let (gradients, staging) =
            gradient_memory(device.as_ref(), &parameters, &sharding, &mut ranks, settings)?;
        let gathering = match parallel.shards_parameters() {
            true => Some(Gathering::new(device, &parameters, &sharding, axis_of_all(&mut ranks.fsdp)?)?),
            false => None,
        };
        let model = model(config, part.clone(), device, gathering.is_some(), memory.recompute)?;
        let pieces = pieces(&sharding, rank, &gradients, |unit, own| match &gathering {
            Some(gathering) => gathering.shard(unit),
            None => model.weights().part(own.start, own.len),
        });
        let optimizer = Optimizer::new(device.as_ref(), &parameters.layout, &pieces, optimizer.clone())?;
        let slots = Workspace::for_stage(device.as_ref(), config, &part, *memory).map_err(|error| {
            error.within(format!(
                "memory for {} microbatches of {} tokens (a smaller train.microbatch or train.recompute takes less)",
                memory.slots, memory.rows
            ))
        })?;
        let axes = (AxisRanks::new(ranks.dp), axis_of_all(&mut ranks.fsdp)?);
        let units = parameters.units();
        let reduction = Reduction::new(device, units, &sharding, axes, (gradients, staging), *bucket_bytes);
        let gather = |unit| Collective::all_gather().with_counts(sharding.counts(unit));
        Ok(Self {
            reduction,
            gathering,
            gathers: (0..units.len()).map(gather).collect(),
            fsdp: AxisRanks::new(ranks.fsdp),
            runs: parameters.runs(&Parameters::new(config).layout),
            model,
            slots,
            optimizer,
            sharding,
        })
    }

    fn layout(&self) -> &Layout {
        &self.model.parameters().layout
    }

    /// Whether this rank keeps all weights of the part.
    pub fn keeps_weights(&self) -> bool {
        self.gathering.is_none()
    }

    /// Time that compute has waited for replicas, and for shards.
    pub fn waited_ns(&self) -> [u64; 2] {
        let [dp, fsdp] = self.reduction.waited_ns();
        let gathered = self.gathering.as_ref().map_or(0, Gathering::waited_ns);
        [dp, fsdp + gathered + self.fsdp.waited_ns()]
    }

    /// Ranges of the layout that this rank updates.
    pub fn owned(&self) -> Vec<Span> {
        match self.fsdp.size() {
            1 => vec![Span::new(0, self.layout().len())],
            _ => self.sharding.owned(self.fsdp.rank()),
        }
    }

    /// Waits for what its passes have left under way.
    ///
    /// # Errors
    /// The first failure since the last time.
    pub fn finish(&self) -> Result<()> {
        self.reduction.finish()?;
        self.gathering.as_ref().map_or(Ok(()), Gathering::finish)
    }

    /// Updates what this rank owns; where all keep all weights, they come together again.
    ///
    /// # Errors
    /// The communicator's.
    pub fn update(&mut self, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        let device = Arc::clone(self.model.device());
        self.optimizer.update(device.as_ref(), learning_rate, gradient_scale);
        if !self.keeps_weights() {
            return Ok(());
        }
        // Asking says that they change.
        let weights = self.model.weights();
        if self.fsdp.size() == 1 {
            return Ok(());
        }
        let mut handles = Vec::with_capacity(self.gathers.len());
        for (range, gather) in self.sharding.units().iter().zip(&self.gathers) {
            let memory = Memory::InPlace(device.raw(weights.part(range.start, range.len)).into());
            // SAFETY: nobody touches weights before all have been waited for, just below; after a failure the learner drops
            // its communicators before the device's memory.
            handles.push(unsafe { self.fsdp.start(gather, memory) }?);
        }
        handles.into_iter().try_for_each(|handle| self.fsdp.wait(handle))
    }

    /// Where the elements of a range of the layout lie that this rank keeps: all pieces of it, with their ranges.
    fn kept(&self, what: Quantity, range: Span) -> Vec<(Span, Span)> {
        match (what, &self.gathering) {
            (Quantity::Weights, None) => vec![(range, self.model.weights().part(range.start, range.len))],
            _ => self.owned_places(what, range),
        }
    }

    /// The same of what this rank owns: every element is owned by one rank of `fsdp`.
    pub fn owned_places(&self, what: Quantity, range: Span) -> Vec<(Span, Span)> {
        match what {
            Quantity::Weights => self.owned_weights(range),
            Quantity::Moment(moment) => self.moments(moment, range),
        }
    }

    fn owned_weights(&self, range: Span) -> Vec<(Span, Span)> {
        let rank = self.fsdp.rank();
        let units = 0..self.sharding.units().len();
        let piece = |unit: usize| {
            let own = self.sharding.own(unit, rank);
            let common = own.common(&range);
            let place = match &self.gathering {
                Some(gathering) => gathering.shard(unit).part(common.start - own.start, common.len),
                None => self.model.weights().part(common.start, common.len),
            };
            (common, place)
        };
        units.filter(|unit| self.sharding.own(*unit, rank).overlaps(&range)).map(piece).collect()
    }

    fn moments(&self, moment: usize, range: Span) -> Vec<(Span, Span)> {
        let tensors =
            self.layout().tensors().iter().filter(|tensor: &&Tensor| tensor.span().overlaps(&range));
        let all = tensors.flat_map(|tensor| std::mem::take(&mut self.optimizer.moments(tensor)[moment]));
        let cut = |Moments { range: known, place }: Moments| {
            let common = known.common(&range);
            (
                common,
                if common.is_empty() {
                    place.part(0, 0)
                } else {
                    place.part(common.start - known.start, common.len)
                },
            )
        };
        all.map(cut).filter(|(range, _)| !range.is_empty()).collect()
    }

    /// Puts values of the whole model in place, as far as this rank keeps them.
    pub fn put(&self, what: Quantity, whole: Span, values: &[f32]) {
        for (local, offset) in self.local(whole) {
            for (range, place) in self.kept(what, local) {
                let first = offset + range.start - local.start;
                self.model.device().write(place, &values[first..first + range.len]);
            }
        }
    }

    /// What of a range of the whole model's layout is where in this part: the range here, and where in that range it begins.
    pub fn local(&self, whole: Span) -> impl Iterator<Item = (Span, usize)> + '_ {
        self.runs.iter().filter(move |run| run.whole.overlaps(&whole)).map(move |run| {
            let common = run.whole.common(&whole);
            (Span::new(run.local + common.start - run.whole.start, common.len), common.start - whole.start)
        })
    }

    /// The weights that this rank keeps, each range of the layout with its place.
    pub fn kept_weights(&self) -> Vec<(Span, Span)> {
        self.kept(Quantity::Weights, Span::new(0, self.layout().len()))
    }

    /// The range of a unit that this rank owns: the same on every stage that has the unit.
    pub fn own_of(&self, unit: Unit) -> Option<Span> {
        let index = self.model.parameters().units().iter().position(|(known, _)| *known == unit)?;
        Some(self.sharding.own(index, self.fsdp.rank()))
    }
}

/// One more communicator of the same ranks.
fn axis_of_all(ranks: &mut Communicator) -> Result<AxisRanks> {
    let all: Vec<usize> = (0..ranks.world_size()).collect();
    Ok(AxisRanks::new(ranks.group(&all)?))
}

/// Memory for gradients, and what they travel in where that is another: then the others reach that one.
fn gradient_memory(
    device: &dyn Device,
    parameters: &Parameters,
    sharding: &Sharding,
    ranks: &mut StageRanks,
    settings: &StageSettings,
) -> Result<(GradientMemory, Option<Staging>)> {
    let StageSettings { parallel, bucket_bytes, .. } = settings;
    let sizes = [ranks.dp.world_size(), ranks.fsdp.world_size()];
    let (rank, len) = (ranks.fsdp.rank(), parameters.layout.len());
    let size = StagingSize::new(parallel.gradients, sizes, parameters.units(), *bucket_bytes);
    let travels = if sizes[1] > 1 { &mut ranks.fsdp } else { &mut ranks.dp };
    let staging = size.map(|size| Staging::new(device, size, travels)).transpose()?;
    let memory = match (parallel.shards_gradients(), &staging) {
        (true, _) => GradientMemory::sharded(device, parameters, sharding, rank),
        (false, Some(_)) => GradientMemory::private(device, len),
        (false, None) => GradientMemory::kept(device, len, travels),
    };
    Ok((memory?, staging))
}

fn model(
    config: &ModelConfig,
    part: Part,
    device: &Arc<dyn Device>,
    visiting: bool,
    recompute: bool,
) -> Result<Transformer> {
    if visiting {
        return Transformer::visiting(config.clone(), part, Arc::clone(device));
    }
    let model = Transformer::of_part(config.clone(), part, Arc::clone(device))?;
    // Who runs blocks twice to save memory does without copies, too.
    if recompute { Ok(model) } else { model.with_prepared_weights() }
}

/// What this rank updates: neighbours in everything are one.
fn pieces(
    sharding: &Sharding,
    rank: usize,
    gradients: &GradientMemory,
    weights: impl Fn(usize, Span) -> Span,
) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for unit in 0..sharding.units().len() {
        let own = sharding.own(unit, rank);
        if own.is_empty() {
            continue;
        }
        let next = Piece { span: own, weights: weights(unit, own), gradients: gradients.place(own) };
        match pieces.last_mut() {
            Some(last) if last.reaches(&next) => last.extend(&next),
            _ => pieces.push(next),
        }
    }
    pieces
}
