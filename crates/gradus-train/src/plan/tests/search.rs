//! The search against trying everything.

use super::super::search::splits;
use super::super::slots::{least_slots, slots};
use super::super::time::bound;
use super::*;
use crate::pipeline::Kind;

fn space<'a>(
    work: &'a Work,
    base: &'a ParallelSettings,
    machine: &'a Machine,
    world_size: usize,
    memory: u64,
) -> Search<'a> {
    Search { work, parallel: base, world_size, machine, memory, prepared: &prepared_in_pairs, most: 3 }
}

#[test]
fn the_search_finds_what_trying_everything_finds_and_nothing_that_does_not_fit() {
    let base = ParallelSettings::default();
    let slow = LinkRate { latency_us: 20.0, bytes_per_s: 1e7 };
    for (peak_flops, across) in [(1e9, slow), (1e10, LinkRate { latency_us: 1.0, bytes_per_s: 1e9 })] {
        let machine = Machine { peak_flops, ranks_per_node: 4, across, ..h100() };
        for tied in [false, true] {
            let work = work(tiny(Family::Llama, tied, 6), 12);
            let mut sizes = Sizes::new(&work, &prepared_in_pairs);
            let everything = space(&work, &base, &machine, 12, u64::MAX);
            let needs: Vec<u64> = splits(&everything).map(|split| sizes.most(&split)).collect();
            let (least, most) = (*needs.iter().min().unwrap(), *needs.iter().max().unwrap());
            for memory in [least, least + (most - least) / 8, (least + most) / 2, u64::MAX] {
                let space = Search { memory, ..everything };
                let mut best = (f64::INFINITY, 0);
                for split in splits(&space) {
                    let (memory, step) = (sizes.most(&split), predict(&split, &machine, &mut sizes));
                    if memory <= space.memory && (step.total, memory) < best {
                        best = (step.total, memory);
                    }
                }
                let found = search(&space);
                assert_eq!((found[0].step.total, found[0].memory), best);
                assert!(found.iter().all(|choice| choice.memory <= memory));
                assert!(found.windows(2).all(|pair| pair[0].step.total <= pair[1].step.total));
            }
            assert!(search(&Search { memory: least - 1, ..everything }).is_empty());
        }
    }
}

#[test]
fn bounds_are_never_above_what_they_bound() {
    let base = ParallelSettings::default();
    let machine = Machine { peak_flops: 1e10, ranks_per_node: 4, ..h100() };
    let work = work(tiny(Family::Gpt2, true, 9), 24);
    let mut sizes = Sizes::new(&work, &prepared_in_pairs);
    for split in splits(&space(&work, &base, &machine, 24, u64::MAX)) {
        let (least, step) = (bound(&split, &machine, &mut sizes), predict(&split, &machine, &mut sizes));
        assert!(least <= step.total * (1.0 + 1e-9), "{least} and {step:?}: {split:?}");
        assert!(sizes.least(&split) <= sizes.most(&split), "{split:?}");
        let parts = step.compute + step.tp + step.fsdp + step.dp + step.pp;
        assert!((parts - step.total).abs() <= 1e-9 * step.total, "{step:?}");
    }
}

#[test]
fn as_many_are_in_flight_of_few_microbatches_as_of_many() {
    let work = work(tiny(Family::Llama, false, 12), 1 << 20);
    let mut sizes = Sizes::new(&work, &prepared_in_pairs);
    for (schedule, chunks) in
        [("1f1b", 1), ("zero-bubble", 1), ("gpipe", 1), ("interleaved", 2), ("interleaved", 4)]
    {
        for pp in [2, 3] {
            for microbatches in [1, 5, 8, 16, 31, 50, 51, 52, 77, 100] {
                let schedule = serde_json::from_value(serde_json::json!(schedule)).unwrap();
                let settings =
                    ParallelSettings { stages_per_rank: chunks, ..parallel([pp, 1, 1, 1], 3, schedule) };
                let mut split = Split::new(&work, &settings, pp).unwrap();
                split.microbatches = microbatches;
                let exact = slots(&split);
                assert_eq!(*sizes.slots(&split), exact, "{schedule:?}, {pp}, {chunks}, {microbatches}");
                for (place, slots) in exact.iter().enumerate() {
                    let least = least_slots(&split, place);
                    assert!(slots.iter().all(|slots| *slots >= least || split.kind() == Kind::GPipe));
                }
            }
        }
    }
}
