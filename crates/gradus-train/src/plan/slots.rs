//! How many microbatches are in flight: what the pipeline's programs say.

use super::split::Split;
use crate::pipeline::{Kind, Sharing, lower};

/// Slots of every chunk of every rank of the pipeline.
pub(super) fn slots(split: &Split<'_>) -> Vec<Vec<usize>> {
    if split.mesh.pp == 1 {
        return vec![vec![1]];
    }
    let schedule = split.kind().generate(split.shape()).expect("the settings were checked");
    let programs = lower(&schedule, Sharing::Chunk).expect("generated schedules can be carried out");
    programs.into_iter().map(|program| program.slots).collect()
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
