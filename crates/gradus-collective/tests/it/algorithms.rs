//! Every algorithm at every world size up to 64, on symbols.

use crate::two_rings::two_rings_all_reduce;
use gradus_collective::algorithm::{Algorithm, AllReduce, Barrier, Nodes, Spread};
use gradus_collective::checker::{Fault, Goal, check};
use gradus_collective::plan::{Plan, Step};
use gradus_error::Kind;
use gradus_memory::Span;
use proptest::prelude::*;

const WORLDS: std::ops::RangeInclusive<usize> = 1..=64;

pub fn plan(algorithm: &Algorithm, world_size: usize, len: usize) -> Plan {
    Plan::of_world(world_size, len, |rank| algorithm.steps(rank, world_size, len))
}

fn hold(algorithm: &Algorithm, world_size: usize, len: usize) {
    let goal = match algorithm {
        Algorithm::AllReduce(_) => Goal::AllReduce,
        Algorithm::Broadcast { root, .. } => Goal::Broadcast { root: *root },
        Algorithm::Barrier(_) => Goal::Barrier,
        Algorithm::Reduce { .. } => panic!("held by `hold_reduce`"),
    };
    let found = check(&plan(algorithm, world_size, len), goal);
    assert_eq!(found, Ok(()), "{algorithm:?} among {world_size}, {len} elements");
}

/// A reduce is right if copying what its root has then makes an all-reduce of it.
fn hold_reduce(spread: &Spread, world_size: usize, len: usize, root: usize) {
    let plan = Plan::of_world(world_size, len, |rank| {
        let mut steps = spread.reduce(rank, world_size, len, root);
        steps.extend(Spread::Binomial.broadcast(rank, world_size, len, root));
        steps
    });
    assert_eq!(
        check(&plan, Goal::AllReduce),
        Ok(()),
        "{spread:?} among {world_size} to {root}, {len} elements"
    );
}

pub fn spreads(block: usize) -> [Spread; 4] {
    [Spread::Direct, Spread::Binomial, Spread::Chain, Spread::DoubleTree { block }]
}

pub fn all_reduces(block: usize) -> Vec<AllReduce> {
    use AllReduce::{Direct, DoubleTree, HalvingDoubling, RecursiveDoubling, Ring, ThereAndBack};
    let flat = [RecursiveDoubling, Direct, HalvingDoubling, Ring { block: block * 64 }, DoubleTree { block }];
    flat.into_iter().chain(spreads(block).map(ThereAndBack)).collect()
}

#[test]
fn all_reduces_sum_once_and_alike() {
    for world_size in WORLDS {
        for (len, block) in [(0, 1), (1, 1), (world_size + 3, 7), (1001, 300)] {
            for all_reduce in all_reduces(block) {
                hold(&Algorithm::AllReduce(all_reduce), world_size, len);
            }
        }
    }
}

#[test]
fn spreads_reach_everybody_and_gather_from_everybody() {
    for world_size in WORLDS {
        for (root, len, block) in [(0, 0, 1), (world_size - 1, 1, 1), (world_size / 2, 37, 5)] {
            for spread in spreads(block) {
                hold_reduce(&spread, world_size, len, root);
                hold(&Algorithm::Broadcast { spread, root }, world_size, len);
            }
        }
    }
}

#[test]
fn barriers_hear_of_everybody() {
    for world_size in WORLDS {
        hold(&Algorithm::Barrier(Barrier::Dissemination), world_size, 1);
        for all_reduce in all_reduces(1) {
            hold(&Algorithm::Barrier(Barrier::Sum(all_reduce)), world_size, 1);
        }
    }
}

/// Ranks in nodes: in order, dealt out in turn, and of sizes 1, 2, 3 and so on from the last rank down.
fn shapes(world_size: usize) -> Vec<Nodes> {
    let dealt: Vec<Vec<usize>> =
        (0..3.min(world_size)).map(|node| (node..world_size).step_by(3).collect()).collect();
    let mut rest: Vec<usize> = (0..world_size).rev().collect();
    let mut growing: Vec<Vec<usize>> = Vec::new();
    while !rest.is_empty() {
        growing.push(rest.drain(..rest.len().min(growing.len() + 1)).collect());
    }
    let even = [1, 4, 8].map(|ranks_per_node| Nodes::even(world_size, ranks_per_node));
    even.into_iter().chain([Nodes::try_from(dealt).unwrap(), Nodes::try_from(growing).unwrap()]).collect()
}

