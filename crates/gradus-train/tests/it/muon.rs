//! Steps whose matrices are updated by Muon.

use gradus_collective::{Communicator, run_as_threads};
use gradus_compute::cpu::Kernels;
use gradus_compute::{CpuDevice, Device, Precision};
use gradus_error::{Kind, Result};
use gradus_memory::{Span, Tensor};
use gradus_model::{Batch, Family, ModelConfig, PRESETS, Transformer};
use gradus_train::checkpoint::{self, TrainingState};
use gradus_train::{
    Adjustment, FirstWeights, Learner, LearnerSettings, Microbatches, MuonSettings, OptimizerKind,
    OptimizerSettings, ParallelSettings, stages,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const TOKENS: [u32; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 15, 17, 19, 21, 23, 25];
const TARGETS: [u32; 16] = [2, 3, 4, 5, 6, 7, 8, 9, 13, 15, 17, 19, 21, 23, 25, 27];
const RATE: f64 = 3e-3;

/// The same two sequences again and again, each a microbatch.
struct Same;

impl Microbatches for Same {
    fn count(&self) -> usize {
        2
    }

    fn load(&mut self, index: usize) -> Result<Batch<'_>> {
        let part = 8 * index..8 * (index + 1);
        let (tokens, targets) = (&TOKENS[part.clone()], &TARGETS[part]);
        Ok(Batch { batch: 1, sequence: 8, tokens, targets, documents: None })
    }
}

fn model(family: Family) -> ModelConfig {
    let name = if family == Family::Gpt2 { "gpt2-tiny" } else { "llama-tiny" };
    let preset = PRESETS.iter().find(|(known, _)| *known == name).unwrap().1.clone();
    ModelConfig { layers: 2, vocabulary: 50, context: 8, ..preset }
}

fn device() -> CpuDevice {
    CpuDevice::new(2, Precision::Bf16, 1 << 24).unwrap()
}

fn settings(kind: OptimizerKind) -> OptimizerSettings {
    OptimizerSettings { kind, ..Default::default() }
}

fn learner(
    family: Family,
    device: CpuDevice,
    communicator: Communicator,
    optimizer: &OptimizerSettings,
) -> Learner {
    let settings = LearnerSettings {
        optimizer: optimizer.clone(),
        parallel: ParallelSettings::default(),
        stages: stages::cut(2, 1, 0.0),
        rows: 8,
        microbatches: 2,
        recompute: false,
        bucket_bytes: 1 << 16,
    };
    let device: Arc<dyn Device> = Arc::new(device);
    let learner = Learner::new(model(family), &device, communicator, settings).unwrap();
    learner.begin_with(&FirstWeights::Seed(1)).unwrap();
    learner
}

fn alone(family: Family, settings: &OptimizerSettings) -> Learner {
    learner(family, device(), Communicator::alone(), settings)
}

fn whole(learner: &Learner) -> &Transformer {
    learner.whole_model().unwrap()
}

fn losses(learner: &mut Learner, steps: usize) -> Vec<f64> {
    (0..steps).map(|_| learner.step(&mut Same, RATE, false).unwrap().loss.mean()).collect()
}

fn bits(learner: &Learner) -> Vec<u32> {
    let model = whole(learner);
    let weights = model.get(Span::new(0, model.parameters().layout.len()));
    weights.iter().map(|weight| weight.to_bits()).collect()
}

#[test]
fn losses_fall_by_every_variant() {
    for family in [Family::Gpt2, Family::Llama] {
        for (nesterov, adjustment) in [(true, Adjustment::MatchRmsAdamw), (false, Adjustment::Original)] {
            let muon = MuonSettings { nesterov, adjustment, ..Default::default() };
            let found =
                losses(&mut alone(family, &OptimizerSettings { muon, ..settings(OptimizerKind::Muon) }), 30);
            assert!(found[29] < 0.5 * found[0], "{family:?} {nesterov} {adjustment:?}: {found:?}");
        }
    }
}

