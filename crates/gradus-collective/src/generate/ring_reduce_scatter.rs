//! Reduce-scatter around a ring (Patarasuk and Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of
//! Workstations", JPDC 2009, the first half): sums travel once around and end at the rank whose part they are. Every rank
//! sends `(W - 1) / W` of the whole, the least possible, to one neighbour; the price is `W - 1` hops.
//!
//! Apart, a sum on its way is put together in scratch, since the input is not to be written.

use super::{after, before};
use crate::parts::Parts;
use crate::plan::{Part, Step};
use gradus_memory::Span;

/// The steps of `rank`. Messages are sent even where they are empty.
pub fn ring_reduce_scatter(rank: usize, parts: &Parts, in_place: bool) -> Vec<Step> {
    let world_size = parts.world_size();
    let input = |share| Part::input(parts.span(share));
    let sum = |share| match (in_place, share == rank) {
        (true, _) => Part::output(parts.span(share)),
        (false, true) => Part::output(Span::new(0, parts.count(rank))),
        (false, false) => Part::scratch(parts.span(share)),
    };
    let mut steps = Vec::new();
    for hop in 0..world_size - 1 {
        let (out, arriving) = (before(rank, hop + 1, world_size), before(rank, hop + 2, world_size));
        let sent = if hop == 0 && !in_place { input(out) } else { sum(out) };
        steps.push(Step::send_from(after(rank, 1, world_size), sent));
        steps.extend((!in_place).then(|| Step::copy(input(arriving), sum(arriving))));
        steps.push(Step::receive_reduce_to(before(rank, 1, world_size), sum(arriving)));
    }
    let alone = world_size == 1 && !in_place;
    steps.extend(alone.then(|| Step::copy(input(rank), sum(rank))));
    steps
}
