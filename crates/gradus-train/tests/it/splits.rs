//! However the work is split among ranks, it learns what one rank learns: the losses of twenty steps on the same global
//! batches, within the rounding of f32.

use gradus_collective::{Communicator, run_as_threads};
use gradus_compute::{CpuDevice, Device, IGNORED, Precision};
use gradus_error::Result;
use gradus_model::{Batch, Family, ModelConfig, PRESETS};
use gradus_train::pipeline::Kind as Schedule;
use gradus_train::{
    Accumulate, FirstWeights, Learner, LearnerSettings, Microbatches, OptimizerSettings, ParallelSettings,
};
use std::sync::Arc;
use std::time::Duration;

const STEPS: usize = 20;
const SEQUENCE: usize = 12;
/// Of what clipping and a learning rate of 3e-4 leave, rounding alone makes less (see the design's rule on learning rates).
pub const TOLERANCE: f64 = 1e-5;
pub const RATE: f64 = 3e-4;

/// Microbatches of a step: whole ones and, last, a short one.
pub struct Data {
    microbatches: usize,
    pub step: usize,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    documents: Vec<u32>,
}

const VOCABULARY: usize = 150;
const SEQUENCES: usize = 2;

impl Data {
    pub fn new(microbatches: usize) -> Self {
        let (tokens, targets, documents) = (Vec::new(), Vec::new(), Vec::new());
        Self { microbatches, step: 0, tokens, targets, documents }
    }
}

impl Microbatches for Data {
    fn count(&self) -> usize {
        self.microbatches
    }

    fn load(&mut self, index: usize) -> Result<Batch<'_>> {
        let batch = if index + 1 == self.microbatches { SEQUENCES - 1 } else { SEQUENCES };
        let first = (self.step * self.microbatches + index) as u32 * 97;
        let token = |row: u32| (first + row).wrapping_mul(2_654_435_761) % VOCABULARY as u32;
        let rows = 0..(batch * SEQUENCE) as u32;
        self.tokens = rows.clone().map(token).collect();
        self.targets = rows.clone().map(|row| if row % 5 == 0 { IGNORED } else { token(row) / 2 }).collect();
        self.documents = rows.map(|row| row % SEQUENCE as u32 / 7).collect();
        Ok(Batch {
            batch,
            sequence: SEQUENCE,
            tokens: &self.tokens,
            targets: &self.targets,
            documents: Some(&self.documents),
        })
    }
}

pub fn model(family: Family, tied: bool) -> ModelConfig {
    let (_, preset) = PRESETS.iter().find(|(_, config)| config.family == family).unwrap();
    let kv_heads = if family == Family::Gpt2 { 4 } else { 2 };
    ModelConfig {
        vocabulary: VOCABULARY,
        context: SEQUENCE,
        width: 32,
        layers: 4,
        heads: 4,
        kv_heads,
        head_size: 8,
        feed_forward: 48,
        tied,
        ..preset.clone()
    }
}

/// One way to split the work.
#[derive(Debug, Clone)]
pub struct Split {
    pub parallel: ParallelSettings,
    pub microbatches: usize,
    recompute: bool,
    pub optimizer: OptimizerSettings,
}

impl Split {
    pub fn ranks(&self) -> usize {
        let ParallelSettings { pp, dp, fsdp, tp, .. } = self.parallel;
        pp * dp.max(1) * fsdp * tp
    }
}

/// One rank of a split, all weights zero.
pub fn learner(config: &ModelConfig, split: &Split, communicator: Communicator) -> Learner {
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(1, Precision::F32, 1 << 22).unwrap());
    let settings = LearnerSettings {
        optimizer: split.optimizer.clone(),
        parallel: split.parallel.clone(),
        rows: SEQUENCES * SEQUENCE,
        microbatches: split.microbatches,
        recompute: split.recompute,
        bucket_bytes: 1 << 12,
    };
    Learner::new(config.clone(), &device, communicator, settings).unwrap()
}

/// The losses of all steps on one rank of a split, and of an evaluation afterwards.
fn losses(config: &ModelConfig, split: &Split, communicator: Communicator) -> Vec<f64> {
    let mut learner = learner(config, split, communicator);
    learner.begin_with(&FirstWeights::Seed(3)).unwrap();
    let mut data = Data::new(split.microbatches);
    let mut losses = Vec::new();
    for step in 0..STEPS {
        data.step = step;
        let result = learner.step(&mut data, RATE, false).unwrap();
        assert!(!result.skipped);
        losses.push(result.loss.mean());
    }
    learner.check_agreement().unwrap();
    data.step = STEPS;
    losses.push(learner.evaluate(&mut data).unwrap().mean());
    losses
}

