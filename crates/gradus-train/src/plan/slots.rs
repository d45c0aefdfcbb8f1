//! How many microbatches are in flight: what the pipeline's programs say.

use super::split::Split;
use crate::pipeline::{Kind, Program, Sharing, lower};

/// Slots of every chunk of every rank of the pipeline.
pub(super) fn slots(split: &Split<'_>) -> Vec<Vec<usize>> {
    let schedule = split.kind().generate(split.shape()).expect("the settings were checked");
    let programs = lower(&schedule, Sharing::Chunk).expect("generated schedules can be carried out");
    let of_rank = |program: Program| program.slots.into_iter().map(|count| count.max(1)).collect();
    programs.into_iter().map(of_rank).collect()
}

/// At least so many does each chunk of a rank need, found at once.
pub(super) fn least_slots(split: &Split<'_>, pp: usize) -> usize {
    let microbatches = split.microbatches;
    match split.kind() {
        Kind::GPipe => microbatches,
        Kind::OneForwardOneBackward | Kind::ZeroBubble => (split.mesh.pp - pp).min(microbatches),
        Kind::Interleaved => 1,
    }
}
