//! Links measured over real transports: everybody holds the same figures, and computes right by what they choose.

use crate::parity::exercise;
use crate::world::{BOTH, Way, bits, connected, contribution, is_near, reference, run};
use gradus_collective::algorithm::{Algorithm, AllReduce, Nodes};
use gradus_collective::cost::{LinkFigures, LinkProfile};
use gradus_collective::one_sided::OneSided;
use gradus_collective::tuner::{Choice, Scheme};
use gradus_collective::{Communicator, Element};
use gradus_error::Kind;
use gradus_fabric::{NetworkSettings, TransportKind};
use std::time::Duration;

#[test]
fn all_ranks_hold_the_same_figures_and_choose_alike() {
    for kind in BOTH {
        for (world_size, ranks_per_node) in [(1, 1), (2, 1), (3, 2), (4, 4)] {
            let nodes = Nodes::even(world_size, ranks_per_node);
            let all = run(world_size, kind, &NetworkSettings::default(), |mut world| {
                let profile = world.measure_links(&nodes).unwrap();
                let bits = exercise(&mut world);
                (profile, world.choice_for_all_reduce(1 << 18, Element::F32, false), bits)
            });
            all[0].0.validate().unwrap();
            let near = kind == TransportKind::SharedMemory && world_size > 1;
            assert_eq!(all[0].0.neighbours.is_some(), near, "{kind:?} {world_size}");
            assert!(all.iter().all(|found| *found == all[0]), "{kind:?} {world_size}");
        }
    }
}

#[test]
fn neighbours_that_were_measured_choose_by_price_and_say_so() {
    let all = run(2, TransportKind::SharedMemory, &NetworkSettings::default(), |mut world| {
        let before = world.choice_for_all_reduce(64, Element::F32, false);
        world.measure_links(&Nodes::even(2, 2)).unwrap();
        let after = [(64, false), (1 << 20, true)]
            .map(|(len, registered)| world.choice_for_all_reduce(len, Element::F32, registered).unwrap());
        (before, after)
    });
    let (before, [small, large]) = &all[0];
    assert!(all.iter().all(|found| *found == all[0]) && before.is_none());
    // What is the fastest is for the machine to say; what is there to choose from, and why it was, is not.
    let has = |choice: &Choice, program: OneSided| {
        choice.candidates.iter().any(|candidate| candidate.algorithm == Scheme::Neighbours(program))
    };
    assert!(has(small, OneSided::Flat) && !has(small, OneSided::Push) && has(large, OneSided::Push));
    for choice in [small, large] {
        let why = choice.why();
        assert!(why.starts_with(&choice.chosen.algorithm.to_string()), "{why}");
    }
}

#[test]
fn thin_links_between_nodes_are_crossed_by_two_levels_where_a_group_lies_on_several() {
    let mut figures = LinkFigures::default();
    figures.across.bandwidth_bytes_per_s = figures.inside.bandwidth_bytes_per_s / 20.0;
    let (nodes, len) = (Nodes::try_from(vec![vec![0, 2], vec![1, 3]]).unwrap(), 1 << 18);
    let is_two_level =
        |scheme: &Scheme| matches!(scheme, Scheme::Streams(Algorithm::AllReduce(AllReduce::TwoLevel { .. })));
    run(4, TransportKind::Tcp, &NetworkSettings::default(), |mut world| {
        world.use_links(&LinkProfile::uniform(figures), &nodes).unwrap();
        let rank = world.rank();
        let mut near = world.group(if rank % 2 == 0 { &[2, 0] } else { &[3, 1] }).unwrap();
        let mut turned = world.group(&[3, 2, 1, 0]).unwrap();
        for (group, expected) in [(&mut world, true), (&mut near, false), (&mut turned, true)] {
            let choice = group.choice_for_all_reduce(len, Element::F32, false).unwrap();
            assert_eq!(is_two_level(&choice.chosen.algorithm), expected, "{}", choice.why());
            let mut data: Vec<i32> = (0..len as i32).collect();
            group.all_reduce(&mut data).unwrap();
            let ranks = group.world_size() as i32;
            assert!(data.iter().enumerate().all(|(i, x)| *x == ranks * i as i32));
        }
    });
}

