//! How long a step takes, by rules of thumb that anybody can follow.
//!
//! - A rank computes at its [`Machine`]'s peak times efficiency; backward takes twice what forward takes, recomputing as much again
//!   as forward; the head's part belongs to the last stage's backward pass. Norms, optimizer and votes take no time.
//! - Collectives cost `alpha` for each hop and `beta` for each byte that a rank sends, at the slowest link of their group: `n - 1`
//!   hops around a ring for all-gather and reduce-scatter, `2 ceil(log2 n)` for all-reduce (Thakur, Rabenseifner and Gropp 2005).
//! - What `tp` exchanges, blocks wait for. What `fsdp` gathers or scatters with every microbatch hides behind the computing of the
//!   pass that it belongs to, up to its length; gradients that are summed once in a step, `dp`'s among them, behind the last
//!   microbatch's backward pass, as far as that has room left. Weights that come together after the update are waited for, and
//!   so are the sums of a table that two stages have.
//! - A pipeline is laid out in time, pass by pass, with its transfers, of which those are waited for that nobody computes beside.

use super::machine::{LinkRate, Machine};
use super::memory::Sizes;
use super::split::Split;
use super::traffic::{Flow, Operation, Phase, StageTraffic, of_stage};
use crate::mesh::Axis;
use crate::pipeline::{Costs, StageCosts, simulate};
use crate::stages::PartFlops;
use gradus_model::Part;
use serde::Serialize;
use std::ops::Add;

/// What a step takes, in seconds, on the rank that is busiest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepTime {
    /// It computes.
    pub compute: f64,
    /// It waits for rows of other tensor ranks.
    pub tp: f64,
    /// It waits for weights or gradients of others that shard with it.
    pub fsdp: f64,
    /// It waits for sums over replicas.
    pub dp: f64,
    /// It waits for other stages.
    pub pp: f64,
    /// All of it.
    pub total: f64,
    /// What of all ranks' peak goes into the model's operations, none counted twice.
    pub mfu: f64,
}

/// Seconds of one pass of one microbatch through a stage.
#[derive(Debug, Clone, Copy, Default)]
struct Pass {
    compute: f64,
    tp: f64,
    fsdp: f64,
}

impl Pass {
    fn seconds(self) -> f64 {
        self.tp + self.compute.max(self.fsdp)
    }

    /// By how much exchanges of shards are longer than what they hide behind.
    fn waits(self) -> f64 {
        (self.fsdp - self.compute).max(0.0)
    }

    /// Computing that nothing hides behind yet.
    fn room(self) -> f64 {
        (self.compute - self.fsdp).max(0.0)
    }
}

impl Add for Pass {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { compute: self.compute + other.compute, tp: self.tp + other.tp, fsdp: self.fsdp + other.fsdp }
    }
}

/// Seconds of a stage.
#[derive(Debug, Clone, Copy, Default)]
struct Stage {
    forward: Pass,
    input: Pass,
    weight: Pass,
    /// Once in a step: weights to be gathered, gradients to be scattered, to be summed, summed among tensor ranks, and with
    /// another stage.
    gathered: f64,
    scattered: f64,
    summed: f64,
    norms: f64,
    shared: f64,
}

/// What comes once in a step and finds nothing to hide behind.
#[derive(Debug, Clone, Copy, Default)]
struct Exposed {
    fsdp: f64,
    dp: f64,
    tp: f64,
    pp: f64,
}

impl Exposed {
    fn total(self) -> f64 {
        self.fsdp + self.dp + self.tp + self.pp
    }
}

/// The time of collectives of one kind, each time that they come.
pub fn flow_seconds(flow: &Flow, link: &LinkRate) -> f64 {
    let ranks = flow.ranks.max(1);
    let hops = match flow.operation {
        Operation::AllGather | Operation::ReduceScatter => ranks - 1,
        Operation::AllReduce => 2 * ranks.next_power_of_two().ilog2() as usize,
        Operation::Send => 1,
    };
    (flow.calls * hops) as f64 * link.latency_us * 1e-6 + flow.sent() as f64 / link.bytes_per_s
}

