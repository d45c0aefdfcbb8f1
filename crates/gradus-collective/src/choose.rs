//! Which algorithm a communicator uses: the cheapest by formula, on the links that were measured, or else on links such as
//! those inside a host.

use crate::algorithm::{Algorithm, AllReduce, Nodes};
use crate::cost::{LinkProfile, price_by_formula};
use crate::tuner::{Candidate, Case, Choice, Purpose, first_of_the_cheapest, rings};

/// Elements for each rank below which nobody has a share worth sending: one message of all holds as many as a cache line.
const LEAST_SHARE: usize = 16;

/// What a communicator knows of the links between its ranks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Links {
    /// What they are like.
    pub profile: LinkProfile,
    /// Whether ranks are on several nodes. All links count as those between nodes then: a group of ranks may lie anywhere.
    pub cross_nodes: bool,
}

impl Links {
    /// `len` elements of `element_bytes` each, summed by `world_size` ranks over these links.
    fn case(&self, world_size: usize, len: usize, element_bytes: usize) -> Case {
        let ranks_per_node = if self.cross_nodes { 1 } else { world_size };
        let nodes = Nodes::even(world_size, ranks_per_node);
        let figures = self.profile.at((len as u64).saturating_mul(element_bytes as u64));
        Case { purpose: Purpose::AllReduce, nodes, len, element_bytes, figures }
    }
}

/// The algorithm for `len` elements of `element_bytes` each among `world_size` ranks, with what it was chosen from: the same
/// on every rank that knows the same of the links.
///
/// # Panics
/// If the world is empty or elements have no bytes.
pub fn choose_all_reduce(links: &Links, world_size: usize, len: usize, element_bytes: usize) -> Choice {
    let case = links.case(world_size, len, element_bytes);
    let candidate = |all_reduce: AllReduce| {
        let algorithm = Algorithm::AllReduce(all_reduce);
        let price = price_by_formula(&algorithm, &case.nodes, len, element_bytes, &case.figures)
            .expect("on one level all of these have a formula");
        Candidate { algorithm, price }
    };
    let mut candidates: Vec<Candidate> =
        fitting(world_size, len, element_bytes).into_iter().map(candidate).collect();
    let chosen = first_of_the_cheapest(&candidates, |candidate| candidate.price.seconds);
    let chosen = chosen.expect("there are candidates").clone();
    candidates.sort_by(|one, other| one.price.seconds.total_cmp(&other.price.seconds));
    Choice { case, chosen, candidates, unpriced: Vec::new() }
}

/// What comes into question, the robust first.
fn fitting(world_size: usize, len: usize, element_bytes: usize) -> Vec<AllReduce> {
    let mut all = vec![AllReduce::RecursiveDoubling];
    if len >= world_size.saturating_mul(LEAST_SHARE) {
        all.extend(rings(world_size, element_bytes));
        all.extend([AllReduce::HalvingDoubling, AllReduce::Direct]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::LinkFigures;

    fn chosen(links: &Links, world_size: usize, len: usize, element_bytes: usize) -> AllReduce {
        match choose_all_reduce(links, world_size, len, element_bytes).chosen.algorithm {
            Algorithm::AllReduce(all_reduce) => all_reduce,
            other => panic!("{other} is no all-reduce"),
        }
    }

    fn by_default(world_size: usize, len: usize, element_bytes: usize) -> AllReduce {
        chosen(&Links::default(), world_size, len, element_bytes)
    }

    #[test]
    fn small_goes_by_doubling_and_large_by_ring() {
        for world_size in 1..=64 {
            assert_eq!(by_default(world_size, 0, 4), AllReduce::RecursiveDoubling);
            assert_eq!(by_default(world_size, 1, 8), AllReduce::RecursiveDoubling);
        }
        for world_size in 2..=64 {
            let large = by_default(world_size, 16 << 20, 4);
            assert!(matches!(large, AllReduce::Ring { block } if block > 0), "{world_size} {large:?}");
        }
    }

    #[test]
    fn more_bytes_never_turn_back_to_doubling() {
        for world_size in 2..=64 {
            let others =
                (0..26).map(|bits| by_default(world_size, 1 << bits, 4) != AllReduce::RecursiveDoubling);
            assert!(others.collect::<Vec<_>>().is_sorted(), "{world_size}");
        }
    }

    #[test]
    fn few_hops_serve_what_is_neither_small_nor_large() {
        let between = [1 << 12, 1 << 14, 1 << 16].map(|len| by_default(8, len, 4));
        assert!(
            between.iter().any(|chosen| matches!(chosen, AllReduce::Direct | AllReduce::HalvingDoubling))
        );
    }

    #[test]
    fn slow_links_are_crossed_less_often_and_the_choice_says_why() {
        let mut figures = LinkFigures::default();
        figures.across.latency_us = 500.0;
        let links = |cross_nodes| Links { profile: LinkProfile::uniform(figures), cross_nodes };
        let len = 1 << 14;
        assert_ne!(chosen(&links(false), 4, len, 4), AllReduce::RecursiveDoubling);
        assert_eq!(chosen(&links(true), 4, len, 4), AllReduce::RecursiveDoubling);
        let why = choose_all_reduce(&links(true), 4, len, 4).why();
        assert!(why.contains("recursive doubling"), "{why}");
    }
}
