//! All-to-all in `log2 W` hops, in any world (Bruck, Ho, Kipnis, Upfal and Weathersby, "Efficient Algorithms for
//! All-to-All Communications in Multiport Message-Passing Systems", TPDS 1997, section 2): for small parts, since each
//! travels `log2 W / 2` times.
//!
//! A block that has to go `d` ranks on goes there by the set bits of `d`: in round `k` every rank hands on all blocks
//! with bit `k`, packed into one message. In scratch a block lies by how far it has to go.

use super::{after, before};
use crate::plan::{Part, Step};
use gradus_memory::Span;

/// The steps of `rank`: `count` elements for each rank. Messages are sent even where they are empty.
pub fn bruck_all_to_all(rank: usize, world_size: usize, count: usize, in_place: bool) -> Vec<Step> {
    let span = |block: usize| Span::new(block * count, count);
    let given = |peer| if in_place { Part::output(span(peer)) } else { Part::input(span(peer)) };
    // In place, a rank's own block is where it belongs.
    let blocks = usize::from(in_place)..world_size;
    let load =
        blocks.clone().map(|far| Step::copy(given(after(rank, far, world_size)), Part::scratch(span(far))));
    let rounds = (0..).map(|bit| 1 << bit).take_while(|hop| *hop < world_size);
    let unload = blocks.map(|far| {
        let peer = before(rank, far, world_size);
        Step::copy(Part::scratch(span(far)), Part::output(span(peer)))
    });
    load.chain(rounds.flat_map(|hop| round(rank, world_size, count, hop))).chain(unload).collect()
}

/// Hands on all blocks that have bit `hop` of their way before them.
fn round(rank: usize, world_size: usize, count: usize, hop: usize) -> Vec<Step> {
    let moving: Vec<usize> = (0..world_size).filter(|far| far & hop != 0).collect();
    let message = moving.len() * count;
    // Behind the blocks lie what leaves and what arrives: half of the blocks at most.
    let leaving = world_size * count;
    let arriving = leaving + world_size / 2 * count;
    let block = |far: usize| Part::scratch(Span::new(far * count, count));
    let slot = |start: usize, index: usize| Part::scratch(Span::new(start + index * count, count));
    let pack = moving.iter().enumerate().map(|(index, far)| Step::copy(block(*far), slot(leaving, index)));
    let exchange = [
        Step::send_from(after(rank, hop, world_size), Part::scratch(Span::new(leaving, message))),
        Step::receive_to(before(rank, hop, world_size), Part::scratch(Span::new(arriving, message))),
    ];
    let unpack = moving.iter().enumerate().map(|(index, far)| Step::copy(slot(arriving, index), block(*far)));
    pack.chain(exchange).chain(unpack).collect()
}
