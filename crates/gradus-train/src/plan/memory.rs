//! The memory of a rank, by kind: what the trainer allocates on its device, to the byte.
//!
//! For each chunk of layers that a rank holds: its weights, all of them or with ZeRO-3 its own shard and slots for units that are
//! there in passing; copies that products take; gradients, all of them or its own shard and slots on their way; the moments of
//! what it owns; and a workspace.

use super::slots::{least_slots, slots};
use super::split::{Split, Work};
use crate::cut_matrices::scratch_len;
use crate::gathering;
use crate::mesh::Coordinates;
use crate::optimizer::Optimizer;
use crate::pipeline::{Kind, Shape};
use crate::reduction::{self, StagingSize};
use crate::settings::OptimizerKind;
use crate::sharding::Sharding;
use gradus_compute::{Linear, Use};
use gradus_memory::{Layout, Span};
use gradus_model::{
    ModelConfig, Parameters, Part, Places, StageMemory, Workspace, WorkspaceSize, size_of_prepared,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// Bytes of a rank, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Memory {
    /// Weights: all of its chunks, or its own shards.
    pub weights: u64,
    /// Slots for units whose weights are gathered in passing.
    pub gathered: u64,
    /// Weights rounded and packed for products.
    pub copies: u64,
    /// Gradients: all of its chunks', or its own shards'.
    pub gradients: u64,
    /// Slots for units whose gradients are on their way to their owners, and rooms for what travels in bf16.
    pub scattered: u64,
    /// Moments of what it owns.
    pub moments: u64,
    /// What forward leaves for backward, of all microbatches in flight.
    pub activations: u64,
    /// What passes need while they run, besides; where one microbatch is in flight, as far as it does not lie over the former.
    pub scratch: u64,
}

impl Memory {
    /// All kinds, by name.
    pub fn kinds(&self) -> [(&'static str, u64); 8] {
        [
            ("weights", self.weights),
            ("gathered weights", self.gathered),
            ("prepared copies", self.copies),
            ("gradients", self.gradients),
            ("gradients on their way", self.scattered),
            ("moments", self.moments),
            ("activations", self.activations),
            ("scratch", self.scratch),
        ]
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        self.kinds().iter().map(|(_, bytes)| bytes).sum()
    }

    fn of_elements(elements: [usize; 8]) -> Self {
        let [weights, gathered, copies, gradients, scattered, moments, activations, scratch] =
            elements.map(|count| (count * size_of::<f32>()) as u64);
        Self { weights, gathered, copies, gradients, scattered, moments, activations, scratch }
    }
}

/// What the ranks at one place of the pipeline hold.
#[derive(Debug, Clone, Serialize)]
pub struct Holding {
    /// The place.
    pub pp: usize,
    /// Layers of each chunk.
    pub layers: Vec<Range<usize>>,
    /// Whether it has the embedding.
    pub embedding: bool,
    /// Whether it has the head.
    pub head: bool,
    /// Elements of the parameters of its chunks, on the tensor rank that has most.
    pub parameters: u64,
    /// Microbatches in flight in each chunk.
    pub slots: Vec<usize>,
    /// The rank that needs most of those at this place.
    pub rank: usize,
    /// What that one needs.
    pub memory: Memory,
}

/// What a prepared weight takes where products take pairs of bf16 in blocks of 32 by 32, as AVX512-BF16 and AMX have it: half
/// its master, for each of two uses.
pub fn prepared_in_pairs(shape: Linear, _: Use) -> usize {
    shape.outputs.next_multiple_of(32) * shape.inputs.next_multiple_of(32) / 2
}

/// What of a model, without which layers: parts of one kind have the same sizes.
type PartKind = (usize, [bool; 2], [usize; 2]);

/// Sizes of a kind of part.
struct PartSizes {
    parameters: Rc<Parameters>,
    /// Where its weights lie.
    places: Places,
    /// Elements of the largest unit.
    largest: usize,
    copies: usize,
}

/// What a rank owns of a part.
#[derive(Debug, Clone, Copy, Default)]
struct Owned {
    elements: usize,
    /// Elements of f32 in whose place its weights lie.
    weights: usize,
    moments: usize,
}

/// What a workspace's size depends on besides the work.
type WorkspaceKind = (PartKind, usize, bool, bool);

/// Of each chunk of each rank of a pipeline.
type Slots = Vec<Vec<usize>>;

/// Finds sizes, and keeps those found, for many splits share them.
pub struct Sizes<'a> {
    work: &'a Work,
    prepared: &'a dyn Fn(Linear, Use) -> usize,
    parts: BTreeMap<PartKind, Rc<PartSizes>>,
    shards: BTreeMap<(PartKind, usize), Rc<Vec<Owned>>>,
    workspaces: BTreeMap<WorkspaceKind, WorkspaceSize>,
    slots: BTreeMap<(&'static str, [usize; 3]), Rc<Slots>>,
}

impl<'a> Sizes<'a> {
    /// Nothing found yet. `prepared` is what a device takes for a prepared weight, such as [`prepared_in_pairs`].
    pub fn new(work: &'a Work, prepared: &'a dyn Fn(Linear, Use) -> usize) -> Self {
        let (parts, shards) = (BTreeMap::new(), BTreeMap::new());
        Self { work, prepared, parts, shards, workspaces: BTreeMap::new(), slots: BTreeMap::new() }
    }

