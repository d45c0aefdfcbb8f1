//! Thousands of ranks, by fingerprints.

use crate::algorithms::{all_reduces, plan, planted, spreads, with};
use gradus_collective::algorithm::{Algorithm, AllReduce, Barrier, Nodes, Spread};
use gradus_collective::checker::{self, Fault, Goal};
use gradus_collective::fingerprint::{
    check_all_reduce, check_all_reduce_at, check_barrier, check_broadcast, check_reduce,
};
use gradus_collective::plan::{Plan, Step};
use gradus_memory::Span;

const WIDE: usize = 4096;

fn hold(algorithm: &Algorithm, world_size: usize, len: usize) {
    let plan = plan(algorithm, world_size, len);
    let found = match algorithm {
        Algorithm::AllReduce(_) => check_all_reduce(&plan),
        Algorithm::Reduce { root, .. } => check_reduce(&plan, *root),
        Algorithm::Broadcast { root, .. } => check_broadcast(&plan, *root),
        Algorithm::Barrier(_) => check_barrier(&plan),
    };
    assert_eq!(found, Ok(()), "{algorithm} among {world_size}, {len} elements");
}

fn two_level(nodes: Nodes, lanes: usize, across: AllReduce) -> Algorithm {
    Algorithm::AllReduce(AllReduce::TwoLevel {
        nodes,
        lanes,
        inside: Spread::Direct,
        across: Box::new(across),
    })
}

/// Nodes of 5, 6 and so on to 11 ranks, over and over; the last has what is left.
fn unequal(world_size: usize) -> Nodes {
    let mut ranks = (0..world_size).peekable();
    let mut members: Vec<Vec<usize>> = Vec::new();
    while ranks.peek().is_some() {
        let size = 5 + members.len() % 7;
        members.push(ranks.by_ref().take(size).collect());
    }
    Nodes::try_from(members).unwrap()
}

/// One test, so that one plan at a time lies in memory: the largest takes some 300 MB.
#[test]
fn plans_of_few_hops_hold_among_4096_ranks() {
    // As many shares as ranks, all of them whole cache lines but the last.
    let len = WIDE * 16 - 3;
    for world_size in [WIDE, WIDE - 1] {
        for (all_reduce, len) in [
            (AllReduce::RecursiveDoubling, 5),
            (AllReduce::HalvingDoubling, len),
            (AllReduce::DoubleTree { block: len / 7 }, len),
            (AllReduce::ThereAndBack(Spread::Binomial), 1),
        ] {
            hold(&Algorithm::AllReduce(all_reduce), world_size, len);
        }
        hold(&Algorithm::Barrier(Barrier::Dissemination), world_size, 1);
    }
    hold(&two_level(Nodes::even(WIDE, 8), 8, AllReduce::HalvingDoubling), WIDE, len);
    hold(&two_level(unequal(WIDE), 5, AllReduce::HalvingDoubling), WIDE, len);
    hold(&two_level(unequal(WIDE), 3, AllReduce::RecursiveDoubling), WIDE, 1000);
    for spread in [Spread::Binomial, Spread::DoubleTree { block: 100 }, Spread::Direct] {
        hold(&Algorithm::Reduce { spread: spread.clone(), root: 77 }, WIDE, 500);
        hold(&Algorithm::Broadcast { spread, root: 4000 }, WIDE, 500);
    }
}

/// The first and the last share, some between, and both sides of an edge.
const SAMPLES: [usize; 6] = [0, 15, 16, 31_111, 65_519, 65_520];

fn ring(rank: usize) -> Vec<Step> {
    AllReduce::Ring { block: WIDE * 16 }.steps(rank, WIDE, WIDE * 16 - 15)
}

#[test]
fn a_ring_of_4096_ranks_holds_where_it_is_followed() {
    assert_eq!(check_all_reduce_at(WIDE, WIDE * 16 - 15, &SAMPLES, ring), Ok(()));
}

/// In a ring of 64, so that many can be tried; each among the steps that a sample passes.
#[test]
fn planted_bugs_are_found_where_a_ring_is_followed() {
    let (world_size, len) = (64, 64 * 16);
    let sound = plan(&Algorithm::AllReduce(AllReduce::Ring { block: len }), world_size, len);
    let touches = |step: &Step| step.span().start <= 100 && 100 < step.span().end();
    let found = |plan: &Plan| check_all_reduce_at(world_size, len, &[100], |rank| plan.ranks[rank].clone());
    assert_eq!(found(&sound), Ok(()));
    for rank in [0, 5, 63] {
        for at in (0..sound.ranks[rank].len()).filter(|at| touches(&sound.ranks[rank][*at])) {
            let step = sound.ranks[rank][at];
            let moved = Span::new((step.span().start + 16) % len, step.span().len);
            let bugs = [
                vec![],
                vec![step, step],
                vec![with(&step, (step.peer() + 1) % world_size, step.span())],
                vec![with(&step, step.peer(), moved)],
            ];
            for bug in bugs {
                let mut plan = sound.clone();
                plan.ranks[rank].splice(at..=at, bug.clone());
                assert!(plan == sound || found(&plan).is_err(), "{rank} {step:?} {bug:?}");
            }
        }
    }
}

