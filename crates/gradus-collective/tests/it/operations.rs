//! Every operation, every element, every reduction, over real transports, against a sequential reference.

use crate::world::{ALL, Way, contribution, is_near, reference, run};
use gradus_collective::{Collective, Communicator, Number, Reduction, bf16, f16};
use gradus_fabric::{NetworkSettings, PeerMemory, TransportKind};
use proptest::prelude::*;
use std::fmt::Debug;

/// Numbers that tests make and combine one after the other.
pub trait Sample: Number + Debug + PartialEq {
    fn make(value: i64) -> Self;
    fn word(self) -> u64;
    /// As exact as the test can: sums of the small integers that tests use are exact in all types.
    fn fold(reduction: Reduction, all: &[Self]) -> Self;
}

fn fold_integers(reduction: Reduction, all: &[i64]) -> i64 {
    let product = |a: i64, b: &i64| a.wrapping_mul(*b);
    match reduction {
        Reduction::Sum | Reduction::Mean => all.iter().fold(0, |a, b| a.wrapping_add(*b)),
        Reduction::Min => *all.iter().min().unwrap(),
        Reduction::Max => *all.iter().max().unwrap(),
        Reduction::Product => all.iter().fold(1, product),
    }
}

macro_rules! integers {
    ($($number:ident)*) => { $(
        impl Sample for $number {
            fn make(value: i64) -> Self { value as Self }
            fn word(self) -> u64 { self as u64 }
            fn fold(reduction: Reduction, all: &[Self]) -> Self {
                let wide: Vec<i64> = all.iter().map(|x| i64::from(*x)).collect();
                fold_integers(reduction, &wide) as Self
            }
        }
    )* };
}

macro_rules! floats {
    ($($number:ident: $make:expr, $wide:expr;)*) => { $(
        impl Sample for $number {
            fn make(value: i64) -> Self { $make(value as f64) }
            fn word(self) -> u64 { u64::from(self.to_bits()) }
            fn fold(reduction: Reduction, all: &[Self]) -> Self {
                let wide: Vec<i64> = all.iter().map(|x| $wide(*x) as i64).collect();
                let folded = fold_integers(reduction, &wide) as f64;
                $make(if reduction == Reduction::Mean { folded / all.len() as f64 } else { folded })
            }
        }
    )* };
}

integers!(i32 i64 u8);
floats! {
    f32: |x| x as f32, f64::from;
    f64: |x| x, |x| x;
    f16: |x| f16::from_f32(x as f32), f16::to_f64;
    bf16: |x| bf16::from_f32(x as f32), bf16::to_f64;
}

/// What a rank brings at a place: small integers, whose sums are exact in every type at nine ranks, and whose products
/// are, being powers of two with a sign (one in four of them is two).
fn value<T: Sample>(reduction: Reduction, rank: usize, place: usize) -> T {
    let mixed = (rank * 31 + place * 17) % 13;
    T::make(match reduction {
        Reduction::Product => [1, 1, 2, 1][mixed % 4],
        _ => mixed as i64,
    })
}

fn brought<T: Sample>(reduction: Reduction, rank: usize, len: usize) -> Vec<T> {
    (0..len).map(|place| value(reduction, rank, place)).collect()
}

fn combined<T: Sample>(reduction: Reduction, world_size: usize, len: usize) -> Vec<T> {
    let at = |place: usize| -> Vec<T> { (0..world_size).map(|rank| value(reduction, rank, place)).collect() };
    (0..len).map(|place| T::fold(reduction, &at(place))).collect()
}

/// Runs a collective with what a rank brings; `place` is where that lies when there is one buffer of `whole` elements.
/// Returns the output, and holds that the input is as it was.
fn outcome<T: Sample>(
    communicator: &mut Communicator,
    what: &Collective,
    input: &[T],
    (in_place, whole, place): (bool, usize, usize),
    output: usize,
) -> Vec<T> {
    if in_place {
        let mut data = vec![T::make(77); whole];
        data[place..place + input.len()].copy_from_slice(input);
        communicator.run_in_place(what, &mut data).unwrap();
        return data;
    }
    let mut result = vec![T::make(99); output];
    let before = input.to_vec();
    communicator.run(what, input, &mut result).unwrap();
    assert_eq!(input, before, "{what:?} has written its input");
    result
}

/// Counts that some ranks have none of.
pub fn counts(world_size: usize, len: usize) -> Vec<usize> {
    (0..world_size).map(|rank| [len, 0, len / 2 + 1][rank % 3]).collect()
}

