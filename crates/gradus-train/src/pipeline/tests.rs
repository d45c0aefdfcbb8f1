//! All kinds over many shapes: right, within their memory, as fast as the papers say, and able to be carried out.

use super::*;
use proptest::prelude::*;

/// Two numbers that differ by rounding only.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

fn chunks(kind: Kind, chunks: usize) -> usize {
    if kind == Kind::Interleaved { chunks } else { 1 }
}

fn schedule(kind: Kind, ranks: usize, chunks: usize, microbatches: usize) -> Schedule {
    kind.generate(Shape { ranks, chunks_per_rank: chunks, microbatches }).unwrap()
}

fn stage([forward, backward_input, backward_weight]: [f64; 3]) -> StageCosts {
    StageCosts { forward, backward_input, backward_weight, transfer: 0.0 }
}

fn timeline(schedule: &Schedule, costs: [f64; 3]) -> Timeline {
    simulate(schedule, &Costs::uniform(schedule.shape, stage(costs))).unwrap()
}

fn bubble(kind: Kind, ranks: usize, chunks: usize, microbatches: usize) -> f64 {
    timeline(&schedule(kind, ranks, chunks, microbatches), [1.0; 3]).bubble()
}

/// Ranks and microbatches of small and large pipelines.
fn sizes() -> impl Iterator<Item = (usize, usize)> {
    (1..=6).flat_map(|power| [1, 2, 4].map(|times| (1 << power, times << power)))
}

#[test]
fn bubbles_are_those_of_the_papers() {
    for ((ranks, microbatches), costs) in
        sizes().flat_map(|size| [[1.0; 3], [1.0, 1.25, 0.75], [2.0, 3.0, 1.0]].map(|costs| (size, costs)))
    {
        for (kind, of_each) in Kind::ALL.map(|kind| (kind, 2)).into_iter().chain([(Kind::Interleaved, 4)]) {
            let schedule = schedule(kind, ranks, chunks(kind, of_each), microbatches);
            let (made, expected) =
                (timeline(&schedule, costs).bubble(), kind.expected_bubble(schedule.shape, stage(costs)));
            assert!(close(made, expected), "{kind}, {:?}, {costs:?}: {made} and {expected}", schedule.shape);
        }
    }
    let shape = Shape { ranks: 4, chunks_per_rank: 1, microbatches: 8 };
    let expected = Kind::ALL.map(|kind| kind.expected_bubble(shape, stage([1.0; 3])));
    assert_eq!(expected, [3.0 / 11.0, 3.0 / 11.0, 3.0 / 11.0, 3.0 / 27.0]);
}

#[test]
fn zero_bubble_waits_less_than_1f1b_on_the_memory_of_its_first_rank() {
    for ranks in 2..=64 {
        for microbatches in [ranks, ranks + 1, 2 * ranks, 4 * ranks] {
            let of = |kind| bubble(kind, ranks, 1, microbatches);
            let (zero, one) = (of(Kind::ZeroBubble), of(Kind::OneForwardOneBackward));
            assert!(zero < one, "{ranks} ranks, {microbatches} microbatches: {zero} and {one}");
            let peak = |kind| check(&schedule(kind, ranks, 1, microbatches)).unwrap().into_iter().max();
            assert_eq!(peak(Kind::ZeroBubble), peak(Kind::OneForwardOneBackward));
        }
    }
}

#[test]
fn a_rank_alone_never_waits() {
    for kind in Kind::ALL {
        let schedule = schedule(kind, 1, chunks(kind, 3), 7);
        check(&schedule).unwrap();
        let timeline = timeline(&schedule, [1.0, 2.0, 3.0]);
        assert!(
            (timeline.bubble(), timeline.idle(0)) == (0.0, 0.0) && timeline.makespan() == timeline.ideal()
        );
    }
}

#[test]
fn peaks_are_those_of_the_papers() {
    let peaks = |kind, microbatches| check(&schedule(kind, 4, chunks(kind, 2), microbatches)).unwrap();
    assert_eq!(peaks(Kind::GPipe, 8), [8; 4]);
    assert_eq!(peaks(Kind::OneForwardOneBackward, 8), [4, 3, 2, 1]);
    assert_eq!(peaks(Kind::OneForwardOneBackward, 2), [2, 2, 2, 1]);
    assert_eq!(peaks(Kind::Interleaved, 8), [11, 9, 7, 5]);
    assert_eq!(peaks(Kind::ZeroBubble, 8), [4; 4]);
}

#[test]
fn a_transfer_is_waited_for_and_slow_stages_set_the_pace() {
    let schedule = schedule(Kind::GPipe, 2, 1, 1);
    let stage = StageCosts { forward: 1.0, backward_input: 1.0, backward_weight: 1.0, transfer: 0.25 };
    let mut costs = Costs::uniform(schedule.shape, stage);
    let timeline = simulate(&schedule, &costs).unwrap();
    assert_eq!(timeline.periods[1], [Period { start: 1.25, end: 2.25 }, Period { start: 2.25, end: 4.25 }]);
    assert_eq!((timeline.makespan(), timeline.idle(1), timeline.ideal()), (6.5, 3.5, 3.0));
    costs.stages[1].forward = 2.0;
    assert_eq!(simulate(&schedule, &costs).unwrap().makespan(), 7.5);
}

