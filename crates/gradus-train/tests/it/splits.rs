//! However the work is split among ranks, it learns what one rank learns: the losses of twenty steps on the same global
//! batches, within the rounding of f32.

use gradus_collective::{Communicator, run_as_threads};
use gradus_compute::{CpuDevice, Device, IGNORED, Precision};
use gradus_error::{Error, Kind, Result};
use gradus_host::Clock;
use gradus_model::{Batch, Family, ModelConfig, PRESETS, Transformer};
use gradus_train::pipeline::{ActionKind, Kind as Schedule};
use gradus_train::{
    Accumulate, Computed, FirstWeights, Learner, LearnerSettings, Microbatches, OptimizerKind,
    OptimizerSettings, ParallelSettings, Spent, checkpoint, stages,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

pub const STEPS: usize = 20;
const SEQUENCE: usize = 12;
/// What rounding alone may make of a loss in twenty steps, without clipping and at a learning rate of 3e-4: 2.4e-8 is
/// the most that is found in f32.
pub const TOLERANCE: f64 = 1e-5;
/// The same where products round their operands to 8 bits: of a sum over other rows, each of these falls another way; 2.5e-5 is the
/// most that is found.
const BF16_TOLERANCE: f64 = 2e-4;
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
    pub recompute: bool,
    pub optimizer: OptimizerSettings,
    pub precision: Precision,
}

impl Split {
    pub fn ranks(&self) -> usize {
        let ParallelSettings { pp, dp, fsdp, tp, .. } = self.parallel;
        pp * dp.max(1) * fsdp * tp
    }
}

/// One rank of a split, all weights zero.
pub fn learner(config: &ModelConfig, split: &Split, communicator: Communicator) -> Learner {
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(1, split.precision, 1 << 22).unwrap());
    Learner::new(config.clone(), &device, communicator, settings(config.layers, split)).unwrap()
}

fn settings(layers: usize, split: &Split) -> LearnerSettings {
    LearnerSettings {
        optimizer: split.optimizer.clone(),
        parallel: split.parallel.clone(),
        stages: stages::cut(layers, split.parallel.stages(), 0.5),
        rows: SEQUENCES * SEQUENCE,
        microbatches: split.microbatches,
        recompute: split.recompute,
        bucket_bytes: 1 << 12,
    }
}

/// The losses of all steps on one rank of a split, and of an evaluation afterwards.
pub fn losses(config: &ModelConfig, split: &Split, communicator: Communicator) -> Vec<f64> {
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
    let tolerance = if split.precision == Precision::F32 { TOLERANCE } else { BF16_TOLERANCE };
    assert_near(config, split, |alone| tolerance * alone[alone.len() - 1]);
}

