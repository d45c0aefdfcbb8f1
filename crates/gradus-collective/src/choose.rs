//! Which algorithm serves which size: the cheaper one by a model of latency, transfer and addition.

use crate::algorithm::AllReduce;

/// Nanoseconds for one hop of nothing, and per KiB for moving and for adding: of the order of shared memory on one
/// host, where a hop costs a microsecond with waking, moving runs at 6 GB/s and adding at 12 GB/s.
const HOP_NS: u64 = 1000;
const MOVE_NS_PER_KIB: u64 = 170;
const ADD_NS_PER_KIB: u64 = 85;

/// Bytes that a ring works on at a time: what one rank holds of it, in and out, stays in the second-level cache.
const RING_BLOCK_BYTES: usize = 256 << 10;

/// The algorithm for `len` elements of `element_bytes` each among `world_size` ranks: the same on every rank.
pub fn choose_all_reduce(world_size: usize, len: usize, element_bytes: usize) -> AllReduce {
    let world = world_size as u64;
    let kib = (len.saturating_mul(element_bytes) as u64).div_ceil(1024);
    let rounds = u64::from(world.next_power_of_two().ilog2()) + 2 * u64::from(!world.is_power_of_two());
    let doubling = rounds * (HOP_NS + kib * (MOVE_NS_PER_KIB + ADD_NS_PER_KIB));
    let hops = 2 * world.saturating_sub(1);
    let ring = hops * (HOP_NS + kib * (2 * MOVE_NS_PER_KIB + ADD_NS_PER_KIB) / 2 / world);
    if len < world_size * 16 || doubling <= ring {
        return AllReduce::RecursiveDoubling;
    }
    // A wide world needs blocks of a share for each rank that is worth a message of its own.
    let block_bytes = RING_BLOCK_BYTES.max(world_size * (64 << 10));
    AllReduce::Ring { block: block_bytes / element_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_goes_by_doubling_and_large_by_ring() {
        for world_size in 1..=64 {
            assert_eq!(choose_all_reduce(world_size, 0, 4), AllReduce::RecursiveDoubling);
            assert_eq!(choose_all_reduce(world_size, 1, 8), AllReduce::RecursiveDoubling);
        }
        for world_size in 2..=64 {
            assert!(
                matches!(choose_all_reduce(world_size, 16 << 20, 4), AllReduce::Ring { block } if block > 0)
            );
        }
    }

    #[test]
    fn more_bytes_never_turn_from_ring_to_doubling() {
        for world_size in 2..=64 {
            let rings = (0..26)
                .map(|bits| choose_all_reduce(world_size, 1 << bits, 4) != AllReduce::RecursiveDoubling);
            assert!(rings.collect::<Vec<_>>().is_sorted(), "{world_size}");
        }
    }
}
