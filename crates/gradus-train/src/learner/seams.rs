//! What a stage's passes ask for, given by those who know: weights, room for gradients, sums of what is final.

use crate::stage::Stage;
use gradus_memory::Span;
use gradus_model::{Seams, Unit};

/// The seams of one pass of a stage.
pub(super) struct StepSeams<'a> {
    pub stage: &'a Stage,
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
        self.stage.reduction.finished(unit, range);
    }
}
