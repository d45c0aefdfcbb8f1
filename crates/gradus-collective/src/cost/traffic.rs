//! What goes over the links.

use super::MOST_STEPS;
use crate::algorithm::{Algorithm, AllReduce, Nodes};
use crate::plan::{Plan, Step};
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Bytes and steps of a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes that all ranks together send inside nodes.
    pub inside_bytes: u64,
    /// Bytes that all ranks together send from node to node.
    pub across_bytes: u64,
    /// Steps of the rank that has most.
    pub most_steps: u64,
}

/// Refuses a plan of other ranks than the nodes hold.
///
/// # Errors
/// `Invalid`, naming both.
pub(super) fn same_world(plan: &Plan, nodes: &Nodes) -> Result<()> {
    let (ranks, held) = (plan.ranks.len(), nodes.world_size());
    let strange = plan.ranks.iter().flatten().any(|step| step.peer() >= held);
    if ranks != held || strange {
        return Err(Error::invalid(format!("a plan of {ranks} ranks cannot run on nodes of {held}")));
    }
    Ok(())
}

pub(super) fn of_plan(plan: &Plan, nodes: &Nodes, element_bytes: usize) -> Traffic {
    let mut bytes = [0u64; 2];
    for (rank, steps) in plan.ranks.iter().enumerate() {
        for step in steps.iter().filter(|step| step.sends()) {
            let level = usize::from(!nodes.are_together(rank, step.peer()));
            bytes[level] += (step.span().len * element_bytes) as u64;
        }
    }
    let most_steps = plan.ranks.iter().map(Vec::len).max().unwrap_or(0) as u64;
    Traffic { inside_bytes: bytes[0], across_bytes: bytes[1], most_steps }
}

/// That of an algorithm which moves every share from each rank to each other, or around: exact up to the alignment of
/// shares for rings and direct ones; others have too few steps to need it, and are counted from one rank's. Of a buffer whose
/// steps are too many to be made, a part is looked at.
pub(super) fn of_formula(algorithm: &Algorithm, nodes: &Nodes, len: usize, element_bytes: usize) -> Traffic {
    let world_size = nodes.world_size();
    let parts = match algorithm {
        Algorithm::AllReduce(all_reduce) => {
            all_reduce.most_steps(world_size, len).div_ceil(MOST_STEPS).max(1)
        }
        _ => 1,
    };
    let steps = algorithm.steps(0, world_size, len / parts);
    let of_part: usize = steps.iter().filter(|step| step.sends()).map(|step| step.span().len).sum();
    let sent = of_part as f64 * parts as f64;
    let direct = matches!(algorithm, Algorithm::AllReduce(AllReduce::Direct | AllReduce::Ring { .. }));
    let elements = if direct { 2.0 * (world_size - 1) as f64 * len as f64 } else { sent * world_size as f64 };
    let bytes = elements * element_bytes as f64;
    let across = bytes * part_across(algorithm, nodes, &steps);
    Traffic {
        inside_bytes: (bytes - across) as u64,
        across_bytes: across as u64,
        most_steps: (steps.len() as u64).saturating_mul(parts as u64),
    }
}

/// The part of an algorithm's bytes that leave a node; of two levels, that of rank 0's `steps`.
fn part_across(algorithm: &Algorithm, nodes: &Nodes, steps: &[Step]) -> f64 {
    let world_size = nodes.world_size();
    let (leaving, all) = if matches!(algorithm, Algorithm::AllReduce(AllReduce::TwoLevel { .. })) {
        let sent = |leaves: &dyn Fn(usize) -> bool| {
            let sends = steps.iter().filter(|step| step.sends() && leaves(step.peer()));
            sends.map(|step| step.span().len).sum::<usize>()
        };
        (sent(&|peer| !nodes.are_together(0, peer)), sent(&|_| true))
    } else if matches!(algorithm, Algorithm::AllReduce(AllReduce::Ring { .. })) {
        let next = |rank: usize| (rank + 1) % world_size;
        ((0..world_size).filter(|rank| !nodes.are_together(*rank, next(*rank))).count(), world_size)
    } else {
        let outside = |ranks: &Vec<usize>| ranks.len() * (world_size - ranks.len());
        (nodes.members().iter().map(outside).sum(), world_size * (world_size - 1))
    };
    if all == 0 { 0.0 } else { leaving as f64 / all as f64 }
}
