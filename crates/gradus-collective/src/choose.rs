//! Which algorithm a communicator uses: the cheapest by formula, on the links that were measured, or else on links such as
//! those inside a host.

use crate::algorithm::{Algorithm, AllReduce, Nodes};
use crate::cost::{LinkProfile, Price, price_by_formula};
use crate::one_sided::Reach;
use crate::tuner::{
    Candidate, Case, Choice, Neighbourhood, Purpose, Scheme, eligible, first_of_the_cheapest,
    one_sided_candidates, rings, two_level,
};

/// Elements for each rank below which nobody has a share worth sending: one message of all holds as many as a cache line.
const LEAST_SHARE: usize = 16;

/// What a communicator knows of the links between its ranks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Links {
    /// What they are like.
    pub profile: LinkProfile,
    /// Which ranks share a node; `None` where all do.
    pub nodes: Option<Nodes>,
}

/// What is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// By how many ranks.
    pub world_size: usize,
    /// Elements.
    pub len: usize,
    /// Bytes of one.
    pub element_bytes: usize,
}

impl Size {
    /// Bytes of a rank.
    pub const fn bytes(&self) -> usize {
        self.len.saturating_mul(self.element_bytes)
    }
}

impl Links {
    /// A sum over these links, and among neighbours with such reach, if there are any.
    fn case(&self, size: Size, reach: Option<Reach>) -> Case {
        let Size { world_size, len, element_bytes } = size;
        let nodes = self.nodes.clone().unwrap_or_else(|| Nodes::even(world_size, world_size));
        let figures = self.profile.at(size.bytes() as u64);
        let neighbours =
            reach.and_then(|reach| Some(Neighbourhood { figures: self.profile.neighbours.clone()?, reach }));
        Case { purpose: Purpose::AllReduce, nodes, len, element_bytes, figures, neighbours }
    }
}

/// The algorithm for `len` elements of `element_bytes` each among `world_size` ranks over streams, with what it was chosen
/// from: the same on every rank that knows the same of the links.
///
/// # Panics
/// If the world is empty or elements have no bytes.
pub fn choose_all_reduce(links: &Links, world_size: usize, len: usize, element_bytes: usize) -> Choice {
    choose_among_neighbours(links, Size { world_size, len, element_bytes }, None)
}

/// The way to sum, over streams or, for ranks of one host whose reach is given and of which figures are known, among
/// neighbours.
///
/// # Panics
/// As for [`choose_all_reduce`].
pub fn choose_among_neighbours(links: &Links, size: Size, reach: Option<Reach>) -> Choice {
    let case = links.case(size, reach);
    let mut candidates = one_sided_candidates(&case).expect("figures were validated when they became known");
    let programs = candidates.len();
    candidates.extend(fitting(size).into_iter().map(|all_reduce| {
        let price = flat_price(&all_reduce, &case).expect("on one level all of these have a formula");
        Candidate { algorithm: Scheme::Streams(Algorithm::AllReduce(all_reduce)), price }
    }));
    candidates.extend(two_level(&case).into_iter().filter_map(|all_reduce| {
        let algorithm = Algorithm::AllReduce(all_reduce);
        let price = price_by_formula(&algorithm, &case.nodes, size.len, size.element_bytes, &case.figures)?;
        Some(Candidate { algorithm: Scheme::Streams(algorithm), price })
    }));
    let chosen = first_of_the_cheapest(eligible(&candidates, programs), |candidate| candidate.price.seconds);
    let chosen = chosen.expect("there are candidates").clone();
    candidates.sort_by(|one, other| one.price.seconds.total_cmp(&other.price.seconds));
    Choice { case, chosen, candidates, unpriced: Vec::new() }
}

/// The price of what knows no nodes. Where there are several, every link counts as one between them: whatever goes at one pace
/// goes at the slowest.
fn flat_price(all_reduce: &AllReduce, case: &Case) -> Option<Price> {
    let world_size = case.nodes.world_size();
    let ranks_per_node = if case.nodes.members().len() > 1 { 1 } else { world_size };
    let (algorithm, nodes) =
        (Algorithm::AllReduce(all_reduce.clone()), Nodes::even(world_size, ranks_per_node));
    price_by_formula(&algorithm, &nodes, case.len, case.element_bytes, &case.figures)
}

/// What comes into question, the robust first.
fn fitting(Size { world_size, len, element_bytes }: Size) -> Vec<AllReduce> {
    let mut all = vec![AllReduce::RecursiveDoubling];
    if len >= world_size.saturating_mul(LEAST_SHARE) {
        all.extend(rings(world_size, len, element_bytes));
        all.extend([AllReduce::HalvingDoubling, AllReduce::Direct]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{LinkFigures, NeighbourFigures};
    use crate::one_sided::OneSided;

    fn chosen(links: &Links, world_size: usize, len: usize, element_bytes: usize) -> AllReduce {
        match choose_all_reduce(links, world_size, len, element_bytes).chosen.algorithm {
            Scheme::Streams(Algorithm::AllReduce(all_reduce)) => all_reduce,
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

    fn near(figures: NeighbourFigures, world_size: usize, len: usize, reach: Reach) -> Choice {
        let profile = LinkProfile { neighbours: Some(figures), ..LinkProfile::default() };
        let links = Links { profile, nodes: None };
        choose_among_neighbours(&links, Size { world_size, len, element_bytes: 4 }, Some(reach))
    }

    #[test]
    fn neighbours_take_fewer_hops_while_hops_are_dear() {
        let kind = |hop_us, len, reach| {
            let figures = NeighbourFigures { hop_us, ..NeighbourFigures::default() };
            near(figures, 4, len, reach).chosen.algorithm.one_sided()
        };
        let (private, registered) = (Reach::default(), Reach { registered: true, reads_private: false });
        assert_eq!(kind(100.0, 1 << 14, private), Some(OneSided::Flat));
        assert_eq!(kind(0.01, 1 << 14, private), Some(OneSided::Staged));
        assert_eq!(kind(0.1, 1 << 22, private), Some(OneSided::Staged));
        assert_eq!(kind(0.1, 1 << 22, registered), Some(OneSided::Push));
        let pulls = Reach { registered: false, reads_private: true };
        assert!(near(NeighbourFigures::default(), 2, 1 << 18, pulls).candidates.len() > 5);
    }

    #[test]
    fn what_is_staged_needs_no_stream_whatever_a_price_says() {
        let slow = NeighbourFigures { hop_us: 1e6, ..NeighbourFigures::default() };
        let choice = near(slow, 2, 256, Reach::default());
        assert_eq!(choice.chosen.algorithm, Scheme::Neighbours(OneSided::Flat));
        assert!(choice.candidates[0].algorithm.one_sided().is_none() && choice.why().contains("flat"));
    }

    #[test]
    fn slow_links_are_crossed_less_often_and_the_choice_says_why() {
        let mut figures = LinkFigures::default();
        figures.across.latency_us = 500.0;
        let links = |apart: bool| Links {
            profile: LinkProfile::uniform(figures),
            nodes: apart.then(|| Nodes::even(4, 1)),
        };
        let len = 1 << 14;
        assert_ne!(chosen(&links(false), 4, len, 4), AllReduce::RecursiveDoubling);
        assert_eq!(chosen(&links(true), 4, len, 4), AllReduce::RecursiveDoubling);
        let why = choose_all_reduce(&links(true), 4, len, 4).why();
        assert!(why.contains("recursive doubling"), "{why}");
    }
}
