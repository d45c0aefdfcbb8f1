//! All-reduce around a ring (Patarasuk and Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of
//! Workstations", JPDC 2009): reduce-scatter, then all-gather. Every rank sends `2 (W - 1) / W` of the buffer, the least
//! possible; the price is `2 (W - 1)` hops.
//!
//! The buffer is worked off in blocks, so that what was just summed is passed on while it is still in the cache. A block
//! starts each of its hops one beat after the block before it; within a beat the youngest block goes first, because
//! what it sends depends on less: a stream is never held up by a block that still waits.
//!
//! Cost: `2 (W - 1) alpha + (W - 1)/W n (2 beta + gamma)`, hop after hop; where hops overlap, as here, alpha counts only
//! until bandwidth does.

use super::share::share;
use crate::plan::Step;
use gradus_memory::Span;

/// The steps of `rank`: a sum of `len` elements over `world_size` ranks, `block` elements at a time.
///
/// # Panics
/// If `block` is zero.
pub fn ring_all_reduce(rank: usize, world_size: usize, len: usize, block: usize) -> Vec<Step> {
    if world_size == 1 || len == 0 {
        return Vec::new();
    }
    let hops = 2 * (world_size - 1);
    let blocks = len.div_ceil(block);
    let mut steps = Vec::with_capacity(2 * hops * blocks);
    for beat in 0..blocks + hops - 1 {
        for index in (beat.saturating_sub(hops - 1)..=beat.min(blocks - 1)).rev() {
            let whole = Span::new(index * block, block.min(len - index * block));
            hop(&mut steps, rank, world_size, whole, beat - index);
        }
    }
    steps
}

/// One hop of one block: passes on the share that came in with the hop before, and takes in the next one.
fn hop(steps: &mut Vec<Step>, rank: usize, world_size: usize, block: Span, hop: usize) {
    let back = |distance: usize| (rank + 2 * world_size - distance) % world_size;
    let (out, span) = (share(block, world_size, back(hop)), share(block, world_size, back(hop + 1)));
    if out.len > 0 {
        steps.push(Step::send((rank + 1) % world_size, out));
    }
    if span.len > 0 {
        let peer = back(1);
        // The first half of the hops gathers sums, the second spreads them.
        steps.push(if hop + 1 < world_size {
            Step::receive_reduce(peer, span)
        } else {
            Step::receive(peer, span)
        });
    }
}
