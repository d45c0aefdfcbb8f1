//! Interleaved 1F1B (Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
//! 2021, section 2.2.2): each rank holds `v` stages of a `v`-th of the layers, so that a microbatch goes around the ranks `v`
//! times, and what ranks wait for at the start and at the end is a `v`-th as long: `(p - 1) / (v m + p - 1)` of a step.
//!
//! Microbatches go in groups of `p`: a group through chunk 0, then through chunk 1, and so on; backward passes take chunks
//! the other way around. Rank `r` runs `(v - 1) p + 2 (p - r - 1)` passes ahead. Where microbatches are no multiple of `p`, the
//! order is that of the next multiple, without the passes of microbatches that there are not: leaving some out of an order
//! without deadlock makes none, and holds no more in memory.

use super::{Lane, in_turns};
use crate::pipeline::schedule::{Action, ActionKind, Shape};

/// What `rank` does.
pub(super) fn lane(shape: Shape, rank: usize) -> Lane {
    let Shape { ranks, chunks_per_rank: chunks, microbatches } = shape;
    let count = microbatches.next_multiple_of(ranks) * chunks;
    let ahead = (chunks - 1) * ranks + 2 * (ranks - rank - 1);
    let add = |kind, (microbatch, chunk), actions: &mut Vec<Action>| {
        if microbatch < microbatches {
            actions.push(Action::new(kind, microbatch, chunk));
        }
    };
    let last_first = |(microbatch, chunk)| (microbatch, chunks - 1 - chunk);
    let actions = in_turns(
        count,
        ahead,
        |index, actions| add(ActionKind::Forward, place(shape, index), actions),
        |index, actions| add(ActionKind::Backward, last_first(place(shape, index)), actions),
    );
    (actions, (microbatches * chunks).min(ahead + 1))
}

/// Microbatch and chunk of a rank's forward pass number `index`.
fn place(shape: Shape, index: usize) -> (usize, usize) {
    let (round, within) = (index / shape.ranks, index % shape.ranks);
    let (group, chunk) = (round / shape.chunks_per_rank, round % shape.chunks_per_rank);
    (group * shape.ranks + within, chunk)
}
