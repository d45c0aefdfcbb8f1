//! Logits, every gradient and ten training losses, against `transformers` in PyTorch (python/golden.py makes the
//! files).

use gradus_compute::{AdamW, CpuDevice, Device, IGNORED, Precision, Reference, Rounding};
use gradus_memory::Span;
use gradus_model::hugging_face::{self, Mapped};
use gradus_model::{Batch, Generator, Transformer, Workspace};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

const CASES: [&str; 5] = ["gpt2-tied", "gpt2-free", "llama-free", "qwen2-tied", "llama-documents"];
const CAPACITY: usize = 1 << 22;

#[derive(Deserialize)]
struct Inputs {
    tokens: Vec<Vec<u32>>,
    targets: Vec<Vec<i64>>,
    document_starts: Vec<Vec<usize>>,
}

#[derive(Deserialize)]
struct Training {
    learning_rate: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    weight_decay: f32,
    decayed: Vec<String>,
    losses: Vec<f64>,
    losses_bf16_autocast: Vec<f64>,
}

/// One golden case on one device.
struct Case {
    folder: PathBuf,
    model: Transformer,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    documents: Option<Vec<u32>>,
    sequence: usize,
}

impl Case {
    fn open(name: &str, device: Arc<dyn Device>) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let config = hugging_face::read_config(&folder).unwrap();
        let model = Transformer::new(config, device).unwrap();
        let put = &mut |span: Span, values: &[f32]| model.put(span, values);
        hugging_face::read_weights(&folder, model.config(), model.parameters(), put).unwrap();
        let inputs: Inputs =
            serde_json::from_str(&fs::read_to_string(folder.join("inputs.json")).unwrap()).unwrap();
        let sequence = inputs.targets[0].len();
        let tokens = inputs.tokens.iter().flat_map(|row| row[..sequence].iter().copied()).collect();
        let target = |target: &i64| u32::try_from(*target).unwrap_or(IGNORED);
        let targets = inputs.targets.iter().flatten().map(target).collect();
        let documents = (name == "llama-documents").then(|| number(&inputs.document_starts, sequence));
        Self { folder, model, tokens, targets, documents, sequence }
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            batch: self.tokens.len() / self.sequence,
            sequence: self.sequence,
            tokens: &self.tokens,
            targets: &self.targets,
            documents: self.documents.as_deref(),
        }
    }

    fn counted(&self) -> f32 {
        self.targets.iter().filter(|target| **target != IGNORED).count() as f32
    }

    fn workspace(&self, recompute: bool) -> Workspace {
        let device = self.model.device().as_ref();
        Workspace::for_training(device, self.model.config(), self.tokens.len(), recompute).unwrap()
    }

    /// Mean loss, and the gradient of it over the whole layout.
    fn gradients(&self, recompute: bool) -> (f64, Vec<f32>) {
        let device = self.model.device();
        let gradients = device.allocate(self.model.parameters().layout.len()).unwrap();
        let sum =
            self.model.forward_backward(&self.workspace(recompute), self.batch(), gradients, &()).unwrap();
        let mut values = vec![0.0; gradients.len];
        device.read(gradients, &mut values);
        values.iter_mut().for_each(|x| *x /= self.counted());
        (sum.mean(), values)
    }

    fn mapping(&self) -> Vec<Mapped> {
        hugging_face::mapping(self.model.config(), self.model.parameters())
    }
}

/// The document number of every position.
fn number(starts: &[Vec<usize>], sequence: usize) -> Vec<u32> {
    let of = |starts: &Vec<usize>, i: usize| starts.iter().filter(|start| **start <= i).count() as u32;
    starts.iter().flat_map(|starts| (0..sequence).map(|i| of(starts, i)).collect::<Vec<_>>()).collect()
}

