//! Parts of a model, one after the other, against the whole: the same bits, whatever is cut and wherever weights and
//! gradients are kept.

use crate::model::{batch, model, small};
use gradus_compute::{Device, Matrix};
use gradus_memory::Span;
use gradus_model::{
    Backward, Batch, Combine, Family, Gradients, LossSum, ModelConfig, Parameters, Part, Seams, StageMemory,
    Transformer, Unit, Workspace,
};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

pub fn read(device: &dyn Device, span: Span) -> Vec<f32> {
    let mut values = vec![0.0; span.len];
    device.read(span, &mut values);
    values
}

/// Loss and gradients of the whole model, of two batches.
pub fn whole(model: &Transformer, batches: [Batch; 2]) -> (LossSum, Vec<f32>) {
    let device = model.device();
    let rows = batches[0].tokens.len();
    let workspace = Workspace::for_training(device.as_ref(), model.config(), rows, false).unwrap();
    let gradients = device.allocate(model.parameters().layout.len()).unwrap();
    let mut loss = LossSum::default();
    for batch in batches {
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
pub struct Stage {
    pub model: Transformer,
    pub gradients: Span,
    pub slots: Vec<Workspace>,
}

fn stage(of: &Transformer, part: Part, memory: StageMemory, prepared: bool) -> Stage {
    let device = Arc::clone(of.device());
    let slots = Workspace::for_stage(device.as_ref(), of.config(), &part, memory).unwrap();
    let plain = Transformer::of_part(of.config().clone(), part, Arc::clone(&device)).unwrap();
    let model = if prepared { plain.with_prepared_weights().unwrap() } else { plain };
    for run in model.parameters().runs(&of.parameters().layout) {
        model.put(Span::new(run.local, run.whole.len), &of.get(run.whole));
    }
    let gradients = device.allocate(model.parameters().layout.len()).unwrap();
    Stage { model, gradients, slots }
}

/// Three stages of a model of four layers, or a tensor rank's share of them.
pub fn three_parts(tensor_rank: usize, tensor_ranks: usize) -> [Part; 3] {
    let part = |layers, embedding, head| Part { layers, embedding, head, tensor_rank, tensor_ranks };
    [part(0..1, true, false), part(1..3, false, false), part(3..4, false, true)]
}

fn copy(device: &dyn Device, from: Span, to: Span) {
    device.write(to, &read(device, from));
}

/// Two microbatches through stages: both forward, then both backward, halves apart where the memory is for that.
pub fn through_stages(
    of: &Transformer,
    parts: &[Part],
    (memory, prepared): (StageMemory, bool),
    batches: [Batch; 2],
    seams: &dyn Seams,
) -> (LossSum, Vec<Stage>) {
    let stages: Vec<_> = parts.iter().map(|part| stage(of, part.clone(), memory, prepared)).collect();
    let (device, config, rows) = (of.device().as_ref(), of.config(), memory.rows);
    for (slot, batch) in batches.into_iter().enumerate() {
        for (index, stage) in stages.iter().enumerate() {
            if index > 0 {
                let from = stages[index - 1].slots[slot].sent(rows, config);
                copy(device, from, stage.slots[slot].received(rows, config));
            }
            stage.model.forward(&stage.slots[slot], batch, seams).unwrap();
        }
    }
    let mut loss = LossSum::default();
    let halves: &[Backward] =
        if memory.split_backward { &[Backward::Input, Backward::Weight] } else { &[Backward::Whole] };
    for half in halves {
        for (slot, batch) in batches.into_iter().enumerate() {
            for (index, stage) in stages.iter().enumerate().rev() {
                if index + 1 < stages.len() && *half != Backward::Weight {
                    let from = stages[index + 1].slots[slot].sent_gradient(rows, config);
                    copy(device, from, stage.slots[slot].received_gradient(rows, config));
                }
                let gradients = Gradients::Kept(stage.gradients);
                loss += stage.model.backward(&stage.slots[slot], batch, *half, gradients, seams).unwrap();
            }
        }
    }
    (loss, stages)
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
            let (loss, gradients) = whole(&model, batches());
            for (recompute, split) in [(false, false), (true, false), (false, true), (true, true)] {
                let memory = StageMemory { rows: 10, recompute, split_backward: split, slots: 2 };
                let (staged_loss, stages) =
                    through_stages(&model, &three_parts(0, 1), (memory, false), batches(), &());
                let staged = gathered(&model, &stages);
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
    kept: &'a Transformer,
    /// Whom to ask for the rest.
    others: &'a dyn Seams,
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
        self.kept.device().as_ref()
    }
}

impl Seams for Visits<'_> {
    fn weights(&self, unit: Unit) -> Span {
        let range = self.parameters.unit(unit);
        let taken = |slot: &&Span| self.here.borrow().iter().all(|(_, place)| place.start != slot.start);
        let place = self.slots.iter().find(taken).unwrap().part(0, range.len);
        self.device().write(place, &self.kept.get(range));
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

    fn gather_rows(&self, all: Matrix, rows: usize, width: usize) {
        self.others.gather_rows(all, rows, width);
    }

    fn sum_rows(&self, partial: Span, rows: usize, width: usize) {
        self.others.sum_rows(partial, rows, width);
    }

    fn combine(&self, values: Span, how: Combine) {
        self.others.combine(values, how);
    }
}

/// Loss and gradients of two batches, of a part whose weights come and whose gradients go unit by unit: those that `kept` has.
pub fn visited(kept: &Transformer, batches: [Batch; 2], others: &dyn Seams) -> (LossSum, Span) {
    let (device, part) = (Arc::clone(kept.device()), kept.part().clone());
    let memory = StageMemory { rows: 10, recompute: false, split_backward: false, slots: 1 };
    let workspace = Workspace::for_stage(device.as_ref(), kept.config(), &part, memory).unwrap().remove(0);
    let visiting = Transformer::visiting(kept.config().clone(), part, Arc::clone(&device)).unwrap();
    let parameters = visiting.parameters();
    let largest = parameters.units().iter().map(|(_, range)| range.len).max().unwrap();
    let visits = Visits {
        kept,
        others,
        parameters,
        slots: [(); 3].map(|()| device.allocate(largest).unwrap()),
        here: RefCell::default(),
        visited: RefCell::default(),
        places: RefCell::default(),
        next: Cell::new(0),
        sums: device.allocate(parameters.layout.len()).unwrap(),
    };
    let mut sum = LossSum::default();
    let mut order = Vec::new();
    for batch in batches {
        sum += visiting.forward_backward(&workspace, batch, Gradients::Visited, &visits).unwrap();
        order.extend(visiting.forward_visits());
        order.extend(visiting.backward_visits(Backward::Whole));
    }
    assert_eq!(*visits.visited.borrow(), order);
    assert!(visits.here.borrow().is_empty() && visits.places.borrow().is_empty());
    assert_eq!(visits.next.get(), 2 * parameters.units().len());
    (sum, visits.sums)
}

#[test]
fn weights_that_come_and_gradients_that_go_unit_by_unit_change_nothing() {
    for family in [Family::Gpt2, Family::Llama] {
        for tied in [true, false] {
            let model = deep(family, tied);
            let (loss, gradients) = whole(&model, batches());
            let (sum, sums) = visited(&model, batches(), &());
            assert_eq!(sum, loss);
            // Each microbatch's gradients are summed apart: not to the same bits.
            for (one, other) in gradients.iter().zip(read(model.device().as_ref(), sums)) {
                assert!((one - other).abs() <= 1e-5 * one.abs().max(1.0));
            }
        }
    }
}
