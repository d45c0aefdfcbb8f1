//! All-reduce by recursive doubling (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations
//! in MPICH", IJHPCA 2005, section 4.5): in each round partners exchange all they have. `log2 W` rounds, the least
//! possible, at the price of the whole buffer in each: for small buffers.
//!
//! Where the world is no power of two, as many ranks as it has too many hand their part to a neighbour before and get
//! the sum back after. Both partners of an exchange add the same two numbers; addition commutes, so both get the same
//! bits (where both are NaN, each keeps the payload of its own).

use crate::plan::Step;
use gradus_memory::Span;

/// The steps of `rank`: a sum of `len` elements over `world_size` ranks. Messages are sent even where they are empty,
/// so that ranks that disagree on the length find out.
pub fn recursive_doubling_all_reduce(rank: usize, world_size: usize, len: usize) -> Vec<Step> {
    let span = Span::new(0, len);
    let core = 1 << world_size.ilog2();
    let extra = world_size - core;
    if rank < 2 * extra && rank.is_multiple_of(2) {
        return vec![Step::send(rank + 1, span), Step::receive(rank + 1, span)];
    }
    // Odd ranks among the first 2 * extra stand for two.
    let (stands_for_two, place) = if rank < 2 * extra { (true, rank / 2) } else { (false, rank - extra) };
    let rank_at = |place: usize| if place < extra { 2 * place + 1 } else { place + extra };
    let mut steps = Vec::new();
    if stands_for_two {
        steps.push(Step::receive_reduce(rank - 1, span));
    }
    for round in 0..core.ilog2() {
        let peer = rank_at(place ^ (1 << round));
        steps.extend([Step::send(peer, span), Step::receive_reduce(peer, span)]);
    }
    if stands_for_two {
        steps.push(Step::send(rank - 1, span));
    }
    steps
}
