//! The operations: sizes checked, ranges resolved, work cut into parts. Those with more to say have files of their own.

mod attention;
mod convert;
mod linear;
mod loss;
mod norm;
mod prepared;
mod update;

pub use linear::forward_product;

use super::cells::Cells;
use super::elementwise::{Embed, Gelu, GeluGradient, Map, Scatter, Sum, Swiglu, SwigluGradient, Table, Turn};
use super::gemm::PairRows;
use super::loss::{sum_of_squares, sums_len};
use super::memory::{Columns, Elements, resolve, resolve_rows, unless_in_place};
use super::{CpuDevice, Working};
use crate::device::{
    AdamW, Attention, CrossEntropy, Device, Embedding, Epilogue, Format, Linear, Matrix, Norm, Precision,
    Rope, Rows, Through, Use, Weight,
};
use crate::loss::CrossEntropyPart;
use crate::muon::{Muon, NewtonSchulz};
use gradus_error::Result;
use gradus_memory::{HeapRange, RawRange, SharedHeap, Span};

/// Elements of a cache line: parts of elementwise work begin on one.
pub const LINE: usize = 16;

/// Asserts that a tensor has the size that the shape gives it.
#[track_caller]
fn sized(name: &str, span: Span, len: usize) {
    assert_eq!(span.len, len, "{name} has the wrong size");
}

/// As [`sized`], for what is kept in either format.
#[track_caller]
fn matrix(name: &str, matrix: Matrix, len: usize) {
    assert_eq!(matrix.span.len, matrix.format.places(len), "{name} has the wrong size");
}

/// As [`sized`], where it is given at all.
#[track_caller]
fn optional(name: &str, span: Option<Span>, len: usize) -> Span {
    if let Some(span) = span {
        sized(name, span, len);
    }
    span.unwrap_or_default()
}

