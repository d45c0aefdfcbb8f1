//! Barrier by dissemination (Hensgen, Finkel and Manber, "Two Algorithms for Barrier Synchronization", IJPP 1988): in
//! round `k` each rank tells the one `2^k` further on what it has heard. After `ceil(log2 W)` rounds everyone has heard
//! of everyone, some of some twice: the sum that travels along says nothing, its dependencies do.
//!
//! Cost: `ceil(log2 W) alpha`.

use crate::plan::Step;
use gradus_memory::Span;

/// The steps of `rank`, over a buffer of one element.
pub fn dissemination_barrier(rank: usize, world_size: usize) -> Vec<Step> {
    let span = Span::new(0, 1);
    let distances = (0..).map(|round| 1 << round).take_while(|distance| *distance < world_size);
    distances
        .flat_map(|distance| {
            let (next, previous) =
                ((rank + distance) % world_size, (rank + world_size - distance) % world_size);
            [Step::send(next, span), Step::receive_reduce(previous, span)]
        })
        .collect()
}