/// All reductions of one type; what the results are made of.
fn reductions<T: Sample>(
    communicator: &mut Communicator,
    reduction: Reduction,
    len: usize,
    in_place: bool,
) -> Vec<u64> {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let input: Vec<T> = brought(reduction, rank, len);
    let sum = outcome(communicator, &Collective::all_reduce(reduction), &input, (in_place, len, 0), len);
    assert_eq!(sum, combined(reduction, world_size, len), "all-reduce of {len} ({reduction})");
    for root in [0, world_size - 1] {
        let at_root = if rank == root { len } else { 0 };
        let what = Collective::reduce(root, reduction);
        let result = outcome(communicator, &what, &input, (in_place, len, 0), at_root);
        assert!(rank != root || result == sum, "reduce of {len} to {root} ({reduction})");
    }
    let counts = counts(world_size, len);
    let equal = vec![len; world_size];
    for (counts, what) in [
        (&equal, Collective::reduce_scatter(reduction)),
        (&counts, Collective::reduce_scatter(reduction).with_counts(counts.clone())),
    ] {
        let whole: usize = counts.iter().sum();
        let start: usize = counts[..rank].iter().sum();
        let input: Vec<T> = brought(reduction, rank, whole);
        let result = outcome(communicator, &what, &input, (in_place, whole, 0), counts[rank]);
        let own = if in_place { &result[start..start + counts[rank]] } else { &result[..] };
        let all = combined::<T>(reduction, world_size, whole);
        assert_eq!(own, &all[start..start + counts[rank]], "reduce-scatter of {counts:?} ({reduction})");
    }
    sum.into_iter().map(T::word).collect()
}

/// All that moves without combining.
fn moves<T: Sample>(communicator: &mut Communicator, len: usize, in_place: bool) {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let data = |rank: usize, len: usize| -> Vec<T> {
        (0..len).map(|i| T::make((rank * 7 + i) as i64 % 100)).collect()
    };
    for root in [0, world_size / 2, world_size - 1] {
        let (input, place) = (if rank == root { data(root, len) } else { vec![] }, (in_place, len, 0));
        assert_eq!(outcome(communicator, &Collective::broadcast(root), &input, place, len), data(root, len));
    }
    for (counts, unequal) in [(vec![len; world_size], false), (counts(world_size, len), true)] {
        let of = |what: Collective| if unequal { what.with_counts(counts.clone()) } else { what };
        let whole: usize = counts.iter().sum();
        let start: usize = counts[..rank].iter().sum();
        let own = data(rank, counts[rank]);
        let all: Vec<T> = (0..world_size).flat_map(|rank| data(rank, counts[rank])).collect();
        let gathered =
            outcome(communicator, &of(Collective::all_gather()), &own, (in_place, whole, start), whole);
        assert_eq!(gathered, all, "all-gather of {counts:?}");
        for root in [0, world_size - 1] {
            let is_root = rank == root;
            let (len, place) = if is_root { (whole, start) } else { (own.len(), 0) };
            let output = if is_root { whole } else { 0 };
            let what = of(Collective::gather(root));
            let gathered = outcome(communicator, &what, &own, (in_place, len, place), output);
            assert!(!is_root || gathered == all, "gather of {counts:?} to {root}");
            let brings: &[T] = if is_root { &all } else { &[] };
            let what = of(Collective::scatter(root));
            let result = outcome(communicator, &what, brings, (in_place, len, 0), own.len());
            let at = if in_place { place } else { 0 };
            assert_eq!(&result[at..at + own.len()], own, "scatter of {counts:?} from {root}");
        }
    }
    exchange(communicator, len, in_place, data);
}

/// All-to-all, with equal parts and with others.
fn exchange<T: Sample>(
    communicator: &mut Communicator,
    len: usize,
    in_place: bool,
    data: impl Fn(usize, usize) -> Vec<T>,
) {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let part = |from: usize, to: usize, len: usize| data(from * world_size + to, len);
    let unequal = |a: usize, b: usize| (a + b) % 3 * len / 2;
    let row: Vec<usize> = (0..world_size).map(|peer| unequal(rank, peer)).collect();
    let exchanges = [
        (Collective::all_to_all(), vec![len; world_size]),
        (Collective::all_to_all_counts(row.clone(), row.clone()), row),
    ];
    for (what, counts) in exchanges {
        let input: Vec<T> = (0..world_size).flat_map(|to| part(rank, to, counts[to])).collect();
        let wanted: Vec<T> = (0..world_size).flat_map(|from| part(from, rank, counts[from])).collect();
        let whole = input.len();
        assert_eq!(outcome(communicator, &what, &input, (in_place, whole, 0), whole), wanted, "{what:?}");
    }
}

