//! A bucket is handed to the communicator before the backward pass has ended.

use gradus_collective::Communicator;
use gradus_compute::{CpuDevice, Device, Precision};
use gradus_memory::Span;
use gradus_model::{BackwardObserver, Batch, ModelConfig, PRESETS, Transformer, Workspace};
use gradus_train::{DataParallel, GradientSum};
use std::cell::RefCell;
use std::sync::Arc;

const TOKENS: [u32; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
const TARGETS: [u32; 8] = [2, 3, 4, 5, 6, 7, 8, 9];

fn model() -> Transformer {
    let (_, preset) = PRESETS.iter().find(|(name, _)| *name == "llama-tiny").unwrap();
    let config = ModelConfig { layers: 3, vocabulary: 50, context: 8, ..preset.clone() };
    let model =
        Transformer::new(config, Arc::new(CpuDevice::new(1, Precision::F32, 1 << 24).unwrap())).unwrap();
    model.initialise(1);
    model
}

/// Notes, each time that more becomes final, how many buckets had been started and whether it was the end.
struct Watch<'a> {
    sum: &'a GradientSum<'a>,
    end: usize,
    started: RefCell<Vec<(usize, bool)>>,
}

impl BackwardObserver for Watch<'_> {
    fn between_operations(&self) {
        self.sum.between_operations();
    }

    fn final_up_to(&self, end: usize) {
        self.sum.final_up_to(end);
        self.started.borrow_mut().push((self.sum.started(), end == self.end));
    }
}

fn gradients(device: &dyn Device, span: Span) -> Vec<f32> {
    let mut values = vec![0.0; span.len];
    device.read(span, &mut values);
    values
}

#[test]
fn buckets_start_while_the_backward_pass_goes_on() {
    let model = model();
    let device = Arc::clone(model.device());
    let layout_len = model.parameters().layout.len();
    let workspace = Workspace::for_training(device.as_ref(), model.config(), 8, false).unwrap();
    let batch = Batch { batch: 1, sequence: 8, tokens: &TOKENS, targets: &TARGETS, documents: None };
    let [alone, summed] = [(); 2].map(|()| device.allocate(layout_len).unwrap());
    model.forward_backward(&workspace, batch, alone, &()).unwrap();

    let ranks = DataParallel::new(Communicator::alone(), layout_len, 1 << 16);
    // SAFETY: the device outlives the sum, and only the observed pass touches the gradients.
    let sum = unsafe { ranks.begin(device.raw(summed)) };
    let watch = Watch { sum: &sum, end: layout_len, started: RefCell::default() };
    model.forward_backward(&workspace, batch, summed, &watch).unwrap();
    let started = watch.started.into_inner();
    // Final norm, three blocks, embedding: after the first block left, buckets are under way, and more after each.
    assert_eq!(started.len(), 5);
    assert!(started[1].0 > 0 && !started[1].1, "{started:?}");
    assert!(
        started.windows(2).all(|pair| pair[0].0 <= pair[1].0) && started[3].0 > started[1].0,
        "{started:?}"
    );
    sum.finish().unwrap();
    assert_eq!(
        gradients(device.as_ref(), alone),
        gradients(device.as_ref(), summed),
        "one rank's sum is its own"
    );
}