#[test]
fn shapes_without_a_schedule_are_named() {
    let refused = |kind: Kind, ranks, chunks_per_rank, microbatches| {
        let error = kind.generate(Shape { ranks, chunks_per_rank, microbatches }).unwrap_err();
        assert_eq!(*error.kind(), gradus_error::Kind::Invalid);
        error.to_string()
    };
    assert!(refused(Kind::GPipe, 0, 1, 1).contains("parallel.pp"));
    assert!(refused(Kind::GPipe, 1, 0, 1).contains("parallel.stages_per_rank"));
    assert!(refused(Kind::GPipe, 1, 1, 0).contains("train.global_batch"));
    assert!(refused(Kind::GPipe, 1, 2, 1).contains("parallel.stages_per_rank is 2"));
    assert!(refused(Kind::Interleaved, 2, 1, 2).contains("parallel.schedule"));
}

#[test]
fn settings_name_kinds_as_they_name_themselves() {
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        assert_eq!(Kind::named(kind.name()).unwrap(), kind);
    }
    assert!(Kind::named("2f2b").unwrap_err().to_string().contains("1f1b, interleaved"));
    let names = Kind::ALL.map(Kind::name);
    assert_eq!(names, ["gpipe", "1f1b", "interleaved", "zero-bubble"]);
}

#[test]
fn the_largest_pipelines_are_lowered_and_rehearsed() {
    for kind in Kind::ALL {
        let schedule = schedule(kind, 64, chunks(kind, 2), 512);
        let costs = Costs::unit(schedule.shape);
        rehearse(&schedule, &lower(&schedule, Sharing::Rank).unwrap(), &costs).unwrap();
    }
}

proptest! {
    #[test]
    fn every_schedule_is_one_and_can_be_carried_out(
        kind in proptest::sample::select(Kind::ALL.to_vec()),
        ranks in 1usize..=16, of_each in 2usize..=4, microbatches in 1usize..=40,
    ) {
        let schedule = schedule(kind, ranks, chunks(kind, of_each), microbatches);
        let peaks = check(&schedule).unwrap();
        if kind != Kind::Interleaved || microbatches.is_multiple_of(ranks) {
            prop_assert_eq!(&peaks, &schedule.most_in_flight, "the promise is what is needed");
        }
        for lane in &schedule.actions {
            let ends: Vec<_> = lane.iter().filter(|action| action.kind.ends()).collect();
            for chunk in 0..schedule.shape.chunks_per_rank {
                let of_chunk = ends.iter().filter(|action| action.chunk == chunk);
                prop_assert!(of_chunk.map(|action| action.microbatch).eq(0..microbatches), "gradients add up in order");
            }
        }
        // The rank before may be ahead by what it holds more: one microbatch, or two passes where stages are interleaved.
        let spare = if kind == Kind::Interleaved { 2 } else { 1 };
        for sharing in [Sharing::Chunk, Sharing::Rank] {
            let programs = lower(&schedule, sharing).unwrap();
            let costs = Costs::unit(schedule.shape);
            let carried_out = rehearse(&schedule, &programs, &costs).unwrap();
            prop_assert_eq!(carried_out, simulate(&schedule, &costs).unwrap());
            for (program, peak) in programs.iter().zip(&peaks) {
                prop_assert!(program.most_slots <= peak + spare, "{} slots, {} in flight", program.most_slots, peak);
                let all: usize = program.slots.iter().sum();
                prop_assert!(all == program.most_slots || sharing == Sharing::Chunk && all > program.most_slots);
            }
        }
    }

    #[test]
    fn halves_are_never_slower_than_wholes(
        ranks in 1usize..=16, microbatches in 1usize..=40, costs in proptest::array::uniform3(0.0f64..4.0),
        transfer in proptest::sample::select(vec![0.0, 0.1, 1.0]),
    ) {
        let makespan = |kind| {
            let schedule = schedule(kind, ranks, 1, microbatches);
            let costs = Costs::uniform(schedule.shape, StageCosts { transfer, ..stage(costs) });
            simulate(&schedule, &costs).unwrap().makespan()
        };
        let (zero, one) = (makespan(Kind::ZeroBubble), makespan(Kind::OneForwardOneBackward));
        prop_assert!(zero <= one * (1.0 + 1e-9), "{} and {}", zero, one);
    }

    #[test]
    fn programs_receive_early_enough(
        kind in proptest::sample::select(Kind::ALL.to_vec()),
        ranks in 1usize..=16, microbatches in 1usize..=40, transfer in 0.0f64..0.5,
    ) {
        let schedule = schedule(kind, ranks, chunks(kind, 2), microbatches);
        let costs = Costs::uniform(schedule.shape, StageCosts { transfer, ..stage([1.0; 3]) });
        let carried_out = rehearse(&schedule, &lower(&schedule, Sharing::Chunk).unwrap(), &costs).unwrap();
        let (made, best) = (carried_out.makespan(), simulate(&schedule, &costs).unwrap().makespan());
        // Chunks of one rank receive from either side, in one order, and so now and then later than they could.
        let slack = if kind == Kind::Interleaved { 1.1 } else { 1.0 + 1e-9 };
        prop_assert!(made <= best * slack, "{} and {}", made, best);
    }
}
