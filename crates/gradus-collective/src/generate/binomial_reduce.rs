//! Reduce up a binomial tree (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in
//! MPICH", IJHPCA 2005, section 4.4): `log2 W` hops from the last rank to the root.
//!
//! Counted from the root, a rank's parent is itself without its lowest set bit. The nearest child is served first: it has
//! the fewest descendants, so its sum is there first. Every element is summed along one tree, so it has one bracketing.

use super::{after, before};
use crate::plan::Step;
use gradus_memory::Span;

/// The steps of `rank`: `len` elements of all ranks, summed at `root`. Messages are sent even where they are empty. What
/// other ranks hold afterwards is a part of the sum.
pub fn binomial_reduce(rank: usize, world_size: usize, len: usize, root: usize) -> Vec<Step> {
    let span = Span::new(0, len);
    let distance = before(rank, root, world_size);
    let lowest_bit =
        if distance == 0 { world_size.next_power_of_two() } else { 1 << distance.trailing_zeros() };
    let bits = (0..lowest_bit.ilog2()).map(|bit| 1 << bit).filter(|bit| distance + bit < world_size);
    let children = bits.map(|bit| Step::receive_reduce(after(rank, bit, world_size), span));
    let parent = (distance > 0).then(|| Step::send(before(rank, lowest_bit, world_size), span));
    children.chain(parent).collect()
}
