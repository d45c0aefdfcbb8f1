//! Losses.

use super::sized;
use crate::cpu::CpuDevice;
use crate::cpu::loss::{Losses, PartLosses, PartMaxima, PartSums};
use crate::cpu::memory::resolve;
use crate::device::CrossEntropy;
use crate::loss::{CrossEntropyPart, check_targets};
use gradus_memory::Span;

impl CpuDevice {
    /// [`Device::cross_entropy`](crate::Device::cross_entropy).
    pub(super) fn run_cross_entropy(&self, shape: CrossEntropy, logits: Span, losses: Span, gradient: bool) {
        let rows = shape.targets.len();
        sized("logits", logits, rows * shape.width);
        sized("losses", losses, rows);
        assert!(shape.vocabulary <= shape.width, "the vocabulary is wider than the logits");
        check_targets(shape.targets, shape.vocabulary);
        let ([logits, losses], []) = resolve(&self.arena, [logits, losses], []);
        self.working().engine.each(rows, 1, 8 * shape.width, |rows| Losses {
            shape,
            logits,
            losses,
            gradient,
            rows,
        });
    }

    /// [`Device::cross_entropy_maxima`](crate::Device::cross_entropy_maxima).
    pub(super) fn run_cross_entropy_maxima(&self, shape: CrossEntropyPart, logits: Span, maxima: Span) {
        let rows = rows_of(shape, logits);
        sized("maxima", maxima, rows);
        let ([maxima], [logits]) = resolve(&self.arena, [maxima], [logits]);
        self.working().engine.each(rows, 1, shape.width, |rows| PartMaxima { shape, logits, maxima, rows });
    }

    /// [`Device::cross_entropy_sums`](crate::Device::cross_entropy_sums).
    pub(super) fn run_cross_entropy_sums(
        &self,
        shape: CrossEntropyPart,
        logits: Span,
        maxima: Span,
        sums: Span,
    ) {
        let rows = rows_of(shape, logits);
        sized("maxima", maxima, rows);
        sized("sums", sums, 2 * rows);
        let ([logits, sums], [maxima]) = resolve(&self.arena, [logits, sums], [maxima]);
        self.working().engine.each(rows, 1, 6 * shape.width, |rows| PartSums {
            shape,
            logits,
            maxima,
            sums,
            rows,
        });
    }

    /// [`Device::cross_entropy_losses`](crate::Device::cross_entropy_losses).
    pub(super) fn run_cross_entropy_losses(
        &self,
        shape: CrossEntropyPart,
        maxima: Span,
        sums: Span,
        logits: Span,
        losses: Span,
    ) {
        let rows = rows_of(shape, logits);
        sized("maxima", maxima, rows);
        sized("sums", sums, 2 * rows);
        sized("losses", losses, rows);
        let ([logits, losses], [maxima, sums]) = resolve(&self.arena, [logits, losses], [maxima, sums]);
        self.working().engine.each(rows, 1, shape.width, |rows| PartLosses {
            shape,
            maxima,
            sums,
            logits,
            losses,
            rows,
        });
    }
}

/// The rows of a part, checked.
#[track_caller]
fn rows_of(shape: CrossEntropyPart, logits: Span) -> usize {
    shape.check();
    sized("logits", logits, shape.targets.len() * shape.width);
    shape.targets.len()
}
