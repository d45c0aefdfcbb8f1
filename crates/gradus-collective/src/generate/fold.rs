//! Worlds that are no power of two, for algorithms that need one (Thakur, Rabenseifner and Gropp, "Optimization of
//! Collective Communication Operations in MPICH", IJHPCA 2005, section 4.5): as many ranks as the world has too many hand
//! all they have to a neighbour before, and get the sum back after. It costs two hops and twice the buffer.

use crate::plan::Step;
use gradus_memory::Span;

/// A rank's place in a core of a power of two ranks.
pub(super) struct Place {
    /// Its number there.
    pub(super) place: usize,
    /// How many have one.
    pub(super) core: usize,
    extra: usize,
}

impl Place {
    /// The rank at another place.
    pub(super) fn rank_at(&self, place: usize) -> usize {
        // Odd ranks among the first 2 * extra stand for two.
        if place < self.extra { 2 * place + 1 } else { place + self.extra }
    }
}

/// The steps of `rank` for `span`, given what the ranks of the core do.
pub(super) fn folded(
    rank: usize,
    world_size: usize,
    span: Span,
    in_core: impl FnOnce(&Place) -> Vec<Step>,
) -> Vec<Step> {
    let core = 1 << world_size.ilog2();
    let extra = world_size - core;
    if rank >= 2 * extra {
        return in_core(&Place { place: rank - extra, core, extra });
    }
    if rank.is_multiple_of(2) {
        return vec![Step::send(rank + 1, span), Step::receive(rank + 1, span)];
    }
    let mut steps = vec![Step::receive_reduce(rank - 1, span)];
    steps.extend(in_core(&Place { place: rank / 2, core, extra }));
    steps.push(Step::send(rank - 1, span));
    steps
}
