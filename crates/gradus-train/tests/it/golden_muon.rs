//! Ten losses by the optimizer, against `torch.optim.Muon` for the matrices of blocks and `torch.optim.AdamW` for the rest
//! (python/golden.py makes the files, from models that other golden files of theirs hold the gradients of).

use gradus_compute::{CpuDevice, Device, Precision, Reference};
use gradus_memory::Span;
use gradus_model::hugging_face;
use gradus_model::{Batch, Transformer, Workspace};
use gradus_train::{Adjustment, MuonSettings, Optimizer, OptimizerKind, OptimizerSettings, Piece};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CASES: [&str; 2] = ["llama-free", "qwen2-tied"];
const CAPACITY: usize = 1 << 22;

#[derive(Deserialize)]
struct Inputs {
    tokens: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
struct Training {
    learning_rate: f64,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    weight_decay: f32,
}

#[derive(Deserialize)]
struct Muon {
    momentum: f32,
    nesterov: bool,
    iterations: usize,
    original: Vec<f64>,
    original_bf16: Vec<f64>,
    match_rms_adamw: Vec<f64>,
    match_rms_adamw_bf16: Vec<f64>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../gradus-model/tests/golden").join(name)
}

fn read<T: for<'a> Deserialize<'a>>(name: &str, file: &str) -> T {
    serde_json::from_str(&fs::read_to_string(folder(name).join(file)).unwrap()).unwrap()
}

fn open(name: &str, device: Arc<dyn Device>) -> Transformer {
    let config = hugging_face::read_config(&folder(name)).unwrap();
    let model = Transformer::new(config, device).unwrap();
    let put = &mut |span: Span, values: &[f32]| model.put(span, values);
    hugging_face::read_weights(&folder(name), model.config(), model.parameters(), put).unwrap();
    model
}

fn settings(name: &str, adjustment: Adjustment) -> (f64, OptimizerSettings) {
    let (adamw, muon): (Training, Muon) = (read(name, "training.json"), read(name, "muon.json"));
    let Muon { momentum, nesterov, iterations, .. } = muon;
    let settings = OptimizerSettings {
        kind: OptimizerKind::Muon,
        beta1: adamw.beta1,
        beta2: adamw.beta2,
        epsilon: adamw.epsilon,
        weight_decay: adamw.weight_decay,
        muon: MuonSettings { momentum, nesterov, iterations, adjustment },
        ..Default::default()
    };
    (adamw.learning_rate, settings)
}

/// Losses of ten steps on one batch, each before its update.
fn losses(name: &str, adjustment: Adjustment, device: Arc<dyn Device>) -> Vec<f64> {
    let (model, inputs): (_, Inputs) = (open(name, Arc::clone(&device)), read(name, "inputs.json"));
    let (batch, sequence) = (inputs.targets.len(), inputs.targets[0].len());
    let tokens: Vec<u32> = inputs.tokens.iter().flat_map(|row| row[..sequence].iter().copied()).collect();
    let targets = inputs.targets.concat();
    let layout = &model.parameters().layout;
    let gradients = device.allocate(layout.len()).unwrap();
    let workspace = Workspace::for_training(device.as_ref(), model.config(), tokens.len(), false).unwrap();
    let (learning_rate, settings) = settings(name, adjustment);
    let whole = Piece::whole(layout, model.weights(), gradients);
    let mut optimizer = Optimizer::new(device.as_ref(), layout, &[whole], settings).unwrap();
    let mut step = || {
        device.fill(gradients, 0.0);
        let batch = Batch { batch, sequence, tokens: &tokens, targets: &targets, documents: None };
        let sum = model.forward_backward(&workspace, batch, gradients, &()).unwrap();
        model.weights();
        optimizer.update(device.as_ref(), learning_rate, 1.0 / sum.targets as f64);
        sum.mean()
    };
    (0..10).map(|_| step()).collect()
}

/// By each way to adjust: its losses in f32, and as torch has them, with Muon's own products in bf16.
fn expected(name: &str) -> [(Adjustment, Vec<f64>, Vec<f64>); 2] {
    let muon: Muon = read(name, "muon.json");
    [
        (Adjustment::Original, muon.original, muon.original_bf16),
        (Adjustment::MatchRmsAdamw, muon.match_rms_adamw, muon.match_rms_adamw_bf16),
    ]
}

fn furthest(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f64::max)
}

fn devices(precision: Precision) -> [Arc<dyn Device>; 2] {
    [
        Arc::new(Reference::new(precision, CAPACITY).unwrap()),
        Arc::new(CpuDevice::new(2, precision, CAPACITY).unwrap()),
    ]
}

#[test]
fn ten_losses_are_pytorchs() {
    for name in CASES {
        for (adjustment, exact, torchs) in expected(name) {
            for device in devices(Precision::F32) {
                let ours = losses(name, adjustment, device);
                // f32 rounding alone moves a loss of 5 by some 7e-7; nine updates take it down by 0.3.
                assert!(furthest(&ours, &exact) < 1e-5, "{name} {adjustment:?}: {ours:?} {exact:?}");
                // PyTorch's own bf16 is up to 8e-5 away from its f32.
                assert!(furthest(&ours, &torchs) < 3e-4, "{name} {adjustment:?}: {ours:?} {torchs:?}");
            }
        }
    }
}

#[test]
fn bf16_stays_near_to_f32() {
    for name in CASES {
        for (adjustment, exact, _) in expected(name) {
            for device in devices(Precision::Bf16) {
                // The model's own products are in bf16, too: measured at most 6e-3. By AdamW, PyTorch's autocast is 5e-3 away.
                let ours = losses(name, adjustment, device);
                assert!(furthest(&ours, &exact) < 2e-2, "{name} {adjustment:?}: {ours:?} {exact:?}");
            }
        }
    }
}
