//! GPipe (Huang et al., "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism", 2019,
//! section 2.3): all forward passes, then all backward passes.
//!
//! Ranks wait for `(p - 1)` forward and backward passes, a part of `(p - 1) / (m + p - 1)` of a step of `m` microbatches on
//! `p` ranks, and hold activations of all microbatches. Backward passes go in the order of microbatches here, where the
//! paper's figure has the last one first: ranks wait as long, and gradients are added up as in all other schedules.

use super::{Lane, in_turns, pass};
use crate::pipeline::schedule::{ActionKind, Shape};

/// What `rank` does.
pub(super) fn lane(shape: Shape, _rank: usize) -> Lane {
    let count = shape.microbatches;
    (in_turns(count, count, pass(ActionKind::Forward), pass(ActionKind::Backward)), count)
}