    /// The memory of the rank at these coordinates.
    pub fn of_rank(&mut self, split: &Split<'_>, at: Coordinates) -> Memory {
        let parts = self.chunks(split, at.pp, at.tp);
        let owned: Vec<Owned> =
            parts.iter().map(|part| self.shards(part, split.mesh.fsdp)[at.fsdp]).collect();
        let slots = self.slots(split);
        self.memory(split, &parts, &owned, &slots[at.pp])
    }

    /// What the ranks at each place of the pipeline hold, by that of them which needs most memory.
    pub fn holdings(&mut self, split: &Split<'_>) -> Vec<Holding> {
        (0..split.mesh.pp).map(|pp| self.holding(split, pp)).collect()
    }

    fn holding(&mut self, split: &Split<'_>, pp: usize) -> Holding {
        // The last tensor rank has as much of the vocabulary as any.
        let parts = self.chunks(split, pp, split.mesh.tp - 1);
        let (fsdp, owned) = self.fullest(split, &parts);
        let slots = self.slots(split)[pp].clone();
        let memory = self.memory(split, &parts, &owned, &slots);
        let at = Coordinates { pp, dp: 0, fsdp, tp: split.mesh.tp - 1 };
        Holding {
            pp,
            layers: parts.iter().map(|part| part.layers.clone()).collect(),
            embedding: parts.iter().any(|part| part.embedding),
            head: parts.iter().any(|part| part.head),
            parameters: parts.iter().map(|part| self.part(part).parameters.layout.len() as u64).sum(),
            slots,
            rank: split.mesh.rank_at(at),
            memory,
        }
    }

    /// The most that any rank needs.
    pub fn most(&mut self, split: &Split<'_>) -> u64 {
        self.holdings(split).iter().map(|holding| holding.memory.total()).max().unwrap_or(0)
    }

    /// What the rank that needs most needs at least, found without cutting shards or laying out schedules.
    pub fn least(&mut self, split: &Split<'_>) -> u64 {
        let mut of_place = |pp: usize| {
            let parts = self.chunks(split, pp, split.mesh.tp - 1);
            let owned: Vec<Owned> =
                parts.iter().map(|part| self.ideal_share(part, split.mesh.fsdp)).collect();
            let slots = vec![least_slots(split, pp); parts.len()];
            self.memory(split, &parts, &owned, &slots).total()
        };
        // The ends have embedding and head, and the first most microbatches in flight.
        of_place(0).max(of_place(split.mesh.pp - 1))
    }

    /// The layout of a part.
    pub(super) fn parameters(&mut self, part: &Part) -> Rc<Parameters> {
        Rc::clone(&self.part(part).parameters)
    }

    /// The parts of a rank, by growing chunk.
    fn chunks(&self, split: &Split<'_>, pp: usize, tensor_rank: usize) -> Vec<Part> {
        let parts = split.parts(tensor_rank);
        split.stages_of(pp).map(|stage| parts[stage].clone()).collect()
    }

