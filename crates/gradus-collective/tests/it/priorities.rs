//! Levels of priority: what is urgent overtakes, and nothing else changes.

use crate::world::{ALL, Way, bits, contribution, is_near, reference, run};
use gradus_collective::{Buffer, Collective, Communicator, Handle, Memory, Reduction};
use gradus_error::{Error, Kind};
use gradus_fabric::{NetworkSettings, PeerMemory, TransportKind};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn levels(priority_levels: usize) -> NetworkSettings {
    NetworkSettings { priority_levels, ..NetworkSettings::default() }
}

fn sum() -> Collective {
    Collective::all_reduce(Reduction::Sum)
}

/// Starts an all-reduce of memory that is ready once the flag is set.
///
/// # Safety
/// Nobody touches the data before it was waited for, or the communicator has failed.
unsafe fn start_when(communicator: &mut Communicator, data: &mut [f32], flag: &Arc<AtomicBool>) -> Handle {
    let flag = Arc::clone(flag);
    let ready = Box::new(move || flag.load(Ordering::Acquire));
    // SAFETY: by the caller's word.
    unsafe { communicator.start_when(ready, &sum(), Memory::InPlace(Buffer::of(data))) }.unwrap()
}

/// Elements that go along with signals, are staged, pulled and streamed.
const LENS: [usize; 4] = [3, 5000, 70_000, 6_000_000];

/// Urgent collectives of all ways while one of `len` elements, which rank 0 holds up, is in flight below them.
fn overtake(mut world: Communicator, len: usize) {
    let (rank, ranks) = (world.rank(), world.world_size());
    let mut urgent = world.at_priority(1).unwrap();
    let flag = Arc::new(AtomicBool::new(rank != 0));
    let mut big = contribution(rank, len, 0);
    // SAFETY: the data are not touched before they were waited for.
    let handle = unsafe { start_when(&mut world, &mut big, &flag) };
    for (round, small) in [1, 3, 2000, 9000, 40_000, 300_000].into_iter().enumerate() {
        let mut data = contribution(rank, small, round);
        urgent.all_reduce(&mut data).unwrap();
        assert!(is_near(&data, &reference(ranks, small, round), ranks));
        urgent.barrier().unwrap();
        let mut bytes = vec![rank as u8; 30_000];
        urgent.broadcast(ranks - 1, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| usize::from(*byte) == ranks - 1));
        assert!(!world.is_done(&handle));
    }
    let mut last = urgent.group(&(0..ranks).rev().collect::<Vec<_>>()).unwrap();
    last.barrier().unwrap();
    // Others may hear of the barrier after rank 0 has gone on.
    assert!(rank != 0 || !world.is_done(&handle));
    flag.store(true, Ordering::Release);
    world.wait(handle).unwrap();
    assert!(is_near(&big, &reference(ranks, len, 0), ranks));
}

#[test]
fn what_is_urgent_ends_while_what_was_started_before_is_held_up() {
    for way in ALL {
        for world_size in [2, 3, 4] {
            for len in LENS {
                // Virtual time is dear.
                if way != Way::Simulated || len < 1_000_000 {
                    run(world_size, way, &levels(2), |world| overtake(world, len));
                }
            }
        }
    }
}

#[test]
fn what_is_urgent_overtakes_in_memory_that_is_never_read_across() {
    let settings = NetworkSettings { peer_memory: PeerMemory::Never, ring_bytes: 4096, ..levels(2) };
    run(3, TransportKind::SharedMemory, &settings, |world| overtake(world, 200_000));
}

#[test]
fn registered_memory_serves_every_level() {
    run(3, TransportKind::SharedMemory, &levels(3), |mut world| {
        let len = 50_000;
        let heap = world.heap().unwrap();
        let ranges: Vec<_> = (0..3).map(|_| heap.allocate(len * 4).unwrap()).collect();
        let mut communicators: Vec<_> = (0..3).map(|level| world.at_priority(level).unwrap()).collect();
        let mut handles = Vec::new();
        for (level, range) in ranges.iter().enumerate() {
            // SAFETY: as many elements lie in the range, which nobody else touches now.
            let data = unsafe { std::slice::from_raw_parts_mut(range.start().as_ptr().cast(), len) };
            data.copy_from_slice(&contribution(world.rank(), len, level));
            // SAFETY: the data are not touched before they were waited for.
            let started = unsafe { communicators[level].start(&sum(), Memory::InPlace(Buffer::of(data))) };
            handles.push(started.unwrap());
        }
        handles.into_iter().for_each(|handle| world.wait(handle).unwrap());
        for (level, range) in ranges.iter().enumerate() {
            // SAFETY: as above.
            let data: &[f32] = unsafe { std::slice::from_raw_parts(range.start().as_ptr().cast(), len) };
            assert!(is_near(data, &reference(3, len, level), 3), "{level}");
        }
        // Nobody gives a range back while another still writes to it.
        world.barrier().unwrap();
    });
}

