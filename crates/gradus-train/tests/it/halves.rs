//! What is kept or sent in bf16: gradients on their way, and weights that learn in it.

use crate::splits::{Data, STEPS, Split, TOLERANCE, assert_near, learner, losses, models, of, split};
use gradus_collective::{Communicator, run_as_threads};
use gradus_compute::{Format, Precision};
use gradus_model::ModelConfig;
use gradus_train::checkpoint::{self, TrainingState};
use gradus_train::pipeline::Kind as Schedule;
use gradus_train::{
    Accumulate, FirstWeights, GradientFormat, Learner, OptimizerKind, OptimizerSettings, ParallelSettings,
};
use std::path::Path;
use std::time::Duration;

const RATE: f64 = 3e-4;

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

/// A split whose matrices are kept in bf16.
fn in_halves(parallel: ParallelSettings, microbatches: usize) -> Split {
    let plain = split(parallel, microbatches);
    Split { optimizer: OptimizerSettings { masters: Format::Bf16, ..plain.optimizer.clone() }, ..plain }
}

fn with_muon(split: Split) -> Split {
    Split { optimizer: OptimizerSettings { kind: OptimizerKind::Muon, ..split.optimizer.clone() }, ..split }
}

fn sharded(zero: u8, parallel: ParallelSettings) -> ParallelSettings {
    ParallelSettings { zero, ..parallel }
}

/// The losses that every rank of a split finds.
fn losses_of(config: &ModelConfig, split: &Split) -> Vec<f64> {
    let rank = |communicator: Communicator| losses(config, split, communicator);
    let mut found = run_as_threads(split.ranks(), Duration::from_secs(120), rank).unwrap();
    assert!(found.iter().all(|losses| *losses == found[0]), "ranks find the same losses");
    found.swap_remove(0)
}

/// Each update rounds a weight w by less than a unit in its last place, 2^-8 w at most, evenly to either side: after n updates a
/// weight is off by no more than sqrt(n) half such units, as a rule. Weights are 0.02 in size, so that of 20 updates and of first
/// weights 2e-4 is left, which nothing has turned towards the gradient. Its norm is about 1: the loss is off by as much, and five times
/// that does not happen.
const WALK: f64 = 1e-3;

#[test]
fn masters_in_halves_learn_nearly_the_same() {
    for config in models() {
        for (kind, precision) in [
            (OptimizerKind::AdamW, Precision::F32),
            (OptimizerKind::AdamW, Precision::Bf16),
            (OptimizerKind::Muon, Precision::F32),
        ] {
            let with = |split: Split| Split {
                optimizer: OptimizerSettings { kind, ..split.optimizer },
                precision,
                ..split
            };
            let plain = losses_of(&config, &with(split(ParallelSettings::default(), 5)));
            let halves = losses_of(&config, &with(in_halves(ParallelSettings::default(), 5)));
            assert!(plain != halves && fall(&halves) > 50.0 * WALK, "{halves:?}");
            for (plain, halves) in plain.iter().zip(&halves) {
                assert!((plain - halves).abs() < WALK, "{:?} {kind:?}: {plain} {halves}", config.family);
            }
        }
    }
}

/// Holds a split in halves against one rank that keeps halves too. Where gradients differ in their last bit, one weight in some
/// ten thousand is rounded another way.
fn assert_same(config: &ModelConfig, split: &Split) {
    let alone = losses_of(config, &Split { parallel: ParallelSettings::default(), ..split.clone() });
    for (one, other) in alone.iter().zip(losses_of(config, split)) {
        assert!((one - other).abs() <= TOLERANCE * one, "{split:?}: {other}, alone {one}");
    }
}

#[test]
fn masters_in_halves_learn_the_same_however_the_work_is_split() {
    let zero_bubble = ParallelSettings { schedule: Schedule::ZeroBubble, ..of(1, 1, 2, 1) };
    let mut splits = vec![in_halves(of(2, 1, 1, 1), 5), in_halves(zero_bubble, 5)];
    for zero in [1, 2, 3] {
        splits.push(in_halves(sharded(zero, of(1, 3, 1, 1)), 5));
        splits.push(with_muon(in_halves(sharded(zero, of(2, 2, 1, 1)), 5)));
    }
    splits.push(Split { recompute: true, ..in_halves(sharded(3, of(1, 2, 2, 1)), 5) });
    for config in models() {
        splits.iter().for_each(|split| assert_same(&config, split));
    }
}

/// Of a matrix that is cut each share draws by numbers of its own.
#[test]
fn shares_of_layers_in_halves_learn_nearly_the_same() {
    for config in models() {
        let alone = losses_of(&config, &split(ParallelSettings::default(), 3));
        for parallel in [of(1, 1, 1, 2), sharded(3, of(1, 2, 1, 2))] {
            let shares = losses_of(&config, &in_halves(parallel, 3));
            assert!(alone.iter().zip(&shares).all(|(one, other)| (one - other).abs() < WALK), "{shares:?}");
        }
    }
}

#[test]
fn where_gradients_are_the_same_bits_weights_in_halves_are() {
    for config in models() {
        // Stages add nothing in another order.
        let stages = losses_of(&config, &in_halves(of(1, 1, 2, 1), 4));
        assert_eq!(stages, losses_of(&config, &in_halves(ParallelSettings::default(), 4)));
        // Of two ranks there is one sum, whoever makes it.
        let replicas = losses_of(&config, &in_halves(of(2, 1, 1, 1), 2));
        for zero in [1, 2, 3] {
            let shards = losses_of(&config, &in_halves(sharded(zero, of(1, 2, 1, 1)), 2));
            assert_eq!(shards, replicas, "zero {zero}");
        }
    }
}

fn steps(learner: &mut Learner, data: &mut Data, steps: std::ops::Range<usize>) -> Vec<f64> {
    let step = |step| {
        data.step = step;
        learner.step(data, RATE, false).unwrap().loss.mean()
    };
    steps.map(step).collect()
}

fn save(folder: &Path, learner: &mut Learner) {
    if learner.communicator().rank() > 0 {
        return learner.serve().unwrap();
    }
    let state = TrainingState {
        format: TrainingState::FORMAT,
        step: 3,
        updates: 3,
        total_steps: STEPS as u64,
        tokens: 0,
        skipped: 0,
        conditions: Vec::new(),
    };
    checkpoint::save(folder, learner, None, &state).unwrap();
}

#[test]
fn a_checkpoint_has_halves_as_they_are() {
    let config = models().next().unwrap();
    for parallel in [ParallelSettings::default(), sharded(3, of(1, 2, 1, 1)), sharded(1, of(1, 2, 1, 1))] {
        let split = in_halves(parallel, 4);
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("step-00000003");
        let rank = |communicator: Communicator| {
            let mut data = Data::new(4);
            let mut learner = learner(&config, &split, communicator);
            learner.begin_with(&FirstWeights::Seed(3)).unwrap();
            steps(&mut learner, &mut data, 0..3);
            save(&folder, &mut learner);
            steps(&mut learner, &mut data, 3..6)
        };
        let whole = run_as_threads(split.ranks(), Duration::from_secs(120), rank).unwrap();
        let resumed = |communicator: Communicator| {
            let mut learner = learner(&config, &split, communicator);
            learner.begin_with(&FirstWeights::Seed(4)).unwrap();
            checkpoint::load(&folder, &mut learner).unwrap();
            steps(&mut learner, &mut Data::new(4), 3..6)
        };
        assert_eq!(whole, run_as_threads(split.ranks(), Duration::from_secs(120), resumed).unwrap());
    }
}