    /// As little as the rank that owns most can own.
    fn ideal_share(&mut self, part: &Part, fsdp: usize) -> Owned {
        let elements = self.part(part).parameters.layout.len().div_ceil(fsdp);
        let adamw = self.work.optimizer.kind == OptimizerKind::AdamW;
        let weights = self.part(part).places.len().div_ceil(fsdp);
        Owned { elements, weights, moments: if adamw { 2 * elements } else { elements } }
    }

    /// The rank that needs most memory of those that shard these parts, and what it owns of each.
    fn fullest(&mut self, split: &Split<'_>, parts: &[Part]) -> (usize, Vec<Owned>) {
        let shards: Vec<_> = parts.iter().map(|part| self.shards(part, split.mesh.fsdp)).collect();
        let weight = |rank: usize| -> usize {
            let (weights, gradients) =
                (split.parallel.shards_parameters(), split.parallel.shards_gradients());
            let of_shard = |shard: &Rc<Vec<Owned>>| {
                let Owned { elements, weights: places, moments } = shard[rank];
                usize::from(weights) * places + usize::from(gradients) * elements + moments
            };
            shards.iter().map(of_shard).sum()
        };
        // Of equal ones the first.
        let rank = (0..split.mesh.fsdp).rev().max_by_key(|rank| weight(*rank)).unwrap_or(0);
        (rank, shards.iter().map(|shard| shard[rank]).collect())
    }

    fn memory(&mut self, split: &Split<'_>, parts: &[Part], owned: &[Owned], slots: &[usize]) -> Memory {
        let mut sum = [0; 8];
        for ((part, owned), slots) in parts.iter().zip(owned).zip(slots) {
            let elements = self.elements(split, part, *owned, *slots);
            sum.iter_mut().zip(elements).for_each(|(sum, elements)| *sum += elements);
        }
        Memory::of_elements(sum)
    }

    /// Elements of a chunk, in the order of [`Memory`].
    fn elements(&mut self, split: &Split<'_>, part: &Part, owned: Owned, slots: usize) -> [usize; 8] {
        let (sizes, [activations, scratch]) = (self.part(part), self.workspace(split, part, slots));
        let (visited, scattered) = (split.parallel.shards_parameters(), split.parallel.shards_gradients());
        let all = sizes.parameters.layout.len();
        let slot = gathering::slot_len(&sizes.parameters, &sizes.places).next_multiple_of(Layout::ALIGNMENT);
        let slots_of = |some: bool, count: usize, len: usize| if some { count * len } else { 0 };
        let staging = self.staging(split, &sizes);
        [
            if visited { owned.weights } else { sizes.places.len() },
            slots_of(visited, gathering::slots(&sizes.parameters), slot),
            if self.work.prepares() && !visited { sizes.copies } else { 0 },
            if scattered { owned.elements } else { all },
            slots_of(scattered, reduction::slots(&sizes.parameters), sizes.largest) + staging,
            owned.moments,
            activations,
            scratch + self.cut_matrices(split, &sizes),
        ]
    }

    /// Elements in which matrices come together that Muon updates and tensor ranks cut.
    fn cut_matrices(&self, split: &Split<'_>, sizes: &PartSizes) -> usize {
        let is_cut = split.mesh.tp > 1 && self.work.optimizer.kind == OptimizerKind::Muon;
        if is_cut { scratch_len(&sizes.parameters.layout, split.mesh.tp) } else { 0 }
    }

    /// Elements of f32 in whose place gradients travel that are rounded for it.
    fn staging(&self, split: &Split<'_>, sizes: &PartSizes) -> usize {
        let (format, ranks) = (split.parallel.gradients, [split.mesh.dp, split.mesh.fsdp]);
        let bucket_bytes = self.work.train.bucket_bytes;
        StagingSize::new(format, ranks, sizes.parameters.units(), bucket_bytes).map_or(0, StagingSize::len)
    }

    fn part(&mut self, part: &Part) -> Rc<PartSizes> {
        let (work, prepared) = (self.work, self.prepared);
        let entry = self.parts.entry(kind_of(part));
        Rc::clone(entry.or_insert_with(|| Rc::new(PartSizes::new(work, part, prepared))))
    }

