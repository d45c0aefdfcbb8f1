//! Broadcast along a chain, each rank passing on to the next what arrives (Chan et al., "Collective communication: theory,
//! practice, and experience", CCPE 2007, section 4, has it as the pipelined broadcast on a linear array).
//!
//! Steps follow each other element by element, so a range fills the whole chain at once and needs no cutting into
//! blocks: every rank sends the buffer once, which no tree can do, and the price is a hop for every rank.
//!
//! Cost, with pieces of `g` bytes on the way: `(W - 1)(alpha + g beta) + (n - g) beta`.

use crate::plan::Step;
use gradus_memory::Span;

/// The steps of `rank`: `len` elements of `root` to all ranks. Messages are sent even where they are empty.
pub fn chain_broadcast(rank: usize, world_size: usize, len: usize, root: usize) -> Vec<Step> {
    let span = Span::new(0, len);
    let first = rank == root;
    let last = (rank + 1) % world_size == root;
    let before = (!first).then(|| Step::receive((rank + world_size - 1) % world_size, span));
    let after = (!last).then(|| Step::send((rank + 1) % world_size, span));
    before.into_iter().chain(after).collect()
}