fn two_level(nodes: &Nodes, lanes: usize, inside: Spread, across: AllReduce) -> Algorithm {
    Algorithm::AllReduce(AllReduce::TwoLevel {
        nodes: nodes.clone(),
        lanes,
        inside,
        across: Box::new(across),
    })
}

#[test]
fn two_levels_sum_once_and_alike_whatever_the_nodes() {
    for world_size in WORLDS {
        for nodes in shapes(world_size) {
            let lengths = [(1, 1), (2, 129), (8, 200)];
            for ((lanes, len), inside) in lengths.into_iter().zip(spreads(50)) {
                hold(&two_level(&nodes, lanes, inside, AllReduce::HalvingDoubling), world_size, len);
            }
            for across in [AllReduce::RecursiveDoubling, AllReduce::Ring { block: 100 }, AllReduce::Direct] {
                hold(&two_level(&nodes, 4, Spread::Direct, across), world_size, 97);
            }
        }
    }
}

#[test]
fn two_level_spreads_reach_everybody_from_any_root() {
    for world_size in WORLDS {
        for nodes in shapes(world_size) {
            for (inside, across) in spreads(5).into_iter().zip(spreads(9).into_iter().rev()) {
                let (inside, across) = (Box::new(inside), Box::new(across));
                let spread = Spread::TwoLevel { nodes: nodes.clone(), inside, across };
                let root = world_size * 2 / 3;
                hold_reduce(&spread, world_size, 17, root);
                hold(&Algorithm::Broadcast { spread, root }, world_size, 17);
            }
        }
    }
}

#[test]
fn levels_nest() {
    let racks = Nodes::even(8, 3);
    let across = AllReduce::TwoLevel {
        nodes: racks,
        lanes: 2,
        inside: Spread::Binomial,
        across: Box::new(AllReduce::Direct),
    };
    hold(&two_level(&Nodes::even(32, 4), 4, Spread::Direct, across), 32, 500);
}

#[test]
fn algorithms_survive_their_record() {
    let nodes = Nodes::try_from(vec![vec![2, 0], vec![1]]).unwrap();
    let algorithm = two_level(&nodes, 2, Spread::DoubleTree { block: 9 }, AllReduce::Ring { block: 7 });
    let record = serde_json::to_string(&algorithm).unwrap();
    assert_eq!(serde_json::from_str::<Algorithm>(&record).unwrap(), algorithm);
    assert!(serde_json::from_str::<Algorithm>(&record.replace("[1]", "[0]")).is_err(), "{record}");
}

#[test]
fn records_that_do_not_fit_the_world_are_refused() {
    let nodes = Nodes::even(4, 2);
    let inside = Spread::TwoLevel {
        nodes: Nodes::even(3, 1),
        inside: Box::new(Spread::Chain),
        across: Box::new(Spread::Direct),
    };
    let across = AllReduce::TwoLevel {
        nodes: nodes.clone(),
        lanes: 1,
        inside: Spread::Direct,
        across: Box::new(AllReduce::Direct),
    };
    let refused = [
        Algorithm::AllReduce(AllReduce::Ring { block: 0 }),
        Algorithm::Barrier(Barrier::Sum(AllReduce::DoubleTree { block: 0 })),
        Algorithm::AllReduce(AllReduce::ThereAndBack(Spread::DoubleTree { block: 0 })),
        Algorithm::Reduce { spread: Spread::Chain, root: 4 },
        two_level(&Nodes::even(5, 2), 1, Spread::Direct, AllReduce::Direct),
        two_level(&nodes, 1, inside, AllReduce::Direct),
        two_level(&nodes, 1, Spread::Direct, across),
    ];
    for algorithm in refused {
        assert_eq!(*algorithm.validate(4).unwrap_err().kind(), Kind::Invalid, "{algorithm:?}");
    }
    let sound =
        two_level(&nodes, usize::MAX, Spread::DoubleTree { block: usize::MAX }, AllReduce::Ring { block: 1 });
    sound.validate(4).unwrap();
    hold(&sound, 4, 5);
}