#[test]
fn nodes_that_share_memory_are_crossed_by_two_levels_with_the_bits_of_tcp() {
    let mut figures = LinkFigures::default();
    figures.across.bandwidth_bytes_per_s = figures.inside.bandwidth_bytes_per_s / 20.0;
    let over = |way: Way| {
        run(4, way, &NetworkSettings::default(), |mut world| {
            world.use_links(&LinkProfile::uniform(figures), &Nodes::even(4, 2)).unwrap();
            let choice = world.choice_for_all_reduce(1 << 18, Element::F32, false).unwrap();
            let mut data = contribution(world.rank(), 1 << 18, 0);
            world.all_reduce(&mut data).unwrap();
            assert!(is_near(&data, &reference(4, 1 << 18, 0), 4));
            (choice.chosen.algorithm, bits(&data))
        })
    };
    let (nodes, tcp) = (over(Way::Nodes), over(TransportKind::Tcp.into()));
    assert!(nodes[0] == nodes[3] && nodes == tcp);
    assert!(
        matches!(nodes[0].0, Scheme::Streams(Algorithm::AllReduce(AllReduce::TwoLevel { .. }))),
        "{}",
        nodes[0].0
    );
}

#[test]
fn what_rank_0_knows_of_links_counts_for_all() {
    let slow = |rank: usize| {
        let mut figures = LinkFigures::default();
        figures.across.latency_us = if rank == 0 { 1e4 } else { 0.0 };
        LinkProfile::uniform(figures)
    };
    let all = run(3, BOTH[1], &NetworkSettings::default(), |mut world| {
        let before = world.choice_for_all_reduce(1 << 18, Element::F32, false).unwrap().chosen.algorithm;
        let used = world.use_links(&slow(world.rank()), &Nodes::even(3, 1)).unwrap();
        let after = world.choice_for_all_reduce(1 << 18, Element::F32, false).unwrap().chosen.algorithm;
        world.all_reduce(&mut vec![1.0f32; 1 << 18]).unwrap();
        (used, before, after)
    });
    assert!(all.iter().all(|found| found.0 == slow(0) && found == &all[0]));
    assert_ne!(all[0].1, all[0].2);
}

#[test]
fn what_rank_0_cannot_use_is_told_to_all() {
    let mut figures = LinkFigures::default();
    figures.inside.bandwidth_bytes_per_s = 0.0;
    let errors = run(2, BOTH[0], &NetworkSettings::default(), |mut world| {
        world.use_links(&LinkProfile::uniform(figures), &Nodes::even(2, 2)).unwrap_err()
    });
    assert!(errors.iter().all(|error| *error.kind() == Kind::Invalid), "{errors:?}");
}

#[test]
fn who_does_not_measure_is_named() {
    let met = std::sync::Barrier::new(2);
    let results = connected(2, BOTH[0], |transport| {
        let idle = transport.rank() == 1;
        let mut world = Communicator::new(transport, Duration::from_millis(50));
        let result = (!idle).then(|| world.measure_links(&Nodes::even(2, 2)));
        met.wait();
        result
    });
    let error = results[0].as_ref().unwrap().as_ref().unwrap_err();
    assert_eq!(*error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("rank 1"), "{error}");
}

#[test]
fn links_are_no_matter_of_a_part_of_the_ranks_or_of_another_world() {
    run(2, BOTH[0], &NetworkSettings::default(), |mut world| {
        let mut own = world.group(&[world.rank()]).unwrap();
        for error in [
            own.measure_links(&Nodes::even(1, 1)).unwrap_err(),
            world.measure_links(&Nodes::even(3, 1)).unwrap_err(),
            world.use_links(&LinkProfile::default(), &Nodes::even(3, 1)).unwrap_err(),
        ] {
            assert_eq!(*error.kind(), Kind::Invalid, "{error}");
        }
        world.barrier().unwrap();
    });
}
