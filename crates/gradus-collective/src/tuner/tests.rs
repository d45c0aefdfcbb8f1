//! What is chosen, and what is said of it.

use super::*;
use crate::algorithm::AllReduce;
use crate::checker::{Goal, check};
use crate::plan::Plan;
use gradus_error::Kind;

const MIB: usize = 1 << 18;

fn case(purpose: Purpose, world_size: usize, ranks_per_node: usize, len: usize) -> Case {
    let (nodes, figures) = (Nodes::even(world_size, ranks_per_node), LinkFigures::default());
    Case { purpose, nodes, len, element_bytes: 4, figures, neighbours: None }
}

const PURPOSES: [Purpose; 4] =
    [Purpose::AllReduce, Purpose::Reduce { root: 1 }, Purpose::Broadcast { root: 1 }, Purpose::Barrier];

#[test]
fn levels_are_made_use_of_where_there_are_some() {
    let large = choose(case(Purpose::AllReduce, 30, 6, 16 * MIB)).unwrap();
    assert!(
        matches!(
            large.chosen.algorithm,
            Scheme::Streams(Algorithm::AllReduce(AllReduce::TwoLevel { lanes: 6, .. }))
        ),
        "{}",
        large.why()
    );
    let flat = choose(case(Purpose::AllReduce, 8, 8, 16 * MIB)).unwrap();
    let levels = |candidate: &&Candidate| candidate.algorithm.to_string().contains("across");
    assert!(flat.candidates.iter().find(levels).is_none());
    assert!(large.candidates.iter().filter(levels).count() > 5);
}

#[test]
fn a_choice_is_the_same_every_time_and_survives_its_record() {
    for purpose in PURPOSES {
        let choice = choose(case(purpose, 12, 4, 1000)).unwrap();
        assert_eq!(choice, choose(choice.case.clone()).unwrap());
        let record: Choice = serde_json::from_str(&serde_json::to_string(&choice).unwrap()).unwrap();
        assert_eq!(record.chosen.algorithm, choice.chosen.algorithm);
        assert_eq!(record.case, choice.case);
        assert!(choice.why().contains(&choice.chosen.algorithm.to_string()));
    }
}

#[test]
fn the_chosen_is_among_the_cheapest_and_all_are_in_order() {
    for purpose in PURPOSES {
        for len in [1, 1000, MIB] {
            let choice = choose(case(purpose, 24, 8, len)).unwrap();
            let seconds: Vec<f64> =
                choice.candidates.iter().map(|candidate| candidate.price.seconds).collect();
            assert!(seconds.is_sorted() && choice.chosen.price.seconds <= seconds[0] * (1.0 + MARGIN));
            assert!(choice.candidates.contains(&choice.chosen) && choice.unpriced.is_empty());
        }
    }
}

/// What can be chosen can be carried out.
#[test]
fn every_candidate_does_what_it_is_for() {
    for (world_size, ranks_per_node) in [(1, 1), (2, 2), (6, 4), (9, 3), (12, 4)] {
        for (purpose, goal) in [
            (Purpose::AllReduce, Goal::AllReduce),
            (Purpose::Broadcast { root: world_size - 1 }, Goal::Broadcast { root: world_size - 1 }),
            (Purpose::Barrier, Goal::Barrier),
        ] {
            let len = if purpose == Purpose::Barrier { 1 } else { 777 };
            for algorithm in candidates::of(&case(purpose, world_size, ranks_per_node, len)) {
                let plan = Plan::of_world(world_size, len, |rank| algorithm.steps(rank, world_size, len));
                assert_eq!(check(&plan, goal), Ok(()), "{algorithm:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let mut none = case(Purpose::AllReduce, 4, 2, 10);
    none.figures.inside.latency_us = f64::NAN;
    let mut thin = case(Purpose::AllReduce, 4, 2, 10);
    thin.element_bytes = 0;
    let long = case(Purpose::AllReduce, 4, 2, usize::MAX / 2);
    let outside = case(Purpose::Reduce { root: 4 }, 4, 2, 10);
    for bad in [none, thin, long, outside] {
        assert_eq!(*choose(bad).unwrap_err().kind(), Kind::Invalid);
    }
}

#[test]
fn a_world_of_one_has_nothing_to_pay() {
    for purpose in [Purpose::AllReduce, Purpose::Broadcast { root: 0 }, Purpose::Barrier] {
        let choice = choose(case(purpose, 1, 1, 100)).unwrap();
        assert_eq!(choice.chosen.price.seconds, 0.0);
        assert!(!choice.why().contains("NaN"), "{}", choice.why());
    }
}
