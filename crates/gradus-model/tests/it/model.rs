//! The model against finite differences and against itself.

use gradus_compute::{CpuDevice, Device, IGNORED, Precision, Reference};
use gradus_memory::Span;
use gradus_model::{Batch, Family, Generator, ModelConfig, PRESETS, Seams, Transformer, Unit, Workspace};
use std::cell::RefCell;
use std::sync::Arc;

pub fn small(family: Family, tied: bool) -> ModelConfig {
    let (_, preset) = PRESETS.iter().find(|(_, config)| config.family == family).unwrap();
    let kv_heads = if family == Family::Gpt2 { 2 } else { 1 };
    ModelConfig {
        vocabulary: 21,
        context: 8,
        width: 8,
        layers: 2,
        heads: 2,
        kv_heads,
        head_size: 4,
        feed_forward: 12,
        tied,
        ..preset.clone()
    }
}

pub fn model(config: ModelConfig) -> Transformer {
    model_on(config, Arc::new(Reference::new(Precision::F32, 1 << 20).unwrap()))
}

pub fn model_on(config: ModelConfig, device: Arc<dyn Device>) -> Transformer {
    let model = Transformer::new(config, device).unwrap();
    model.initialise(3);
    // Weights of 0.02 leave gradients too small for differences: spread them.
    let all = model.parameters().layout.tensors().iter().filter(|t| t.shape.len() > 1);
    for tensor in all {
        let scaled: Vec<f32> = model.get(tensor.span()).iter().map(|x| x * 15.0).collect();
        model.put(tensor.span(), &scaled);
    }
    model
}

const TOKENS: [u32; 10] = [1, 5, 2, 20, 7, 3, 3, 0, 9, 11];
const TARGETS: [u32; 10] = [5, 2, 20, 7, IGNORED, 3, 0, 9, 11, 4];
const DOCUMENTS: [u32; 10] = [0, 0, 1, 1, 1, 0, 1, 1, 1, 2];

pub fn batch(documents: bool) -> Batch<'static> {
    Batch {
        batch: 2,
        sequence: 5,
        tokens: &TOKENS,
        targets: &TARGETS,
        documents: documents.then_some(&DOCUMENTS),
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for (family, tied, documents) in [
        (Family::Gpt2, true, false),
        (Family::Gpt2, false, true),
        (Family::Llama, true, true),
        (Family::Llama, false, false),
    ] {
        let model = model(small(family, tied));
        let device = model.device();
        let workspace = Workspace::for_training(device.as_ref(), model.config(), 10, false).unwrap();
        let gradients = device.allocate(model.parameters().layout.len()).unwrap();
        model.forward_backward(&workspace, batch(documents), gradients, &()).unwrap();
        for tensor in model.parameters().layout.tensors() {
            let mut slopes = vec![0.0; tensor.len()];
            device.read(tensor.within(gradients), &mut slopes);
            let original = model.get(tensor.span());
            for i in (0..tensor.len()).step_by(tensor.len().div_ceil(5)) {
                let loss_at = |shift: f32| {
                    let mut values = original.clone();
                    values[i] += shift;
                    model.put(tensor.span(), &values);
                    model.loss(&workspace, batch(documents), &()).unwrap().nats
                };
                // A shift of 2e-3 leaves an error of its square times the third derivative, and f32 losses of rounding
                // 1e-6 over the shift: both some 1e-3.
                let slope = (loss_at(2e-3) - loss_at(-2e-3)) / 4e-3;
                let difference = (slope - f64::from(slopes[i])).abs();
                assert!(difference < 2e-2 * slope.abs() + 3e-3, "{} {i}: {slope} {}", tensor.name, slopes[i]);
            }
            model.put(tensor.span(), &original);
        }
    }
}

/// Notes how far gradients were final at each call.
#[derive(Default)]
struct Notes(RefCell<Vec<usize>>);

impl Seams for Notes {
    fn finished(&self, _unit: Unit, range: Span) {
        self.0.borrow_mut().push(range.end());
    }
}

#[test]
fn gradients_become_final_block_by_block_and_do_not_change_afterwards() {
    struct Watch<'a> {
        notes: Notes,
        seen: RefCell<Vec<Vec<f32>>>,
        device: &'a dyn Device,
        gradients: Span,
    }
    impl Seams for Watch<'_> {
        fn finished(&self, unit: Unit, range: Span) {
            let mut values = vec![0.0; range.end()];
            self.device.read(self.gradients.part(0, range.end()), &mut values);
            self.seen.borrow_mut().push(values);
            self.notes.finished(unit, range);
        }
    }
    for tied in [true, false] {
        let model = model(small(Family::Llama, tied));
        let device = model.device();
        let workspace = Workspace::for_training(device.as_ref(), model.config(), 10, false).unwrap();
        let gradients = device.allocate(model.parameters().layout.len()).unwrap();
        let watch =
            Watch { notes: Notes::default(), seen: RefCell::default(), device: device.as_ref(), gradients };
        model.forward_backward(&workspace, batch(false), gradients, &watch).unwrap();
        let ends = watch.notes.0.into_inner();
        // Head, two blocks, embedding.
        assert_eq!(ends.len(), 4);
        assert!(ends.is_sorted() && ends[3] == gradients.len && ends[0] < ends[1] && ends[1] < ends[2]);
        let mut last = vec![0.0; gradients.len];
        device.read(gradients, &mut last);
        for seen in watch.seen.into_inner() {
            assert_eq!(seen, last[..seen.len()]);
        }
    }
}

