//! However the work is split among ranks, it learns what one rank learns: the losses of twenty steps on the same global
//! batches, within the rounding of f32.

use gradus_collective::{Communicator, run_as_threads};
use gradus_compute::{CpuDevice, Device, IGNORED, Precision};
use gradus_error::Result;
use gradus_model::{Batch, Family, ModelConfig, PRESETS};
use gradus_train::pipeline::Kind as Schedule;
use gradus_train::{
    Accumulate, FirstWeights, GradientFormat, Learner, LearnerSettings, Microbatches, OptimizerSettings,
    ParallelSettings,
};
use std::sync::Arc;
use std::time::Duration;

const STEPS: usize = 20;
const SEQUENCE: usize = 12;
/// Of what clipping and a learning rate of 3e-4 leave, rounding alone makes less (see the design's rule on learning rates).
const TOLERANCE: f64 = 1e-5;
const RATE: f64 = 3e-4;

/// Microbatches of a step: whole ones and, last, a short one.
struct Data {
    microbatches: usize,
    step: usize,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    documents: Vec<u32>,
}

const VOCABULARY: usize = 150;
const SEQUENCES: usize = 2;

impl Data {
    fn new(microbatches: usize) -> Self {
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

fn model(family: Family, tied: bool) -> ModelConfig {
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
struct Split {
    parallel: ParallelSettings,
    microbatches: usize,
    recompute: bool,
    optimizer: OptimizerSettings,
}

impl Split {
    fn ranks(&self) -> usize {
        let ParallelSettings { pp, dp, fsdp, tp, .. } = self.parallel;
        pp * dp.max(1) * fsdp * tp
    }
}

/// The losses of all steps on one rank of a split, and of an evaluation afterwards.
fn losses(config: &ModelConfig, split: &Split, communicator: Communicator) -> Vec<f64> {
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(1, Precision::F32, 1 << 22).unwrap());
    let settings = LearnerSettings {
        optimizer: split.optimizer.clone(),
        parallel: split.parallel.clone(),
        rows: SEQUENCES * SEQUENCE,
        microbatches: split.microbatches,
        recompute: split.recompute,
        bucket_bytes: 1 << 12,
    };
    let mut learner = Learner::new(config.clone(), &device, communicator, settings).unwrap();
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
    assert_near(config, split, |alone| TOLERANCE * alone[alone.len() - 1]);
}

/// The same within a distance that may depend on one rank's losses up to the one at hand.
fn assert_near(config: &ModelConfig, split: &Split, within: impl Fn(&[f64]) -> f64) {
    let alone = Split { parallel: ParallelSettings::default(), recompute: false, ..split.clone() };
    let expected = losses(config, &alone, Communicator::alone());
    assert!(expected[STEPS - 1] < expected[0]);
    let rank = |communicator: Communicator| losses(config, split, communicator);
    let found = run_as_threads(split.ranks(), Duration::from_secs(120), rank).unwrap();
    for (rank, losses) in found.iter().enumerate() {
        for (step, (one, other)) in expected.iter().zip(losses).enumerate() {
            let within = within(&expected[..=step]);
            assert!(
                (one - other).abs() <= within,
                "{split:?}: rank {rank}, step {step}: {other}, alone {one}"
            );
        }
        assert_eq!(losses, &found[0], "ranks find the same losses");
    }
}

/// No clipping, which would make of a rounding in the norm one in every weight.
fn split(parallel: ParallelSettings, microbatches: usize) -> Split {
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

fn of(dp: usize, fsdp: usize, pp: usize, tp: usize) -> ParallelSettings {
    ParallelSettings { dp, fsdp, pp, tp, ..Default::default() }
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

/// How far losses have come down.
fn fall(losses: &[f64]) -> f64 {
    losses[0] - losses.iter().copied().fold(losses[0], f64::min)
}

/// Where gradients travel in bf16, each is rounded once on its way into a sum, and once or twice more in it: by 2^-9 of
/// itself each time. AdamW's steps do not depend on gradients' size, so they turn by about as much, and of how far the loss has
/// fallen no more than that can be lost or gained.
#[test]
fn gradients_in_halves_learn_nearly_the_same() {
    let halves = |parallel| ParallelSettings { gradients: GradientFormat::Bf16, ..parallel };
    let sharded = |dp, fsdp, zero| halves(ParallelSettings { zero, ..of(dp, fsdp, 1, 1) });
    let full = ParallelSettings { accumulate: Accumulate::Full, ..sharded(1, 2, 3) };
    let mut splits = vec![halves(of(2, 1, 1, 1)), halves(of(2, 1, 2, 1)), full];
    splits.extend([1, 2, 3].map(|zero| sharded(1, 2, zero)));
    splits.extend([1, 2, 3].map(|zero| sharded(2, 2, zero)));
    for config in models() {
        for parallel in &splits {
            assert_near(&config, &split(parallel.clone(), 5), |alone| {
                fall(alone) / 256.0 + TOLERANCE * alone[0]
            });
        }
    }
}
