//! Linear layers.

use super::{LINE, optional, sized};
use crate::cpu::elementwise::{Function, Map};
use crate::cpu::gemm::{FEW_ROWS, FewRows, Mode, Operand, PairRows, Product};
use crate::cpu::memory::{Elements, resolve, unless_in_place};
use crate::cpu::simd::Simd;
use crate::cpu::{CpuDevice, Working};
use crate::device::{Format, Linear, Matrix};
use gradus_memory::Span;

/// Rounds elements to bf16.
#[derive(Clone, Copy)]
struct Round;

impl Function<1> for Round {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::V; 1]) -> S::V {
        s.round_bf16(x)
    }
}

/// `out = x * w^T`, nothing added.
pub fn forward_product(
    shape: Linear,
    x: Elements,
    (weight, format): (Elements, Format),
    out: Elements,
) -> Product {
    Product {
        rows: shape.rows,
        columns: shape.outputs,
        depth: shape.inputs,
        left: Operand::along(x.at(0), shape.inputs),
        right: Operand { half: format == Format::Bf16, ..Operand::along(weight.at(0), shape.inputs) },
        target: out.at(0),
        stride: shape.outputs,
        bias: std::ptr::null(),
        residual: std::ptr::null(),
        accumulate: false,
        left_sums: std::ptr::null_mut(),
    }
}

impl CpuDevice {
    /// A few rows against all weights.
    fn few_rows(&self, shape: Linear, format: Format, [x, weight, bias, residual, out]: [Elements; 5]) {
        let Working { engine, shared, .. } = &mut *self.working();
        let (rows, depth, width) = (shape.rows, shape.inputs, shape.outputs);
        let round = engine.rounds();
        let mut x = x;
        if round {
            // Pairs of a row of an odd length end with half a pair.
            let len = rows * depth.next_multiple_of(2);
            let rounded = Elements::of_mut(&mut shared.at_least(len)[..len]);
            match format {
                Format::F32 => {
                    engine.family.run(Map { f: Round, inputs: [x], out: rounded, range: 0..x.len() });
                }
                Format::Bf16 => engine.family.run(PairRows { rows, depth, x, out: rounded }),
            }
            x = rounded;
        }
        engine.each_of_dots(width, LINE, rows * depth, |columns| FewRows {
            rows,
            depth,
            width,
            columns,
            mode: Mode::of(format, round),
            x,
            weight,
            bias,
            residual,
            out,
        });
    }

    /// [`Device::linear_forward`](crate::Device::linear_forward).
    pub(super) fn run_linear_forward(
        &self,
        shape: Linear,
        x: Span,
        Matrix { span: weight, format }: Matrix,
        bias: Option<Span>,
        residual: Option<Span>,
        out: Span,
    ) {
        sized("x", x, shape.rows * shape.inputs);
        sized("weight", weight, format.places(shape.outputs * shape.inputs));
        sized("out", out, shape.rows * shape.outputs);
        let bias = optional("bias", bias, shape.outputs);
        let residual = optional("residual", residual, out.len);
        let residual_apart = unless_in_place(residual, out);
        let ([to], [x, weight, bias, residual_apart]) =
            resolve(&self.arena, [out], [x, weight, bias, residual_apart]);
        let residual = if residual == out { to } else { residual_apart };
        if (1..=FEW_ROWS).contains(&shape.rows) {
            return self.few_rows(shape, format, [x, weight, bias, residual, to]);
        }
        let product = Product {
            bias: bias.or_null(),
            residual: residual.or_null(),
            ..forward_product(shape, x, (weight, format), to)
        };
        // SAFETY: sizes were checked, and the lock keeps other operations out.
        unsafe { self.working().engine.product(product) };
    }

    /// [`Device::linear_backward_input`](crate::Device::linear_backward_input).
    pub(super) fn run_linear_backward_input(
        &self,
        shape: Linear,
        d_out: Span,
        weight: Span,
        d_x: Span,
        accumulate: bool,
    ) {
        sized("d_out", d_out, shape.rows * shape.outputs);
        sized("weight", weight, shape.outputs * shape.inputs);
        sized("d_x", d_x, shape.rows * shape.inputs);
        let ([d_x], [d_out, weight]) = resolve(&self.arena, [d_x], [d_out, weight]);
        let product = Product {
            rows: shape.rows,
            columns: shape.inputs,
            depth: shape.outputs,
            left: Operand::along(d_out.at(0), shape.outputs),
            right: Operand::across(weight.at(0), shape.inputs),
            target: d_x.at(0),
            stride: shape.inputs,
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            accumulate,
            left_sums: std::ptr::null_mut(),
        };
        // SAFETY: sizes were checked, and the lock keeps other operations out.
        unsafe { self.working().engine.product(product) };
    }

    /// [`Device::linear_backward_weight`](crate::Device::linear_backward_weight).
    pub(super) fn run_linear_backward_weight(
        &self,
        shape: Linear,
        d_out: Span,
        x: Span,
        d_weight: Span,
        d_bias: Option<Span>,
    ) {
        sized("d_out", d_out, shape.rows * shape.outputs);
        sized("x", x, shape.rows * shape.inputs);
        sized("d_weight", d_weight, shape.outputs * shape.inputs);
        let d_bias = optional("d_bias", d_bias, shape.outputs);
        let ([d_weight, d_bias], [d_out, x]) = resolve(&self.arena, [d_weight, d_bias], [d_out, x]);
        let product = Product {
            rows: shape.outputs,
            columns: shape.inputs,
            depth: shape.rows,
            left: Operand::across(d_out.at(0), shape.outputs),
            right: Operand::across(x.at(0), shape.inputs),
            target: d_weight.at(0),
            stride: shape.inputs,
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            accumulate: true,
            left_sums: d_bias.or_null(),
        };
        // SAFETY: sizes were checked, and the lock keeps other operations out.
        unsafe { self.working().engine.product(product) };
    }
}
