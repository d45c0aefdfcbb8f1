//! All-reduce by recursive halving and doubling (Rabenseifner, "Optimization of Collective Reduction Operations", ICCS
//! 2004; Thakur, Rabenseifner and Gropp, IJHPCA 2005, section 4.5): partners exchange halves of what they are still
//! summing until each rank holds the sum of one share, then the same exchanges backwards spread the sums.
//!
//! As few bytes as a ring in `2 log2 W` hops. The first exchange carries most, so it is made with the nearest rank:
//! where neighbours share a node, half of the bytes never leave it. Every element is summed by one rank and copied.
//!
//! Cost, for a power of two: `2 log2 W alpha + (W - 1)/W n (2 beta + gamma)`; else `2 (alpha + n beta) + n gamma` more.

use super::fold::folded;
use super::share::share;
use crate::plan::Step;
use gradus_memory::Span;

/// One exchange with a partner: what this rank goes on with, and what it leaves to the partner.
struct Exchange {
    peer: usize,
    kept: Span,
    given: Span,
}

/// The steps of `rank`: a sum of `len` elements over `world_size` ranks. Messages are sent even where they are empty.
pub fn halving_doubling_all_reduce(rank: usize, world_size: usize, len: usize) -> Vec<Step> {
    let span = Span::new(0, len);
    folded(rank, world_size, span, |mine| {
        let mut whole = span;
        let exchange = |round: u32| {
            let halves = [share(whole, 2, 0), share(whole, 2, 1)];
            let side = mine.place >> round & 1;
            whole = halves[side];
            Exchange { peer: mine.rank_at(mine.place ^ (1 << round)), kept: whole, given: halves[1 - side] }
        };
        both_ways(&(0..mine.core.ilog2()).map(exchange).collect::<Vec<_>>())
    })
}

/// Sums on the way in, copies on the way out.
fn both_ways(exchanges: &[Exchange]) -> Vec<Step> {
    let halving = exchanges.iter().flat_map(|Exchange { peer, kept, given }| {
        [Step::send(*peer, *given), Step::receive_reduce(*peer, *kept)]
    });
    let doubling = exchanges
        .iter()
        .rev()
        .flat_map(|Exchange { peer, kept, given }| [Step::send(*peer, *kept), Step::receive(*peer, *given)]);
    halving.chain(doubling).collect()
}
