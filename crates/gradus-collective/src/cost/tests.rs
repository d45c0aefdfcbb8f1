//! Simulated times against formulas, and against what can be reckoned by hand.

use super::*;
use crate::algorithm::{AllReduce, Barrier, Spread};
use crate::plan::Step;
use gradus_memory::Span;
use proptest::prelude::*;

const MIB: usize = 1 << 18;

/// Links of one level on which messages pass whole: the textbook's world, with alpha 10 us, beta 1 ns and gamma 0.25 ns.
fn textbook(one_at_a_time: bool) -> LinkFigures {
    let link = Link { latency_us: 10.0, bandwidth_bytes_per_s: 1e9, message_overhead_us: 0.0 };
    LinkFigures {
        inside: link,
        across: link,
        reduction_bytes_per_s: 4e9,
        nic_bytes_per_s: None,
        bus_bytes_per_s: None,
        piece_bytes: u64::MAX,
        start_us: 0.0,
        one_at_a_time,
    }
}

fn simulated(algorithm: &Algorithm, nodes: &Nodes, len: usize, figures: &LinkFigures) -> f64 {
    let price = price(algorithm, nodes, len, 4, figures).unwrap().unwrap();
    assert_eq!(price.method, Method::Simulated);
    price.seconds
}

fn formula(algorithm: &Algorithm, nodes: &Nodes, len: usize, figures: &LinkFigures) -> f64 {
    price_by_formula(algorithm, nodes, len, 4, figures).unwrap().seconds
}

fn is_near(got: f64, want: f64, part: f64) -> bool {
    (got - want).abs() <= part * want
}

fn all_reduce(all_reduce: AllReduce) -> Algorithm {
    Algorithm::AllReduce(all_reduce)
}

/// The published costs, on links with ways of their own for sending and receiving.
#[test]
fn textbook_costs_come_out() {
    let (alpha, beta, gamma) = (10e-6, 1e-9, 0.25e-9);
    let figures = textbook(false);
    for world_size in [2usize, 4, 8, 16, 32, 64] {
        let nodes = Nodes::even(world_size, world_size);
        let (w, rounds) = (world_size as f64, f64::from(world_size.ilog2()));
        let n = 4.0 * MIB as f64;
        let share = n / w;
        let cases = [
            (all_reduce(AllReduce::RecursiveDoubling), rounds * (alpha + n * (beta + gamma))),
            (
                all_reduce(AllReduce::HalvingDoubling),
                2.0 * rounds * alpha + (w - 1.0) * share * (2.0 * beta + gamma),
            ),
            (
                all_reduce(AllReduce::Ring { block: MIB }),
                2.0 * (w - 1.0) * (alpha + share * beta) + (w - 1.0) * share * gamma,
            ),
            // Adding overlaps with the next message's arrival, but for the last.
            (all_reduce(AllReduce::Direct), 2.0 * alpha + 2.0 * (w - 1.0) * share * beta + share * gamma),
            (Algorithm::Broadcast { spread: Spread::Binomial, root: 1 }, rounds * (alpha + n * beta)),
            (Algorithm::Broadcast { spread: Spread::Chain, root: 0 }, (w - 1.0) * (alpha + n * beta)),
        ];
        for (algorithm, want) in cases {
            let got = simulated(&algorithm, &nodes, MIB, &figures);
            assert!(is_near(got, want, 1e-9), "{algorithm} among {world_size}: {got} against {want}");
            let got = formula(&algorithm, &nodes, MIB, &figures);
            assert!(
                is_near(got, want, 1e-9),
                "formula of {algorithm} among {world_size}: {got} against {want}"
            );
        }
    }
}

#[test]
fn a_processor_that_does_everything_moves_each_byte_twice() {
    let (nodes, n) = (Nodes::even(2, 2), 4.0 * MIB as f64);
    let got = simulated(&all_reduce(AllReduce::RecursiveDoubling), &nodes, MIB, &textbook(true));
    assert!(is_near(got, 10e-6 + n * 2.25e-9, 0.01), "{got}");
}

#[test]
fn ranges_stream_through_a_chain() {
    let mut figures = textbook(false);
    figures.piece_bytes = 1 << 16;
    let nodes = Nodes::even(32, 32);
    let chain = Algorithm::Broadcast { spread: Spread::Chain, root: 0 };
    let (piece, n) = (f64::from(1 << 16), 4.0 * MIB as f64);
    let want = 31.0 * (10e-6 + piece * 1e-9) + (n - piece) * 1e-9;
    let got = simulated(&chain, &nodes, MIB, &figures);
    assert!(is_near(got, want, 1e-9), "{got} against {want}");
    assert!(is_near(formula(&chain, &nodes, MIB, &figures), want, 1e-9));
}