/// A step's time.
///
/// # Panics
/// If `sizes` are of another work.
pub fn predict(split: &Split<'_>, machine: &Machine, sizes: &mut Sizes<'_>) -> StepTime {
    let clock = Clock::new(split, machine, sizes);
    let busiest = clock.busiest();
    let passes = clock.pipeline();
    let exposed = clock.most_exposed();
    let own = clock.of_rank(busiest);
    let total = passes + exposed.total();
    let flops = split.work.model.flops_per_token(split.work.train.sequence_length);
    let peak = machine.peak_flops * split.mesh.world_size() as f64;
    StepTime {
        compute: own.compute,
        tp: own.tp + exposed.tp,
        fsdp: clock.waits_of(busiest) + exposed.fsdp,
        dp: exposed.dp,
        pp: (passes - clock.busy(busiest)).max(0.0) + exposed.pp,
        total,
        mfu: flops * split.work.tokens() as f64 / (peak * total),
    }
}

/// What a step takes at least, found without laying out its pipeline.
pub(super) fn bound(split: &Split<'_>, machine: &Machine, sizes: &mut Sizes<'_>) -> f64 {
    let clock = Clock::new(split, machine, sizes);
    clock.shortest_pipeline() + clock.most_exposed().total()
}

/// The stages of a split in time.
struct Clock<'a> {
    split: &'a Split<'a>,
    stages: Vec<Stage>,
    /// Seconds of what goes from one stage to the next.
    transfer: f64,
}

impl<'a> Clock<'a> {
    fn new(split: &'a Split<'_>, machine: &Machine, sizes: &mut Sizes<'_>) -> Self {
        let parts = split.parts(split.mesh.tp - 1);
        let mut stages: Vec<Stage> = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            let known = index.checked_sub(1).filter(|before| alike(&parts[*before], part));
            stages.push(match known {
                Some(before) => stages[before],
                None => {
                    let traffic = of_stage(split, index, part, &sizes.parameters(part));
                    Stage::new(split, machine, part, &traffic)
                }
            });
        }
        let hands_on = of_stage(split, 0, &parts[0], &sizes.parameters(&parts[0]));
        let sends = hands_on.flows.iter().filter(|flow| flow.operation == Operation::Send);
        let transfer = sends.map(|flow| flow_seconds(flow, machine.link(split, flow.axis))).sum();
        Self { split, stages, transfer }
    }

    fn own_stages(&self, rank: usize) -> impl Iterator<Item = &Stage> {
        self.split.stages_of(rank).map(|stage| &self.stages[stage])
    }

    fn ranks(&self) -> std::ops::Range<usize> {
        0..self.split.mesh.pp
    }

    fn microbatches(&self) -> f64 {
        self.split.microbatches as f64
    }

    /// Passes of one microbatch, as the schedule has them.
    fn passes(&self, stage: &Stage) -> Vec<Pass> {
        let Stage { forward, input, weight, .. } = *stage;
        if self.split.splits_backward() {
            vec![forward, input, weight]
        } else {
            vec![forward, input + weight]
        }
    }

    /// What a rank does in all its passes.
    fn of_rank(&self, rank: usize) -> Pass {
        let of_stage = |stage: &Stage| stage.forward + stage.input + stage.weight;
        let all = self.own_stages(rank).map(of_stage).fold(Pass::default(), Add::add);
        let times = self.microbatches();
        Pass { compute: all.compute * times, tp: all.tp * times, fsdp: all.fsdp * times }
    }

    fn sum_of_passes(&self, rank: usize, of: fn(Pass) -> f64) -> f64 {
        let each = self.own_stages(rank).flat_map(|stage| self.passes(stage)).map(of);
        each.sum::<f64>() * self.microbatches()
    }

    /// Seconds of a rank's passes.
    fn busy(&self, rank: usize) -> f64 {
        self.sum_of_passes(rank, Pass::seconds)
    }

    fn waits_of(&self, rank: usize) -> f64 {
        self.sum_of_passes(rank, Pass::waits)
    }

    fn busiest(&self) -> usize {
        let ranks = self.ranks().rev();
        ranks.max_by(|a, b| self.busy(*a).total_cmp(&self.busy(*b))).unwrap_or(0)
    }

    /// Seconds of all passes of all ranks.
    fn pipeline(&self) -> f64 {
        if self.split.mesh.pp == 1 {
            return self.busy(0);
        }
        let schedule = self.split.kind().generate(self.split.shape()).expect("the settings were checked");
        let costs = Costs { stages: self.stages.iter().map(|stage| self.costs(stage)).collect() };
        simulate(&schedule, &costs).expect("generated schedules come to their end").makespan()
    }

    fn costs(&self, stage: &Stage) -> StageCosts {
        let passes = self.passes(stage);
        StageCosts {
            forward: passes[0].seconds(),
            backward_input: passes[1].seconds(),
            backward_weight: passes.get(2).map_or(0.0, |pass| pass.seconds()),
            transfer: self.transfer,
        }
    }

    /// No schedule is shorter: a rank begins when the stages before have handed on, and what it ends with goes back through them.
    fn shortest_pipeline(&self) -> f64 {
        let (mut there, mut back, mut most) = (0.0, 0.0, 0.0_f64);
        for rank in self.ranks() {
            let StageCosts { forward, backward_input, backward_weight, transfer } =
                self.costs(&self.stages[rank]);
            // The second halves of backward passes may come when everything has gone back.
            let late = self.own_stages(rank).map(|stage| self.costs(stage).backward_weight).sum::<f64>();
            let late = if self.split.splits_backward() { late * self.microbatches() } else { 0.0 };
            most = most.max(there + self.busy(rank)).max(there + self.busy(rank) - late + back);
            there += forward + transfer;
            back += backward_input + transfer;
            if !self.split.splits_backward() {
                back += backward_weight;
            }
        }
        most
    }

    fn most_exposed(&self) -> Exposed {
        let each = self.ranks().map(|rank| self.exposed(rank));
        each.max_by(|a, b| a.total().total_cmp(&b.total())).unwrap_or_default()
    }

    /// What a rank exchanges once in a step, less what hides.
    fn exposed(&self, rank: usize) -> Exposed {
        let sum = |of: fn(&Stage) -> f64| self.own_stages(rank).map(of).sum::<f64>();
        let mut room = sum(|stage| (stage.input + stage.weight).room());
        let mut left = |seconds: f64| {
            let hidden = seconds.min(room);
            room -= hidden;
            seconds - hidden
        };
        let fsdp = left(sum(|stage| stage.scattered));
        let dp = left(sum(|stage| stage.summed));
        let (tp, pp) = (sum(|stage| stage.norms), sum(|stage| stage.shared));
        Exposed { fsdp: sum(|stage| stage.gathered) + fsdp, dp, tp, pp }
    }
}

