//! What goes over the links: which collectives along which axis, of how many bytes, at which time of a step.
//!
//! `fsdp` gathers weights and scatters gradients, unit by unit; `dp` sums gradients; `tp` exchanges rows of activations in the
//! midst of each block (Korthikanti et al. 2022, section 4.2.2: a rank has its own rows between cut layers); `pp` hands on the
//! residual stream and its gradient. Left out are votes, which are small. Of gathered units none counts as still there from
//! the pass before.

use super::split::Split;
use crate::mesh::Axis;
use crate::settings::GradientFormat;
use gradus_compute::Precision;
use gradus_memory::Span;
use gradus_model::{Parameters, Part, Places, Unit, logits_rows};
use serde::Serialize;

/// What ranks do with a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Each has a share of it, all get all.
    AllGather,
    /// Each has a summand of it, and gets its share of the sum.
    ReduceScatter,
    /// Each has a summand of it, all get the sum.
    AllReduce,
    /// One has it, one other gets it.
    Send,
}

impl Operation {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllGather => "all-gather",
            Self::ReduceScatter => "reduce-scatter",
            Self::AllReduce => "all-reduce",
            Self::Send => "send",
        }
    }
}

/// When it is done, and so what it can hide behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// In each forward pass.
    Forward,
    /// In each backward pass, or its first half.
    BackwardInput,
    /// In each backward pass, or its second half.
    BackwardWeight,
    /// Once in a step, behind the last backward pass.
    LastBackward,
    /// Once in a step, after all passes.
    Update,
}

impl Phase {
    /// Whether it comes with every microbatch.
    pub fn is_repeated(self) -> bool {
        self <= Self::BackwardWeight
    }
}

/// Collectives of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// Among which ranks.
    pub axis: Axis,
    /// How many those are.
    pub ranks: usize,
    /// What it moves.
    pub what: &'static str,
    /// How.
    pub operation: Operation,
    /// When.
    pub phase: Phase,
    /// Collectives each time.
    pub calls: usize,
    /// Bytes of their whole buffers together, each time.
    pub bytes: u64,
}

impl Flow {
    /// Bytes that a rank sends each time.
    pub fn sent(&self) -> u64 {
        let (ranks, bytes) = (self.ranks as u64, self.bytes);
        match self.operation {
            Operation::AllGather | Operation::ReduceScatter => bytes * (ranks - 1) / ranks,
            Operation::AllReduce => 2 * bytes * (ranks - 1) / ranks,
            Operation::Send => bytes,
        }
    }

    /// How often it comes in a step of so many microbatches.
    pub fn times(&self, microbatches: usize) -> usize {
        if self.phase.is_repeated() { microbatches } else { 1 }
    }
}

/// What one stage's ranks exchange.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StageTraffic {
    /// In no order.
    pub flows: Vec<Flow>,
}

/// What the ranks of each stage exchange, on the tensor rank that has most.
pub fn traffic(split: &Split<'_>) -> Vec<StageTraffic> {
    let parts = split.parts(split.mesh.tp - 1);
    let stage = |(stage, part): (usize, &Part)| {
        of_stage(split, stage, part, &Parameters::of(&split.work.model, part))
    };
    parts.iter().enumerate().map(stage).collect()
}

/// What the ranks of one stage exchange.
pub(super) fn of_stage(
    split: &Split<'_>,
    stage: usize,
    part: &Part,
    parameters: &Parameters,
) -> StageTraffic {
    let mut flows = Flows { split, flows: Vec::new() };
    flows.state(part, parameters);
    flows.rows(part);
    flows.stages(stage);
    flows.flows.retain(|flow| flow.ranks > 1 && flow.bytes > 0);
    StageTraffic { flows: flows.flows }
}

/// A stage's flows in the making.
struct Flows<'a> {
    split: &'a Split<'a>,
    flows: Vec<Flow>,
}

/// Buffers: how many, and bytes of all of them.
type Buffers = (usize, u64);