#[test]
fn axes_of_an_urgent_mesh_overtake_too() {
    for way in ALL {
        run(4, way, &levels(4), |mut world| {
            let (rank, flag) = (world.rank(), Arc::new(AtomicBool::new(false)));
            let mut big = contribution(rank, 200_000, 0);
            // SAFETY: the data are not touched before they were waited for.
            let handle = unsafe { start_when(&mut world, &mut big, &flag) };
            let mut axes = world.at_priority(3).unwrap().mesh(&[("dp", 2), ("tp", 2)]).unwrap();
            for (_, axis) in &mut axes {
                let mut ones = vec![1i32; 20_000];
                axis.all_reduce(&mut ones).unwrap();
                assert!(ones.iter().all(|one| *one == 2) && !world.is_done(&handle));
            }
            flag.store(true, Ordering::Release);
            world.wait(handle).unwrap();
        });
    }
}

#[test]
fn what_is_urgent_without_end_does_not_starve_the_rest() {
    for way in ALL {
        run(2, way, &levels(2), |mut world| {
            let mut urgent = world.at_priority(1).unwrap();
            let mut big = contribution(world.rank(), 300_000, 0);
            // SAFETY: the data are not touched before they were waited for.
            let handle = unsafe { world.start(&sum(), Memory::InPlace(Buffer::of(&mut big))) }.unwrap();
            let mut done = [0f32];
            // As many on both ranks: until it is done on both.
            for _ in 0..100_000 {
                done[0] = f32::from(u8::from(world.is_done(&handle)));
                urgent.all_reduce(&mut done).unwrap();
                if done[0] == 2.0 {
                    break;
                }
            }
            assert_eq!(done, [2.0], "nothing of it has moved meanwhile");
            world.wait(handle).unwrap();
            assert!(is_near(&big, &reference(2, 300_000, 0), 2));
        });
    }
}

#[test]
fn a_level_that_is_not_there_is_refused_and_harms_nobody() {
    for way in ALL {
        run(2, way, &levels(2), |mut world| {
            for level in [2, 4, 300] {
                let error = world.at_priority(level).err().unwrap();
                assert_eq!(*error.kind(), Kind::Invalid);
                assert!(error.to_string().contains("network.priority_levels is 2"), "{error}");
            }
            world.at_priority(1).unwrap().barrier().unwrap();
            world.at_priority(0).unwrap().barrier().unwrap();
        });
    }
    let mut alone = Communicator::alone();
    alone.at_priority(3).unwrap().barrier().unwrap();
    assert_eq!(*alone.at_priority(4).err().unwrap().kind(), Kind::Invalid);
}

#[test]
fn ranks_at_different_levels_are_told_so() {
    for way in ALL {
        for len in LENS.into_iter().take(3) {
            for both_above in [false, true] {
                let errors = run(2, way, &levels(3), |mut world| {
                    let mut urgent =
                        world.at_priority(2 - usize::from(world.rank() == 1 && both_above)).unwrap();
                    let mut data = vec![1f32; len];
                    let plain = world.rank() == 1 && !both_above;
                    let communicator = if plain { &mut world } else { &mut urgent };
                    communicator.all_reduce(&mut data).unwrap_err()
                });
                for error in errors {
                    let text = error.to_string();
                    assert_eq!(*error.kind(), Kind::Invalid, "{way:?} {len}: {text}");
                    assert!(text.contains("all-reduce number 0") && text.contains("at priority 2"), "{text}");
                    assert!(!both_above || text.contains("at priority 1"), "{text}");
                }
            }
        }
    }
}