/// What formulas say of plans that are too long to run must be what they say of shorter ones, within a fifth.
#[test]
fn formulas_agree_with_simulation_where_both_can_be_had() {
    for figures in [LinkFigures::default(), LinkFigures { one_at_a_time: false, ..LinkFigures::default() }] {
        for (world_size, ranks_per_node) in [(2, 2), (8, 8), (32, 32), (32, 4), (64, 8), (12, 3), (16, 1)] {
            let nodes = Nodes::even(world_size, ranks_per_node);
            for len in [MIB / 256, MIB, 64 * MIB] {
                let ring = AllReduce::Ring { block: len };
                for algorithm in [ring, AllReduce::Direct].map(all_reduce) {
                    let (got, want) = (
                        formula(&algorithm, &nodes, len, &figures),
                        simulated(&algorithm, &nodes, len, &figures),
                    );
                    assert!(
                        is_near(got, want, 0.2),
                        "{algorithm} of {len} on {ranks_per_node} of {world_size}, {}: {got} against {want}",
                        figures.one_at_a_time
                    );
                }
            }
        }
    }
}

/// Of two levels a formula leaves out that they overlap: it says no less than the model, and not half as much again.
#[test]
fn formulas_of_two_levels_agree_with_simulation() {
    let figures = LinkFigures::default();
    for (world_size, ranks_per_node) in [(32, 4), (64, 8), (12, 3)] {
        let nodes = Nodes::even(world_size, ranks_per_node);
        for len in [MIB / 256, MIB, 64 * MIB] {
            for across in [AllReduce::Ring { block: len }, AllReduce::HalvingDoubling, AllReduce::Direct] {
                let (nodes_of, across) = (nodes.clone(), Box::new(across));
                let algorithm = all_reduce(AllReduce::TwoLevel {
                    nodes: nodes_of,
                    lanes: ranks_per_node,
                    inside: Spread::Direct,
                    across,
                });
                let got = formula(&algorithm, &nodes, len, &figures);
                let want = simulated(&algorithm, &nodes, len, &figures);
                assert!(
                    got > 0.8 * want && got < 1.5 * want,
                    "{algorithm} of {len} on {ranks_per_node} of {world_size}: {got} against {want}"
                );
                let counted = price(&algorithm, &nodes, len, 4, &figures).unwrap().unwrap().traffic;
                let reckoned = price_by_formula(&algorithm, &nodes, len, 4, &figures).unwrap().traffic;
                // Shares are whole elements, aligned: few of them divide unevenly.
                let (reckoned, counted) = (reckoned.across_bytes as f64, counted.across_bytes as f64);
                assert!(
                    is_near(reckoned, counted, 0.1),
                    "{algorithm} of {len}: {reckoned} against {counted}"
                );
            }
        }
    }
}

#[test]
fn what_a_node_shares_is_shared() {
    let mut figures = textbook(false);
    figures.nic_bytes_per_s = Some(1e9);
    let exchange = |pairs: usize| {
        let plan = Plan::of_world(8, MIB, |rank| {
            let (peer, span) = ((rank + 4) % 8, Span::new(0, MIB));
            let busy = rank % 4 < pairs;
            if busy { vec![Step::send(peer, span), Step::receive(peer, span)] } else { Vec::new() }
        });
        price_of_plan(&plan, &Nodes::even(8, 4), 4, &figures).unwrap()
    };
    let n = 4.0 * MIB as f64;
    for pairs in 1..=4 {
        let price = exchange(pairs);
        assert!(is_near(price.seconds, 10e-6 + pairs as f64 * n * 1e-9, 1e-9), "{pairs} {price:?}");
        assert_eq!(price.traffic.across_bytes, (2 * pairs * 4 * MIB) as u64);
    }
}

#[test]
fn a_rank_that_all_send_to_takes_one_after_another() {
    let nodes = Nodes::even(9, 9);
    let gather = Algorithm::Reduce { spread: Spread::Direct, root: 4 };
    let n = 4.0 * MIB as f64;
    let got = simulated(&gather, &nodes, MIB, &textbook(false));
    assert!(is_near(got, 10e-6 + 8.0 * n * 1e-9 + n * 0.25e-9, 1e-9), "{got}");
}