/// The same within a distance that may depend on one rank's losses up to the one at hand.
pub fn assert_near(config: &ModelConfig, split: &Split, within: impl Fn(&[f64]) -> f64) {
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
pub fn split(parallel: ParallelSettings, microbatches: usize) -> Split {
    let optimizer = OptimizerSettings { clip_norm: 0.0, learning_rate: RATE, ..Default::default() };
    Split { parallel, microbatches, recompute: false, optimizer, precision: Precision::F32 }
}

/// Every family, with a tied and with a free head.
pub fn models() -> impl Iterator<Item = ModelConfig> {
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

#[test]
fn layers_that_ranks_share_out_learn_the_same() {
    assert_all_same(&[split(of(1, 1, 1, 2), 3), split(of(2, 1, 1, 2), 3)]);
    let gpt2 = [true, false].map(|tied| model(Family::Gpt2, tied));
    gpt2.iter().for_each(|config| assert_same(config, &split(of(1, 1, 1, 4), 2)));
}

#[test]
fn all_axes_together_learn_the_same() {
    let scheduled = |schedule, stages_per_rank, parallel: ParallelSettings| ParallelSettings {
        schedule,
        stages_per_rank,
        ..parallel
    };
    let sharded =
        |zero, accumulate, parallel: ParallelSettings| ParallelSettings { zero, accumulate, ..parallel };
    let one = Schedule::OneForwardOneBackward;
    assert_all_same(&[
        split(sharded(3, Accumulate::Scatter, of(1, 2, 2, 1)), 5),
        split(sharded(2, Accumulate::Scatter, of(1, 2, 1, 2)), 4),
        split(sharded(3, Accumulate::Scatter, scheduled(Schedule::Interleaved, 2, of(1, 2, 2, 1))), 6),
        split(sharded(1, Accumulate::Full, scheduled(Schedule::ZeroBubble, 1, of(1, 2, 2, 2))), 6),
        Split {
            recompute: true,
            ..split(sharded(3, Accumulate::Full, scheduled(one, 1, of(1, 2, 2, 2))), 5)
        },
        split(scheduled(one, 1, of(2, 1, 2, 2)), 5),
        Split { recompute: true, ..split(sharded(3, Accumulate::Scatter, of(2, 2, 1, 2)), 6) },
    ]);
}

/// Data of which one microbatch has a token whose row of the embedding is not finite, in one step.
struct Poisoned(Data);

const POISON: u32 = VOCABULARY as u32 - 1;

impl Microbatches for Poisoned {
    fn count(&self) -> usize {
        self.0.count()
    }

    fn load(&mut self, index: usize) -> Result<Batch<'_>> {
        let poisoned = self.0.step == 1 && index == 0;
        self.0.load(index)?;
        for token in &mut self.0.tokens {
            *token = if poisoned { POISON } else { *token % POISON };
        }
        let batch = self.0.tokens.len() / SEQUENCE;
        let (tokens, targets) = (&self.0.tokens, &self.0.targets);
        Ok(Batch { batch, sequence: SEQUENCE, tokens, targets, documents: None })
    }
}

/// A folder with a model that has such a row.
fn poisoned_folder(config: &ModelConfig, folder: &std::path::Path) {
    let device = Arc::new(CpuDevice::new(1, Precision::F32, 1 << 22).unwrap());
    let model = Transformer::new(config.clone(), device).unwrap();
    model.initialise(3);
    let row = model.parameters().embedding.part(POISON as usize * config.width, config.width);
    model.put(row, &vec![f32::INFINITY; config.width]);
    checkpoint::export(folder, &model, None).unwrap();
}

#[test]
fn a_step_is_taken_by_all_ranks_or_by_none() {
    // A free head: of a tied one every logit of that token would be infinite.
    let config = model(Family::Llama, false);
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("model");
    poisoned_folder(&config, &folder);
    for parallel in [of(2, 1, 1, 1), of(1, 2, 1, 1), of(1, 1, 2, 1), of(1, 1, 1, 2), of(2, 2, 2, 1)] {
        let split = split(parallel, 4);
        let rank = |communicator: Communicator| {
            let mut learner = learner(&config, &split, communicator);
            learner.begin_with(&FirstWeights::Folder(folder.clone())).unwrap();
            let mut data = Poisoned(Data::new(4));
            (0..3).for_each(|step| {
                data.0.step = step;
                let result = learner.step(&mut data, RATE, false).unwrap();
                assert_eq!(result.skipped, step == 1, "{:?}", split.parallel);
            });
            learner.check_agreement().unwrap();
            learner.updates()
        };
        let updates = run_as_threads(split.ranks(), Duration::from_secs(120), rank).unwrap();
        assert!(updates.iter().all(|updates| *updates == 2), "{updates:?}");
    }
}

#[test]
fn matrices_that_muon_updates_whole_learn_the_same() {
    let muon = |parallel, microbatches| {
        let plain = split(parallel, microbatches);
        let optimizer = OptimizerSettings { kind: OptimizerKind::Muon, ..plain.optimizer.clone() };
        Split { optimizer, ..plain }
    };
    let sharded = |zero, parallel: ParallelSettings| ParallelSettings { zero, ..parallel };
    assert_all_same(&[
        muon(sharded(1, of(1, 2, 1, 1)), 4),
        muon(sharded(2, of(1, 3, 1, 1)), 4),
        muon(sharded(3, of(2, 2, 1, 1)), 4),
        muon(sharded(3, of(1, 2, 2, 1)), 5),
        muon(of(1, 1, 1, 2), 3),
        muon(sharded(1, of(1, 2, 1, 2)), 4),
        muon(sharded(3, of(1, 2, 2, 2)), 5),
    ]);
    let gpt2 = model(Family::Gpt2, false);
    assert_same(&gpt2, &muon(of(1, 1, 1, 4), 2));
}

#[test]
fn in_bf16_all_axes_stay_near_one_rank() {
    let near = |parallel, microbatches| Split { precision: Precision::Bf16, ..split(parallel, microbatches) };
    assert_all_same(&[
        near(of(1, 2, 1, 1), 4),
        near(of(1, 1, 2, 1), 4),
        near(of(1, 1, 1, 2), 3),
        near(ParallelSettings { schedule: Schedule::ZeroBubble, ..of(2, 1, 2, 2) }, 6),
    ]);
}

/// A clock that grows by a second whenever it is read.
#[derive(Default)]
struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.fetch_add(1, Relaxed))
    }

    fn calendar(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _: Duration) {}
}

