//! What is planned is what is taken, to the byte.

use super::*;
use crate::mesh::Coordinates;
use crate::optimizer::{Optimizer, Piece};
use crate::pipeline::{Sharing, lower};
use crate::settings::{Accumulate, OptimizerSettings};
use crate::sharding::Sharding;
use gradus_compute::{CpuDevice, Device};
use gradus_memory::Span;
use gradus_model::{Parameters, Part, StageMemory, Transformer, Workspace};
use std::sync::Arc;

/// A device that counts, and what it has given away by kind.
struct Count {
    device: Arc<dyn Device>,
    taken: Vec<usize>,
}

impl Count {
    fn new(precision: Precision) -> Self {
        let device = Arc::new(CpuDevice::new(1, precision, 1 << 24).unwrap());
        Self { device, taken: vec![0; 5] }
    }

    /// Counts what `take` takes as of this kind.
    fn count(&mut self, kind: usize, take: impl FnOnce(&Arc<dyn Device>)) {
        let before = self.device.allocated();
        take(&self.device);
        self.taken[kind] += self.device.allocated() - before;
    }
}

/// Takes what a chunk takes: what the model, the optimizer and the workspace really do, and memory for weights and gradients
/// as the rules have it.
fn take_chunk(count: &mut Count, split: &Split<'_>, part: &Part, fsdp: usize, slots: usize) {
    let (work, parameters) = (split.work, Parameters::of(&split.work.model, part));
    let units: Vec<Span> = parameters.units().iter().map(|(_, span)| *span).collect();
    let sharding = Sharding::new(&parameters.layout, &units, split.mesh.fsdp, work.optimizer);
    let owned = sharding.owned(fsdp);
    let own: usize = owned.iter().map(|span| span.len).sum();
    let largest = units.iter().map(|unit| unit.len).max().unwrap();
    let tied_head = part.head && work.model.tied;
    let third = tied_head || parameters.positions.is_some();
    if split.parallel.shards_parameters() {
        let places = own + (2 + usize::from(third)) * largest;
        count.count(0, |device| assert!(device.allocate(places).is_ok()));
    } else {
        count.count(0, |device| {
            let model = Transformer::of_part(work.model.clone(), part.clone(), Arc::clone(device)).unwrap();
            if !work.train.recompute {
                model.with_prepared_weights().unwrap();
            }
        });
    }
    let gradients = match split.parallel.shards_gradients() {
        true => own + (2 + usize::from(tied_head)) * largest,
        false => parameters.layout.len(),
    };
    count.count(1, |device| assert!(device.allocate(gradients).is_ok()));
    count.count(2, |device| {
        let whole = [Span::new(0, parameters.layout.len())];
        let spans = if split.mesh.fsdp > 1 { &owned[..] } else { &whole };
        let pieces: Vec<Piece> =
            spans.iter().map(|span| Piece { span: *span, weights: *span, gradients: *span }).collect();
        let settings = OptimizerSettings { kind: work.optimizer, ..OptimizerSettings::default() };
        Optimizer::new(device.as_ref(), &parameters.layout, &pieces, settings).unwrap();
    });
    count.count(3, |device| {
        let (rows, recompute) = (split.rows(), work.train.recompute);
        let memory = StageMemory { rows, recompute, split_backward: split.splits_backward(), slots };
        Workspace::for_stage(device.as_ref(), &work.model, part, memory).unwrap();
    });
}

