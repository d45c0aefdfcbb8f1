//! ZB-H1 (Qi et al., "Zero Bubble Pipeline Parallelism", 2023, section 2.1): 1F1B with backward passes in two
//! halves, for the stage before waits for the gradient of the input only.
//!
//! Rank `r` puts the weights' half off by `r` microbatches. The gradients of inputs then reach the first rank
//! earlier, and what was put off fills the time in which later ranks would wait. So all ranks hold activations of `p`
//! microbatches, which of 1F1B's ranks the first does; with `F`, `I` and `W` for the three passes, ranks wait for
//! `(p - 1) (F + I - W)` where `W` is at most `F` and `I`, and for `(p - 1) (F + I + W)` with 1F1B.

use super::{Lane, in_turns, pass};
use crate::pipeline::schedule::{Action, ActionKind, Shape};

/// What `rank` does.
pub(super) fn lane(shape: Shape, rank: usize) -> Lane {
    let Shape { ranks, microbatches, .. } = shape;
    let weights = pass(ActionKind::BackwardWeight);
    let backward = |microbatch: usize, actions: &mut Vec<Action>| {
        pass(ActionKind::BackwardInput)(microbatch, actions);
        if let Some(put_off) = microbatch.checked_sub(rank) {
            weights(put_off, actions);
        }
    };
    let mut actions = in_turns(microbatches, ranks - rank - 1, pass(ActionKind::Forward), backward);
    (microbatches.saturating_sub(rank)..microbatches).for_each(|put_off| weights(put_off, &mut actions));
    (actions, microbatches.min(ranks))
}
