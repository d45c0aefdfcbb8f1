//! Generators that share out a whole: every world to 64, equal and unequal parts, in place and apart.

use gradus_collective::Parts;
use gradus_collective::checker::{Expectation, Fault, check, verify};
use gradus_collective::checker::{Goal, Want};
use gradus_collective::generate::{
    binomial_gather, binomial_reduce, binomial_scatter, bruck_all_gather, bruck_all_to_all,
    direct_all_gather, direct_gather, direct_reduce_scatter, direct_scatter, pairwise_all_to_all,
    ring_all_gather, ring_reduce_scatter,
};
use gradus_collective::plan::{Part, Plan, Region, Step};
use gradus_memory::Span;
use proptest::prelude::*;

const WORLDS: std::ops::RangeInclusive<usize> = 1..=64;

type Sharing = fn(usize, &Parts, bool) -> Vec<Step>;
type Rooted = fn(usize, &Parts, usize, bool) -> Vec<Step>;

const ALL_GATHERS: [Sharing; 3] = [ring_all_gather, direct_all_gather, bruck_all_gather];
const REDUCE_SCATTERS: [Sharing; 2] = [ring_reduce_scatter, direct_reduce_scatter];
const GATHERS: [Rooted; 2] = [binomial_gather, direct_gather];
const SCATTERS: [Rooted; 2] = [binomial_scatter, direct_scatter];

/// Equal parts, and unequal ones of which some are empty.
fn shares(world_size: usize) -> [Parts; 2] {
    let counts: Vec<usize> = (0..world_size).map(|rank| (rank * 7 + 3) % 5).collect();
    [Parts::equal(world_size, 3), Parts::each(&counts)]
}

fn plan(world_size: usize, steps: impl Fn(usize) -> Vec<Step>) -> Plan {
    Plan::of_world(world_size, 0, steps)
}

/// Every world, sharing, and both kinds of memory.
fn everywhere(body: impl Fn(&Parts, bool)) {
    for world_size in WORLDS {
        for parts in shares(world_size) {
            [true, false].into_iter().for_each(|in_place| body(&parts, in_place));
        }
    }
}

#[test]
fn all_gathers_bring_everybody_everything() {
    everywhere(|parts, in_place| {
        let wanted = Expectation::all_gather(parts, in_place);
        for (index, generate) in ALL_GATHERS.iter().enumerate() {
            let plan = plan(parts.world_size(), |rank| generate(rank, parts, in_place));
            assert_eq!(verify(&plan, &wanted), Ok(()), "{index} {} {in_place}", parts.world_size());
        }
    });
}

#[test]
fn reduce_scatters_leave_each_its_sum() {
    everywhere(|parts, in_place| {
        let wanted = Expectation::reduce_scatter(parts, in_place);
        for (index, generate) in REDUCE_SCATTERS.iter().enumerate() {
            let plan = plan(parts.world_size(), |rank| generate(rank, parts, in_place));
            assert_eq!(verify(&plan, &wanted), Ok(()), "{index} {} {in_place}", parts.world_size());
        }
    });
}

#[test]
fn gathers_and_scatters_reach_every_root() {
    everywhere(|parts, in_place| {
        let world_size = parts.world_size();
        for root in [0, world_size / 3, world_size - 1] {
            for (generate, scatters) in
                GATHERS.map(|g| (g, false)).into_iter().chain(SCATTERS.map(|s| (s, true)))
            {
                let wanted = if scatters { Expectation::scatter } else { Expectation::gather };
                let plan = plan(world_size, |rank| generate(rank, parts, root, in_place));
                let found = verify(&plan, &wanted(parts, root, in_place));
                assert_eq!(found, Ok(()), "{scatters} {world_size} {root} {in_place}");
            }
        }
    });
}

#[test]
fn sums_reach_every_root() {
    for world_size in WORLDS {
        for (root, len) in [(0, 5), (world_size - 1, 1), (world_size / 2, 0)] {
            let plan = Plan::of_world(world_size, len, |rank| binomial_reduce(rank, world_size, len, root));
            assert_eq!(check(&plan, Goal::Reduce { root }), Ok(()), "{world_size} {root}");
        }
    }
}

#[test]
fn all_to_alls_exchange_equal_parts() {
    for world_size in WORLDS {
        for in_place in [true, false] {
            let wanted = Expectation::all_to_all(&vec![vec![2; world_size]; world_size], in_place);
            let bruck = plan(world_size, |rank| bruck_all_to_all(rank, world_size, 2, in_place));
            assert_eq!(verify(&bruck, &wanted), Ok(()), "Bruck {world_size} {in_place}");
            let parts = Parts::equal(world_size, 2);
            let pairwise = plan(world_size, |rank| pairwise_all_to_all(rank, &parts, &parts, in_place));
            assert_eq!(verify(&pairwise, &wanted), Ok(()), "pairwise {world_size} {in_place}");
        }
    }
}

/// A matrix of counts, symmetric if need be.
fn matrix(world_size: usize, symmetric: bool) -> Vec<Vec<usize>> {
    let count = |a: usize, b: usize| if symmetric { (a + b) * 5 % 4 } else { (a * 3 + b * 5) % 4 };
    (0..world_size).map(|a| (0..world_size).map(|b| count(a, b)).collect()).collect()
}