impl Flows<'_> {
    fn push(
        &mut self,
        axis: Axis,
        phase: Phase,
        what: &'static str,
        operation: Operation,
        (calls, bytes): Buffers,
    ) {
        let (ranks, _) = self.split.ranks_and_stride(axis);
        self.flows.push(Flow { axis, ranks, what, operation, phase, calls, bytes });
    }

    /// Weights and gradients, unit by unit.
    fn state(&mut self, part: &Part, parameters: &Parameters) {
        let parallel = &self.split.parallel;
        let all = buffers(parameters, |_| true);
        let gradients = match parallel.gradients {
            GradientFormat::F32 => all,
            GradientFormat::Bf16 => halved(all),
        };
        if parallel.shards_parameters() {
            self.gathers_in_passing(part, parameters);
        } else {
            let weights = self.weights(parameters, |_| true);
            self.push(Axis::Fsdp, Phase::Update, "weights", Operation::AllGather, weights);
        }
        let phase = if parallel.shards_gradients() { Phase::BackwardWeight } else { Phase::LastBackward };
        self.push(Axis::Fsdp, phase, "gradients", Operation::ReduceScatter, gradients);
        self.push(Axis::Dp, Phase::LastBackward, "gradients", Operation::AllReduce, self.own(gradients));
        let partial = parameters.partial_gradients(Span::new(0, parameters.layout.len()));
        let partial = partial.iter().fold((0, 0), |sum, span| plus(sum, span.len));
        self.push(Axis::Tp, phase, "gradients of norms", Operation::AllReduce, partial);
        self.tied_table(part, parameters);
    }

    /// What of buffers a rank has after they were scattered.
    fn own(&self, (calls, bytes): Buffers) -> Buffers {
        (calls, bytes.div_ceil(self.split.mesh.fsdp as u64))
    }

    /// The first and the last stage each have a gradient of a tied table; it stays f32.
    fn tied_table(&mut self, part: &Part, parameters: &Parameters) {
        let model = &self.split.work.model;
        if model.tied && self.split.shape().stages() > 1 && part.has_table(model) {
            let (calls, bytes) = self.own(buffers(parameters, |unit| unit == Unit::Embedding));
            let (axis, operation, phase) = (Axis::Pp, Operation::AllReduce, Phase::Update);
            let what = "gradients of the tied table";
            self.flows.push(Flow { axis, ranks: 2, what, operation, phase, calls, bytes });
        }
    }

    /// Units whose weights each pass has for as long as it is in them.
    fn gathers_in_passing(&mut self, part: &Part, parameters: &Parameters) {
        let is_block = |unit: Unit| matches!(unit, Unit::Block(_));
        let tied_head = part.head && self.split.work.model.tied;
        let looked_up = part.embedding;
        let forward = self.weights(parameters, |unit| {
            is_block(unit) || unit == Unit::Positions || (unit == Unit::Embedding && looked_up)
        });
        let backward = self.weights(parameters, |unit| {
            is_block(unit) || unit == Unit::Head || (unit == Unit::Embedding && tied_head)
        });
        let mut gather = |phase, buffers| {
            self.push(Axis::Fsdp, phase, "weights", Operation::AllGather, buffers);
        };
        gather(Phase::Forward, forward);
        gather(Phase::BackwardInput, backward);
        if self.split.splits_backward() {
            self.push(
                Axis::Fsdp,
                Phase::BackwardWeight,
                "weights",
                Operation::AllGather,
                self.weights(parameters, is_block),
            );
        }
    }

    /// Weights of the units that are chosen, as they are kept.
    fn weights(&self, parameters: &Parameters, chosen: impl Fn(Unit) -> bool) -> Buffers {
        let places = Places::new(&parameters.layout, self.split.work.optimizer.masters);
        let spans = parameters.units().iter().filter(|(unit, _)| chosen(*unit));
        spans.fold((0, 0), |sum, (_, span)| plus(sum, places.range(*span).len))
    }

    /// Rows that tensor ranks exchange.
    fn rows(&mut self, part: &Part) {
        use Operation::{AllGather, ReduceScatter};
        use Phase::{BackwardInput, BackwardWeight, Forward};
        let (split, blocks) = (self.split, part.layers.len());
        let kept = |count: usize| (count, self.rows_bytes(count, self.bytes_of_kept()));
        let single = |count: usize| (count, self.rows_bytes(count, 4));
        let (again, head, embedding) =
            (usize::from(split.work.train.recompute), usize::from(part.head), usize::from(part.embedding));
        let inputs = if split.splits_backward() { again } else { 0 };
        let list = [
            (Forward, "rows into layers", AllGather, kept(2 * blocks)),
            (Forward, "sums of rows", ReduceScatter, single(2 * blocks + embedding)),
            (BackwardInput, "rows into layers", AllGather, kept(2 * blocks * again + head)),
            (BackwardInput, "gradients of rows", AllGather, single(2 * blocks)),
            (BackwardInput, "sums of rows", ReduceScatter, single((2 + again) * blocks + head)),
            (BackwardWeight, "rows into layers", AllGather, kept(2 * blocks * (1 + inputs))),
            (BackwardWeight, "gradients of rows", AllGather, single(embedding)),
            (BackwardWeight, "sums of rows", ReduceScatter, single(inputs * blocks)),
        ];
        for (phase, what, operation, buffers) in list {
            self.push(Axis::Tp, phase, what, operation, buffers);
        }
        if part.head {
            self.losses(part);
        }
    }

    /// A maximum and two sums of each row's logits, piece by piece.
    fn losses(&mut self, part: &Part) {
        let (rows, vocabulary) = (self.split.rows(), part.vocabulary(&self.split.work.model).len());
        let pieces = rows.div_ceil(logits_rows(vocabulary.max(1), rows));
        let buffers = (2 * pieces, 3 * 4 * rows as u64);
        self.push(Axis::Tp, Phase::BackwardInput, "numbers of rows", Operation::AllReduce, buffers);
    }

    /// Bytes of all rows of the residual stream, so many times.
    fn rows_bytes(&self, count: usize, each: u64) -> u64 {
        (count * self.split.rows() * self.split.work.model.width) as u64 * each
    }

    /// Of an element of what products read.
    fn bytes_of_kept(&self) -> u64 {
        let (model, tp) = (&self.split.work.model, self.split.mesh.tp);
        let even =
            [model.width, model.head_size, model.feed_forward / tp].iter().all(|n| n.is_multiple_of(2));
        if even && self.split.work.train.precision == Precision::Bf16 { 2 } else { 4 }
    }

    /// The residual stream of own rows, to the stage after and back.
    fn stages(&mut self, stage: usize) {
        let (split, shape) = (self.split, self.split.shape());
        let own = split.rows().div_ceil(split.mesh.tp) * split.work.model.width * size_of::<f32>();
        let buffers = (1, own as u64);
        if stage + 1 < shape.stages() {
            self.push(Axis::Pp, Phase::Forward, "activations", Operation::Send, buffers);
        }
        if stage > 0 {
            self.push(Axis::Pp, Phase::BackwardInput, "gradients of activations", Operation::Send, buffers);
        }
    }
}

/// The units that are chosen, in f32.
fn buffers(parameters: &Parameters, chosen: impl Fn(Unit) -> bool) -> Buffers {
    let spans = parameters.units().iter().filter(|(unit, _)| chosen(*unit));
    spans.fold((0, 0), |sum, (_, span)| plus(sum, span.len))
}

/// One more, of so many elements.
fn plus((calls, bytes): Buffers, elements: usize) -> Buffers {
    (calls + 1, bytes + (elements * size_of::<f32>()) as u64)
}

fn halved((calls, bytes): Buffers) -> Buffers {
    (calls, bytes / 2)
}