impl Device for CpuDevice {
    fn describe(&self) -> String {
        self.working().engine.describe()
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn allocate(&self, len: usize) -> Result<Span> {
        self.arena.allocate(len)
    }

    fn allocate_shared(&self, len: usize, heap: &SharedHeap) -> Result<(Span, HeapRange)> {
        self.arena.allocate_shared(len, heap)
    }

    fn allocated(&self) -> usize {
        self.arena.used()
    }

    fn write(&self, to: Span, values: &[f32]) {
        sized("the destination", to, values.len());
        let _working = self.working();
        let ([to], []) = resolve(&self.arena, [to], []);
        // SAFETY: no operation runs while the lock is held.
        unsafe { to.slice_mut(0, values.len()) }.copy_from_slice(values);
    }

    fn write_bf16(&self, to: Span, values: &[f32]) {
        sized("the destination", to, Format::Bf16.places(values.len()));
        let working = self.working();
        let ([to], []) = resolve(&self.arena, [to], []);
        let (depth, x) = (values.len(), Elements::of(values));
        working.engine.family.run(PairRows { rows: 1, depth, x, out: to });
    }

    fn read(&self, from: Span, values: &mut [f32]) {
        sized("the source", from, values.len());
        let _working = self.working();
        let ([], [from]) = resolve(&self.arena, [], [from]);
        // SAFETY: no operation runs while the lock is held.
        values.copy_from_slice(unsafe { from.slice(0, from.len()) });
    }

    fn raw(&self, span: Span) -> RawRange {
        let _working = self.working();
        self.arena.raw(span)
    }

    fn fill(&self, span: Span, value: f32) {
        let ([to], []) = resolve(&self.arena, [span], []);
        self.working().engine.split(span.len, LINE, 1, |range, _| {
            // SAFETY: ranges of different parts are apart.
            unsafe { to.slice_mut(range.start, range.len()) }.fill(value);
        });
    }

    fn add(&self, a: Span, b: Span, out: Span) {
        sized("a", a, out.len);
        sized("b", b, out.len);
        let ([to], [first, b]) = resolve(&self.arena, [out], [unless_in_place(a, out), b]);
        let a = if a == out { to } else { first };
        let ([first, second], to) = ([a, b].map(Cells::from), Cells::from(to));
        let inputs = [first, second];
        self.working().engine.each(out.len, LINE, 1, |range| Map { f: Sum, inputs, out: to, range });
    }

    fn copy_rows(&self, rows: usize, width: usize, from: Rows, to: Rows) {
        let (source, target) = (Columns::new(from, rows, width), Columns::new(to, rows, width));
        let format = from.format;
        assert!(
            format == to.format && width.is_multiple_of(format.each()),
            "whole places are copied as they are"
        );
        let ([target], [source]) = resolve_rows(&self.arena, [target], [source]);
        let [width, from_stride, to_stride] = [width, from.stride, to.stride].map(|len| format.places(len));
        self.working().engine.split(rows, 1, width, |range, _| {
            for row in range {
                // SAFETY: rows of different parts are apart.
                unsafe {
                    let from = source.slice(row * from_stride, width);
                    target.slice_mut(row * to_stride, width).copy_from_slice(from);
                }
            }
        });
    }

    fn convert(&self, from: Matrix, to: Matrix) {
        self.run_convert(from, to);
    }

    fn embedding_forward(&self, shape: Embedding, table: Matrix, position_table: Option<Matrix>, out: Span) {
        let Embedding { tokens, positions, width } = shape;
        sized("out", out, tokens.len() * width);
        assert!(
            position_table.is_none() || positions.len() == tokens.len(),
            "a position for each token is required"
        );
        let position_table = position_table.unwrap_or_else(|| Span::default().into());
        let formats = [table.format, position_table.format];
        let ([out], tables) = resolve(&self.arena, [out], [table.span, position_table.span]);
        let [table, position_table] = std::array::from_fn(|i| Table {
            cells: Cells::new(tables[i], formats[i]),
            len: tables[i].len() * formats[i].each(),
        });
        self.working().engine.each(tokens.len(), 1, width, |rows| Embed {
            tokens,
            positions,
            width,
            table,
            position_table,
            out,
            rows,
        });
    }

    fn embedding_backward(
        &self,
        shape: Embedding,
        d_out: Span,
        d_table: Span,
        d_position_table: Option<Span>,
    ) {
        let Embedding { tokens, positions, width } = shape;
        sized("d_out", d_out, tokens.len() * width);
        let written = [d_table, d_position_table.unwrap_or_default()];
        let ([d_table, d_positions], [d_out]) = resolve(&self.arena, written, [d_out]);
        let engine = &mut self.working().engine;
        engine.each(width, LINE, tokens.len(), |columns| Scatter {
            indices: tokens,
            width,
            d_out,
            d_table,
            columns,
        });
        if d_position_table.is_some() {
            assert_eq!(positions.len(), tokens.len(), "a position for each token is required");
            engine.each(width, LINE, tokens.len(), |columns| Scatter {
                indices: positions,
                width,
                d_out,
                d_table: d_positions,
                columns,
            });
        }
    }

    fn norm_forward(
        &self,
        shape: Norm,
        x: Span,
        weight: Span,
        bias: Option<Span>,
        out: Matrix,
        statistics: Span,
    ) {
        self.run_norm_forward(shape, x, weight, bias, out, statistics);
    }

    fn norm_backward(
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
        self.run_norm_backward(shape, x, weight, statistics, d_out, d_residual, d_x, d_weight, d_bias);
    }

    fn prepared_len(&self, shape: Linear, usage: Use) -> usize {
        self.run_prepared_len(shape, usage)
    }

    fn prepare(&self, shape: Linear, usage: Use, weight: Matrix, to: Span) {
        self.run_prepare(shape, usage, weight, to);
    }

    fn linear_forward(
        &self,
        shape: Linear,
        x: Matrix,
        weight: Weight,
        bias: Option<Span>,
        residual: Option<Span>,
        epilogue: Epilogue,
        out: Matrix,
    ) {
        self.run_linear_forward(shape, x, weight, bias, residual, epilogue, out);
    }

    fn linear_backward_input(
        &self,
        shape: Linear,
        d_out: Matrix,
        weight: Weight,
        through: Through,
        d_x: Matrix,
    ) {
        self.run_linear_backward_input(shape, d_out, weight, through, d_x);
    }

    fn linear_backward_weight(
        &self,
        shape: Linear,
        d_out: Matrix,
        x: Matrix,
        d_weight: Span,
        d_bias: Option<Span>,
    ) {
        self.run_linear_backward_weight(shape, d_out, x, d_weight, d_bias);
    }

    fn gelu_forward(&self, len: usize, x: Matrix, out: Matrix) {
        matrix("x", x, len);
        matrix("out", out, len);
        let ([to], [from]) = resolve(&self.arena, [out.span], [x.span]);
        let (inputs, out) = ([Cells::new(from, x.format)], Cells::new(to, out.format));
        self.working().engine.each(len, LINE, 8, |range| Map { f: Gelu, inputs, out, range });
    }

    fn gelu_backward(&self, len: usize, x: Matrix, d_out: Matrix, d_x: Matrix) {
        for (name, tensor) in [("x", x), ("d_out", d_out), ("d_x", d_x)] {
            matrix(name, tensor, len);
        }
        let apart = if d_out == d_x { Span::default() } else { d_out.span };
        let ([to], [from, apart]) = resolve(&self.arena, [d_x.span], [x.span, apart]);
        let d = if d_out == d_x { to } else { apart };
        let (inputs, out) =
            ([Cells::new(from, x.format), Cells::new(d, d_out.format)], Cells::new(to, d_x.format));
        self.working().engine.each(len, LINE, 8, |range| Map { f: GeluGradient, inputs, out, range });
    }

    fn swiglu_forward(&self, rows: usize, width: usize, gate_up: Matrix, out: Matrix) {
        matrix("out", out, rows * width);
        matrix("gate_up", gate_up, 2 * rows * width);
        let ([to], [from]) = resolve(&self.arena, [out.span], [gate_up.span]);
        let (gate_up, out) = (Cells::new(from, gate_up.format), Cells::new(to, out.format));
        self.working().engine.each(rows, 1, 8 * width, |rows| Swiglu { gate_up, out, width, rows });
    }

    fn swiglu_backward(&self, rows: usize, width: usize, gate_up: Matrix, d_out: Matrix, d_gate_up: Matrix) {
        matrix("d_out", d_out, rows * width);
        matrix("gate_up", gate_up, 2 * rows * width);
        matrix("d_gate_up", d_gate_up, 2 * rows * width);
        let apart = if gate_up == d_gate_up { Span::default() } else { gate_up.span };
        let ([to], [apart, from]) = resolve(&self.arena, [d_gate_up.span], [apart, d_out.span]);
        let before = Cells::new(if gate_up == d_gate_up { to } else { apart }, gate_up.format);
        let (d_out, d_gate_up) = (Cells::new(from, d_out.format), Cells::new(to, d_gate_up.format));
        self.working().engine.each(rows, 1, 12 * width, |rows| SwigluGradient {
            gate_up: before,
            d_out,
            d_gate_up,
            width,
            rows,
        });
    }

    fn rope(&self, shape: Rope, x: Rows) {
        let Rope { positions, heads, head_size, theta, inverse } = shape;
        assert!(head_size.is_multiple_of(2), "rotary positions need an even head size, not {head_size}");
        let columns = Columns::new(x, positions.len(), heads * head_size);
        let ([to], []) = resolve_rows(&self.arena, [columns], []);
        let Working { engine, rope, .. } = &mut *self.working();
        let half = head_size / 2;
        rope.extend(theta, half, positions.iter().max().map_or(0, |most| *most as usize + 1));
        let table = &*rope;
        engine.each(positions.len(), 1, heads * head_size, |rows| Turn {
            x: Cells::new(to, x.format),
            stride: x.stride,
            heads,
            half,
            inverse,
            positions,
            table,
            rows,
        });
    }

    fn attention_forward(&self, shape: Attention, q: Rows, k: Rows, v: Rows, out: Matrix, log_sum_exp: Span) {
        self.run_attention_forward(shape, q, k, v, out, log_sum_exp);
    }

    fn attention_backward(
        &self,
        shape: Attention,
        q: Rows,
        k: Rows,
        v: Rows,
        out: Matrix,
        log_sum_exp: Span,
        d_out: Matrix,
        d_q: Rows,
        d_k: Rows,
        d_v: Rows,
    ) {
        self.run_attention_backward(shape, q, k, v, out, log_sum_exp, d_out, d_q, d_k, d_v);
    }

    fn cross_entropy(&self, shape: CrossEntropy, logits: Span, losses: Span, gradient: bool) {
        self.run_cross_entropy(shape, logits, losses, gradient);
    }

    fn cross_entropy_maxima(&self, shape: CrossEntropyPart, logits: Span, maxima: Span) {
        self.run_cross_entropy_maxima(shape, logits, maxima);
    }

    fn cross_entropy_sums(&self, shape: CrossEntropyPart, logits: Span, maxima: Span, sums: Span) {
        self.run_cross_entropy_sums(shape, logits, maxima, sums);
    }

    fn cross_entropy_losses(
        &self,
        shape: CrossEntropyPart,
        maxima: Span,
        sums: Span,
        logits: Span,
        losses: Span,
    ) {
        self.run_cross_entropy_losses(shape, maxima, sums, logits, losses);
    }

    fn sum_of_squares(&self, x: Span) -> f64 {
        let ([], [x]) = resolve(&self.arena, [], [x]);
        let Working { engine, shared, .. } = &mut *self.working();
        let len = sums_len(x.len());
        sum_of_squares(engine, x, Elements::of_mut(&mut shared.at_least(len)[..len]))
    }

    fn adamw(&self, update: AdamW, parameter: Matrix, gradient: Span, moment1: Span, moment2: Span) {
        self.run_adamw(update, parameter, gradient, moment1, moment2);
    }

    fn orthogonalise(&self, shape: NewtonSchulz, from: Span, to: Span) {
        self.run_orthogonalise(shape, from, to);
    }

    fn muon(&self, update: Muon, parameter: Matrix, gradient: Span, moment: Span) {
        self.run_muon(update, parameter, gradient, moment);
    }
}