/// Everything with one type; the bits of what is the same on all ranks.
fn everything<T: Sample>(communicator: &mut Communicator, len: usize, in_place: bool) -> Vec<u64> {
    moves::<T>(communicator, len, in_place);
    let float = matches!(T::ELEMENT.to_string().as_str(), "f32" | "f64" | "f16" | "bf16");
    let reductions = Reduction::ALL.into_iter().filter(|reduction| float || *reduction != Reduction::Mean);
    reductions.flat_map(|reduction| self::reductions::<T>(communicator, reduction, len, in_place)).collect()
}

pub fn all_types(communicator: &mut Communicator, len: usize, in_place: bool) -> Vec<u64> {
    let types = [
        everything::<f32>,
        everything::<f64>,
        everything::<f16>,
        everything::<bf16>,
        everything::<i32>,
        everything::<i64>,
        everything::<u8>,
    ];
    types.iter().flat_map(|everything| everything(communicator, len, in_place)).collect()
}

#[test]
fn every_operation_type_and_reduction_in_every_world_to_nine() {
    for kind in ALL {
        // What is simulated takes turns on one processor.
        let largest = if kind == Way::Simulated { 4 } else { 9 };
        for world_size in 1..=largest {
            let results = run(world_size, kind, &NetworkSettings::default(), |mut communicator| {
                let mut bits = Vec::new();
                for (len, in_place) in
                    [(0, true), (0, false), (1, true), (1, false), (1237, true), (1237, false)]
                {
                    bits.extend(all_types(&mut communicator, len, in_place));
                }
                bits
            });
            assert!(results.iter().all(|bits| *bits == results[0]), "{kind:?} {world_size}");
        }
    }
}

#[test]
fn large_parts_go_through_small_rings() {
    let settings = NetworkSettings { ring_bytes: 4096, ..NetworkSettings::default() };
    run(3, TransportKind::SharedMemory, &settings, |mut communicator| {
        for in_place in [true, false] {
            everything::<f16>(&mut communicator, 40_001, in_place);
            everything::<i64>(&mut communicator, 20_003, in_place);
        }
    });
}

#[test]
fn sums_are_the_same_out_of_any_memory() {
    let ways = [PeerMemory::Never, PeerMemory::Always, PeerMemory::Auto];
    for world_size in 2..=5 {
        for peer_memory in ways {
            let settings = NetworkSettings { peer_memory, ..NetworkSettings::default() };
            run(world_size, TransportKind::SharedMemory, &settings, |mut communicator| {
                for in_place in [true, false] {
                    // Carried by signals, staged, and pulled where that is allowed.
                    for len in [1, 10, 5_000, 40_001, 300_007] {
                        sums::<f32>(&mut communicator, len, in_place);
                        sums::<u8>(&mut communicator, len, in_place);
                    }
                }
            });
        }
    }
}

/// Some reductions of `len` elements, held against the sequential ones.
fn sums<T: Sample>(communicator: &mut Communicator, len: usize, in_place: bool) {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    for reduction in [Reduction::Sum, Reduction::Max, Reduction::Product] {
        let input = brought::<T>(reduction, rank, len);
        let got = outcome(communicator, &Collective::all_reduce(reduction), &input, (in_place, len, 0), len);
        assert_eq!(got, combined::<T>(reduction, world_size, len), "{reduction} {len} {in_place}");
    }
}

#[test]
fn registered_memory_is_summed_in_place() {
    for world_size in 2..=4 {
        run(world_size, TransportKind::SharedMemory, &NetworkSettings::default(), |mut communicator| {
            let (rank, heap) = (communicator.rank(), communicator.heap().unwrap());
            let before = communicator.counters().bytes_sent;
            for len in [1usize, 4096, 100_003] {
                let range = heap.allocate(len * 4 + 64).unwrap();
                // SAFETY: zeros, alive as long as `range`; peers write there within collectives only.
                let data = unsafe {
                    std::slice::from_raw_parts_mut(range.start().as_ptr().cast::<f32>().add(3), len)
                };
                for round in 0..3 {
                    data.copy_from_slice(&contribution(rank, len, round));
                    communicator.all_reduce(data).unwrap();
                    assert!(is_near(data, &reference(world_size, len, round), world_size));
                }
            }
            assert!(communicator.counters().bytes_sent > before + 300_000);
        });
    }
}

/// Rank 0 in place, the others not.
fn sum_in_one_buffer_or_two(communicator: &mut Communicator, memory: &mut [i64]) {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let what = Collective::all_reduce(Reduction::Sum);
    let (input, output) = memory.split_at_mut(memory.len() / 2);
    input.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 97 * (rank + 1)) as i64);
    output.fill(-1);
    let result = if rank == 0 {
        communicator.run_in_place(&what, input).unwrap();
        input
    } else {
        communicator.run(&what, input, output).unwrap();
        output
    };
    let ranks: usize = (1..=world_size).sum();
    assert!(result.iter().enumerate().all(|(i, x)| *x == (i % 97 * ranks) as i64), "{}", result.len());
}