    fn shards(&mut self, part: &Part, fsdp: usize) -> Rc<Vec<Owned>> {
        let (sizes, kind) = (self.part(part), self.work.optimizer.kind);
        let entry = self.shards.entry((kind_of(part), fsdp));
        Rc::clone(entry.or_insert_with(|| Rc::new(shards(&sizes, fsdp, kind))))
    }

    /// Elements of a chunk's activations, all slots together, and of its scratch.
    fn workspace(&mut self, split: &Split<'_>, part: &Part, slots: usize) -> [usize; 2] {
        let apart = self.workspace_size(split, part, 2);
        if slots > 1 {
            return [apart.slot * slots, apart.shared];
        }
        // What one microbatch alone takes in one piece.
        let whole = self.workspace_size(split, part, slots);
        let (all, activations) = (whole.slot * slots + whole.shared, apart.slot);
        [activations.min(all), all.saturating_sub(activations)]
    }

    /// Beyond one, the number of slots does not matter to the size of each.
    fn workspace_size(&mut self, split: &Split<'_>, part: &Part, slots: usize) -> WorkspaceSize {
        let (work, split_backward, rows) = (self.work, split.splits_backward(), split.rows());
        let memory = StageMemory { rows, recompute: work.train.recompute, split_backward, slots };
        let kind = (kind_of(part), rows, split_backward, slots > 1);
        let size = || Workspace::size_of_stage(&work.model, part, memory, work.train.precision);
        *self.workspaces.entry(kind).or_insert_with(size)
    }

    pub(super) fn slots(&mut self, split: &Split<'_>) -> Rc<Slots> {
        let (kind, Shape { ranks, chunks_per_rank, microbatches }) = (split.kind(), split.shape());
        let counted = filling(kind, ranks * chunks_per_rank, ranks, microbatches);
        let entry = self.slots.entry((kind.name(), [ranks, chunks_per_rank, counted]));
        let bounded = Split { microbatches: counted, ..split.clone() };
        Rc::clone(entry.or_insert_with(|| Rc::new(slots(&bounded))))
    }
}

/// So many microbatches are in flight as many as of `microbatches`: what bounds them does so from then on, and how many are left
/// over from whole rounds of the ranks may matter.
fn filling(kind: Kind, stages: usize, ranks: usize, microbatches: usize) -> usize {
    let enough = 4 * stages;
    if kind == Kind::GPipe || microbatches <= enough + ranks {
        return microbatches;
    }
    enough + microbatches % ranks
}

fn kind_of(part: &Part) -> PartKind {
    (part.layers.len(), [part.embedding, part.head], [part.tensor_rank, part.tensor_ranks])
}

impl PartSizes {
    fn new(work: &Work, part: &Part, prepared: &dyn Fn(Linear, Use) -> usize) -> Self {
        let model: &ModelConfig = &work.model;
        let parameters = Parameters::of(model, part);
        let largest = parameters.units().iter().map(|(_, span)| span.len).max().unwrap_or(0);
        let copies = if work.prepares() { size_of_prepared(model, part, prepared) } else { 0 };
        let places = Places::new(&parameters.layout, work.optimizer.masters);
        Self { parameters: Rc::new(parameters), places, largest, copies }
    }
}

/// What each of the ranks that shard a part owns of it.
fn shards(sizes: &PartSizes, fsdp: usize, kind: OptimizerKind) -> Vec<Owned> {
    let layout = &sizes.parameters.layout;
    let owned = |spans: &[Span]| {
        let moments = Optimizer::moment_elements(layout, spans, kind).expect("shards cut no matrix");
        let place = |span: &Span| sizes.places.range(*span).len.next_multiple_of(Layout::ALIGNMENT);
        Owned {
            elements: spans.iter().map(|span| span.len).sum(),
            weights: spans.iter().map(place).sum(),
            moments: moments.iter().sum(),
        }
    };
    if fsdp == 1 {
        return vec![owned(&[Span::new(0, layout.len())])];
    }
    let units: Vec<Span> = sizes.parameters.units().iter().map(|(_, span)| *span).collect();
    let sharding = Sharding::new(layout, &units, fsdp, kind);
    (0..fsdp).map(|rank| owned(&sharding.owned(rank))).collect()
}
