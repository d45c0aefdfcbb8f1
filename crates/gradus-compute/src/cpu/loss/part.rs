//! The three passes of the cross entropy of logits whose columns are shared out among ranks: what the whole one does to a
//! row, cut where the ranks exchange.

use super::{exponentials, largest, scale};
use crate::cpu::memory::Elements;
use crate::cpu::simd::{Operation, Simd};
use crate::device::IGNORED;
use crate::loss::CrossEntropyPart;
use std::ops::Range;

/// The largest logits of rows `rows`.
pub struct PartMaxima<'a> {
    /// The operation's shape.
    pub shape: CrossEntropyPart<'a>,
    /// `[M, width]`.
    pub logits: Elements,
    /// `[M]`.
    pub maxima: Elements,
    /// The rows to compute.
    pub rows: Range<usize>,
}

impl Operation for PartMaxima<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let CrossEntropyPart { targets, width, tokens, .. } = self.shape;
        for row in self.rows.clone() {
            // SAFETY: nobody writes logits, and this part alone touches the row's maximum.
            let (real, maximum) =
                unsafe { (self.logits.slice(row * width, tokens), &mut self.maxima.slice_mut(row, 1)[0]) };
            *maximum = if targets[row] == IGNORED { 0.0 } else { largest(s, real) };
        }
    }
}

/// The sums of rows `rows`, and their targets' logits.
pub struct PartSums<'a> {
    /// The operation's shape.
    pub shape: CrossEntropyPart<'a>,
    /// `[M, width]`.
    pub logits: Elements,
    /// `[M]`, over all ranks.
    pub maxima: Elements,
    /// `[2, M]`.
    pub sums: Elements,
    /// The rows to compute.
    pub rows: Range<usize>,
}

impl Operation for PartSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (count, width) = (self.shape.targets.len(), self.shape.width);
        for row in self.rows.clone() {
            // SAFETY: nobody writes maxima, and this part alone touches the row's logits and sums.
            let (real, highest, sum, right) = unsafe {
                (
                    self.logits.slice_mut(row * width, self.shape.tokens),
                    self.maxima.slice(row, 1)[0],
                    &mut self.sums.slice_mut(row, 1)[0],
                    &mut self.sums.slice_mut(count + row, 1)[0],
                )
            };
            (*sum, *right) = self.row(s, real, highest, self.shape.targets[row]);
        }
    }
}

impl PartSums<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, real: &mut [f32], highest: f32, target: u32) -> (f32, f32) {
        if target == IGNORED {
            return (0.0, 0.0);
        }
        let right = self.shape.column(target).map_or(0.0, |column| real[column]);
        let sum = if self.shape.gradient {
            exponentials::<S, true>(s, real, highest)
        } else {
            exponentials::<S, false>(s, real, highest)
        };
        (sum, right)
    }
}

/// The losses of rows `rows`, and the gradient of their logits.
pub struct PartLosses<'a> {
    /// The operation's shape.
    pub shape: CrossEntropyPart<'a>,
    /// `[M]`, over all ranks.
    pub maxima: Elements,
    /// `[2, M]`, over all ranks.
    pub sums: Elements,
    /// `[M, width]`: exponentials.
    pub logits: Elements,
    /// `[M]`.
    pub losses: Elements,
    /// The rows to compute.
    pub rows: Range<usize>,
}

impl Operation for PartLosses<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (targets, width) = (self.shape.targets, self.shape.width);
        for (row, target) in self.rows.clone().map(|row| (row, targets[row])) {
            // SAFETY: nobody writes maxima and sums, and this part alone touches the row's loss and logits.
            unsafe {
                let (highest, sum) = (self.maxima.slice(row, 1)[0], self.sums.slice(row, 1)[0]);
                let right = self.sums.slice(targets.len() + row, 1)[0];
                let loss = if target == IGNORED { 0.0 } else { highest + sum.ln() - right };
                self.losses.slice_mut(row, 1)[0] = loss;
                if self.shape.gradient {
                    self.row(s, self.logits.slice_mut(row * width, width), sum, target);
                }
            }
        }
    }
}

impl PartLosses<'_> {
    /// The gradient of a row, from its exponentials.
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, logits: &mut [f32], sum: f32, target: u32) {
        if target == IGNORED {
            return logits.fill(0.0);
        }
        let (real, padding) = logits.split_at_mut(self.shape.tokens);
        padding.fill(0.0);
        scale(s, real, 1.0 / sum);
        if let Some(column) = self.shape.column(target) {
            real[column] -= 1.0;
        }
    }
}