#[test]
fn one_rank_may_work_in_place_and_another_not() {
    for (peer_memory, world_size) in
        [(PeerMemory::Never, 2), (PeerMemory::Always, 2), (PeerMemory::Always, 3)]
    {
        let settings = NetworkSettings { peer_memory, ..NetworkSettings::default() };
        run(world_size, TransportKind::SharedMemory, &settings, |mut communicator| {
            let heap = communicator.heap().unwrap();
            for len in [1usize, 300, 20_000, 300_000] {
                sum_in_one_buffer_or_two(&mut communicator, &mut vec![0; 2 * len]);
                let range = heap.allocate(2 * len * 8).unwrap();
                // SAFETY: zeros, alive as long as `range`; peers write there within collectives only.
                let shared =
                    unsafe { std::slice::from_raw_parts_mut(range.start().as_ptr().cast(), 2 * len) };
                sum_in_one_buffer_or_two(&mut communicator, shared);
            }
        });
    }
}

#[test]
fn registered_on_one_rank_only_is_named() {
    let errors = run(2, TransportKind::SharedMemory, &NetworkSettings::default(), |mut communicator| {
        let heap = communicator.heap().unwrap();
        let range = heap.allocate(1 << 20).unwrap();
        // SAFETY: as above.
        let shared = unsafe { std::slice::from_raw_parts_mut(range.start().as_ptr().cast::<f32>(), 1 << 18) };
        let mut private = vec![0f32; 1 << 18];
        let data = if communicator.rank() == 0 { shared } else { &mut private };
        communicator.all_reduce(data).unwrap_err()
    });
    for error in errors {
        assert_eq!(*error.kind(), gradus_error::Kind::Invalid, "{error}");
        assert!(error.to_string().contains("in registered memory"), "{error}");
    }
}

#[test]
fn what_is_no_number_is_one_nan_everywhere() {
    for world_size in 2..=5 {
        let results =
            run(world_size, TransportKind::SharedMemory, &NetworkSettings::default(), |mut communicator| {
                let rank = communicator.rank() as u32;
                let mut bits = Vec::new();
                for reduction in Reduction::ALL {
                    // Every rank has a NaN of its own, a zero of either sign, and one that is alone with its NaN.
                    let zero = if rank.is_multiple_of(2) { 0.0 } else { -0.0 };
                    let alone = if rank == 1 { f32::NAN } else { 1.0 };
                    let mut data = [f32::from_bits(0x7fc0_0001 + rank), zero, alone];
                    communicator.run_in_place(&Collective::all_reduce(reduction), &mut data).unwrap();
                    assert!(data[0].is_nan() && data[2].is_nan(), "{reduction}");
                    bits.extend(data.map(f32::to_bits));
                }
                bits
            });
        assert!(results.iter().all(|bits| *bits == results[0]), "{world_size}");
    }
}

#[test]
fn messages_pass_between_two() {
    for kind in ALL {
        run(3, kind, &NetworkSettings::default(), |mut communicator| {
            let rank = communicator.rank();
            for round in 0..20i32 {
                let len = [0, 1, 1000, 100_000][round as usize % 4];
                let data = |rank: usize| vec![round * 3 + rank as i32; len];
                let mut got = vec![0; len];
                match rank {
                    0 => {
                        communicator.send(1, &data(0)).unwrap();
                        communicator.receive(2, &mut got).unwrap();
                    }
                    1 => communicator.receive(0, &mut got).unwrap(),
                    _ => communicator.send(0, &data(2)).unwrap(),
                }
                assert!(rank == 2 || got == data((rank + 2) % 3), "{rank} {round}");
                communicator.barrier().unwrap();
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_length_of_any_type(
        world_size in 1usize..=6, len in 0usize..9_000, tcp in any::<bool>(), in_place in any::<bool>(), kind in 0usize..7
    ) {
        let transport = if tcp { TransportKind::Tcp } else { TransportKind::SharedMemory };
        let results = run(world_size, transport, &NetworkSettings::default(), |mut communicator| {
            let c = &mut communicator;
            match kind {
                0 => everything::<f32>(c, len, in_place),
                1 => everything::<f64>(c, len, in_place),
                2 => everything::<f16>(c, len, in_place),
                3 => everything::<bf16>(c, len, in_place),
                4 => everything::<i32>(c, len, in_place),
                5 => everything::<i64>(c, len, in_place),
                _ => everything::<u8>(c, len, in_place),
            }
        });
        prop_assert!(results.iter().all(|bits| *bits == results[0]));
    }
}
