//! Parts of a model, one after the other, against the whole: the same bits, whatever is cut and wherever weights and
//! gradients are kept.

use crate::model::{batch, model, small};
use gradus_compute::Device;
use gradus_memory::Span;
use gradus_model::{
    Backward, Batch, Family, Gradients, LossSum, ModelConfig, Parameters, Part, Seams, StageMemory,
    Transformer, Unit, Workspace,
};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

fn read(device: &dyn Device, span: Span) -> Vec<f32> {
    let mut values = vec![0.0; span.len];
    device.read(span, &mut values);
    values
}

/// Loss and gradients of the whole model, of a batch twice.
fn whole(model: &Transformer) -> (LossSum, Vec<f32>) {
    let device = model.device();
    let workspace = Workspace::for_training(device.as_ref(), model.config(), 10, false).unwrap();
    let gradients = device.allocate(model.parameters().layout.len()).unwrap();
    let mut loss = LossSum::default();
    for batch in batches() {
        loss += model.forward_backward(&workspace, batch, gradients, &()).unwrap();
    }
    (loss, read(device.as_ref(), gradients))
}

fn batches() -> [Batch<'static>; 2] {
    [batch(true), batch(false)]
}

/// A model of four blocks, its weights spread.
fn deep(family: Family, tied: bool) -> Transformer {
    model(ModelConfig { layers: 4, ..small(family, tied) })
}

/// A stage with the whole model's weights, its gradients, and memory for two microbatches.
struct Stage {
    model: Transformer,
    gradients: Span,
    slots: Vec<Workspace>,
}

fn stage(of: &Transformer, part: Part, memory: StageMemory) -> Stage {
    let device = Arc::clone(of.device());
    let slots = Workspace::for_stage(device.as_ref(), of.config(), &part, memory).unwrap();
    let model = Transformer::of_part(of.config().clone(), part, Arc::clone(&device)).unwrap();
    for run in model.parameters().runs(&of.parameters().layout) {
        model.put(Span::new(run.local, run.whole.len), &of.get(run.whole));
    }
    let gradients = device.allocate(model.parameters().layout.len()).unwrap();
    Stage { model, gradients, slots }
}

fn copy(device: &dyn Device, from: Span, to: Span) {
    device.write(to, &read(device, from));
}

/// Two microbatches through three stages: both forward, then both backward, halves apart where the memory is for that.
fn through_stages(of: &Transformer, recompute: bool, split_backward: bool) -> (LossSum, Vec<f32>) {
    let memory = StageMemory { rows: 10, recompute, split_backward, slots: 2 };
    let part = |layers, embedding, head| Part { layers, embedding, head, tensor_rank: 0, tensor_ranks: 1 };
    let parts = [part(0..1, true, false), part(1..3, false, false), part(3..4, false, true)];
    let stages = parts.map(|part| stage(of, part, memory));
    let (device, config, rows) = (of.device().as_ref(), of.config(), 10);
    for (slot, batch) in batches().into_iter().enumerate() {
        for (index, stage) in stages.iter().enumerate() {
            if index > 0 {
                let from = stages[index - 1].slots[slot].sent(rows, config);
                copy(device, from, stage.slots[slot].received(rows, config));
            }
            stage.model.forward(&stage.slots[slot], batch, &()).unwrap();
        }
    }
    let mut loss = LossSum::default();
    let halves: &[Backward] =
        if split_backward { &[Backward::Input, Backward::Weight] } else { &[Backward::Whole] };
    for half in halves {
        for (slot, batch) in batches().into_iter().enumerate() {
            for (index, stage) in stages.iter().enumerate().rev() {
                if index + 1 < stages.len() && *half != Backward::Weight {
                    let from = stages[index + 1].slots[slot].sent_gradient(rows, config);
                    copy(device, from, stage.slots[slot].received_gradient(rows, config));
                }
                let gradients = Gradients::Kept(stage.gradients);
                loss += stage.model.backward(&stage.slots[slot], batch, *half, gradients, &()).unwrap();
            }
        }
    }
    (loss, gathered(of, &stages))
}

/// The gradients of all stages in the whole layout: those of a table that two stages have, summed.
fn gathered(of: &Transformer, stages: &[Stage]) -> Vec<f32> {
    let layout = &of.parameters().layout;
    let mut all = vec![0.0; layout.len()];
    for stage in stages {
        let own = read(of.device().as_ref(), stage.gradients);
        for run in stage.model.parameters().runs(layout) {
            let to = &mut all[run.whole.start..run.whole.end()];
            to.iter_mut().zip(&own[run.local..]).for_each(|(to, own)| *to += own);
        }
    }
    all
}

