//! All-gather in one hop: everybody sends its part to everybody. As many bytes as a ring moves, each straight from where
//! it is to where it goes, so a long part holds up nobody else's: for unequal counts.

use super::{after, before, brought, keep};
use crate::parts::Parts;
use crate::plan::Step;

/// The steps of `rank`. Messages are sent even where they are empty.
pub fn direct_all_gather(rank: usize, parts: &Parts, in_place: bool) -> Vec<Step> {
    let world_size = parts.world_size();
    let own = parts.span(rank);
    let exchange = |distance: usize| {
        let from = before(rank, distance, world_size);
        [
            Step::send_from(after(rank, distance, world_size), brought(own, in_place)),
            Step::receive(from, parts.span(from)),
        ]
    };
    keep(own, in_place).into_iter().chain((1..world_size).flat_map(exchange)).collect()
}
