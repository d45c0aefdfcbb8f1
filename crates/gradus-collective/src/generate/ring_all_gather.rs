//! All-gather around a ring (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in
//! MPICH", IJHPCA 2005, section 4.1): every rank passes on what came in with the hop before. Every rank sends
//! `(W - 1) / W` of the whole, the least possible, to one neighbour; the price is `W - 1` hops.

use super::{after, before, brought, keep};
use crate::parts::Parts;
use crate::plan::{Part, Step};

/// The steps of `rank`. Messages are sent even where they are empty.
pub fn ring_all_gather(rank: usize, parts: &Parts, in_place: bool) -> Vec<Step> {
    let world_size = parts.world_size();
    let own = parts.span(rank);
    let mut steps: Vec<Step> = keep(own, in_place).into_iter().collect();
    for hop in 0..world_size - 1 {
        let passed_on = Part::output(parts.span(before(rank, hop, world_size)));
        let sent = if hop == 0 { brought(own, in_place) } else { passed_on };
        steps.push(Step::send_from(after(rank, 1, world_size), sent));
        let arriving = parts.span(before(rank, hop + 1, world_size));
        steps.push(Step::receive(before(rank, 1, world_size), arriving));
    }
    steps
}