/// Holds every rank's plan against what it takes.
fn check(work: &Work, parallel: &ParallelSettings) {
    let world_size = [parallel.pp, parallel.dp, parallel.fsdp, parallel.tp].iter().product();
    let split = Split::new(work, parallel, world_size).unwrap();
    let device = CpuDevice::new(1, work.train.precision, 1 << 10).unwrap();
    let prepared = |shape, usage| device.prepared_len(shape, usage);
    let mut sizes = Sizes::new(work, &prepared);
    let schedule = split.kind().generate(split.shape()).unwrap();
    let programs = lower(&schedule, Sharing::Chunk).unwrap();
    let mut most = vec![0; split.mesh.pp];
    for rank in 0..world_size {
        let at @ Coordinates { pp, fsdp, tp, .. } = split.mesh.coordinates(rank);
        let parts = split.parts(tp);
        let mut count = Count::new(work.train.precision);
        for (chunk, stage) in split.stages_of(pp).enumerate() {
            take_chunk(&mut count, &split, &parts[stage], fsdp, programs[pp].slots[chunk]);
        }
        let planned = sizes.of_rank(&split, at);
        let Memory { weights, gathered, copies, gradients, scattered, moments, activations, scratch } =
            planned;
        let kinds = [weights + gathered + copies, gradients + scattered, moments, activations + scratch];
        let taken: Vec<u64> = count.taken.iter().map(|elements| 4 * *elements as u64).collect();
        assert_eq!(kinds, taken[..4], "rank {rank} of {parallel:?}");
        assert_eq!(planned.total(), 4 * count.device.allocated() as u64);
        most[pp] = most[pp].max(planned.total());
    }
    let holdings = sizes.holdings(&split);
    let found: Vec<u64> = holdings.iter().map(|holding| holding.memory.total()).collect();
    assert_eq!(found, most, "{parallel:?}");
    for holding in &holdings {
        let at = split.mesh.coordinates(holding.rank);
        assert!(at.pp == holding.pp && sizes.of_rank(&split, at) == holding.memory);
    }
    assert!(sizes.least(&split) <= sizes.most(&split));
}

#[test]
fn plans_are_what_is_allocated() {
    use ScheduleName::{Gpipe, Interleaved, OneForwardOneBackward, ZeroBubble};
    for (family, tied) in [(Family::Llama, false), (Family::Llama, true), (Family::Gpt2, true)] {
        for (optimizer, recompute, precision) in [
            (OptimizerKind::AdamW, false, Precision::Bf16),
            (OptimizerKind::Muon, false, Precision::F32),
            (OptimizerKind::AdamW, true, Precision::Bf16),
        ] {
            let mut work = work(tiny(family, tied, 5), 24);
            (work.optimizer, work.train.recompute, work.train.precision) = (optimizer, recompute, precision);
            work.train.microbatch = 1;
            for schedule in [Gpipe, OneForwardOneBackward, Interleaved, ZeroBubble] {
                for (sizes, zero) in
                    [([2, 1, 1, 1], 3), ([2, 1, 3, 2], 3), ([2, 2, 2, 1], 2), ([2, 1, 2, 1], 1)]
                {
                    check(&work, &parallel(sizes, zero, schedule));
                }
            }
            for zero in 1..=3 {
                check(&work, &parallel([1, 1, 4, 1], zero, OneForwardOneBackward));
                let full = parallel([1, 2, 2, 2], zero, OneForwardOneBackward);
                check(&work, &ParallelSettings { accumulate: Accumulate::Full, ..full });
            }
        }
    }
}

#[test]
fn of_a_model_on_one_rank_everything_can_be_counted_by_hand() {
    let mut work = work(tiny(Family::Llama, false, 2), 4);
    work.train.microbatch = 1;
    let split = Split::new(&work, &parallel([1, 1, 1, 1], 3, ScheduleName::default()), 1).unwrap();
    // Two blocks of qkv 96 x 32, out 32 x 32, up 192 x 32, down 32 x 96 and norms, two tables of 256 x 32, a last norm.
    let block = 32 * (96 + 32 + 192 + 96) + 2 * 32;
    let elements = 2 * block + 2 * 256 * 32 + 32;
    let memory = Sizes::new(&work, &prepared_in_pairs).holdings(&split)[0].memory;
    let bytes = 4 * elements as u64;
    assert_eq!((memory.weights, memory.gradients, memory.moments), (bytes, bytes, 2 * bytes));
    assert_eq!((memory.gathered, memory.copies, memory.scattered), (0, 0, 0));
    work.train.precision = Precision::Bf16;
    let split = Split::new(&work, &parallel([1, 1, 1, 1], 3, ScheduleName::default()), 1).unwrap();
    let copies = Sizes::new(&work, &prepared_in_pairs).holdings(&split)[0].memory.copies;
    // Matrices of linear layers and the head, for two uses, at half the size each.
    assert_eq!(copies, 4 * (2 * 32 * (96 + 32 + 192 + 96) + 256 * 32) as u64);
}

#[test]
fn what_does_not_fit_is_refused_with_what_is_missing_and_what_would() {
    let work = work(tiny(Family::Llama, false, 4), 8);
    let split = Split::new(&work, &parallel([1, 8, 1, 1], 3, ScheduleName::default()), 8).unwrap();
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
