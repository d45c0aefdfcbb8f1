//! AdamW and Muon over the flat layout.
//!
//! With Muon the matrices of blocks' linear layers are updated one by one (of queries, keys and values, and of gate and
//! up, each is a matrix of its own, though each group is one tensor), everything else by AdamW. Matrices have one moment
//! only: second moments are allocated for the rest.

use crate::settings::{OptimizerKind, OptimizerSettings};
use gradus_compute::{AdamW, Device, Muon, NewtonSchulz, Rounding};
use gradus_error::Result;
use gradus_memory::{Layout, Span, Tensor};

/// What is updated at once.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    /// Neighbouring tensors that share their decay, by AdamW; and where their second moments lie.
    Elements { span: Span, decay: bool, moment2: Span },
    /// A matrix of so many rows, by Muon.
    Matrix { span: Span, rows: usize },
}

/// What an update is about: the same for all parts.
#[derive(Clone, Copy)]
struct Update {
    weights: Span,
    gradients: Span,
    learning_rate: f32,
    gradient_scale: f32,
}

/// Moments of all parameters, and how to update.
#[derive(Debug)]
pub struct Optimizer {
    settings: OptimizerSettings,
    moment1: Span,
    parts: Vec<Part>,
    updates: u64,
}

impl Optimizer {
    /// Moments, zero, for all tensors of a layout.
    ///
    /// # Errors
    /// `Invalid` for impossible settings; `Exhausted` when the device has no room.
    pub fn new(device: &dyn Device, layout: &Layout, settings: OptimizerSettings) -> Result<Self> {
        settings.check()?;
        let mut parts = parts(layout, settings.kind);
        let moment1 = device.allocate(layout.len())?;
        let moment2 = device.allocate(place_second_moments(&mut parts, 0))?;
        place_second_moments(&mut parts, moment2.start);
        Ok(Self { settings, moment1, parts, updates: 0 })
    }

    /// Which one it is.
    pub fn kind(&self) -> OptimizerKind {
        self.settings.kind
    }

    /// First and second moment of a tensor; what Muon updates has no second one.
    pub fn moments(&self, tensor: &Tensor) -> [Option<Span>; 2] {
        let second = |part: &Part| match part {
            Part::Elements { span, moment2, .. }
                if tensor.start >= span.start && tensor.start < span.end() =>
            {
                Some(moment2.part(tensor.start - span.start, tensor.len()))
            }
            _ => None,
        };
        [Some(tensor.within(self.moment1)), self.parts.iter().find_map(second)]
    }

    /// Updates made so far; skipped steps make none.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Goes on after `updates` updates, whose moments the caller has put in place.
    pub fn resume(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// Updates `weights` by `gradients` times `gradient_scale`.
    pub fn update(
        &mut self,
        device: &dyn Device,
        weights: Span,
        gradients: Span,
        learning_rate: f64,
        gradient_scale: f64,
    ) {
        self.updates += 1;
        let (learning_rate, gradient_scale) = (learning_rate as f32, gradient_scale as f32);
        let update = Update { weights, gradients, learning_rate, gradient_scale };
        for part in &self.parts {
            match *part {
                Part::Elements { span, decay, moment2 } => {
                    self.update_elements(device, update, span, decay, moment2);
                }
                Part::Matrix { span, rows } => self.update_matrix(device, update, span, rows),
            }
        }
    }

    fn update_elements(&self, device: &dyn Device, now: Update, span: Span, decay: bool, moment2: Span) {
        let update = AdamW {
            learning_rate: now.learning_rate,
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            epsilon: self.settings.epsilon,
            weight_decay: if decay { self.settings.weight_decay } else { 0.0 },
            update: self.updates,
            gradient_scale: now.gradient_scale,
            rounding: Rounding::default(),
        };
        let part = |whole: Span| whole.part(span.start, span.len);
        device.adamw(update, part(now.weights).into(), part(now.gradients), part(self.moment1), moment2);
    }

    fn update_matrix(&self, device: &dyn Device, now: Update, span: Span, rows: usize) {
        let (settings, columns) = (&self.settings.muon, span.len / rows);
        let update = Muon {
            shape: NewtonSchulz { rows, columns, iterations: settings.iterations },
            learning_rate: now.learning_rate,
            adjustment: settings.adjustment.factor(rows, columns) as f32,
            momentum: settings.momentum,
            nesterov: settings.nesterov,
            weight_decay: self.settings.weight_decay,
            gradient_scale: now.gradient_scale,
            update: self.updates,
            rounding: Rounding::default(),
        };
        let part = |whole: Span| whole.part(span.start, span.len);
        device.muon(update, part(now.weights).into(), part(now.gradients), part(self.moment1));
    }
}

/// What an optimizer of this kind updates at once, second moments not yet placed.
fn parts(layout: &Layout, kind: OptimizerKind) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for tensor in layout.tensors() {
        if kind == OptimizerKind::Muon && !tensor.matrices.is_empty() {
            parts.extend(tensor.each_matrix().map(|(span, rows)| Part::Matrix { span, rows }));
        } else {
            join(&mut parts, tensor);
        }
    }
    parts
}

