//! Which algorithm a communicator uses where nobody has measured anything: the cheapest by formula, on links such as
//! those inside a host.

use crate::algorithm::{Algorithm, AllReduce, Nodes};
use crate::cost::{LinkFigures, price_by_formula};
use crate::tuner::{first_of_the_cheapest, ring};

/// Elements for each rank below which nobody has a share worth sending: one message of all holds as many as a cache line.
const LEAST_SHARE: usize = 16;

/// The algorithm for `len` elements of `element_bytes` each among `world_size` ranks: the same on every rank.
///
/// # Panics
/// If the world is empty or elements have no bytes.
pub fn choose_all_reduce(world_size: usize, len: usize, element_bytes: usize) -> AllReduce {
    if len < world_size.saturating_mul(LEAST_SHARE) {
        return AllReduce::RecursiveDoubling;
    }
    let (nodes, figures) = (Nodes::even(world_size, world_size), LinkFigures::default());
    let candidates = [
        AllReduce::RecursiveDoubling,
        ring(world_size, element_bytes),
        AllReduce::HalvingDoubling,
        AllReduce::Direct,
    ];
    let seconds = |candidate: &AllReduce| {
        let algorithm = Algorithm::AllReduce(candidate.clone());
        let price = price_by_formula(&algorithm, &nodes, len, element_bytes, &figures);
        price.expect("all of these have a formula").seconds
    };
    first_of_the_cheapest(&candidates, seconds).expect("there are candidates").clone()
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
            let large = choose_all_reduce(world_size, 16 << 20, 4);
            assert!(matches!(large, AllReduce::Ring { block } if block > 0), "{world_size} {large:?}");
        }
    }

    #[test]
    fn more_bytes_never_turn_back_to_doubling() {
        for world_size in 2..=64 {
            let others = (0..26)
                .map(|bits| choose_all_reduce(world_size, 1 << bits, 4) != AllReduce::RecursiveDoubling);
            assert!(others.collect::<Vec<_>>().is_sorted(), "{world_size}");
        }
    }

    #[test]
    fn few_hops_serve_what_is_neither_small_nor_large() {
        let between = [1 << 12, 1 << 14, 1 << 16].map(|len| choose_all_reduce(8, len, 4));
        assert!(
            between.iter().any(|chosen| matches!(chosen, AllReduce::Direct | AllReduce::HalvingDoubling))
        );
    }
}