fn floats(view: &safetensors::tensor::TensorView) -> Vec<f32> {
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A tensor in Hugging Face's orientation, from a flat range in ours.
fn oriented(mapped: &Mapped, flat: &[f32]) -> Vec<f32> {
    let ours = &flat[mapped.target.start..][..mapped.shape.iter().product()];
    if !mapped.transposed {
        return ours.to_vec();
    }
    let (rows, columns) = (mapped.shape[0], mapped.shape[1]);
    (0..rows * columns).map(|i| ours[(i % columns) * rows + i / columns]).collect()
}

fn norm(values: impl IntoIterator<Item = f32>) -> f64 {
    values.into_iter().map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

fn devices(precision: Precision) -> [Arc<dyn Device>; 2] {
    [
        Arc::new(Reference::new(precision, CAPACITY).unwrap()),
        Arc::new(CpuDevice::new(2, precision, CAPACITY).unwrap()),
    ]
}

fn check_gradients(case: &Case, recompute: bool) {
    let bytes = fs::read(case.folder.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let (loss, gradients) = case.gradients(recompute);
    let expected_loss = f64::from(floats(&expected.tensor("loss").unwrap())[0]);
    assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{loss} {expected_loss}");
    let mut compared = 0;
    let whole =
        norm(expected.tensors().iter().filter(|(n, _)| n.starts_with("grad.")).flat_map(|(_, v)| floats(v)));
    for mapped in case.mapping() {
        let theirs = floats(&expected.tensor(&format!("grad.{}", mapped.name)).unwrap());
        let ours = oriented(&mapped, &gradients);
        // GPT-2 keeps queries, keys and values in one tensor: their columns are compared apart.
        let parts = if mapped.name.contains("c_attn") { 3 } else { 1 };
        let columns = *mapped.shape.last().unwrap();
        for part in 0..parts {
            let mine = |i: &usize| i % columns / (columns / parts) == part;
            let difference = norm((0..ours.len()).filter(mine).map(|i| ours[i] - theirs[i]));
            let limit = 1e-4 * norm((0..theirs.len()).filter(mine).map(|i| theirs[i])) + 1e-7 * whole;
            assert!(difference <= limit, "{} part {part}: {difference} > {limit}", mapped.name);
        }
        compared += 1;
    }
    assert_eq!(compared, expected.names().iter().filter(|name| name.starts_with("grad.")).count());
}

#[test]
fn loss_and_every_gradient_are_pytorchs() {
    for name in CASES {
        for device in devices(Precision::F32) {
            println!("{name} on {}", device.describe());
            let case = Case::open(name, device);
            check_gradients(&case, false);
            check_gradients(&case, true);
        }
    }
}

#[test]
fn logits_are_pytorchs_also_token_by_token_through_the_cache() {
    for name in CASES.into_iter().filter(|name| *name != "llama-documents") {
        for device in devices(Precision::F32) {
            let case = Case::open(name, device);
            let bytes = fs::read(case.folder.join("expected.safetensors")).unwrap();
            let expected = SafeTensors::deserialize(&bytes).unwrap();
            let expected = floats(&expected.tensor("logits").unwrap());
            let text = &case.tokens[..case.sequence];
            let theirs = &expected[..case.sequence * case.model.config().vocabulary];
            let mut generator = Generator::new(&case.model, case.sequence).unwrap();
            let close = |ours: &[f32], theirs: &[f32]| {
                // Logits are sums of 32 products of order one: 1e-4 is about a hundred roundings of f32.
                ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-4) && ours.len() == theirs.len()
            };
            assert!(close(&generator.logits(&case.model, text).unwrap(), theirs), "{name}");
            let v = case.model.config().vocabulary;
            for (i, row) in generator.stepwise_logits(&case.model, text).unwrap().chunks(v).enumerate() {
                assert!(close(row, &theirs[i * v..][..v]), "{name} at {i}");
            }
        }
    }
}

/// Losses of ten AdamW steps on one batch.
fn train(case: &Case, training: &Training) -> Vec<f64> {
    let (device, model) = (case.model.device(), &case.model);
    let layout = &model.parameters().layout;
    let [gradients, moment1, moment2] = [(); 3].map(|()| device.allocate(layout.len()).unwrap());
    let workspace = case.workspace(false);
    (1..=training.losses.len() as u64)
        .map(|update| {
            device.fill(gradients, 0.0);
            let sum = model.forward_backward(&workspace, case.batch(), gradients, &()).unwrap();
            for tensor in layout.tensors() {
                let update = AdamW {
                    learning_rate: training.learning_rate,
                    beta1: training.beta1,
                    beta2: training.beta2,
                    epsilon: training.epsilon,
                    weight_decay: if tensor.decay { training.weight_decay } else { 0.0 },
                    update,
                    gradient_scale: 1.0 / sum.targets as f32,
                    rounding: Rounding::default(),
                };
                let [w, g, m, v] =
                    [model.weights(), gradients, moment1, moment2].map(|whole| tensor.within(whole));
                device.adamw(update, w.into(), g, m, v);
            }
            sum.mean()
        })
        .collect()
}

fn training_of(case: &Case) -> Training {
    serde_json::from_str(&fs::read_to_string(case.folder.join("training.json")).unwrap()).unwrap()
}

#[test]
fn ten_steps_of_adamw_have_pytorchs_losses() {
    for name in CASES {
        for device in devices(Precision::F32) {
            let case = Case::open(name, device);
            let training = training_of(&case);
            for (ours, theirs) in train(&case, &training).iter().zip(&training.losses) {
                // f32 rounding alone moves a loss by some 1e-7; ten updates of 3e-4 keep it below 1e-5.
                assert!((ours - theirs).abs() < 1e-5 * theirs, "{name}: {ours} {theirs}");
            }
        }
    }
}

#[test]
fn bf16_stays_as_near_to_f32_as_pytorchs_autocast_does() {
    for name in CASES {
        for device in devices(Precision::Bf16) {
            let case = Case::open(name, device);
            let training = training_of(&case);
            let theirs =
                training.losses.iter().zip(&training.losses_bf16_autocast).map(|(a, b)| (a - b).abs());
            let theirs = theirs.fold(0.0, f64::max);
            // bf16 keeps 8 bits: an operand is off by up to 2^-9 = 0.2%, a mean over 51 targets by some 0.1% of the
            // logits' spread. Autocast's own distance from f32 is the yardstick; 2e-3 nats are its floor of noise.
            let limit = 2.0 * theirs + 2e-3;
            for (ours, exact) in train(&case, &training).iter().zip(&training.losses) {
                assert!((ours - exact).abs() < limit, "{name}: {ours} {exact}, limit {limit}");
            }
        }
    }
}

#[test]
fn weights_that_are_prepared_give_the_same_bits() {
    for name in CASES {
        for device in devices(Precision::Bf16) {
            let plain = Case::open(name, Arc::clone(&device));
            let training = training_of(&plain);
            let mut prepared = Case::open(name, device);
            prepared.model = prepared.model.with_prepared_weights().unwrap();
            assert_eq!(train(&plain, &training), train(&prepared, &training), "{name}");
        }
    }
}

#[test]
fn the_tensors_that_decay_are_those_of_the_script() {
    for name in CASES {
        let case = Case::open(name, Arc::new(Reference::new(Precision::F32, CAPACITY).unwrap()));
        let layout = &case.model.parameters().layout;
        let decays = |mapped: &Mapped| {
            let inside = |t: &&gradus_memory::Tensor| t.span().overlaps(&mapped.target);
            layout.tensors().iter().find(inside).unwrap().decay
        };
        let mut ours: Vec<_> = case.mapping().into_iter().filter(decays).map(|mapped| mapped.name).collect();
        let mut theirs = training_of(&case).decayed;
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs, "{name}");
    }
}
