//! Weights that are packed once for many products.

use super::sized;
use crate::cpu::CpuDevice;
use crate::cpu::gemm::{Operand, Preparation};
use crate::cpu::memory::resolve;
use crate::device::{Linear, Matrix, Use, Weight};
use gradus_memory::Span;

/// Columns of the products of a use, and their depth.
fn sides(shape: Linear, usage: Use) -> (usize, usize) {
    match usage {
        Use::Forward { .. } => (shape.outputs, shape.inputs),
        Use::Backward => (shape.inputs, shape.outputs),
    }
}

/// How far apart columns are that an ending takes together: `apart`, or 0 where kernels that take vectors of `lanes`
/// together, or none, cannot bring them into one tile.
pub fn fold_of(apart: usize, outputs: usize, lanes: Option<usize>) -> usize {
    let whole = |lanes| apart.is_multiple_of(lanes) && outputs.is_multiple_of(2 * apart);
    if apart > 0 && lanes.is_some_and(whole) { apart } else { 0 }
}

impl CpuDevice {
    /// [`Device::prepared_len`](crate::Device::prepared_len).
    pub(super) fn run_prepared_len(&self, shape: Linear, usage: Use) -> usize {
        let (lines, depth) = sides(shape, usage);
        self.working().engine.panels_len(lines, depth)
    }

    /// [`Device::prepare`](crate::Device::prepare).
    pub(super) fn run_prepare(&self, shape: Linear, usage: Use, weight: Matrix, to: Span) {
        super::matrix("weight", weight, shape.outputs * shape.inputs);
        sized("the place of a prepared weight", to, self.run_prepared_len(shape, usage));
        let ([to], [rows]) = resolve(&self.arena, [to], [weight.span]);
        let engine = &mut self.working().engine;
        let operand = match usage {
            Use::Forward { apart } => Operand {
                fold: fold_of(apart, shape.outputs, engine.family.lanes_together()),
                ..Operand::along(rows.at(0), shape.inputs)
            },
            Use::Backward => Operand::across(rows.at(0), shape.inputs),
        };
        let operand = operand.kept(weight.format);
        let (lines, depth) = sides(shape, usage);
        // SAFETY: sizes were checked, and the lock keeps other operations out.
        unsafe { engine.prepare(Preparation { operand, lines, depth, to: to.at(0) }) };
    }

    /// Where a weight lies, as a matrix, and whether it is prepared for this use.
    pub(super) fn place_of(&self, shape: Linear, usage: Use, weight: Weight) -> (Matrix, bool) {
        match weight {
            Weight::Rows(matrix) => {
                super::matrix("weight", matrix, shape.outputs * shape.inputs);
                (matrix, false)
            }
            Weight::Prepared(span) => {
                sized("the prepared weight", span, self.run_prepared_len(shape, usage));
                (span.into(), true)
            }
        }
    }
}