/// Joins a tensor to the one before if they share their decay; the gaps between tensors hold zeros and stay zero.
fn join(parts: &mut Vec<Part>, tensor: &Tensor) {
    match parts.last_mut() {
        Some(Part::Elements { span, decay, .. }) if *decay == tensor.decay => {
            span.len = tensor.span().end() - span.start;
        }
        _ => {
            parts.push(Part::Elements { span: tensor.span(), decay: tensor.decay, moment2: Span::default() })
        }
    }
}

/// Gives every part of AdamW its second moments, from `first` on; one past the last.
fn place_second_moments(parts: &mut [Part], first: usize) -> usize {
    let mut end = first;
    for part in parts {
        if let Part::Elements { span, moment2, .. } = part {
            *moment2 = Span::new(end, span.len);
            // As far apart as tensors: AdamW alone takes as much as the layout.
            end = moment2.end().next_multiple_of(Layout::ALIGNMENT);
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_memory::LayoutBuilder;

    /// Spans of what AdamW updates, with decay.
    fn elements(parts: &[Part]) -> Vec<(Span, bool)> {
        let spans = parts.iter().filter_map(|part| match part {
            Part::Elements { span, decay, .. } => Some((*span, *decay)),
            Part::Matrix { .. } => None,
        });
        spans.collect()
    }

    /// Spans of what Muon updates, with rows.
    fn matrices(parts: &[Part]) -> Vec<(Span, usize)> {
        let spans = parts.iter().filter_map(|part| match part {
            Part::Matrix { span, rows } => Some((*span, *rows)),
            Part::Elements { .. } => None,
        });
        spans.collect()
    }

    #[test]
    fn neighbours_with_the_same_decay_are_updated_together() {
        let mut builder = LayoutBuilder::default();
        for (name, decay) in [("a", true), ("b", true), ("c", false), ("d", true)] {
            builder.push(name, &[5], decay);
        }
        let found = parts(&builder.finish(), OptimizerKind::AdamW);
        assert!(matrices(&found).is_empty());
        assert_eq!(
            elements(&found),
            [(Span::new(0, 21), true), (Span::new(32, 5), false), (Span::new(48, 5), true)]
        );
    }

    #[test]
    fn muon_takes_each_matrix_and_leaves_the_rest() {
        let mut builder = LayoutBuilder::default();
        builder.push("head", &[4, 5], true);
        builder.push("norm", &[5], false);
        builder.push_matrices("gate_up", &[3, 3], 5);
        builder.push("bias", &[6], false);
        let layout = builder.finish();
        let mut found = parts(&layout, OptimizerKind::Muon);
        assert_eq!(
            elements(&found),
            [(Span::new(0, 20), true), (Span::new(32, 5), false), (Span::new(80, 6), false)]
        );
        assert_eq!(matrices(&found), [(Span::new(48, 15), 3), (Span::new(63, 15), 3)]);
        assert_eq!(place_second_moments(&mut found, 0), 64, "none for 30 elements of matrices");
        assert_eq!(place_second_moments(&mut parts(&layout, OptimizerKind::AdamW), 0), layout.len());
    }
}
