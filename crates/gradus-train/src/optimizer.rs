//! AdamW over the flat layout.

use crate::settings::OptimizerSettings;
use gradus_compute::{AdamW, Device};
use gradus_error::Result;
use gradus_memory::{Layout, Span};

/// A range of neighbouring tensors that share their decay.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Run {
    span: Span,
    decay: bool,
}

/// Moments of all parameters, and how to update.
#[derive(Debug)]
pub struct Optimizer {
    settings: OptimizerSettings,
    moment1: Span,
    moment2: Span,
    runs: Vec<Run>,
    updates: u64,
}

impl Optimizer {
    /// Moments, zero, for all tensors of a layout.
    ///
    /// # Errors
    /// `Invalid` for impossible settings; `Exhausted` when the device has no room.
    pub fn new(device: &dyn Device, layout: &Layout, settings: OptimizerSettings) -> Result<Self> {
        settings.check()?;
        let moment1 = device.allocate(layout.len())?;
        let moment2 = device.allocate(layout.len())?;
        Ok(Self { settings, moment1, moment2, runs: runs(layout), updates: 0 })
    }

    /// First and second moments, in the order of the layout.
    pub fn moments(&self) -> [Span; 2] {
        [self.moment1, self.moment2]
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
        for run in &self.runs {
            let update = AdamW {
                learning_rate: learning_rate as f32,
                beta1: self.settings.beta1,
                beta2: self.settings.beta2,
                epsilon: self.settings.epsilon,
                weight_decay: if run.decay { self.settings.weight_decay } else { 0.0 },
                update: self.updates,
                gradient_scale: gradient_scale as f32,
            };
            let part = |whole: Span| whole.part(run.span.start, run.span.len);
            device.adamw(update, part(weights), part(gradients), part(self.moment1), part(self.moment2));
        }
    }
}

/// Joins neighbours that share their decay; the gaps between tensors hold zeros and stay zero.
fn runs(layout: &Layout) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for tensor in layout.tensors() {
        match runs.last_mut() {
            Some(last) if last.decay == tensor.decay => last.span.len = tensor.span().end() - last.span.start,
            _ => runs.push(Run { span: tensor.span(), decay: tensor.decay }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_memory::LayoutBuilder;

    #[test]
    fn neighbours_with_the_same_decay_are_updated_together() {
        let mut builder = LayoutBuilder::default();
        for (name, decay) in [("a", true), ("b", true), ("c", false), ("d", true)] {
            builder.push(name, &[5], decay);
        }
        let runs = runs(&builder.finish());
        assert_eq!(
            runs.iter().map(|run| (run.span, run.decay)).collect::<Vec<_>>(),
            [(Span::new(0, 21), true), (Span::new(32, 5), false), (Span::new(48, 5), true)]
        );
    }
}
