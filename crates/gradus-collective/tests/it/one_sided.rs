//! Programs among neighbours, on symbols.

use gradus_collective::checker::one_sided::verify;
use gradus_collective::checker::{Expectation, Fault};
use gradus_collective::one_sided::{
    Act, INLINE_BYTES, Place, Program, Store, Sum, flat_all_reduce, flat_barrier, pull_all_reduce,
    push_all_reduce, staged_all_reduce,
};
use gradus_memory::Span;

type Generator = fn(usize, usize, Sum) -> Program;

const ALL: [Generator; 4] = [flat_all_reduce, staged_all_reduce, pull_all_reduce, push_all_reduce];

/// Elements so wide that a few of them are a block.
const WIDE: usize = 8 << 10;

fn sum(len: usize, element_bytes: usize, in_place: bool, mean: bool) -> Sum {
    Sum { len, element_bytes, in_place, mean }
}

fn programs(generate: Generator, world_size: usize, sum: Sum) -> Vec<Program> {
    (0..world_size).map(|rank| generate(rank, world_size, sum)).collect()
}

#[test]
fn every_world_to_64_sums_once_and_alike() {
    for generate in ALL {
        for world_size in 1..=64 {
            // Lengths with and without a share for everybody; narrow elements go along with signals, wide ones in blocks.
            for (len, element_bytes) in [(0, 4), (1, 4), (7, 4), (33, 4), (2 * world_size + 1, WIDE)] {
                for (in_place, mean) in [(true, false), (false, true)] {
                    let programs = programs(generate, world_size, sum(len, element_bytes, in_place, mean));
                    let wanted = Expectation::all_reduce(world_size, len, in_place);
                    let wanted = if mean { wanted.mean() } else { wanted };
                    assert_eq!(verify(&programs, &wanted), Ok(()), "{world_size} {len} {element_bytes}");
                }
            }
        }
    }
}

#[test]
fn long_shares_are_cut_into_blocks_that_still_sum() {
    for generate in ALL {
        for world_size in [2, 3, 5] {
            for in_place in [true, false] {
                let sum = sum(world_size * 80 + 3, WIDE, in_place, true);
                let programs = programs(generate, world_size, sum);
                let wanted = Expectation::all_reduce(world_size, sum.len, in_place).mean();
                assert_eq!(verify(&programs, &wanted), Ok(()), "{world_size}");
            }
        }
    }
}

#[test]
fn a_mean_is_divided_once() {
    for generate in ALL {
        for (world_size, element_bytes) in [(2, 4), (3, WIDE)] {
            let wanted = Expectation::all_reduce(world_size, 7, true);
            let [sums, means] =
                [false, true].map(|mean| programs(generate, world_size, sum(7, element_bytes, true, mean)));
            let wrong = |found| matches!(found, Err(Fault::WrongResult { .. }));
            assert!(wrong(verify(&means, &wanted)) && wrong(verify(&sums, &wanted.clone().mean())));
            let output = Place::own(Store::Output, Span::new(0, 7));
            let mut twice = means;
            twice.iter_mut().for_each(|program| {
                program.acts.push(Act::Divide { place: output, by: world_size });
            });
            assert!(verify(&twice, &wanted.mean()).is_err());
        }
    }
}

#[test]
fn some_ranks_may_work_in_place_and_others_not() {
    for generate in ALL {
        for (world_size, element_bytes) in [(2, 4), (2, WIDE), (3, WIDE), (5, 4), (5, WIDE)] {
            let (len, even) = (world_size * 30 + 3, |rank: usize| rank.is_multiple_of(2));
            let program = |rank| generate(rank, world_size, sum(len, element_bytes, even(rank), false));
            let programs: Vec<_> = (0..world_size).map(program).collect();
            let [mut wanted, apart] =
                [true, false].map(|in_place| Expectation::all_reduce(world_size, len, in_place));
            for rank in (0..world_size).filter(|rank| !even(*rank)) {
                wanted.ranks[rank] = apart.ranks[rank].clone();
            }
            assert_eq!(verify(&programs, &wanted), Ok(()), "{world_size} {element_bytes}");
        }
    }
}

