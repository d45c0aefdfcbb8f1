//! Groups of ranks, meshes of them, and memory that is ready later.

use crate::operations::all_types;
use crate::world::{ALL, run};
use gradus_collective::{Buffer, Collective, Communicator, Memory, Reduction};
use gradus_error::Kind;
use gradus_fabric::{NetworkSettings, TransportKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn axes_of_a_mesh_do_all_that_a_world_does() {
    for kind in ALL {
        run(6, kind, &NetworkSettings::default(), |mut communicator| {
            let rank = communicator.rank();
            let mut axes = communicator.mesh(&[("dp", 3), ("tp", 2)]).unwrap();
            let places: Vec<_> =
                axes.iter().map(|(name, axis)| (*name, axis.rank(), axis.world_size())).collect();
            assert_eq!(places, [("dp", rank / 2, 3), ("tp", rank % 2, 2)]);
            for (_, axis) in &mut axes {
                all_types(axis, 37, true);
                all_types(axis, 1000, false);
            }
            communicator.barrier().unwrap();
        });
    }
}

#[test]
fn groups_of_groups_sum_what_their_ranks_bring() {
    let sums = run(8, TransportKind::SharedMemory, &NetworkSettings::default(), |mut communicator| {
        let own = 1 << communicator.rank();
        let mut groups = communicator.mesh(&[("node", 2), ("local", 4)]).unwrap();
        let mut pairs = groups[1].1.mesh(&[("far", 2), ("near", 2)]).unwrap();
        let [far, near] = pairs.as_mut_slice() else { panic!("a mesh of two axes has two") };
        let all = [&mut communicator, &mut far.1, &mut near.1];
        all.map(|group| {
            let mut data = [own];
            group.all_reduce(&mut data).unwrap();
            data[0]
        })
    });
    let wanted = |rank: usize| {
        let (far, near) = (rank ^ 2, rank ^ 1);
        [255i32, 1 << rank | 1 << far, 1 << rank | 1 << near]
    };
    assert_eq!(sums, (0..8).map(wanted).collect::<Vec<_>>());
}

#[test]
fn collectives_of_crossing_groups_are_in_flight_together() {
    for kind in ALL {
        run(4, kind, &NetworkSettings::default(), |mut communicator| {
            let rank = communicator.rank() as i64;
            let mut axes = communicator.mesh(&[("dp", 2), ("tp", 2)]).unwrap();
            let mut data = vec![vec![rank; 50_000]; 6];
            let mut handles = Vec::new();
            for (index, buffer) in data.iter_mut().enumerate() {
                let group = if index % 3 == 2 { &mut communicator } else { &mut axes[index % 3].1 };
                // SAFETY: nobody touches the data before all are waited for.
                let handle = unsafe {
                    group.start(&Collective::all_reduce(Reduction::Sum), Memory::InPlace(Buffer::of(buffer)))
                };
                handles.push(handle.unwrap());
            }
            // Any communicator of a transport waits for all of its collectives.
            handles.into_iter().rev().for_each(|handle| communicator.wait(handle).unwrap());
            let sums = [rank + (rank ^ 2), rank + (rank ^ 1), 6];
            assert!(data.iter().enumerate().all(|(i, data)| data.iter().all(|x| *x == sums[i % 3])));
        });
    }
}

#[test]
fn a_group_that_is_dropped_in_flight_frees_its_memory_and_says_so() {
    let both_have_started = std::sync::Barrier::new(2);
    run(2, TransportKind::SharedMemory, &NetworkSettings::default(), |mut communicator| {
        let mut data = vec![1.0f32; 3_000_000];
        let mut group = communicator.group(&[0, 1]).unwrap();
        // SAFETY: the group is dropped before the data are touched.
        let handle = unsafe {
            group.start(&Collective::all_reduce(Reduction::Sum), Memory::InPlace(Buffer::of(&mut data)))
        };
        assert!(!group.is_done(&handle.unwrap()));
        both_have_started.wait();
        drop(group);
        data.fill(2.0);
        assert_eq!(*communicator.barrier().unwrap_err().kind(), Kind::Closed);
        assert!(data.iter().all(|x| *x == 2.0));
    });
}

/// Starts an all-reduce of memory that is ready once the flag is set.
fn start_when(
    communicator: &mut Communicator,
    data: &mut [i32],
    flag: &Arc<AtomicBool>,
) -> gradus_collective::Handle {
    let (what, flag) = (Collective::all_reduce(Reduction::Sum), Arc::clone(flag));
    let ready = Box::new(move || flag.load(Ordering::Acquire));
    // SAFETY: once the flag is set, nobody touches the data before they were waited for.
    unsafe { communicator.start_when(ready, &what, Memory::InPlace(Buffer::of(data))) }.unwrap()
}

#[test]
fn memory_may_be_ready_later_than_its_collective() {
    for kind in ALL {
        run(3, kind, &NetworkSettings::default(), |mut communicator| {
            let flag = Arc::new(AtomicBool::new(false));
            let mut early = vec![1i32; 70_000];
            let mut late = vec![0i32; 70_000];
            // SAFETY: the data are waited for before they are touched.
            let before = unsafe {
                communicator
                    .start(&Collective::all_reduce(Reduction::Sum), Memory::InPlace(Buffer::of(&mut early)))
            };
            let address = late.as_mut_ptr();
            let handle = start_when(&mut communicator, &mut late, &flag);
            communicator.wait(before.unwrap()).unwrap();
            assert!(!communicator.is_done(&handle));
            let writer = std::thread::spawn({
                let (flag, address) = (Arc::clone(&flag), address as usize);
                move || {
                    // SAFETY: as many elements as `late` has, which outlives this thread; nobody reads them before the
                    // flag is set.
                    (0..70_000).for_each(|i| unsafe { (address as *mut i32).add(i).write(i as i32) });
                    flag.store(true, Ordering::Release);
                }
            });
            communicator.wait(handle).unwrap();
            writer.join().unwrap();
            assert!(early.iter().all(|x| *x == 3));
            assert!(late.iter().enumerate().all(|(i, x)| *x == 3 * i as i32));
        });
    }
}

#[test]
fn what_has_nothing_to_move_waits_for_its_memory_too() {
    let wait_for = |communicator: &mut Communicator, data: &mut [i32]| {
        let flag = Arc::new(AtomicBool::new(false));
        let handle = start_when(communicator, data, &flag);
        communicator.progress().unwrap();
        assert!(!communicator.is_done(&handle));
        flag.store(true, Ordering::Release);
        communicator.wait(handle).unwrap();
        communicator.barrier().unwrap();
    };
    wait_for(&mut Communicator::alone(), &mut [5]);
    for kind in ALL {
        run(2, kind, &NetworkSettings::default(), |mut communicator| {
            let mut own = communicator.group(&[communicator.rank()]).unwrap();
            wait_for(&mut own, &mut [5]);
            wait_for(&mut communicator, &mut []);
        });
    }
}

#[test]
fn a_rank_alone_waits_for_its_memory_too() {
    let mut communicator = Communicator::alone();
    let (flag, mut data) = (Arc::new(AtomicBool::new(false)), [5i32]);
    let (what, asked) = (Collective::all_gather(), Arc::clone(&flag));
    let mut output = [0i32];
    let memory = Memory::Apart { input: Buffer::of(&mut data), output: Buffer::of(&mut output) };
    // SAFETY: neither is touched before it was waited for.
    let handle =
        unsafe { communicator.start_when(Box::new(move || asked.load(Ordering::Acquire)), &what, memory) };
    let handle = handle.unwrap();
    assert!(!communicator.is_done(&handle));
    flag.store(true, Ordering::Release);
    communicator.wait(handle).unwrap();
    assert_eq!(output, [5]);
}