/// The algorithm that the page on plans shows how to add is the one that is checked here, and it is right.
#[test]
fn the_page_s_example_holds() {
    let page = include_str!("../../../../docs/collective-plans.md");
    assert!(page.contains(include_str!("two_rings.rs").trim()), "the page shows another algorithm");
    for world_size in WORLDS {
        for len in [0, 1, 1001] {
            let plan = Plan::of_world(world_size, len, |rank| two_rings_all_reduce(rank, world_size, len));
            assert_eq!(check(&plan, Goal::AllReduce), Ok(()), "{world_size} {len}");
        }
    }
}

/// Every way to plant one bug in a plan: a step left out, a peer swapped, a contribution doubled, a range shifted.
pub fn planted(sound: &Plan) -> Vec<(String, Plan)> {
    let world_size = sound.ranks.len();
    let mut plans = Vec::new();
    for rank in 0..world_size {
        for (at, step) in sound.ranks[rank].iter().enumerate() {
            let mut plant = |what: &str, steps: Vec<Step>| {
                let mut plan = sound.clone();
                plan.ranks[rank].splice(at..=at, steps);
                plans.push((format!("{what} {at} of rank {rank}: {step:?}"), plan));
            };
            let span = step.span();
            plant("dropped", vec![]);
            plant("twice", vec![*step, *step]);
            plant("another peer", vec![with(step, (step.peer() + 1) % world_size, span)]);
            let start = (span.start + span.len) % sound.len;
            plant(
                "shifted",
                vec![with(step, step.peer(), Span::new(start.min(sound.len - span.len), span.len))],
            );
        }
    }
    plans.retain(|(_, plan)| plan != sound);
    plans
}

pub fn with(step: &Step, peer: usize, span: Span) -> Step {
    match step {
        _ if step.sends() => Step::send(peer, span),
        Step::ReceiveReduce { .. } => Step::receive_reduce(peer, span),
        _ => Step::receive(peer, span),
    }
}

#[test]
fn planted_bugs_are_found_in_every_algorithm() {
    let nodes = Nodes::even(6, 2);
    let two_level = two_level(&nodes, 2, Spread::Direct, AllReduce::HalvingDoubling);
    let flat = all_reduces(16).into_iter().map(Algorithm::AllReduce);
    for algorithm in flat.chain([two_level]) {
        let plans = planted(&plan(&algorithm, 6, 96));
        assert!(plans.len() > 20);
        for (bug, plan) in plans {
            assert!(check(&plan, Goal::AllReduce).is_err(), "{algorithm}: {bug}");
        }
    }
}

#[test]
fn both_ends_doubled_are_a_contribution_too_many() {
    // The first exchange of recursive doubling, made once more by everybody.
    let mut plan = plan(&Algorithm::AllReduce(AllReduce::RecursiveDoubling), 8, 3);
    for steps in &mut plan.ranks {
        steps.splice(0..0, steps[..2].to_vec());
    }
    assert_eq!(check(&plan, Goal::AllReduce), Err(Fault::WrongResult { rank: 0, element: 0 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_shape_is_summed_once_and_alike(
        world_size in 1usize..24, len in 0usize..600, block in 1usize..400, ranks_per_node in 1usize..9,
        lanes in 0usize..10, which in 0usize..9
    ) {
        let all_reduce = all_reduces(block.max(len / 12)).swap_remove(which);
        hold(&Algorithm::AllReduce(all_reduce.clone()), world_size, len);
        let inside = spreads(block.max(len / 12))[which % 4].clone();
        hold(&two_level(&Nodes::even(world_size, ranks_per_node), lanes, inside, all_reduce), world_size, len);
    }
}
