//! What is planned is what is taken, to the byte.

use super::*;
use crate::learner::{Learner, LearnerSettings};
use crate::reduction::StagingSize;
use crate::settings::Accumulate;
use gradus_collective::run_as_threads;
use gradus_compute::Format;
use gradus_compute::{CpuDevice, Device};
use gradus_model::Parameters;
use std::sync::Arc;
use std::time::Duration;

/// Elements of a page, to which gradients that other ranks reach are rounded, and of which they need one more to begin on one.
const PAGE: usize = 1024;

/// Elements that the device of each rank has given to a learner, and whether its gradients are where other ranks reach them.
fn taken(work: &Work, split: &Split<'_>) -> Vec<(usize, bool)> {
    let learn = |world: gradus_collective::Communicator| {
        let device: Arc<dyn Device> = Arc::new(CpuDevice::new(1, work.train.precision, 1 << 22).unwrap());
        let settings = LearnerSettings {
            optimizer: work.optimizer.clone(),
            parallel: split.parallel.clone(),
            stages: split.parts(0).into_iter().map(|part| part.layers).collect(),
            rows: split.rows(),
            microbatches: work.train.global_batch.div_ceil(split.sequences),
            recompute: work.train.recompute,
            bucket_bytes: work.train.bucket_bytes,
        };
        let learner = Learner::new(work.model.clone(), &device, world, settings).unwrap();
        (device.allocated(), learner.shares_gradients())
    };
    run_as_threads(split.mesh.world_size(), Duration::from_secs(60), learn).unwrap()
}

/// Holds every rank's plan against what a learner takes there.
fn check(work: &Work, parallel: &ParallelSettings) {
    let world_size = [parallel.pp, parallel.dp, parallel.fsdp, parallel.tp].iter().product();
    check_split(&Split::new(work, parallel, world_size).unwrap());
}

fn check_split(split: &Split<'_>) {
    let (work, parallel) = (split.work, &split.parallel);
    let device = CpuDevice::new(1, work.train.precision, 1 << 10).unwrap();
    let prepared = |shape, usage| device.prepared_len(shape, usage);
    let mut sizes = Sizes::new(work, &prepared);
    let mut most = vec![0; split.mesh.pp];
    for (rank, (elements, shared)) in taken(work, split).into_iter().enumerate() {
        let at = split.mesh.coordinates(rank);
        let planned = sizes.of_rank(split, at);
        let parts = split.parts(at.tp);
        let rounding = |stage: usize| {
            let parameters = Parameters::of(&work.model, &parts[stage]);
            let (ranks, bucket_bytes) = ([split.mesh.dp, split.mesh.fsdp], work.train.bucket_bytes);
            let staging = StagingSize::new(parallel.gradients, ranks, parameters.units(), bucket_bytes);
            let len = staging.map_or(parameters.layout.len(), StagingSize::len);
            len.next_multiple_of(PAGE) + PAGE - len
        };
        let rounding: usize = if shared { split.stages_of(at.pp).map(rounding).sum() } else { 0 };
        assert_eq!(
            planned.total(),
            4 * (elements - rounding) as u64,
            "rank {rank} of {parallel:?}: {planned:?}"
        );
        most[at.pp] = most[at.pp].max(planned.total());
    }
    let holdings = sizes.holdings(split);
    let found: Vec<u64> = holdings.iter().map(|holding| holding.memory.total()).collect();
    assert_eq!(found, most, "{parallel:?}");
    for holding in &holdings {
        let at = split.mesh.coordinates(holding.rank);
        assert!(at.pp == holding.pp && sizes.of_rank(split, at) == holding.memory);
    }
    assert!(sizes.least(split) <= sizes.most(split));
}

