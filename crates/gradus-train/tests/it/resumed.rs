//! A checkpoint belongs to no mesh: under the same one a resumed run repeats its bits, under another it learns the same.

use crate::splits::{Data, RATE, Split, TOLERANCE, learner, model, of, split};
use gradus_collective::{Communicator, run_as_threads};
use gradus_model::{Family, ModelConfig};
use gradus_train::checkpoint::{self, TrainingState};
use gradus_train::pipeline::Kind as Schedule;
use gradus_train::{FirstWeights, Learner, OptimizerKind, ParallelSettings};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Steps of a run, and those after which it is saved.
const STEPS: usize = 8;
const SAVED: usize = 4;

/// A checkpoint after so many steps, in a folder of its own.
fn folder(place: &Path, name: &str, step: usize) -> PathBuf {
    place.join(name).join(format!("step-{step:08}"))
}

fn state(step: usize, kind: OptimizerKind) -> TrainingState {
    let kind = if kind == OptimizerKind::Muon { "\"muon\"" } else { "\"adamw\"" };
    TrainingState {
        format: TrainingState::FORMAT,
        step: step as u64,
        updates: step as u64,
        total_steps: STEPS as u64,
        tokens: 0,
        skipped: 0,
        conditions: vec![("optimizer.kind".to_owned(), kind.to_owned())],
    }
}

fn save(learner: &mut Learner, folder: &Path, step: usize) {
    if learner.communicator().rank() > 0 {
        learner.serve().unwrap();
    } else {
        let state = state(step, learner.optimizer_kind());
        checkpoint::save(folder, learner, None, &state).unwrap();
    }
    learner.communicator().barrier().unwrap();
}

/// Learns through some steps, from a checkpoint where there is one, and saves in the end; the losses.
fn learn(
    config: &ModelConfig,
    split: &Split,
    steps: Range<usize>,
    from: Option<&Path>,
    to: &Path,
) -> Vec<f64> {
    let rank = |communicator: Communicator| {
        let mut learner = learner(config, split, communicator);
        match from {
            None => learner.begin_with(&FirstWeights::Seed(3)).unwrap(),
            Some(folder) => drop(checkpoint::load(folder, &mut learner).unwrap()),
        }
        let mut data = Data::new(split.microbatches);
        let step = |step| {
            data.step = step;
            learner.step(&mut data, RATE, false).unwrap().loss.mean()
        };
        let losses: Vec<f64> = steps.clone().map(step).collect();
        learner.check_agreement().unwrap();
        save(&mut learner, to, steps.end);
        losses
    };
    run_as_threads(split.ranks(), Duration::from_secs(120), rank).unwrap().swap_remove(0)
}

fn bytes(folder: &Path) -> [Vec<u8>; 2] {
    ["model.safetensors", "training_state.safetensors"].map(|name| std::fs::read(folder.join(name)).unwrap())
}

fn meshes() -> Vec<ParallelSettings> {
    let sharded = |zero| ParallelSettings { zero, ..of(1, 2, 1, 1) };
    let interleaved =
        ParallelSettings { schedule: Schedule::Interleaved, stages_per_rank: 2, ..of(1, 1, 2, 1) };
    let of_zero = [1, 2, 3].map(sharded);
    of_zero
        .into_iter()
        .chain([of(2, 1, 1, 1), of(1, 2, 2, 1), of(2, 1, 2, 1), of(1, 2, 1, 2), interleaved])
        .collect()
}

#[test]
fn under_the_same_mesh_the_bits_are_those_of_a_run_that_was_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    for (number, parallel) in meshes().into_iter().enumerate() {
        let kinds = [(OptimizerKind::AdamW, true), (OptimizerKind::Muon, false)];
        // Muon updates no slices of matrices.
        for (kind, tied) in kinds.into_iter().take(if parallel.tp > 1 { 1 } else { 2 }) {
            let mut split = split(parallel.clone(), 5);
            split.optimizer.kind = kind;
            let config = model(Family::Llama, tied);
            let at = |name, step| folder(place.path(), &format!("{number}{kind:?}{name}"), step);
            let whole = learn(&config, &split, 0..STEPS, None, &at("whole", STEPS));
            let before = learn(&config, &split, 0..SAVED, None, &at("cut", SAVED));
            let after = learn(&config, &split, SAVED..STEPS, Some(&at("cut", SAVED)), &at("cut", STEPS));
            assert_eq!(whole, [before, after].concat(), "{split:?}");
            assert!(bytes(&at("whole", STEPS)) == bytes(&at("cut", STEPS)), "{split:?}");
        }
    }
}

#[test]
fn under_another_mesh_it_goes_on_with_the_same_losses() {
    let place = tempfile::tempdir().unwrap();
    let meshes =
        [of(1, 1, 1, 1), of(2, 1, 1, 1), of(1, 2, 2, 1), of(1, 3, 1, 1), of(1, 1, 4, 1), of(1, 1, 2, 2)];
    for tied in [true, false] {
        let config = model(Family::Gpt2, tied);
        let splits = meshes.clone().map(|parallel| split(parallel, 6));
        let at = |name: &str, step| folder(place.path(), &format!("{tied}{name}"), step);
        let expected = learn(&config, &splits[0], 0..STEPS, None, &at("alone", STEPS));
        for (first, one) in splits.iter().enumerate() {
            let cut = at(&format!("{first}"), SAVED);
            learn(&config, one, 0..SAVED, None, &cut);
            for (second, other) in splits.iter().enumerate() {
                let to = at(&format!("{first}to{second}"), STEPS);
                let found = learn(&config, other, SAVED..STEPS, Some(&cut), &to);
                for (one, expected) in found.iter().zip(&expected[SAVED..]) {
                    let difference = (one - expected).abs() / expected;
                    assert!(difference <= TOLERANCE, "{first} to {second}: {one}, {expected}");
                }
            }
        }
    }
}
