//! A stage: the part of the model that a rank holds in one piece, with its share of the weights, gradients and moments.
//!
//! Shards are those of `fsdp`: each rank owns a range of each unit of the part's layout, updates it, and brings it to the
//! others: after the update where all keep all weights (ZeRO-1 and 2), or for each visit (ZeRO-3).

use crate::axis::{AxisRanks, again};
use crate::cut_matrices::CutMatrices;
use crate::gathering::{Gathering, gather};
use crate::optimizer::{MatrixPart, Moments, Optimizer, Piece};
use crate::reduction::{GradientMemory, Reduction, Staging, StagingSize};
use crate::settings::{OptimizerKind, OptimizerSettings, ParallelSettings};
use crate::sharding::Sharding;
use crate::tensor_parallel::TensorParallel;
use gradus_collective::{Collective, Communicator, Memory};
use gradus_compute::{Device, Format, Matrix};
use gradus_error::Result;
use gradus_memory::{Layout, Span, Tensor};
use gradus_model::{ModelConfig, Parameters, Part, Places, Run, StageMemory, Transformer, Unit, Workspace};
use std::sync::Arc;

/// What a step depends on, by element of the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantity {
    /// The masters.
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
    /// All ranks.
    pub world: Communicator,
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
    /// Where Muon's matrices are cut among ranks.
    cut_matrices: Option<CutMatrices>,
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
        let places = Places::new(&parameters.layout, optimizer.masters);
        let ranges: Vec<Span> = parameters.units().iter().map(|(_, range)| *range).collect();
        let sharding = Sharding::new(&parameters.layout, &ranges, ranks.fsdp.world_size(), optimizer.kind);
        let rank = ranks.fsdp.rank();
        let (gradients, staging) =
            gradient_memory(device.as_ref(), &parameters, &sharding, &mut ranks, settings)?;
        let gathering = match parallel.shards_parameters() {
            true => {
                let axis = AxisRanks::new(again(&mut ranks.fsdp)?);
                Some(Gathering::new(device, &parameters, (&sharding, &places), axis)?)
            }
            false => None,
        };
        let model = model(config, part.clone(), device, settings, gathering.is_some())?;
        let numbers = numbers(&parameters, config, &part);
        let pieces = pieces(&sharding, rank, |unit, own| {
            let held = held(&model, gathering.as_ref(), unit, own);
            let piece = |(span, weights): (Span, Matrix)| Piece {
                span,
                weights,
                gradients: gradients.place(span),
                number: number(&numbers, span.start),
            };
            places.pieces(held, own).map(piece).collect()
        });
        let optimizer = Optimizer::new(device.as_ref(), &parameters.layout, &pieces, optimizer.clone())?;
        let tensor = (part.tensor_rank, part.tensor_ranks);
        let cut_matrices = match tensor.1 > 1 && optimizer.kind() == OptimizerKind::Muon {
            true => Some(CutMatrices::new(device.as_ref(), &parameters.layout, tensor)?),
            false => None,
        };
        let slots = Workspace::for_stage(device.as_ref(), config, &part, *memory).map_err(|error| {
            error.within(format!(
                "memory for {} microbatches of {} tokens (a smaller train.microbatch or train.recompute takes less)",
                memory.slots, memory.rows
            ))
        })?;
        let axes = (AxisRanks::new(ranks.dp), AxisRanks::new(again(&mut ranks.fsdp)?));
        let units = parameters.units();
        let reduction = Reduction::new(device, units, &sharding, axes, (gradients, staging), *bucket_bytes);
        let gather = |unit| gather(&sharding, &places, unit);
        Ok(Self {
            reduction,
            gathering,
            gathers: (0..units.len()).map(gather).collect(),
            fsdp: AxisRanks::new(ranks.fsdp),
            runs: parameters.runs(&Parameters::new(config).layout),
            model,
            slots,
            optimizer,
            cut_matrices,
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
    pub fn update(&mut self, tp: &TensorParallel, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        let device = Arc::clone(self.model.device());
        match &self.cut_matrices {
            None => self.optimizer.update(device.as_ref(), learning_rate, gradient_scale),
            Some(cut) => {
                let parameters = self.model.parameters();
                let matrix = &mut |part: &MatrixPart<'_>| cut.update(device.as_ref(), tp, parameters, part);
                self.optimizer.update_with(device.as_ref(), learning_rate, gradient_scale, matrix);
                tp.finish()?;
            }
        }
        if !self.keeps_weights() {
            return Ok(());
        }
        // Asking says that they change.
        let (weights, places) = (self.model.storage(), self.model.places());
        if self.fsdp.size() == 1 {
            return Ok(());
        }
        let mut handles = Vec::with_capacity(self.gathers.len());
        for (range, gather) in self.sharding.units().iter().zip(&self.gathers) {
            let place = places.range(*range);
            let memory = Memory::InPlace(device.raw(weights.part(place.start, place.len)).into());
            // SAFETY: nobody touches weights before all have been waited for, just below; after a failure the learner drops
            // its communicators before the device's memory.
            handles.push(unsafe { self.fsdp.start(gather, memory) }?);
        }
        handles.into_iter().try_for_each(|handle| self.fsdp.wait(handle))
    }

    /// Where the elements of a range of the layout lie that this rank keeps: all pieces of it, with their ranges.
    fn kept(&self, what: Quantity, range: Span) -> Vec<(Span, Matrix)> {
        match (what, &self.gathering) {
            (Quantity::Weights, None) => {
                let all = (Span::new(0, self.layout().len()), self.model.storage());
                self.model.places().pieces(all, range).collect()
            }
            _ => self.owned_places(what, range),
        }
    }

    /// The same of what this rank owns: every element is owned by one rank of `fsdp`.
    pub fn owned_places(&self, what: Quantity, range: Span) -> Vec<(Span, Matrix)> {
        match what {
            Quantity::Weights => self.owned_weights(range),
            Quantity::Moment(moment) => self.moments(moment, range),
        }
    }

    fn owned_weights(&self, range: Span) -> Vec<(Span, Matrix)> {
        let rank = self.fsdp.rank();
        let units = 0..self.sharding.units().len();
        let pieces = |unit: usize| {
            let own = self.sharding.own(unit, rank);
            let held = held(&self.model, self.gathering.as_ref(), unit, own);
            self.model.places().pieces(held, own.common(&range))
        };
        units.filter(|unit| self.sharding.own(*unit, rank).overlaps(&range)).flat_map(pieces).collect()
    }

    fn moments(&self, moment: usize, range: Span) -> Vec<(Span, Matrix)> {
        let tensors =
            self.layout().tensors().iter().filter(|tensor: &&Tensor| tensor.span().overlaps(&range));
        let all = tensors.flat_map(|tensor| std::mem::take(&mut self.optimizer.moments(tensor)[moment]));
        let cut = |Moments { range: known, place }: Moments| {
            let common = Some(known.common(&range)).filter(|common| !common.is_empty())?;
            Some((common, place.part(common.start - known.start, common.len).into()))
        };
        all.filter_map(cut).collect()
    }

    /// Puts values of the whole model in place, as far as this rank keeps them.
    pub fn put(&self, what: Quantity, whole: Span, values: &[f32]) {
        for (local, offset) in self.local(whole) {
            for (range, place) in self.kept(what, local) {
                let first = offset + range.start - local.start;
                let (device, values) = (self.model.device(), &values[first..first + range.len]);
                match place.format {
                    Format::F32 => device.write(place.span, values),
                    Format::Bf16 => device.write_bf16(place.span, values),
                }
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
    pub fn kept_weights(&self) -> Vec<(Span, Matrix)> {
        self.kept(Quantity::Weights, Span::new(0, self.layout().len()))
    }

    /// The range of a unit that this rank owns: the same on every stage that has the unit.
    pub fn own_of(&self, unit: Unit) -> Option<Span> {
        let index = self.model.parameters().units().iter().position(|(known, _)| *known == unit)?;
        Some(self.sharding.own(index, self.fsdp.rank()))
    }
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
    // All ranks share it or none does: stages and slices sum in the same memory among other ranks, too.
    let travels = &mut ranks.world;
    let staging = size.map(|size| Staging::new(device, size, travels)).transpose()?;
    let memory = match (parallel.shards_gradients(), &staging) {
        (true, _) => GradientMemory::sharded(device, parameters, sharding, rank),
        (false, None) if sizes != [1, 1] => GradientMemory::kept(device, len, travels),
        (false, _) => GradientMemory::private(device, len),
    };
    Ok((memory?, staging))
}

fn model(
    config: &ModelConfig,
    part: Part,
    device: &Arc<dyn Device>,
    StageSettings { optimizer, memory, .. }: &StageSettings,
    visiting: bool,
) -> Result<Transformer> {
    let (config, device, masters) = (config.clone(), Arc::clone(device), optimizer.masters);
    if visiting {
        return Transformer::visiting_in(config, part, device, masters);
    }
    let model = Transformer::of_part_in(config, part, device, masters)?;
    // Who runs blocks twice to save memory does without copies, too.
    if memory.recompute { Ok(model) } else { model.with_prepared_weights() }
}

/// The memory that has what a rank owns of a unit, and the range of the layout that lies there.
fn held(model: &Transformer, gathering: Option<&Gathering>, unit: usize, own: Span) -> (Span, Span) {
    match gathering {
        Some(gathering) => (own, gathering.shard(unit)),
        None => (Span::new(0, model.parameters().layout.len()), model.storage()),
    }
}

/// What this rank updates, of the pieces that it has of each unit: neighbours in everything are one.
fn pieces(sharding: &Sharding, rank: usize, of: impl Fn(usize, Span) -> Vec<Piece>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for unit in 0..sharding.units().len() {
        let own = sharding.own(unit, rank);
        for next in if own.is_empty() { Vec::new() } else { of(unit, own) } {
            match pieces.last_mut() {
                Some(last) if last.reaches(&next) => last.extend(&next),
                _ => pieces.push(next),
            }
        }
    }
    pieces
}

/// Above all numbers of elements: which share of a matrix that ranks of `tp` share out it is.
const SHARE: u32 = 48;

/// Where each tensor begins, and the number of its first element. Those of a whole model's layout, so that an element has the same
/// one on whichever ranks keep it; of a tensor that is cut, its own numbers for each share.
fn numbers(parameters: &Parameters, config: &ModelConfig, part: &Part) -> Vec<(usize, u64)> {
    let (whole, on_all) = (Parameters::new(config), parameters.whole_on_all_ranks());
    let number = |tensor: &Tensor| {
        let first = whole.layout.find(&tensor.name).expect("a part's tensors are the whole's").start as u64;
        let share = if on_all.contains(&tensor.span()) { 0 } else { part.tensor_rank as u64 };
        (tensor.start, first | share << SHARE)
    };
    parameters.layout.tensors().iter().map(number).collect()
}

/// The number of an element of the layout.
fn number(numbers: &[(usize, u64)], element: usize) -> u64 {
    let before = numbers.partition_point(|(start, _)| *start <= element);
    let (start, first) = numbers[before - 1];
    first + (element - start) as u64
}