#[test]
fn all_to_alls_exchange_unequal_parts() {
    for world_size in (1..=17).chain([32, 64]) {
        for in_place in [true, false] {
            let counts = matrix(world_size, in_place);
            let plan = plan(world_size, |rank| {
                let from: Vec<usize> = counts.iter().map(|row| row[rank]).collect();
                pairwise_all_to_all(rank, &Parts::each(&counts[rank]), &Parts::each(&from), in_place)
            });
            let found = verify(&plan, &Expectation::all_to_all(&counts, in_place));
            assert_eq!(found, Ok(()), "{world_size} {in_place}");
        }
    }
}

#[test]
fn a_dropped_step_of_any_kind_is_found() {
    let parts = Parts::equal(5, 3);
    let mut plans = Vec::new();
    for in_place in [true, false] {
        let of = |generate: Sharing| plan(5, |rank| generate(rank, &parts, in_place));
        plans.extend(ALL_GATHERS.map(|g| (of(g), Expectation::all_gather(&parts, in_place))));
        plans.extend(REDUCE_SCATTERS.map(|g| (of(g), Expectation::reduce_scatter(&parts, in_place))));
        let rooted = |generate: Rooted| plan(5, |rank| generate(rank, &parts, 2, in_place));
        plans.extend(GATHERS.map(|g| (rooted(g), Expectation::gather(&parts, 2, in_place))));
        plans.extend(SCATTERS.map(|g| (rooted(g), Expectation::scatter(&parts, 2, in_place))));
        let all = Expectation::all_to_all(&vec![vec![3; 5]; 5], in_place);
        plans.push((plan(5, |rank| bruck_all_to_all(rank, 5, 3, in_place)), all));
    }
    for (sound, wanted) in plans {
        verify(&sound, &wanted).unwrap();
        for rank in 0..5 {
            for step in 0..sound.ranks[rank].len() {
                let mut plan = sound.clone();
                let removed = plan.ranks[rank].remove(step);
                // Bruck's all-gather may put a rank's own part back to where it is already.
                let own = |part| wanted.ranks[rank].brings.iter().any(|(brought, _)| *brought == part);
                if matches!(removed, Step::Copy { to, .. } if own(to)) {
                    continue;
                }
                assert!(verify(&plan, &wanted).is_err(), "{rank} {step}");
            }
        }
    }
}

#[test]
fn what_is_written_too_early_is_found() {
    // In place, a part must leave before the one that replaces it arrives.
    let parts = Parts::equal(3, 2);
    let mut plan = plan(3, |rank| pairwise_all_to_all(rank, &parts, &parts, true));
    plan.ranks.iter_mut().for_each(|steps| steps.rotate_left(2));
    let found = verify(&plan, &Expectation::all_to_all(&vec![vec![2; 3]; 3], true));
    assert!(matches!(found, Err(Fault::WrongResult { .. } | Fault::Deadlock { .. })), "{found:?}");
}

#[test]
fn the_input_is_not_to_be_written_and_copies_are_apart() {
    let wanted = Expectation::all_reduce(1, 4, false);
    let copy = Step::copy(Part::input(Span::new(0, 4)), Part::output(Span::new(0, 4)));
    verify(&plan(1, |_| vec![copy]), &wanted).unwrap();
    let onto_itself = Step::copy(Part::output(Span::new(0, 3)), Part::output(Span::new(1, 3)));
    let outside = Step::copy(Part::input(Span::new(1, 4)), Part::scratch(Span::new(0, 4)));
    for wrong in [copy.moved(Region::Output, Region::Input), onto_itself, outside] {
        let found = verify(&plan(1, |_| vec![copy, wrong]), &wanted);
        assert_eq!(found, Err(Fault::OutOfRange { rank: 0, step: 1 }), "{wrong:?}");
    }
}

#[test]
fn what_nobody_brought_is_no_sum() {
    let parts = Parts::equal(2, 1);
    let wanted = Expectation::reduce_scatter(&parts, false);
    // Sums what arrives with scratch that nobody has written.
    let plan = plan(2, |rank| {
        let (peer, one) = (1 - rank, Span::new(0, 1));
        let send = Step::send_from(peer, Part::input(parts.span(peer)));
        let sum = Step::receive_reduce_to(peer, Part::scratch(one));
        vec![send, sum, Step::copy(Part::scratch(one), Part::output(one))]
    });
    assert_eq!(verify(&plan, &wanted), Err(Fault::WrongResult { rank: 0, element: 0 }));
    assert!(wanted.ranks.iter().all(|duty| duty.wants[0].2 == Want::Combined && duty.output == 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_counts_are_shared_out(
        counts in proptest::collection::vec(0usize..40, 1..12), root in any::<usize>(), in_place in any::<bool>()
    ) {
        let parts = Parts::each(&counts);
        let world_size = counts.len();
        let root = root % world_size;
        for generate in ALL_GATHERS {
            let plan = plan(world_size, |rank| generate(rank, &parts, in_place));
            prop_assert_eq!(verify(&plan, &Expectation::all_gather(&parts, in_place)), Ok(()));
        }
        for generate in REDUCE_SCATTERS {
            let plan = plan(world_size, |rank| generate(rank, &parts, in_place));
            prop_assert_eq!(verify(&plan, &Expectation::reduce_scatter(&parts, in_place)), Ok(()));
        }
        for generate in GATHERS {
            let plan = plan(world_size, |rank| generate(rank, &parts, root, in_place));
            prop_assert_eq!(verify(&plan, &Expectation::gather(&parts, root, in_place)), Ok(()));
        }
        for generate in SCATTERS {
            let plan = plan(world_size, |rank| generate(rank, &parts, root, in_place));
            prop_assert_eq!(verify(&plan, &Expectation::scatter(&parts, root, in_place)), Ok(()));
        }
    }
}