fn alike(a: &Part, b: &Part) -> bool {
    a.layers.len() == b.layers.len() && (a.embedding, a.head) == (b.embedding, b.head)
}

impl Stage {
    fn new(split: &Split<'_>, machine: &Machine, part: &Part, traffic: &StageTraffic) -> Self {
        let mut stage = Self::computing(split, machine, part);
        for flow in &traffic.flows {
            let seconds = flow_seconds(flow, machine.link(split, flow.axis));
            if let Some(place) = stage.place(flow) {
                *place += seconds;
            }
        }
        stage
    }

    /// Without what is exchanged.
    fn computing(split: &Split<'_>, machine: &Machine, part: &Part) -> Self {
        let train = &split.work.train;
        let PartFlops { blocks, head } = PartFlops::of(&split.work.model, part, train.sequence_length);
        let seconds = split.rows() as f64 / (split.mesh.tp as f64 * machine.flops());
        let third = blocks / 3.0 * seconds;
        let again = if train.recompute { third } else { 0.0 };
        let pass = |compute| Pass { compute, ..Pass::default() };
        // Halves that come apart each run forward again.
        let late = if split.splits_backward() { again } else { 0.0 };
        Self {
            forward: pass(third),
            input: pass(third + again + head * seconds),
            weight: pass(third + late),
            ..Self::default()
        }
    }

    /// Where a flow's time counts; that of messages between stages counts in the pipeline.
    fn place(&mut self, flow: &Flow) -> Option<&mut f64> {
        let pass = match flow.phase {
            Phase::Forward => &mut self.forward,
            Phase::BackwardInput => &mut self.input,
            Phase::BackwardWeight => &mut self.weight,
            Phase::LastBackward | Phase::Update => return self.place_of_step(flow),
        };
        match flow.axis {
            Axis::Tp => Some(&mut pass.tp),
            Axis::Fsdp => Some(&mut pass.fsdp),
            Axis::Pp | Axis::Dp => None,
        }
    }

    fn place_of_step(&mut self, flow: &Flow) -> Option<&mut f64> {
        Some(match (flow.axis, flow.phase) {
            (Axis::Fsdp, Phase::Update) => &mut self.gathered,
            (Axis::Fsdp, _) => &mut self.scattered,
            (Axis::Dp, _) => &mut self.summed,
            (Axis::Tp, _) => &mut self.norms,
            (Axis::Pp, _) => &mut self.shared,
        })
    }
}