#[test]
fn padding_of_the_vocabulary_has_no_gradient_and_no_weight() {
    let model = model(small(Family::Llama, true));
    let device = model.device();
    let workspace = Workspace::for_training(device.as_ref(), model.config(), 10, false).unwrap();
    let gradients = device.allocate(model.parameters().layout.len()).unwrap();
    model.forward_backward(&workspace, batch(false), gradients, &()).unwrap();
    let table = model.parameters().embedding;
    let real = model.config().vocabulary * model.config().width;
    let mut slopes = vec![1.0; table.len];
    device.read(gradients.part(table.start, table.len), &mut slopes);
    assert!(slopes[real..].iter().chain(&model.get(table)[real..]).all(|x| *x == 0.0));
    assert!(slopes[..real].iter().any(|x| *x != 0.0));
}

#[test]
fn a_token_beyond_the_vocabulary_is_refused() {
    let model = model(small(Family::Llama, true));
    let workspace = Workspace::for_training(model.device().as_ref(), model.config(), 10, false).unwrap();
    let tokens = [1, 2, 3, 21, 1, 1, 1, 1, 1, 1];
    let wrong = Batch { tokens: &tokens, ..batch(false) };
    assert_eq!(*model.loss(&workspace, wrong, &()).unwrap_err().kind(), gradus_error::Kind::Invalid);
}

#[test]
fn a_model_that_only_runs_keeps_half_and_says_the_same() {
    for (family, tied, width) in
        [(Family::Gpt2, true, 8), (Family::Llama, false, 8), (Family::Gpt2, false, 9)]
    {
        let heads = if width == 9 { 3 } else { 2 };
        let config =
            ModelConfig { width, heads, kv_heads: heads, head_size: width / heads, ..small(family, tied) };
        let masters = model(config.clone());
        let devices: [Arc<dyn Device>; 2] = [
            Arc::new(Reference::new(Precision::Bf16, 1 << 20).unwrap()),
            Arc::new(CpuDevice::new(2, Precision::Bf16, 1 << 20).unwrap()),
        ];
        for device in devices {
            let learns = Transformer::new(config.clone(), Arc::clone(&device)).unwrap();
            let before = device.allocated();
            let runs = Transformer::for_inference(config.clone(), Arc::clone(&device)).unwrap();
            let kept = device.allocated() - before;
            let all = learns.parameters().layout.len();
            assert!(if width == 9 { kept == all } else { kept < all * 3 / 4 }, "{kept} of {all}");
            for tensor in learns.parameters().layout.tensors() {
                // Products round them anyway, looking up tokens does not.
                let round = |x: &f32| half::bf16::from_f32(*x).to_f32();
                let values: Vec<f32> = masters.get(tensor.span()).iter().map(round).collect();
                learns.put(tensor.span(), &values);
                runs.put(tensor.span(), &values);
            }
            let logits = |model: &Transformer| {
                let mut generator = Generator::new(model, 8).unwrap();
                let whole = generator.logits(model, &TOKENS[..7]).unwrap();
                (whole, generator.stepwise_logits(model, &TOKENS[..7]).unwrap())
            };
            let ((a, b), (c, d)) = (logits(&learns), logits(&runs));
            // The same products, of a few rows in another order: where a sum then rounds to the next bf16, that is 2^-8 of it.
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
            let close = |a: &[f32], b: &[f32]| {
                norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) <= norm(&mut a.iter().copied()) / 128.0
            };
            assert!(close(&a, &c) && close(&b, &d), "{family:?} on {}", device.describe());
        }
    }
}

#[test]
fn recomputing_gives_the_same_bits_in_memory_that_is_shared() {
    // So many rows that the planner lays gradients of a block over what has been read for the last time.
    let (_, config) = PRESETS.iter().find(|(name, _)| *name == "llama-tiny").unwrap();
    for (precision, rows) in [(Precision::Bf16, 4096), (Precision::F32, 1024)] {
        let tokens: Vec<u32> = (0..rows as u32).map(|i| i * 7 % 2000).collect();
        let batch =
            Batch { batch: rows / 256, sequence: 256, tokens: &tokens, targets: &tokens, documents: None };
        let gradients = [false, true].map(|recompute| {
            let device: Arc<dyn Device> = Arc::new(CpuDevice::new(2, precision, 1 << 27).unwrap());
            let model = Transformer::new(config.clone(), Arc::clone(&device)).unwrap();
            model.initialise(5);
            let workspace =
                Workspace::for_training(device.as_ref(), model.config(), rows, recompute).unwrap();
            let gradients = device.allocate(model.parameters().layout.len()).unwrap();
            model.forward_backward(&workspace, batch, gradients, &()).unwrap();
            let mut values = vec![0.0; gradients.len];
            device.read(gradients, &mut values);
            values
        });
        assert!(gradients[0].iter().all(|g| g.is_finite()));
        assert!(gradients[0] == gradients[1], "{precision:?}: gradients differ");
    }
}
