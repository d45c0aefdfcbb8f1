//! Everybody straight to everybody: no rank passes on what is not its own.
//!
//! In the all-reduce each rank answers for one share: one hop brings it the others' parts, which it adds in a fixed
//! order, and one hop takes the sum to all. As few bytes as a ring in two hops, for two messages to each other rank: it
//! wins while messages are cheap against hops, and wherever a message is a look into a neighbour's memory. Ranks begin
//! with different peers, so that nobody is everybody's first.
//!
//! Cost: all-reduce `2 alpha + (W - 1)/W n (2 beta + gamma)` and `2 (W - 1)` messages of a rank; broadcast
//! `alpha + (W - 1) n beta`.

use super::share::share;
use crate::plan::Step;
use gradus_memory::Span;

/// The steps of `rank`: a sum of `len` elements over `world_size` ranks. Empty shares are left out.
pub fn direct_all_reduce(rank: usize, world_size: usize, len: usize) -> Vec<Step> {
    let share = |index: usize| share(Span::new(0, len), world_size, index);
    let after = |distance: usize| (rank + distance) % world_size;
    let before = |distance: usize| (rank + world_size - distance) % world_size;
    let gather = (1..world_size).flat_map(|distance| {
        let (to, from) = (after(distance), before(distance));
        [Step::send(to, share(to)), Step::receive_reduce(from, share(rank))]
    });
    let spread = (1..world_size).flat_map(|distance| {
        let (to, from) = (after(distance), before(distance));
        [Step::send(to, share(rank)), Step::receive(from, share(from))]
    });
    gather.chain(spread).filter(|step| step.span().len > 0).collect()
}

/// The steps of `rank`: `len` elements of `root` to all ranks. Messages are sent even where they are empty.
pub fn direct_broadcast(rank: usize, world_size: usize, len: usize, root: usize) -> Vec<Step> {
    let span = Span::new(0, len);
    if rank != root {
        return vec![Step::receive(root, span)];
    }
    (1..world_size).map(|distance| Step::send((root + distance) % world_size, span)).collect()
}
