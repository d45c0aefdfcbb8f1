//! Normalisations.

use super::{optional, sized};
use crate::cpu::cells::Cells;
use crate::cpu::elementwise::{Map, Sum};
use crate::cpu::memory::{Elements, resolve, unless_in_place};
use crate::cpu::pool::part;
use crate::cpu::{CpuDevice, Working, norm};
use crate::device::{Format, Matrix, Norm};
use gradus_memory::Span;

impl CpuDevice {
    /// [`Device::norm_forward`](crate::Device::norm_forward).
    pub(super) fn run_norm_forward(
        &self,
        shape: Norm,
        x: Span,
        weight: Span,
        bias: Option<Span>,
        out: Matrix,
        statistics: Span,
    ) {
        let rows = x.len / shape.width;
        sized("x", x, rows * shape.width);
        sized("weight", weight, shape.width);
        let bias = optional("bias", bias, shape.width);
        sized("out", out.span, out.format.places(x.len));
        sized("statistics", statistics, 2 * rows);
        let ([to, statistics], [x, weight, bias]) =
            resolve(&self.arena, [out.span, statistics], [x, weight, bias]);
        let out = Cells::new(to, out.format);
        self.working().engine.each(rows, 1, 4 * shape.width, |rows| norm::Forward {
            shape,
            x,
            weight,
            bias,
            out,
            statistics,
            rows,
        });
    }

    /// [`Device::norm_backward`](crate::Device::norm_backward).
    #[allow(clippy::too_many_arguments, reason = "the operation's own")]
    pub(super) fn run_norm_backward(
        &self,
        shape: Norm,
        x: Span,
        weight: Span,
        statistics: Span,
        d_out: Matrix,
        d_residual: Option<Span>,
        d_x: Span,
        d_weight: Span,
        d_bias: Option<Span>,
    ) {
        let (rows, width) = (x.len / shape.width, shape.width);
        sized("x", x, rows * width);
        sized("weight", weight, width);
        sized("statistics", statistics, 2 * rows);
        sized("d_out", d_out.span, d_out.format.places(x.len));
        sized("d_x", d_x, x.len);
        sized("d_weight", d_weight, width);
        let d_residual = optional("d_residual", d_residual, x.len);
        let d_bias = optional("d_bias", d_bias, width);
        let d_out_apart = match d_out.format {
            Format::F32 => unless_in_place(d_out.span, d_x),
            Format::Bf16 => d_out.span,
        };
        let d_residual_apart = unless_in_place(d_residual, d_x);
        let ([to, d_weight, d_bias], [x, weight, statistics, d_out_apart, d_residual_apart]) = resolve(
            &self.arena,
            [d_x, d_weight, d_bias],
            [x, weight, statistics, d_out_apart, d_residual_apart],
        );
        let d_out = Cells::new(if d_out.span == d_x { to } else { d_out_apart }, d_out.format);
        let d_residual = if d_residual == d_x { to } else { d_residual_apart };
        let Working { engine, shared, .. } = &mut *self.working();
        let parts = engine.worth(rows * width * 8);
        let partials = &mut shared.at_least(parts * 2 * width)[..parts * 2 * width];
        partials.fill(0.0);
        let partials = Elements::of_mut(partials);
        let (family, dots) = (engine.family, engine.dots());
        engine.parts(parts, |index, _| {
            // SAFETY: each part takes its own partial sums.
            let partial = Elements::of_mut(unsafe { partials.slice_mut(index * 2 * width, 2 * width) });
            let rows = part(rows, 1, parts, index);
            dots.enter(norm::Backward {
                shape,
                x,
                weight,
                statistics,
                d_out,
                d_residual,
                d_x: to,
                partial,
                rows,
            });
        });
        for index in 0..parts {
            for (to, offset) in [(d_weight, 0), (d_bias, width)] {
                // SAFETY: all parts are done.
                let partial = unsafe { partials.slice(index * 2 * width + offset, width) };
                let range = 0..to.len();
                let [to, partial] = [to, Elements::of(partial)].map(Cells::from);
                family.run(Map { f: Sum, inputs: [to, partial], out: to, range });
            }
        }
    }
}