#[test]
fn a_barrier_hears_of_everybody() {
    for world_size in 1..=64 {
        let programs: Vec<_> = (0..world_size).map(|rank| flat_barrier(rank, world_size)).collect();
        assert_eq!(verify(&programs, &Expectation::barrier(world_size)), Ok(()));
    }
    let silent = vec![Program::default(); 3];
    assert!(matches!(verify(&silent, &Expectation::barrier(3)), Err(Fault::WrongResult { .. })));
}

#[test]
fn what_goes_along_with_a_signal_fits_it() {
    for element_bytes in [1, 2, 4, 8] {
        for len in 0..100 {
            let program = flat_all_reduce(0, 3, sum(len, element_bytes, true, false));
            let carried = program.acts.iter().filter_map(|act| match act {
                Act::Signal { carries, .. } => carries.map(|place| place.span.len * element_bytes),
                _ => None,
            });
            assert!(carried.into_iter().all(|bytes| bytes <= INLINE_BYTES));
        }
    }
}

/// Whether some program with one act less is found out, whichever act it is.
fn without(programs: &[Program], rank: usize, act: usize) -> Vec<Program> {
    let mut programs = programs.to_vec();
    programs[rank].acts.remove(act);
    programs
}

#[test]
fn no_act_can_be_left_out() {
    for generate in ALL {
        for (world_size, element_bytes, in_place) in
            [(2, 4, true), (3, 4, false), (3, WIDE, true), (2, WIDE, false)]
        {
            let sum = sum(7, element_bytes, in_place, false);
            let programs = programs(generate, world_size, sum);
            let wanted = Expectation::all_reduce(world_size, 7, in_place);
            for rank in 0..world_size {
                for act in 0..programs[rank].acts.len() {
                    let is_empty =
                        Program::accesses(&programs[rank].acts[act]).any(|(place, _)| place.span.len == 0);
                    let found = verify(&without(&programs, rank, act), &wanted);
                    assert!(is_empty || found.is_err(), "{rank} {:?}", programs[rank].acts[act]);
                }
            }
        }
    }
}

#[test]
fn faults_have_names() {
    let wanted = Expectation::all_reduce(2, 4, true);
    let all = Span::new(0, 4);
    let good = programs(push_all_reduce, 2, sum(4, 4, true, false));
    // The last round keeps a rank from being done while others still write into its memory.
    let but_two = |program: &Program| Program { acts: program.acts[..program.acts.len() - 2].to_vec() };
    let hasty: Vec<Program> = good.iter().map(but_two).collect();
    assert!(matches!(verify(&hasty, &wanted), Err(Fault::Race { .. })));
    let twice = |peer| Program { acts: vec![Act::Signal { peer, carries: None }; 2] };
    assert_eq!(verify(&[twice(1), twice(0)], &wanted), Err(Fault::OutOfTurn { from: 0, to: 1 }));
    let deaf = Program { acts: vec![Act::Hear { peer: 1, to: None }] };
    assert_eq!(verify(&[deaf, Program::default()], &wanted), Err(Fault::Deadlock { rank: 0, step: 0 }));
    let loud = Program { acts: vec![Act::Signal { peer: 1, carries: None }] };
    assert_eq!(verify(&[loud, Program::default()], &wanted), Err(Fault::Unmatched { from: 0, to: 1 }));
    let output = Place::own(Store::Output, all);
    for act in [
        Act::Copy { from: output, to: output },
        Act::Copy { from: output, to: Place::of(1, Store::Staging, Span::new(0, 0)) },
        Act::Copy {
            from: Place::of(1, Store::Scratch, Span::new(0, 0)),
            to: Place::own(Store::Output, Span::new(0, 0)),
        },
        Act::Divide { place: Place::of(1, Store::Output, all), by: 2 },
        Act::Signal { peer: 0, carries: None },
        Act::Hear { peer: 2, to: None },
        Act::Divide { place: Place::own(Store::Output, Span::new(1, 4)), by: 2 },
    ] {
        let odd = Program { acts: vec![act] };
        let found = verify(&[odd, Program::default()], &wanted);
        assert_eq!(found, Err(Fault::OutOfRange { rank: 0, step: 0 }), "{act:?}");
    }
}
