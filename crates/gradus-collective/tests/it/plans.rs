//! Every generator at every world size up to 64, and plans with planted bugs.

use gradus_collective::checker::{Fault, Goal, check};
use gradus_collective::choose::{Links, choose_all_reduce};
use gradus_collective::generate::{
    binomial_broadcast, dissemination_barrier, recursive_doubling_all_reduce, ring_all_reduce,
};
use gradus_collective::plan::{Plan, Step};
use gradus_memory::Span;
use proptest::prelude::*;

const WORLDS: std::ops::RangeInclusive<usize> = 1..=64;

fn ring(world_size: usize, len: usize, block: usize) -> Plan {
    Plan::of_world(world_size, len, |rank| ring_all_reduce(rank, world_size, len, block))
}

fn doubling(world_size: usize, len: usize) -> Plan {
    Plan::of_world(world_size, len, |rank| recursive_doubling_all_reduce(rank, world_size, len))
}

#[test]
fn rings_sum_once_and_alike() {
    for world_size in WORLDS {
        for len in [0, 1, world_size - 1, 17 * world_size + 5] {
            assert_eq!(
                check(&ring(world_size, len, len.max(1)), Goal::AllReduce),
                Ok(()),
                "{world_size} {len}"
            );
        }
    }
}

#[test]
fn rings_of_many_blocks_sum_once_and_alike() {
    for world_size in 1..=9 {
        for (len, block) in [(1000, 300), (64, 16), (129, 64), (7, 1)] {
            assert_eq!(
                check(&ring(world_size, len, block), Goal::AllReduce),
                Ok(()),
                "{world_size} {len} {block}"
            );
        }
    }
}

#[test]
fn doubling_sums_once_and_alike() {
    for world_size in WORLDS {
        for len in [0, 1, 1000] {
            assert_eq!(check(&doubling(world_size, len), Goal::AllReduce), Ok(()), "{world_size} {len}");
        }
    }
}

#[test]
fn broadcasts_reach_everybody() {
    for world_size in WORLDS {
        for (root, len) in [(0, 5), (world_size - 1, 1), (world_size / 2, 0)] {
            let plan =
                Plan::of_world(world_size, len, |rank| binomial_broadcast(rank, world_size, len, root));
            assert_eq!(check(&plan, Goal::Broadcast { root }), Ok(()), "{world_size} {root}");
        }
    }
}

#[test]
fn barriers_hear_of_everybody() {
    for world_size in WORLDS {
        let plan = Plan::of_world(world_size, 1, |rank| dissemination_barrier(rank, world_size));
        assert_eq!(check(&plan, Goal::Barrier), Ok(()), "{world_size}");
    }
}

#[test]
fn what_is_chosen_is_right() {
    for world_size in 1..=8 {
        for len in [0, 1, 1000, 100_000, 1_000_000] {
            let chosen = choose_all_reduce(&Links::default(), world_size, len, 4).chosen.algorithm;
            let plan = Plan::of_world(world_size, len, |rank| chosen.steps(rank, world_size, len));
            assert_eq!(check(&plan, Goal::AllReduce), Ok(()), "{world_size} {len}");
        }
    }
}

#[test]
fn a_dropped_step_is_found() {
    let sound = ring(4, 64, 64);
    for rank in 0..4 {
        for step in 0..sound.ranks[rank].len() {
            let mut plan = sound.clone();
            plan.ranks[rank].remove(step);
            assert!(check(&plan, Goal::AllReduce).is_err(), "{rank} {step}");
        }
    }
    let mut plan = sound;
    plan.ranks[0].pop();
    assert_eq!(check(&plan, Goal::AllReduce), Err(Fault::Unmatched { from: 3, to: 0 }));
}

fn span_of(step: &mut Step) -> &mut Span {
    match step {
        Step::Send { from: part, .. } | Step::Divide { part, .. } => &mut part.span,
        Step::Receive { to, .. } | Step::ReceiveReduce { to, .. } | Step::Copy { to, .. } => &mut to.span,
    }
}

#[test]
fn a_wrong_range_is_found() {
    let sound = ring(4, 256, 256);
    for rank in 0..4 {
        for step in 0..sound.ranks[rank].len() {
            let mut moved = sound.clone();
            let span = span_of(&mut moved.ranks[rank][step]);
            span.start = (span.start + 64) % 256;
            let found = check(&moved, Goal::AllReduce);
            assert!(matches!(found, Err(Fault::WrongResult { .. } | Fault::OtherOrder { .. })), "{found:?}");
            let mut longer = sound.clone();
            span_of(&mut longer.ranks[rank][step]).len -= 1;
            assert!(matches!(check(&longer, Goal::AllReduce), Err(Fault::OtherLength { .. })));
            let mut outside = sound.clone();
            span_of(&mut outside.ranks[rank][step]).start = 250;
            assert_eq!(check(&outside, Goal::AllReduce), Err(Fault::OutOfRange { rank, step }));
        }
    }
}

#[test]
fn a_number_added_twice_is_found() {
    let mut plan = doubling(4, 8);
    let again: Vec<Vec<Step>> = plan.ranks.iter().map(|steps| steps[..2].to_vec()).collect();
    plan.ranks.iter_mut().zip(again).for_each(|(steps, again)| steps.extend(again));
    assert_eq!(check(&plan, Goal::AllReduce), Err(Fault::WrongResult { rank: 0, element: 0 }));
}

#[test]
fn another_order_of_summation_is_found() {
    // Everyone sends to everyone and adds what comes, lowest rank first: right sums, bracketed differently.
    let plan = Plan::of_world(3, 1, |rank| {
        let peers = (0..3).filter(|peer| *peer != rank);
        let span = Span::new(0, 1);
        let sends = peers.clone().map(|peer| Step::send(peer, span));
        sends.chain(peers.map(|peer| Step::receive_reduce(peer, span))).collect()
    });
    assert_eq!(check(&plan, Goal::AllReduce), Err(Fault::OtherOrder { rank: 2, element: 0 }));
}

#[test]
fn a_circle_of_waiting_is_found() {
    // Each rank passes on what it first awaits from the other.
    let plan = Plan::of_world(2, 1, |rank| {
        let (peer, span) = (1 - rank, Span::new(0, 1));
        vec![Step::receive_reduce(peer, span), Step::send(peer, span)]
    });
    assert!(matches!(check(&plan, Goal::AllReduce), Err(Fault::Deadlock { .. })));
}

#[test]
fn a_broadcast_of_the_wrong_rank_is_found() {
    let plan = Plan::of_world(4, 3, |rank| binomial_broadcast(rank, 4, 3, 1));
    assert_eq!(check(&plan, Goal::Broadcast { root: 0 }), Err(Fault::WrongResult { rank: 0, element: 0 }));
    let silent = Plan::of_world(2, 1, |_| Vec::new());
    assert_eq!(check(&silent, Goal::Barrier), Err(Fault::WrongResult { rank: 0, element: 0 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_shape_is_summed_once_and_alike(world_size in 1usize..24, len in 0usize..600, block in 1usize..400) {
        prop_assert_eq!(check(&ring(world_size, len, block.max(len / 12)), Goal::AllReduce), Ok(()));
        prop_assert_eq!(check(&doubling(world_size, len), Goal::AllReduce), Ok(()));
    }
}