#[test]
fn every_matrix_moves_by_as_much_as_its_factor_says() {
    let muon = OptimizerSettings { weight_decay: 0.0, ..settings(OptimizerKind::Muon) };
    let mut learner = alone(Family::Llama, &muon);
    let tensors: Vec<Tensor> = whole(&learner).parameters().layout.tensors().to_vec();
    let matrices: Vec<_> = tensors
        .iter()
        .flat_map(|tensor| tensor.each_matrix().map(move |(span, rows)| (tensor, span, rows)))
        .collect();
    assert_eq!(matrices.len(), 2 * 7, "q, k, v, out, gate, up and down of two blocks");
    let before: Vec<_> = matrices.iter().map(|(_, span, _)| whole(&learner).get(*span)).collect();
    losses(&mut learner, 1);
    for ((tensor, span, rows), before) in matrices.into_iter().zip(before) {
        let after = whole(&learner).get(span);
        let squares: f64 = after.iter().zip(&before).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let size = (squares / span.len as f64).sqrt();
        // Of 8 to 16 tokens no gradient has a higher rank: as many singular values are near 1, the rest is noise.
        let whole = RATE * 0.2 * (rows.max(span.len / rows) as f64 / span.len as f64).sqrt();
        assert!(size > whole && size < 16.0 * whole, "{}: {size} {whole}", tensor.name);
    }
}

#[test]
fn matrices_have_one_moment_and_the_rest_two() {
    let [adamw, muon] =
        [OptimizerKind::AdamW, OptimizerKind::Muon].map(|kind| alone(Family::Gpt2, &settings(kind)));
    let tensors = whole(&muon).parameters().layout.tensors();
    let of_matrices: usize = tensors.iter().filter(|t| !t.matrices.is_empty()).map(Tensor::len).sum();
    let [more, less] = [&adamw, &muon].map(|learner| learner.device().allocated());
    assert!(of_matrices > 0 && more - less >= of_matrices, "{more} {less} {of_matrices}");
}

fn state(step: u64, kind: &str) -> TrainingState {
    TrainingState {
        format: TrainingState::FORMAT,
        step,
        updates: step,
        total_steps: 10,
        tokens: 0,
        skipped: 0,
        conditions: vec![("optimizer.kind".to_owned(), kind.to_owned())],
    }
}

fn save(folder: &Path, learner: &mut Learner, state: &TrainingState) {
    checkpoint::save(folder, learner, None, state).unwrap();
}

#[test]
fn a_checkpoint_holds_all_that_the_next_step_depends_on() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("step-00000003");
    let muon = settings(OptimizerKind::Muon);
    let mut whole = alone(Family::Llama, &muon);
    losses(&mut whole, 3);
    save(&folder, &mut whole, &state(3, "\"muon\""));
    losses(&mut whole, 4);
    let mut resumed = alone(Family::Llama, &muon);
    checkpoint::load(&folder, &mut resumed).unwrap();
    losses(&mut resumed, 4);
    assert!(bits(&whole) == bits(&resumed));
}

#[test]
fn moments_of_the_other_kind_are_refused() {
    let kinds = [(OptimizerKind::AdamW, "\"adamw\""), (OptimizerKind::Muon, "\"muon\"")];
    for (kind, name) in kinds {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("step-00000001");
        let mut saved = alone(Family::Llama, &settings(kind));
        losses(&mut saved, 1);
        save(&folder, &mut saved, &state(1, name));
        for (other, _) in kinds {
            let mut learner = alone(Family::Llama, &settings(other));
            match checkpoint::load(&folder, &mut learner) {
                Ok(_) => assert_eq!(kind, other),
                Err(error) => assert!(*error.kind() == Kind::Invalid && kind != other, "{error}"),
            }
        }
    }
}

#[test]
fn ranks_agree_whatever_their_threads_and_find_out_where_their_kernels_do_not() {
    let run = |kernels: [Kernels; 2], threads: [usize; 2]| {
        let rank = move |communicator: Communicator| {
            let rank = communicator.rank();
            let device =
                CpuDevice::with_kernels(threads[rank], Precision::Bf16, 1 << 24, kernels[rank]).unwrap();
            let mut learner = learner(Family::Llama, device, communicator, &settings(OptimizerKind::Muon));
            let step = learner.step(&mut Same, RATE, false);
            step.map_err(|error| error.kind().clone()).map(|_| bits(&learner))
        };
        run_as_threads(2, Duration::from_secs(120), rank).unwrap()
    };
    let best = Kernels::ALL.into_iter().rfind(|kernels| kernels.supported()).unwrap();
    let same = run([best, best], [1, 3]);
    assert!(same[0].is_ok() && same[0] == same[1]);
    let name = CpuDevice::with_kernels(1, Precision::Bf16, 1 << 10, best).unwrap().describe();
    if name.contains("bf16,") || name.contains("_bf16") {
        // Pairs are summed before they are added, which plain kernels do not.
        let other = run([best, Kernels::Plain], [1, 1]);
        assert_eq!(other[1], Err(Kind::Invalid));
    }
}
