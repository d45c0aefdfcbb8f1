//! One suite over every transport: what collectives compute.

use crate::world::{ALL, Way, bits, contribution, is_near, reference, run};
use gradus_collective::Communicator;
use gradus_fabric::{NetworkSettings, TransportKind};
use gradus_memory::RawRange;
use proptest::prelude::*;

pub fn lengths(world_size: usize) -> Vec<usize> {
    vec![0, 1, 2, 3, world_size - 1, world_size + 1, 1000, 65_537, 1 << 20]
}

/// All that a communicator can do, once: used by threads here and by processes elsewhere. Returns the bits of all
/// results, which must be the same on every rank.
pub fn exercise(communicator: &mut Communicator) -> Vec<u32> {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let mut all = Vec::new();
    for (round, len) in lengths(world_size).into_iter().enumerate() {
        let mut data = contribution(rank, len, round);
        communicator.all_reduce(&mut data).unwrap();
        assert!(is_near(&data, &reference(world_size, len, round), world_size), "all-reduce of {len}");
        all.extend(bits(&data));
    }
    let mut counts = [rank as f64, 1.0, 0.1];
    communicator.all_reduce(&mut counts).unwrap();
    let ranks = world_size as f64;
    assert_eq!(counts[..2], [ranks * (ranks - 1.0) / 2.0, ranks]);
    assert!((counts[2] - 0.1 * ranks).abs() < 1e-12);
    all.extend(counts.iter().flat_map(|x| [x.to_bits() as u32, (x.to_bits() >> 32) as u32]));
    for root in 0..world_size {
        for len in [0, 1, 4099, 300_001] {
            let pattern = |rank: usize| (0..len).map(|i| (i * 7 + rank * 31) as u8).collect::<Vec<u8>>();
            let mut bytes = pattern(rank);
            communicator.broadcast(root, &mut bytes).unwrap();
            assert_eq!(bytes, pattern(root), "broadcast of {len} from {root}");
        }
    }
    all.extend(in_flight(communicator));
    communicator.barrier().unwrap();
    all
}

/// Several all-reduces at once, waited for out of order, with the caller computing meanwhile.
fn in_flight(communicator: &mut Communicator) -> Vec<u32> {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let lens = [200_000, 3, 70_000, 0, 1000];
    let mut buffers: Vec<Vec<f32>> =
        lens.iter().enumerate().map(|(i, len)| contribution(rank, *len, i)).collect();
    for _ in 0..3 {
        for (round, len) in lens.iter().enumerate() {
            buffers[round].copy_from_slice(&contribution(rank, *len, round));
        }
        // SAFETY: nobody touches the buffers before all handles were waited for.
        let start =
            |buffer: &mut Vec<f32>| unsafe { communicator.start_all_reduce(RawRange::of(buffer)) }.unwrap();
        let handles: Vec<_> = buffers.iter_mut().map(start).collect();
        for _ in 0..5 {
            communicator.progress().unwrap();
        }
        for handle in handles.into_iter().rev() {
            communicator.wait(handle).unwrap();
        }
    }
    for (round, (buffer, len)) in buffers.iter().zip(lens).enumerate() {
        assert!(is_near(buffer, &reference(world_size, len, round), world_size), "number {round} in flight");
    }
    buffers.iter().flat_map(|buffer| bits(buffer)).collect()
}

#[test]
fn threads_agree_to_the_bit_over_every_transport() {
    for kind in ALL {
        for world_size in 1..=5 {
            let results = run(world_size, kind, &NetworkSettings::default(), |mut communicator| {
                exercise(&mut communicator)
            });
            assert!(results.iter().all(|bits| *bits == results[0]), "{kind:?} {world_size}");
        }
    }
}

#[test]
fn nodes_come_to_the_bits_of_tcp() {
    let over =
        |way: Way| run(4, way, &NetworkSettings::default(), |mut communicator| exercise(&mut communicator));
    assert!(over(Way::Nodes) == over(TransportKind::Tcp.into()));
}

#[test]
fn rings_smaller_than_a_message_only_cost_time() {
    let settings = NetworkSettings { ring_bytes: 4096, ..NetworkSettings::default() };
    let results =
        run(3, TransportKind::SharedMemory, &settings, |mut communicator| exercise(&mut communicator));
    assert!(results.iter().all(|bits| *bits == results[0]));
}

#[test]
fn a_world_of_one_changes_nothing_and_never_waits() {
    let mut communicator = Communicator::alone();
    let mut data = [1.5f32, -2.0];
    communicator.all_reduce(&mut data).unwrap();
    communicator.broadcast(0, &mut [1u8, 2]).unwrap();
    communicator.barrier().unwrap();
    // SAFETY: the data outlive the wait.
    let handle = unsafe { communicator.start_all_reduce(RawRange::of(&mut data)) }.unwrap();
    assert!(communicator.is_done(&handle));
    communicator.wait(handle).unwrap();
    assert_eq!(data, [1.5, -2.0]);
    let counters = communicator.counters();
    assert_eq!((counters.operations, counters.bytes_sent, counters.waited_ns), (4, 0, counters.waited_ns));
}

#[test]
fn counters_count() {
    let all = run(2, TransportKind::SharedMemory, &NetworkSettings::default(), |mut communicator| {
        communicator.all_reduce(&mut [1.0f32; 1000]).unwrap();
        communicator.barrier().unwrap();
        communicator.counters()
    });
    assert!(
        all.iter().all(|c| c.operations == 2 && c.bytes_sent > 4000 && c.bytes_received == all[0].bytes_sent)
    );
}

#[test]
fn a_communicator_can_move_to_another_thread() {
    fn is_send<T: Send>(_: &T) {}
    is_send(&Communicator::alone());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_length_in_any_world(world_size in 1usize..=4, len in 0usize..70_000, tcp in any::<bool>()) {
        let kind = if tcp { TransportKind::Tcp } else { TransportKind::SharedMemory };
        let results = run(world_size, kind, &NetworkSettings::default(), |mut communicator| {
            let mut data = contribution(communicator.rank(), len, 7);
            communicator.all_reduce(&mut data).unwrap();
            data
        });
        prop_assert!(is_near(&results[0], &reference(world_size, len, 7), world_size));
        prop_assert!(results.iter().all(|data| bits(data) == bits(&results[0])));
    }
}