/// Holds a split against one rank that sees the same batches.
fn assert_same(config: &ModelConfig, split: &Split) {
    let alone = Split { parallel: ParallelSettings::default(), recompute: false, ..split.clone() };
    let expected = losses(config, &alone, Communicator::alone());
    assert!(expected[STEPS - 1] < expected[0]);
    let rank = |communicator: Communicator| losses(config, split, communicator);
    let found = run_as_threads(split.ranks(), Duration::from_secs(120), rank).unwrap();
    for (rank, losses) in found.iter().enumerate() {
        for (step, (one, other)) in expected.iter().zip(losses).enumerate() {
            let difference = (one - other).abs() / one;
            assert!(difference <= TOLERANCE, "{split:?}: rank {rank}, step {step}: {other}, alone {one}");
        }
        assert_eq!(losses, &found[0], "ranks find the same losses");
    }
}

/// No clipping, which would make of a rounding in the norm one in every weight.
pub fn split(parallel: ParallelSettings, microbatches: usize) -> Split {
    let optimizer = OptimizerSettings { clip_norm: 0.0, learning_rate: RATE, ..Default::default() };
    Split { parallel, microbatches, recompute: false, optimizer }
}

/// Every family, with a tied and with a free head.
fn models() -> impl Iterator<Item = ModelConfig> {
    let families = [Family::Gpt2, Family::Llama].into_iter();
    families.flat_map(|family| [true, false].map(|tied| model(family, tied)))
}

fn assert_all_same(splits: &[Split]) {
    for config in models() {
        splits.iter().for_each(|split| assert_same(&config, split));
    }
}

pub fn of(dp: usize, fsdp: usize, pp: usize, tp: usize) -> ParallelSettings {
    ParallelSettings { dp, fsdp, pp, tp, ..Default::default() }
}

#[test]
fn all_ranks_know_how_long_each_has_waited() {
    let (config, split) = (model(Family::Llama, true), split(of(1, 2, 2, 1), 4));
    let rank = |communicator: Communicator| {
        let mut learner = learner(&config, &split, communicator);
        learner.begin_with(&FirstWeights::Seed(3)).unwrap();
        let mut data = Data::new(split.microbatches);
        let mut step = |_| {
            learner.step(&mut data, RATE, false).unwrap();
            learner.waits().to_vec()
        };
        let waits: Vec<Vec<f64>> = (0..3).map(&mut step).collect();
        (waits, learner.exposed().total())
    };
    let found = run_as_threads(split.ranks(), Duration::from_secs(120), rank).unwrap();
    for (rank, (waits, exposed)) in found.iter().enumerate() {
        assert_eq!(waits, &found[0].0);
        let told: f64 = waits.iter().map(|waits| waits[rank]).sum();
        assert!(
            told >= 0.0 && told <= exposed + 1e-9,
            "what came after the last vote is not told: {told} {exposed}"
        );
        assert!(waits.iter().all(|waits| waits.len() == split.ranks()));
    }
}

#[test]
fn data_parallel_learns_the_same() {
    assert_all_same(&[split(of(2, 1, 1, 1), 4), split(of(3, 1, 1, 1), 5)]);
}

#[test]
fn sharded_states_learn_the_same() {
    for zero in [1, 2, 3] {
        for accumulate in [Accumulate::Scatter, Accumulate::Full] {
            let sharded = |dp, fsdp| ParallelSettings { zero, accumulate, ..of(dp, fsdp, 1, 1) };
            let uneven = split(sharded(1, 3), 5);
            assert_all_same(&[split(sharded(1, 2), 4), uneven, split(sharded(2, 2), 7)]);
        }
    }
}

#[test]
fn pipelines_learn_the_same() {
    for schedule in [Schedule::GPipe, Schedule::OneForwardOneBackward, Schedule::ZeroBubble] {
        let piped = |pp| ParallelSettings { schedule, ..of(1, 1, pp, 1) };
        assert_all_same(&[split(piped(2), 5), split(piped(4), 6), split(piped(3), 2)]);
    }
    let interleaved =
        ParallelSettings { schedule: Schedule::Interleaved, stages_per_rank: 2, ..of(1, 1, 2, 1) };
    assert_all_same(&[split(interleaved, 4)]);
}
