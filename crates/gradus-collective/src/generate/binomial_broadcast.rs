//! Broadcast down a binomial tree: `log2 W` hops from the root to the last rank.
//!
//! Counted from the root, a rank's parent is itself without its lowest set bit. The farthest child is served first: it
//! has the most descendants. Ranges pass through a rank element by element, so a long one fills the whole tree at once.
//! (Thakur, Rabenseifner and Gropp, IJHPCA 2005, section 4.2.)
//!
//! Cost: `log2 W (alpha + n beta)`: the root sends the buffer that often.

use crate::plan::Step;
use gradus_memory::Span;

/// The steps of `rank`: `len` elements of `root` to all ranks. Messages are sent even where they are empty.
pub fn binomial_broadcast(rank: usize, world_size: usize, len: usize, root: usize) -> Vec<Step> {
    let span = Span::new(0, len);
    let distance = (rank + world_size - root) % world_size;
    let rank_at = |distance: usize| (distance + root) % world_size;
    let lowest_bit =
        if distance == 0 { world_size.next_power_of_two() } else { 1 << distance.trailing_zeros() };
    let parent = (distance > 0).then(|| Step::receive(rank_at(distance - lowest_bit), span));
    let bits = (0..lowest_bit.ilog2()).rev().map(|bit| distance + (1 << bit));
    let children = bits.filter(|child| *child < world_size).map(|child| Step::send(rank_at(child), span));
    parent.into_iter().chain(children).collect()
}