#[test]
fn traffic_is_counted_by_level() {
    let nodes = Nodes::even(64, 8);
    for which in [AllReduce::Direct, AllReduce::Ring { block: MIB }].map(all_reduce) {
        let counted = price(&which, &nodes, MIB, 4, &LinkFigures::default()).unwrap().unwrap().traffic;
        let reckoned = price_by_formula(&which, &nodes, MIB, 4, &LinkFigures::default()).unwrap().traffic;
        assert_eq!(counted, reckoned, "{which}");
    }
    let inside = Spread::Direct;
    let across = Box::new(AllReduce::HalvingDoubling);
    let two_level = AllReduce::TwoLevel { nodes: nodes.clone(), lanes: 8, inside, across };
    let traffic =
        price(&all_reduce(two_level), &nodes, MIB, 4, &LinkFigures::default()).unwrap().unwrap().traffic;
    // Every node sends 2 (N - 1)/N of the buffer; inside, each rank sends 2 (S - 1)/S of it.
    assert_eq!(traffic.across_bytes, 8 * 2 * 7 * (MIB as u64 * 4) / 8);
    assert_eq!(traffic.inside_bytes, 64 * 2 * 7 * (MIB as u64 * 4) / 8);
}

#[test]
fn plans_that_are_none_are_refused() {
    let span = Span::new(0, 1);
    let of_two = |first: Vec<Step>, second: Vec<Step>| Plan { len: 1, ranks: vec![first, second] };
    let send_back = |peer| vec![Step::receive_reduce(peer, span), Step::send(peer, span)];
    let refused = [
        of_two(vec![Step::send(1, span)], vec![]),
        of_two(vec![Step::send(1, span)], vec![Step::receive(0, Span::new(0, 0))]),
        of_two(send_back(1), send_back(0)),
        of_two(vec![Step::send(7, span)], vec![]),
    ];
    for plan in refused {
        let error = price_of_plan(&plan, &Nodes::even(2, 2), 4, &LinkFigures::default()).unwrap_err();
        assert_eq!(*error.kind(), gradus_error::Kind::Invalid, "{plan:?}");
    }
    let plan = of_two(vec![], vec![]);
    assert!(price_of_plan(&plan, &Nodes::even(3, 2), 4, &LinkFigures::default()).is_err());
}

#[test]
fn thousands_of_ranks_are_priced() {
    let (nodes, figures) = (Nodes::even(4096, 8), LinkFigures::default());
    for (which, method) in [
        (AllReduce::Ring { block: 64 * MIB }, Method::ClosedForm),
        (AllReduce::Direct, Method::ClosedForm),
        (AllReduce::HalvingDoubling, Method::Simulated),
    ] {
        let price = price(&all_reduce(which), &nodes, 64 * MIB, 4, &figures).unwrap().unwrap();
        assert!(price.method == method && price.seconds.is_finite() && price.seconds > 0.0, "{price:?}");
    }
    let barrier = Algorithm::Barrier(Barrier::Dissemination);
    let price = price(&barrier, &nodes, 1, 4, &figures).unwrap().unwrap();
    // Twelve hops, of which nine leave the node at least.
    assert!(price.seconds > 9.0 * 15e-6 && price.seconds < 12.0 * 40e-6, "{price:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// But for a fifth: first come, first served is not the best order, and a delay may lead to a better one (Graham,
    /// "Bounds on Multiprocessing Timing Anomalies", 1969).
    #[test]
    fn slower_links_and_more_bytes_never_cost_less(
        world_size in 1usize..20, ranks_per_node in 1usize..6, len in 1usize..200_000, which in 0usize..5
    ) {
        let nodes = Nodes::even(world_size, ranks_per_node);
        let which = [
            AllReduce::RecursiveDoubling, AllReduce::Direct, AllReduce::HalvingDoubling,
            AllReduce::Ring { block: 1 << 16 }, AllReduce::DoubleTree { block: 1 << 14 },
        ][which].clone();
        let figures = LinkFigures::default();
        let mut slower = figures;
        slower.across.latency_us *= 3.0;
        slower.inside.latency_us *= 3.0;
        let cost = |len, figures| simulated(&all_reduce(which.clone()), &nodes, len, figures);
        let price = cost(len, &figures);
        prop_assert!(price.is_finite());
        prop_assert!(cost(len, &slower) >= price * 0.8);
        prop_assert!(cost(len * 8, &figures) >= price * 0.8);
    }
}