#[test]
fn plans_are_what_is_allocated() {
    use Kind::{GPipe, Interleaved, OneForwardOneBackward, ZeroBubble};
    for (family, tied) in [(Family::Llama, false), (Family::Llama, true), (Family::Gpt2, true)] {
        use {
            Format::F32 as Whole,
            GradientFormat::F32 as Single,
            OptimizerKind::{AdamW, Muon},
        };
        for (optimizer, recompute, precision, masters, gradients) in [
            (AdamW, false, Precision::Bf16, Whole, Single),
            (Muon, false, Precision::F32, Whole, Single),
            (AdamW, true, Precision::Bf16, Format::Bf16, Single),
            (AdamW, false, Precision::Bf16, Whole, GradientFormat::Bf16),
            (Muon, true, Precision::F32, Format::Bf16, GradientFormat::Bf16),
        ] {
            let mut work = work(tiny(family, tied, 5), 24);
            (work.optimizer.kind, work.optimizer.masters) = (optimizer, masters);
            (work.train.recompute, work.train.precision, work.train.microbatch) = (recompute, precision, 1);
            let check = |sizes, zero, schedule, accumulate| {
                let settings = parallel(sizes, zero, schedule);
                check(&work, &ParallelSettings { gradients, accumulate, ..settings });
            };
            check([2, 1, 2, 1], 3, GPipe, Accumulate::Scatter);
            check([2, 1, 2, 1], 3, Interleaved, Accumulate::Scatter);
            check([3, 1, 2, 1], 1, ZeroBubble, Accumulate::Scatter);
            check([1, 4, 1, 1], 3, OneForwardOneBackward, Accumulate::Scatter);
            // Cut matrices are updated in f32 only.
            if optimizer == AdamW || masters == Whole {
                check([2, 1, 1, 2], 3, Interleaved, Accumulate::Scatter);
                check([1, 1, 3, 2], 2, OneForwardOneBackward, Accumulate::Scatter);
            }
            for zero in 1..=3 {
                check([1, 2, 2, 1], zero, OneForwardOneBackward, Accumulate::Full);
            }
        }
    }
}

#[test]
fn stages_that_were_measured_are_planned_as_they_were_cut() {
    let work = work(tiny(Family::Llama, true, 5), 24);
    let settings = parallel([2, 1, 1, 1], 3, Kind::OneForwardOneBackward);
    let cut = Split::new(&work, &settings, 2).unwrap().with_stages(vec![0..1, 1..5]);
    assert_eq!(cut.parts(0).iter().map(|part| part.layers.len()).collect::<Vec<_>>(), [1, 4]);
    check_split(&cut);
}

#[test]
fn of_a_model_on_one_rank_everything_can_be_counted_by_hand() {
    let mut work = work(tiny(Family::Llama, false, 2), 4);
    work.train.microbatch = 1;
    let split = Split::new(&work, &parallel([1, 1, 1, 1], 3, Kind::default()), 1).unwrap();
    // Two blocks of qkv 96 x 32, out 32 x 32, up 192 x 32, down 32 x 96 and norms, two tables of 256 x 32, a last norm.
    let block = 32 * (96 + 32 + 192 + 96) + 2 * 32;
    let elements = 2 * block + 2 * 256 * 32 + 32;
    let memory = Sizes::new(&work, &prepared_in_pairs).holdings(&split)[0].memory;
    let bytes = 4 * elements as u64;
    assert_eq!((memory.weights, memory.gradients, memory.moments), (bytes, bytes, 2 * bytes));
    assert_eq!((memory.gathered, memory.copies, memory.scattered), (0, 0, 0));
    work.train.precision = Precision::Bf16;
    let split = Split::new(&work, &parallel([1, 1, 1, 1], 3, Kind::default()), 1).unwrap();
    let copies = Sizes::new(&work, &prepared_in_pairs).holdings(&split)[0].memory.copies;
    // Matrices of linear layers and the head, for two uses, at half the size each.
    assert_eq!(copies, 4 * (2 * 32 * (96 + 32 + 192 + 96) + 256 * 32) as u64);
}

#[test]
fn what_does_not_fit_is_refused_with_what_is_missing_and_what_would() {
    let work = work(tiny(Family::Llama, false, 4), 8);
    let split = Split::new(&work, &parallel([1, 8, 1, 1], 3, Kind::default()), 8).unwrap();
    let most = Sizes::new(&work, &prepared_in_pairs).most(&split);
    assert_eq!(check_memory(&split, most, &prepared_in_pairs).unwrap().len(), 1);
    let refuse = |memory| {
        let error = check_memory(&split, memory, &prepared_in_pairs).unwrap_err();
        assert_eq!(*error.kind(), gradus_error::Kind::Invalid);
        error.to_string()
    };
    let text = refuse(most - 1000);
    assert!(text.contains(" 1000 bytes are missing") && text.contains("moments"), "{text}");
    assert!(text.contains("parallel.fsdp") && text.contains("would fit"), "{text}");
    assert!(refuse(1000).contains("more ranks"));
}