#[test]
fn stages_one_after_the_other_are_the_whole() {
    for family in [Family::Gpt2, Family::Llama] {
        for tied in [true, false] {
            let model = deep(family, tied);
            let (loss, gradients) = whole(&model);
            for (recompute, split) in [(false, false), (true, false), (false, true), (true, true)] {
                let (staged_loss, staged) = through_stages(&model, recompute, split);
                assert_eq!(loss, staged_loss);
                let table = model.parameters().embedding;
                for (index, (one, other)) in gradients.iter().zip(&staged).enumerate() {
                    // A tied table's gradient is summed in another order.
                    let near = tied && (table.start..table.end()).contains(&index);
                    let slack = if near { 1e-5 * one.abs().max(1.0) } else { 0.0 };
                    assert!((one - other).abs() <= slack, "{family:?} {tied} {split} {index}: {one} {other}");
                }
            }
        }
    }
}

/// Brings each unit's weights to one of two places, and takes its gradients, as a trainer that keeps neither would.
struct Visits<'a> {
    whole: &'a Transformer,
    parameters: &'a Parameters,
    slots: [Span; 3],
    here: RefCell<Vec<(Unit, Span)>>,
    visited: RefCell<Vec<Unit>>,
    /// Where the gradients of the unit under way are, and where they are summed.
    places: RefCell<Vec<(Unit, Span)>>,
    next: Cell<usize>,
    sums: Span,
}

impl Visits<'_> {
    fn device(&self) -> &dyn Device {
        self.whole.device().as_ref()
    }
}

impl Seams for Visits<'_> {
    fn weights(&self, unit: Unit) -> Span {
        let range = self.parameters.unit(unit);
        let taken = |slot: &&Span| self.here.borrow().iter().all(|(_, place)| place.start != slot.start);
        let place = self.slots.iter().find(taken).unwrap().part(0, range.len);
        self.device().write(place, &self.whole.get(range));
        self.here.borrow_mut().push((unit, place));
        self.visited.borrow_mut().push(unit);
        place
    }

    fn release(&self, unit: Unit) {
        let mut here = self.here.borrow_mut();
        let index = here.iter().position(|(known, _)| *known == unit).unwrap();
        let (_, place) = here.remove(index);
        self.device().fill(place, f32::NAN);
    }

    fn gradients(&self, unit: Unit) -> Span {
        let mut places = self.places.borrow_mut();
        if let Some((_, place)) = places.iter().find(|(known, _)| *known == unit) {
            return *place;
        }
        let place = self.device().allocate(self.parameters.unit(unit).len).unwrap();
        places.push((unit, place));
        self.next.set(self.next.get() + 1);
        place
    }

    fn finished(&self, unit: Unit, range: Span) {
        let index = self.places.borrow().iter().position(|(known, _)| *known == unit).unwrap();
        let (_, place) = self.places.borrow_mut().remove(index);
        let sum = self.sums.part(range.start, range.len);
        self.device().add(sum, place, sum);
    }
}

#[test]
fn weights_that_come_and_gradients_that_go_unit_by_unit_change_nothing() {
    for family in [Family::Gpt2, Family::Llama] {
        for tied in [true, false] {
            let model = deep(family, tied);
            let (loss, gradients) = whole(&model);
            let device = Arc::clone(model.device());
            let part = Part::whole(model.config());
            let visiting = Transformer::visiting(model.config().clone(), part, Arc::clone(&device)).unwrap();
            let len = model.parameters().layout.len();
            let largest = visiting.parameters().units().iter().map(|(_, range)| range.len).max().unwrap();
            let visits = Visits {
                whole: &model,
                parameters: visiting.parameters(),
                slots: [(); 3].map(|()| device.allocate(largest).unwrap()),
                here: RefCell::default(),
                visited: RefCell::default(),
                places: RefCell::default(),
                next: Cell::new(0),
                sums: device.allocate(len).unwrap(),
            };
            let workspace = Workspace::for_training(device.as_ref(), model.config(), 10, false).unwrap();
            let mut sum = LossSum::default();
            let mut order = Vec::new();
            for batch in batches() {
                sum += visiting.forward_backward(&workspace, batch, Gradients::Visited, &visits).unwrap();
                order.extend(visiting.forward_visits());
                order.extend(visiting.backward_visits(Backward::Whole));
            }
            assert_eq!(sum, loss);
            assert_eq!(*visits.visited.borrow(), order);
            assert!(visits.here.borrow().is_empty() && visits.places.borrow().is_empty());
            assert_eq!(visits.next.get(), 2 * visiting.parameters().units().len());
            // Each microbatch's gradients are summed apart: not to the same bits.
            for (one, other) in gradients.iter().zip(read(device.as_ref(), visits.sums)) {
                assert!((one - other).abs() <= 1e-5 * one.abs().max(1.0));
            }
        }
    }
}