#[test]
fn a_sum_that_is_copied_and_not_added_is_found_where_a_ring_is_followed() {
    let steps = |rank: usize| {
        let mut steps = ring(rank);
        let adds = |step: &Step| matches!(step, Step::ReceiveReduce { .. }) && step.span().start == 16;
        if let Some(step) = steps.iter_mut().filter(|_| rank == 1234).find(|step| adds(step)) {
            *step = Step::receive(step.peer(), step.span());
        }
        steps
    };
    let found = check_all_reduce_at(WIDE, WIDE * 16 - 15, &[0, 20], steps);
    assert_eq!(found, Err(Fault::WrongResult { rank: 0, element: 20 }));
}

#[test]
fn both_checkers_agree() {
    let nodes = Nodes::even(6, 4);
    let two_level = two_level(nodes, 2, AllReduce::HalvingDoubling);
    for algorithm in all_reduces(16).into_iter().map(Algorithm::AllReduce).chain([two_level]) {
        for world_size in
            if matches!(algorithm, Algorithm::AllReduce(AllReduce::TwoLevel { .. })) { 6..7 } else { 1..20 }
        {
            hold(&algorithm, world_size, 131);
        }
        for (bug, plan) in planted(&plan(&algorithm, 6, 96)) {
            assert!(check_all_reduce(&plan).is_err(), "{algorithm}: {bug}");
        }
    }
}

#[test]
fn spreads_and_barriers_with_planted_bugs_are_found() {
    for spread in spreads(16) {
        let (world_size, len, root) = (7, 96, 2);
        hold(&Algorithm::Reduce { spread: spread.clone(), root }, world_size, len);
        for (bug, plan) in
            planted(&plan(&Algorithm::Reduce { spread: spread.clone(), root }, world_size, len))
        {
            assert!(check_reduce(&plan, root).is_err(), "reduce, {spread}: {bug}");
        }
        for (bug, plan) in
            planted(&plan(&Algorithm::Broadcast { spread: spread.clone(), root }, world_size, len))
        {
            assert!(check_broadcast(&plan, root).is_err(), "broadcast, {spread}: {bug}");
        }
    }
    let barrier = plan(&Algorithm::Barrier(Barrier::Dissemination), 4, 1);
    assert_eq!(check_barrier(&barrier), Ok(()));
    let mut deaf = barrier.clone();
    deaf.ranks.iter_mut().for_each(|steps| steps.truncate(2));
    assert_eq!(check_barrier(&deaf), Err(Fault::WrongResult { rank: 0, element: 0 }));
}

#[test]
fn circles_and_other_orders_are_found() {
    let span = Span::new(0, 1);
    let circle = Plan::of_world(2, 1, |rank| vec![Step::receive(1 - rank, span), Step::send(1 - rank, span)]);
    assert!(matches!(check_all_reduce(&circle), Err(Fault::Deadlock { .. })));
    let everyone = Plan::of_world(3, 1, |rank| {
        let peers = (0..3).filter(|peer| *peer != rank);
        let sends = peers.clone().map(|peer| Step::send(peer, span));
        sends.chain(peers.map(|peer| Step::receive_reduce(peer, span))).collect()
    });
    assert_eq!(check_all_reduce(&everyone), Err(Fault::OtherOrder { rank: 2, element: 0 }));
    assert_eq!(checker::check(&everyone, Goal::AllReduce), check_all_reduce(&everyone));
}

#[test]
fn one_wrong_step_among_4096_ranks_is_found() {
    let sound = plan(&Algorithm::AllReduce(AllReduce::RecursiveDoubling), WIDE, 1);
    for (rank, at) in [(0, 1), (3000, 9), (4095, 23)] {
        let mut plan = sound.clone();
        let step = plan.ranks[rank][at];
        assert!(!step.sends());
        plan.ranks[rank][at] = Step::receive(step.peer(), step.span());
        assert!(check_all_reduce(&plan).is_err(), "{rank} {at}");
        let mut plan = sound.clone();
        plan.ranks[rank].remove(at);
        assert!(matches!(check_all_reduce(&plan), Err(Fault::Unmatched { .. })), "{rank} {at}");
    }
}
