//! All-reduce by recursive doubling (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations
//! in MPICH", IJHPCA 2005, section 4.5): in each round partners exchange all they have. `log2 W` rounds, the least
//! possible, at the price of the whole buffer in each: for small buffers.
//!
//! Both partners of an exchange add the same two numbers; addition commutes, so both get the same bits (where both are
//! NaN, each keeps the payload of its own).
//!
//! Cost: `log2 W (alpha + n (beta + gamma))`; where the world is no power of two, `2 (alpha + n beta) + n gamma` more.

use super::fold::folded;
use crate::plan::Step;
use gradus_memory::Span;

/// The steps of `rank`: a sum of `len` elements over `world_size` ranks. Messages are sent even where they are empty,
/// so that ranks that disagree on the length find out.
pub fn recursive_doubling_all_reduce(rank: usize, world_size: usize, len: usize) -> Vec<Step> {
    let span = Span::new(0, len);
    folded(rank, world_size, span, |mine| {
        let peers = (0..mine.core.ilog2()).map(|round| mine.rank_at(mine.place ^ (1 << round)));
        peers.flat_map(|peer| [Step::send(peer, span), Step::receive_reduce(peer, span)]).collect()
    })
}
