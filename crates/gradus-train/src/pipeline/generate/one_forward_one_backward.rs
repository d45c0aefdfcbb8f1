//! 1F1B (Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training", 2021, PipeDream-Flush; and "Efficient
//! Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", 2021, section 2.2.1).
//!
//! Rank `r` of `p` runs `p - r - 1` microbatches ahead, as many as are on their way through the ranks after it, and from then
//! on takes one forward and one backward pass in turn. Ranks wait as long as with GPipe, and hold activations of `p - r`
//! microbatches only, however many there are.

use super::{Lane, in_turns, pass};
use crate::pipeline::schedule::{ActionKind, Shape};

/// What `rank` does.
pub(super) fn lane(shape: Shape, rank: usize) -> Lane {
    let Shape { ranks, microbatches, .. } = shape;
    let ahead = ranks - rank - 1;
    let actions = in_turns(microbatches, ahead, pass(ActionKind::Forward), pass(ActionKind::Backward));
    (actions, microbatches.min(ahead + 1))
}
