//! A schedule in time: every rank does its actions in order, each as soon as what it needs has come.
//!
//! There is nothing to choose, so no queue of events is needed: a rank is followed until it waits for another, which
//! takes it up again when it has what the rank waits for. Every action is looked at about twice.

use super::message::Message;
use super::schedule::{Action, ActionKind, Schedule, Shape};
use gradus_error::{Error, Result};

/// How long a stage takes for one microbatch; any unit, the same for all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageCosts {
    /// A forward pass.
    pub forward: f64,
    /// The gradient of the input. A backward pass in one piece takes as long as both of its halves.
    pub backward_input: f64,
    /// The gradients of the weights.
    pub backward_weight: f64,
    /// What goes to the stage after, from one rank to another; and its gradient, back. Ranks compute meanwhile.
    pub transfer: f64,
}

/// How long every stage takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// In the order of stages.
    pub stages: Vec<StageCosts>,
}

impl Costs {
    /// All stages of `shape` alike.
    pub fn uniform(shape: Shape, stage: StageCosts) -> Self {
        Self { stages: vec![stage; shape.stages()] }
    }

    /// Every pass takes 1, transfers nothing.
    pub fn unit(shape: Shape) -> Self {
        let stage = StageCosts { forward: 1.0, backward_input: 1.0, backward_weight: 1.0, transfer: 0.0 };
        Self::uniform(shape, stage)
    }

    pub(super) fn of(&self, stage: usize, kind: ActionKind) -> f64 {
        let StageCosts { forward, backward_input, backward_weight, .. } = self.stages[stage];
        match kind {
            ActionKind::Forward => forward,
            ActionKind::Backward => backward_input + backward_weight,
            ActionKind::BackwardInput => backward_input,
            ActionKind::BackwardWeight => backward_weight,
        }
    }
}

/// When an action begins and ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Period {
    /// Its begin.
    pub start: f64,
    /// Its end.
    pub end: f64,
}

/// A schedule laid out in time.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// For each rank: when each of its actions begins and ends, in the order of the schedule.
    pub periods: Vec<Vec<Period>>,
}

impl Timeline {
    /// When the last action ends.
    pub fn makespan(&self) -> f64 {
        self.periods.iter().filter_map(|lane| lane.last()).map(|period| period.end).fold(0.0, f64::max)
    }

    /// How long `rank` computes.
    pub fn busy(&self, rank: usize) -> f64 {
        self.periods[rank].iter().map(|period| period.end - period.start).sum()
    }

    /// How long `rank` waits, from the beginning to the end of the whole step.
    pub fn idle(&self, rank: usize) -> f64 {
        self.makespan() - self.busy(rank)
    }

    /// What no order of the same actions can be faster than: the time of the rank that has most to compute.
    pub fn ideal(&self) -> f64 {
        (0..self.periods.len()).map(|rank| self.busy(rank)).fold(0.0, f64::max)
    }

    /// The part of all ranks' time in which they wait.
    pub fn bubble(&self) -> f64 {
        let busy: f64 = (0..self.periods.len()).map(|rank| self.busy(rank)).sum();
        let whole = self.makespan() * self.periods.len() as f64;
        if whole > 0.0 { 1.0 - busy / whole } else { 0.0 }
    }
}

/// Lays a schedule out in time.
///
/// # Errors
/// `Internal`, naming rank and action, where ranks wait for each other for ever.
///
/// # Panics
/// If there are not as many costs as stages, or an action names a microbatch or chunk that there is not.
pub fn simulate(schedule: &Schedule, costs: &Costs) -> Result<Timeline> {
    let mut walk = Walk::new(schedule, costs);
    let mut ready: Vec<usize> = (0..schedule.shape.ranks).rev().collect();
    while let Some(rank) = ready.pop() {
        walk.follow(rank, &mut ready);
    }
    walk.finish()
}

/// The state of a simulation.
struct Walk<'a> {
    schedule: &'a Schedule,
    costs: &'a Costs,
    /// By a message's number: when it has come.
    come: Vec<Option<f64>>,
    periods: Vec<Vec<Period>>,
}

impl<'a> Walk<'a> {
    fn new(schedule: &'a Schedule, costs: &'a Costs) -> Self {
        let shape = schedule.shape;
        assert_eq!(costs.stages.len(), shape.stages(), "every stage has its costs");
        let come = vec![None; Message::count(shape)];
        Self { schedule, costs, come, periods: vec![Vec::new(); shape.ranks] }
    }

    /// Goes on with `rank` until it waits; `ready` gets whoever may go on by what it does.
    fn follow(&mut self, rank: usize, ready: &mut Vec<usize>) {
        let schedule = self.schedule;
        while let Some(action) = schedule.actions[rank].get(self.periods[rank].len()) {
            let stage = schedule.shape.stage(rank, action.chunk);
            let Some(come) = self.needed(stage, *action) else { break };
            let free = self.periods[rank].last().map_or(0.0, |period| period.end);
            let start = free.max(come);
            let end = start + self.costs.of(stage, action.kind);
            self.periods[rank].push(Period { start, end });
            ready.extend(self.hand_on(stage, *action, end));
        }
    }

    /// When what `action` needs is there, if that is known.
    fn needed(&self, stage: usize, action: Action) -> Option<f64> {
        let shape = self.schedule.shape;
        Message::needed_by(shape, stage, action).map_or(Some(0.0), |message| self.come[message.index(shape)])
    }

    /// Hands on what `action` has made at `end`; returns the rank that may have waited for it.
    fn hand_on(&mut self, stage: usize, action: Action, end: f64) -> Option<usize> {
        let shape = self.schedule.shape;
        let message = Message::made_by(shape, stage, action)?;
        let crosses = message.crosses(shape);
        let transfer = if crosses { self.costs.stages[message.boundary].transfer } else { 0.0 };
        self.come[message.index(shape)] = Some(end + transfer);
        crosses.then(|| shape.rank_of(message.to_stage()))
    }

    fn finish(self) -> Result<Timeline> {
        let lanes = self.schedule.actions.iter().zip(&self.periods);
        let waiting = lanes.enumerate().find_map(|(rank, (lane, done))| Some((rank, lane.get(done.len())?)));
        match waiting {
            Some((rank, action)) => {
                Err(Error::internal(format!("rank {rank} waits for ever with the {action}")))
            }
            None => Ok(Timeline { periods: self.periods }),
        }
    }
}
