//! Traffic as a table: what one rank sends along each axis in a step.

use super::machine::Machine;
use super::split::Split;
use super::time::flow_seconds;
use super::traffic::{Flow, Operation, Phase, StageTraffic, traffic};
use crate::mesh::Axis;
use serde::Serialize;

/// When in a step, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// In forward passes.
    Forward,
    /// In backward passes.
    Backward,
    /// Once in a step.
    Step,
}

impl When {
    fn of(phase: Phase) -> Self {
        match phase {
            Phase::Forward => Self::Forward,
            Phase::BackwardInput | Phase::BackwardWeight => Self::Backward,
            Phase::LastBackward | Phase::Update => Self::Step,
        }
    }

    /// Its words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Step => "once",
        }
    }
}

/// What one rank sends in a step, of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrafficRow {
    /// Along which axis.
    pub axis: Axis,
    /// Ranks that take part.
    pub ranks: usize,
    /// Whether all of them lie on one node.
    pub inside: bool,
    /// Where in the pipeline the rank stands.
    pub pp: usize,
    /// What it sends.
    pub what: &'static str,
    /// In which operation.
    pub operation: Operation,
    /// When.
    pub when: When,
    /// Collectives in a step.
    pub collectives: usize,
    /// Bytes that the rank sends.
    pub bytes: u64,
    /// Seconds that this takes, hidden or not.
    pub seconds: f64,
}

/// For each axis what is sent by the rank at that place of the pipeline which sends most along it.
pub fn traffic_rows(split: &Split<'_>, machine: &Machine) -> Vec<TrafficRow> {
    let stages = traffic(split);
    let of_axis = |axis: Axis| {
        let places = (0..split.mesh.pp).rev().map(|pp| rows(split, machine, &stages, axis, pp));
        places.max_by_key(|rows| rows.iter().map(|row| row.bytes).sum::<u64>()).unwrap_or_default()
    };
    Axis::ALL.into_iter().rev().flat_map(of_axis).collect()
}

fn rows(
    split: &Split<'_>,
    machine: &Machine,
    stages: &[StageTraffic],
    axis: Axis,
    pp: usize,
) -> Vec<TrafficRow> {
    let mut rows: Vec<TrafficRow> = Vec::new();
    let flows = split.stages_of(pp).flat_map(|stage| &stages[stage].flows).filter(|flow| flow.axis == axis);
    for flow in flows {
        let row = row(split, machine, flow, pp);
        let alike = |other: &&mut TrafficRow| {
            (other.what, other.operation, other.when) == (row.what, row.operation, row.when)
        };
        match rows.iter_mut().find(alike) {
            Some(same) => {
                same.collectives += row.collectives;
                same.bytes += row.bytes;
                same.seconds += row.seconds;
            }
            None => rows.push(row),
        }
    }
    rows
}

fn row(split: &Split<'_>, machine: &Machine, flow: &Flow, pp: usize) -> TrafficRow {
    let times = flow.times(split.microbatches);
    TrafficRow {
        axis: flow.axis,
        ranks: flow.ranks,
        inside: machine.is_inside(split, flow.axis),
        pp,
        what: flow.what,
        operation: flow.operation,
        when: When::of(flow.phase),
        collectives: flow.calls * times,
        bytes: flow.sent() * times as u64,
        seconds: flow_seconds(flow, machine.link(split, flow.axis)) * times as f64,
    }
}