/// What each rank has computed in two steps of three microbatches.
fn computed(parallel: ParallelSettings) -> Vec<Computed> {
    let split = split(parallel, 3);
    let rank = |communicator| {
        let mut learner = learner(&model(Family::Gpt2, false), &split, communicator);
        learner.begin_with(&FirstWeights::Seed(3)).unwrap();
        assert_eq!(learner.computed(), None);
        learner.keep_account(Arc::new(Ticks::default()));
        for _ in 0..2 {
            learner.step(&mut Data::new(3), RATE, false).unwrap();
        }
        learner.computed().unwrap().clone()
    };
    run_as_threads(split.ranks(), Duration::from_secs(60), rank).unwrap()
}

#[test]
fn every_pass_and_update_is_on_the_account() {
    let alone = computed(of(1, 1, 1, 1)).remove(0);
    let six = Spent { passes: 6, seconds: 6.0 };
    let none = Spent::default();
    assert_eq!(ActionKind::ALL.map(|kind| alone.of(0, kind)), [six, six, none, none]);
    assert_eq!(alone.update_s, 2.0);
    let halves = ParallelSettings { schedule: Schedule::ZeroBubble, ..of(1, 1, 2, 1) };
    for rank in computed(halves) {
        assert_eq!(ActionKind::ALL.map(|kind| rank.of(0, kind).passes), [6, 0, 6, 6]);
    }
}

/// Chunks of one rank sum their shards over the same replicas.
#[test]
fn interleaved_chunks_with_shards_and_replicas_learn_the_same() {
    let interleaved =
        ParallelSettings { schedule: Schedule::Interleaved, stages_per_rank: 2, zero: 2, ..of(2, 2, 2, 1) };
    assert_all_same(&[split(interleaved, 9)]);
}

#[test]
fn without_a_pipeline_a_schedule_makes_no_difference() {
    for schedule in [Schedule::GPipe, Schedule::ZeroBubble] {
        assert_all_same(&[split(ParallelSettings { schedule, ..of(1, 2, 1, 1) }, 4)]);
    }
}

/// Data of which one microbatch cannot be read, in one step.
struct Unreadable(Data);

impl Microbatches for Unreadable {
    fn count(&self) -> usize {
        self.0.count()
    }

    fn load(&mut self, index: usize) -> Result<Batch<'_>> {
        if self.0.step == 1 && index == 1 {
            return Err(Error::corrupt("a shard is damaged"));
        }
        self.0.load(index)
    }
}

#[test]
fn after_a_failure_no_rank_goes_on() {
    let split = split(of(1, 2, 1, 1), 4);
    let rank = |communicator: Communicator| {
        let mut learner = learner(&model(Family::Llama, false), &split, communicator);
        learner.begin_with(&FirstWeights::Seed(3)).unwrap();
        let mut data = Unreadable(Data::new(4));
        let mut step = |number| {
            data.0.step = number;
            learner.step(&mut data, RATE, false).map(|_| ()).map_err(|error| error.kind().clone())
        };
        [step(0), step(1), step(2)]
    };
    for steps in run_as_threads(2, Duration::from_secs(60), rank).unwrap() {
        assert_eq!(steps, [Ok(()), Err(Kind::Corrupt), Err(Kind::Corrupt)]);
    }
}

#[test]
fn fewer_microbatches_than_ranks_are_refused() {
    let split = split(of(1, 3, 1, 1), 2);
    let rank = |communicator: Communicator| {
        let device: Arc<dyn Device> = Arc::new(CpuDevice::new(1, Precision::F32, 1 << 22).unwrap());
        let refused = Learner::new(model(Family::Llama, true), &device, communicator, settings(4, &split));
        refused.err().map(|error| error.kind().clone())
    };
    let refused = run_as_threads(3, Duration::from_secs(60), rank).unwrap();
    assert!(refused.iter().all(|kind| *kind == Some(Kind::Invalid)), "{refused:?}");
}