#[test]
fn a_message_at_another_level_is_told_so() {
    for way in ALL {
        let errors = run(2, way, &levels(2), |mut world| {
            let mut urgent = world.at_priority(1).unwrap();
            match world.rank() {
                // It has left as soon as it is said; whoever waits for the answer hears of it.
                0 => urgent.send(1, &[1u8]).and_then(|()| urgent.receive(1, &mut [0u8])).unwrap_err(),
                _ => world.receive(0, &mut [0u8]).unwrap_err(),
            }
        });
        let text = errors[1].to_string();
        assert!(errors.iter().all(|error| *error.kind() == Kind::Invalid), "{way:?} {errors:?}");
        assert!(text.contains("rank 0") && text.contains("at priority 1"), "{text}");
    }
}

/// Both levels in flight when rank 0 ends it; what each rank hears of it.
fn ended(way: Way, end: impl Fn(&mut Communicator) + Sync) -> Vec<Error> {
    let results = run(3, way, &levels(2), |mut world| {
        let mut urgent = world.at_priority(1).unwrap();
        let never = Arc::new(AtomicBool::new(false));
        let (mut big, mut small) = (vec![1f32; 200_000], vec![1f32; 1000]);
        // SAFETY: the data are not touched before the communicator has failed.
        let first = unsafe { start_when(&mut world, &mut big, &never) };
        if world.rank() == 0 {
            end(&mut urgent);
            return None;
        }
        // SAFETY: as above.
        let second = unsafe { urgent.start(&sum(), Memory::InPlace(Buffer::of(&mut small))) };
        let error = second.and_then(|second| urgent.wait(second)).unwrap_err();
        // What was below has ended with it.
        assert_eq!(world.wait(first).unwrap_err().kind(), error.kind());
        big.fill(2.0);
        Some(error)
    });
    results.into_iter().flatten().collect()
}

#[test]
fn cancellation_ends_all_levels() {
    for way in ALL {
        for error in ended(way, |urgent| urgent.cancel("enough")) {
            assert_eq!(*error.kind(), Kind::Closed, "{error}");
            assert!(error.to_string().contains("enough"), "{error}");
        }
    }
}

#[test]
fn who_is_lost_is_lost_at_all_levels() {
    for way in ALL {
        let leaves = |urgent: &mut Communicator| {
            urgent.give_up(&Error::peer_lost(0, "rank 0 has burnt down"));
        };
        for error in ended(way, leaves) {
            assert_eq!(*error.kind(), Kind::PeerLost { rank: 0 }, "{error}");
        }
    }
}

/// One of a program: how many elements at which level, and whether its memory is ready at once.
type Task = (usize, usize, bool);

/// All in flight at once, waited for out of order.
fn play(world: &mut Communicator, tasks: &[Task], priorities: bool) -> Vec<Vec<f32>> {
    let rank = world.rank();
    let mut at: Vec<_> = (0..4).map(|level| world.at_priority(level).unwrap()).collect();
    let flag = Arc::new(AtomicBool::new(false));
    let mut data: Vec<_> =
        tasks.iter().enumerate().map(|(round, task)| contribution(rank, task.0, round)).collect();
    let mut handles = Vec::new();
    for ((_, level, now), data) in tasks.iter().zip(&mut data) {
        let ready = if *now { Arc::new(AtomicBool::new(true)) } else { Arc::clone(&flag) };
        // SAFETY: the data are not touched before all were waited for.
        handles.push(unsafe { start_when(&mut at[if priorities { *level } else { 0 }], data, &ready) });
    }
    (0..3).for_each(|_| world.progress().unwrap());
    flag.store(true, Ordering::Release);
    handles.into_iter().rev().for_each(|handle| world.wait(handle).unwrap());
    data
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_program_over_levels_comes_to_what_it_comes_to_without(
        world_size in 1usize..=4,
        way in 0usize..4,
        tasks in proptest::collection::vec((0usize..40_000, 0usize..4, any::<bool>()), 1..9),
    ) {
        let results = run(world_size, ALL[way], &levels(4), |mut world| {
            let with = play(&mut world, &tasks, true);
            (with, play(&mut world, &tasks, false))
        });
        for (round, (len, ..)) in tasks.iter().enumerate() {
            prop_assert!(is_near(&results[0].0[round], &reference(world_size, *len, round), world_size));
            for (with, without) in &results {
                prop_assert!(bits(&with[round]) == bits(&results[0].0[round]));
                prop_assert!(bits(without.get(round).unwrap()) == bits(&results[0].0[round]));
            }
        }
    }
}
