//! What a stage's passes ask for, given by those who know: weights, room for gradients, sums of what is final.

use crate::stage::Stage;
use crate::tensor_parallel::TensorParallel;
use gradus_compute::{Device, Matrix};
use gradus_memory::Span;
use gradus_model::{Combine, Seams, Unit};

/// The seams of one pass of a stage.
pub(super) struct StepSeams<'a> {
    pub stage: &'a Stage,
    pub tp: &'a TensorParallel,
}

impl StepSeams<'_> {
    fn device(&self) -> &dyn Device {
        self.stage.model.device().as_ref()
    }

    /// Of norms each tensor rank has seen its own rows only: their gradients are summed before they leave.
    fn sum_partial(&self, unit: Unit, range: Span) {
        let Some(place) = self.stage.reduction.leaving(unit, range) else { return };
        for partial in self.stage.model.parameters().partial_gradients(range) {
            self.tp.sum(self.device(), place.part(partial.start - range.start, partial.len));
        }
    }
}

impl Seams for StepSeams<'_> {
    fn between_operations(&self) {
        self.stage.reduction.progress();
    }

    fn weights(&self, unit: Unit) -> Span {
        self.stage.gathering.as_ref().expect("a stage without weights gathers them").visit(unit)
    }

    fn release(&self, unit: Unit) {
        if let Some(gathering) = &self.stage.gathering {
            gathering.release(unit);
        }
    }

    fn gradients(&self, unit: Unit) -> Span {
        self.stage.reduction.slot(unit)
    }

    fn finished(&self, unit: Unit, range: Span) {
        if self.tp.size() > 1 {
            self.sum_partial(unit, range);
        }
        self.stage.reduction.finished(unit, range);
    }

    fn gather_rows(&self, all: Matrix, rows: usize, width: usize) {
        self.tp.gather_rows(self.device(), all, rows, width);
    }

    fn sum_rows(&self, partial: Span, rows: usize, width: usize) {
        self.tp.sum_rows(self.device(), partial, rows, width);
    }

    fn combine(&self, values: Span, how: Combine) {
        self.tp.combine(self.device(), values, how);
    }
}
