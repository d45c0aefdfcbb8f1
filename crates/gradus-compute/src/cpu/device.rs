//! The operations: sizes checked, ranges resolved, work cut into parts.

use super::attention::{self, HeadRows, Item};
use super::elementwise::{Embed, Gelu, GeluGradient, Map, Scatter, Sum, Swiglu, SwigluGradient, Turn};
use super::gemm::{FEW_ROWS, FewRows, Operand, Product};
use super::loss::{Losses, SQUARES_BLOCK, Squares, Update};
use super::memory::{Columns, Elements, resolve, resolve_rows, unless_in_place};
use super::{CpuDevice, Working, norm};
use crate::device::{
    AdamW, Attention, CrossEntropy, Device, Embedding, IGNORED, Linear, Norm, Precision, Rope, Rows,
};
use gradus_error::Result;
use gradus_memory::{RawRange, Span};

/// Elements of a cache line: parts of elementwise work begin on one.
const LINE: usize = 16;

/// Rounds elements to bf16.
#[derive(Clone, Copy)]
struct Round;

impl super::elementwise::Function<1> for Round {
    #[inline(always)]
    fn apply<S: super::simd::Simd>(self, s: S, [x]: [S::V; 1]) -> S::V {
        s.round_bf16(x)
    }
}

/// `out = x * w^T`, nothing added.
pub fn forward_product(shape: Linear, x: Elements, weight: Elements, out: Elements) -> Product {
    Product {
        rows: shape.rows,
        columns: shape.outputs,
        depth: shape.inputs,
        left: Operand { start: x.at(0), stride: shape.inputs, along: true },
        right: Operand { start: weight.at(0), stride: shape.inputs, along: true },
        target: out.at(0),
        stride: shape.outputs,
        bias: std::ptr::null(),
        residual: std::ptr::null(),
        accumulate: false,
        left_sums: std::ptr::null_mut(),
    }
}

/// Asserts that a tensor has the size that the shape gives it.
#[track_caller]
fn sized(name: &str, span: Span, len: usize) {
    assert_eq!(span.len, len, "{name} has the wrong size");
}

/// As [`sized`], where it is given at all.
#[track_caller]
fn optional(name: &str, span: Option<Span>, len: usize) -> Span {
    if let Some(span) = span {
        sized(name, span, len);
    }
    span.unwrap_or_default()
}

impl CpuDevice {
    /// A few rows against all weights.
    fn few_rows(&self, shape: Linear, [x, weight, bias, residual, out]: [Elements; 5]) {
        let Working { engine, shared, .. } = &mut *self.working();
        let round = engine.rounds();
        let mut x = x;
        if round {
            let rounded = Elements::of_mut(&mut shared.at_least(x.len())[..x.len()]);
            engine.family.run(Map { f: Round, inputs: [x], out: rounded, range: 0..x.len() });
            x = rounded;
        }
        let (rows, depth, width) = (shape.rows, shape.inputs, shape.outputs);
        engine.each(width, LINE, rows * depth, |columns| FewRows {
            rows,
            depth,
            width,
            columns,
            round,
            x,
            weight,
            bias,
            residual,
            out,
        });
    }

    /// The columns of attention's queries, keys and values.
    fn heads(shape: Attention, q: Rows, k: Rows, v: Rows) -> [Columns; 3] {
        assert!(
            shape.heads.is_multiple_of(shape.kv_heads),
            "query heads must be a multiple of key-value heads"
        );
        assert!(
            shape.query_len <= shape.key_len && shape.key_len <= shape.key_rows,
            "keys are missing: {shape:?}"
        );
        let keys = (shape.batch * shape.key_rows).saturating_sub(shape.key_rows - shape.key_len);
        let kv_width = shape.kv_heads * shape.head_size;
        if let Some(documents) = shape.documents {
            assert_eq!(documents.len(), shape.batch * shape.query_len, "documents have the wrong number");
            assert_eq!(shape.query_len, shape.key_len, "documents require as many queries as keys");
        }
        [
            Columns::new(q, shape.batch * shape.query_len, shape.heads * shape.head_size),
            Columns::new(k, keys, kv_width),
            Columns::new(v, keys, kv_width),
        ]
    }
}

/// A whole span as rows of `width`.
fn as_rows(span: Span, width: usize) -> Columns {
    Columns { rows: Rows { span, stride: width.max(1) }, width }
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
        let inputs = [a, b];
        self.working().engine.each(out.len, LINE, 1, |range| Map { f: Sum, inputs, out: to, range });
    }

    fn copy_rows(&self, rows: usize, width: usize, from: Rows, to: Rows) {
        let (source, target) = (Columns::new(from, rows, width), Columns::new(to, rows, width));
        let ([target], [source]) = resolve_rows(&self.arena, [target], [source]);
        self.working().engine.split(rows, 1, width, |range, _| {
            for row in range {
                // SAFETY: rows of different parts are apart.
                unsafe {
                    let from = source.slice(row * from.stride, width);
                    target.slice_mut(row * to.stride, width).copy_from_slice(from);
                }
            }
        });
    }

    fn embedding_forward(&self, shape: Embedding, table: Span, position_table: Option<Span>, out: Span) {
        let Embedding { tokens, positions, width } = shape;
        sized("out", out, tokens.len() * width);
        assert!(
            position_table.is_none() || positions.len() == tokens.len(),
            "a position for each token is required"
        );
        let ([out], [table, position_table]) =
            resolve(&self.arena, [out], [table, position_table.unwrap_or_default()]);
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
        out: Span,
        statistics: Span,
    ) {
        let rows = x.len / shape.width;
        sized("x", x, rows * shape.width);
        sized("weight", weight, shape.width);
        let bias = optional("bias", bias, shape.width);
        sized("out", out, x.len);
        sized("statistics", statistics, 2 * rows);
        let ([out, statistics], [x, weight, bias]) =
            resolve(&self.arena, [out, statistics], [x, weight, bias]);
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

    fn norm_backward(
        &self,
        shape: Norm,
        x: Span,
        weight: Span,
        statistics: Span,
        d_out: Span,
        d_residual: Option<Span>,
        d_x: Span,
        d_weight: Span,
        d_bias: Option<Span>,
    ) {
        let (rows, width) = (x.len / shape.width, shape.width);
        sized("x", x, rows * width);
        sized("weight", weight, width);
        sized("statistics", statistics, 2 * rows);
        sized("d_out", d_out, x.len);
        sized("d_x", d_x, x.len);
        sized("d_weight", d_weight, width);
        let d_residual = optional("d_residual", d_residual, x.len);
        let d_bias = optional("d_bias", d_bias, width);
        let (d_out_apart, d_residual_apart) = (unless_in_place(d_out, d_x), unless_in_place(d_residual, d_x));
        let ([to, d_weight, d_bias], [x, weight, statistics, d_out_apart, d_residual_apart]) = resolve(
            &self.arena,
            [d_x, d_weight, d_bias],
            [x, weight, statistics, d_out_apart, d_residual_apart],
        );
        let d_out = if d_out == d_x { to } else { d_out_apart };
        let d_residual = if d_residual == d_x { to } else { d_residual_apart };
        let Working { engine, shared, .. } = &mut *self.working();
        let parts = engine.worth(rows * width * 8);
        let partials = &mut shared.at_least(parts * 2 * width)[..parts * 2 * width];
        partials.fill(0.0);
        let partials = Elements::of_mut(partials);
        let family = engine.family;
        engine.parts(parts, |index, _| {
            // SAFETY: each part takes its own partial sums.
            let partial = Elements::of_mut(unsafe { partials.slice_mut(index * 2 * width, 2 * width) });
            let rows = super::pool::part(rows, 1, parts, index);
            family.run(norm::Backward {
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
                family.run(Map { f: Sum, inputs: [to, Elements::of(partial)], out: to, range });
            }
        }
    }

    fn linear_forward(
        &self,
        shape: Linear,
        x: Span,
        weight: Span,
        bias: Option<Span>,
        residual: Option<Span>,
        out: Span,
    ) {
        sized("x", x, shape.rows * shape.inputs);
        sized("weight", weight, shape.outputs * shape.inputs);
        sized("out", out, shape.rows * shape.outputs);
        let bias = optional("bias", bias, shape.outputs);
        let residual = optional("residual", residual, out.len);
        let residual_apart = unless_in_place(residual, out);
        let ([to], [x, weight, bias, residual_apart]) =
            resolve(&self.arena, [out], [x, weight, bias, residual_apart]);
        let residual = if residual == out { to } else { residual_apart };
        if (1..=FEW_ROWS).contains(&shape.rows) {
            return self.few_rows(shape, [x, weight, bias, residual, to]);
        }
        let product = Product {
            bias: bias.or_null(),
            residual: residual.or_null(),
            ..forward_product(shape, x, weight, to)
        };
        // SAFETY: sizes were checked, and the lock keeps other operations out.
        unsafe { self.working().engine.product(product) };
    }

    fn linear_backward_input(&self, shape: Linear, d_out: Span, weight: Span, d_x: Span, accumulate: bool) {
        sized("d_out", d_out, shape.rows * shape.outputs);
        sized("weight", weight, shape.outputs * shape.inputs);
        sized("d_x", d_x, shape.rows * shape.inputs);
        let ([d_x], [d_out, weight]) = resolve(&self.arena, [d_x], [d_out, weight]);
        let product = Product {
            rows: shape.rows,
            columns: shape.inputs,
            depth: shape.outputs,
            left: Operand { start: d_out.at(0), stride: shape.outputs, along: true },
            right: Operand { start: weight.at(0), stride: shape.inputs, along: false },
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

    fn linear_backward_weight(
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
            left: Operand { start: d_out.at(0), stride: shape.outputs, along: false },
            right: Operand { start: x.at(0), stride: shape.inputs, along: false },
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

    fn gelu_forward(&self, x: Span, out: Span) {
        sized("x", x, out.len);
        let ([to], [x]) = resolve(&self.arena, [out], [x]);
        self.working().engine.each(out.len, LINE, 8, |range| Map { f: Gelu, inputs: [x], out: to, range });
    }

    fn gelu_backward(&self, x: Span, d_out: Span, d_x: Span) {
        sized("x", x, d_x.len);
        sized("d_out", d_out, d_x.len);
        let ([to], [x, apart]) = resolve(&self.arena, [d_x], [x, unless_in_place(d_out, d_x)]);
        let inputs = [x, if d_out == d_x { to } else { apart }];
        self.working().engine.each(d_x.len, LINE, 8, |range| Map { f: GeluGradient, inputs, out: to, range });
    }

    fn swiglu_forward(&self, rows: usize, gate_up: Span, out: Span) {
        let width = out.len / rows;
        sized("out", out, rows * width);
        sized("gate_up", gate_up, 2 * out.len);
        let ([out], [gate_up]) = resolve(&self.arena, [out], [gate_up]);
        self.working().engine.each(rows, 1, 8 * width, |rows| Swiglu { gate_up, out, width, rows });
    }

    fn swiglu_backward(&self, rows: usize, gate_up: Span, d_out: Span, d_gate_up: Span) {
        let width = d_out.len / rows;
        sized("d_out", d_out, rows * width);
        sized("gate_up", gate_up, 2 * d_out.len);
        sized("d_gate_up", d_gate_up, gate_up.len);
        let apart = unless_in_place(gate_up, d_gate_up);
        let ([to], [apart, d_out]) = resolve(&self.arena, [d_gate_up], [apart, d_out]);
        let gate_up = if gate_up == d_gate_up { to } else { apart };
        self.working().engine.each(rows, 1, 12 * width, |rows| SwigluGradient {
            gate_up,
            d_out,
            d_gate_up: to,
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
            x: to,
            stride: x.stride,
            heads,
            half,
            inverse,
            positions,
            table,
            rows,
        });
    }

    fn attention_forward(&self, shape: Attention, q: Rows, k: Rows, v: Rows, out: Span, log_sum_exp: Span) {
        sized("out", out, shape.batch * shape.query_len * shape.heads * shape.head_size);
        sized("log_sum_exp", log_sum_exp, shape.batch * shape.query_len * shape.heads);
        let (read, written) =
            (Self::heads(shape, q, k, v), [as_rows(out, out.len), as_rows(log_sum_exp, out.len)]);
        let ([out, log_sum_exp], read) = resolve_rows(&self.arena, written, read);
        let strides = [q.stride, k.stride, v.stride];
        let [q, k, v] = std::array::from_fn(|i| HeadRows { elements: read[i], stride: strides[i] });
        let engine = &mut self.working().engine;
        let family = engine.family;
        let items = shape.batch * shape.kv_heads;
        let work = shape.batch * shape.heads * shape.head_size * shape.query_len * shape.key_len;
        let parts = engine.worth(work);
        if shape.query_len <= attention::FEW_QUERIES {
            let len = attention::decode_scratch(shape);
            return engine.parts(parts, |index, scratch| {
                for item in super::pool::part(items, 1, parts, index) {
                    let item = Item::new(shape, item);
                    let scratch = scratch.at_least(len);
                    family.run(attention::Decode { item, q, k, v, out, log_sum_exp, scratch });
                }
            });
        }
        // Where there are fewer items than threads, an item's queries are shared out too.
        let blocks = attention::Forward::blocks(shape);
        let pieces = parts.div_ceil(items.max(1)).min(blocks);
        let len = attention::forward_scratch(shape);
        engine.parts(parts, |index, scratch| {
            for piece in super::pool::part(items * pieces, 1, parts, index) {
                let item = Item::new(shape, piece / pieces);
                let blocks = super::pool::part(blocks, 1, pieces, piece % pieces);
                let scratch = scratch.at_least(len);
                family.run(attention::Forward { item, q, k, v, out, log_sum_exp, blocks, scratch });
            }
        });
    }

    fn attention_backward(
        &self,
        shape: Attention,
        q: Rows,
        k: Rows,
        v: Rows,
        out: Span,
        log_sum_exp: Span,
        d_out: Span,
        d_q: Rows,
        d_k: Rows,
        d_v: Rows,
    ) {
        assert!(
            shape.query_len == shape.key_len && shape.key_len == shape.key_rows,
            "{shape:?} is for decoding"
        );
        let width = shape.heads * shape.head_size;
        sized("out", out, shape.batch * shape.query_len * width);
        sized("d_out", d_out, out.len);
        sized("log_sum_exp", log_sum_exp, shape.batch * shape.query_len * shape.heads);
        let [q_columns, k_columns, v_columns] = Self::heads(shape, q, k, v);
        let whole = [as_rows(out, out.len), as_rows(d_out, out.len), as_rows(log_sum_exp, out.len)];
        let ([to_q, to_k, to_v], [from_q, from_k, from_v, out, d_out, log_sum_exp]) = resolve_rows(
            &self.arena,
            Self::heads(shape, d_q, d_k, d_v),
            [q_columns, k_columns, v_columns, whole[0], whole[1], whole[2]],
        );
        let rows = |elements, stride| HeadRows { elements, stride };
        let engine = &mut self.working().engine;
        let family = engine.family;
        let items = shape.batch * shape.kv_heads;
        let parts = engine.worth(2 * out.len() * shape.key_len);
        let len = attention::backward_scratch(shape);
        engine.parts(parts, |index, scratch| {
            for item in super::pool::part(items, 1, parts, index) {
                family.run(attention::Backward {
                    item: Item::new(shape, item),
                    q: rows(from_q, q.stride),
                    k: rows(from_k, k.stride),
                    v: rows(from_v, v.stride),
                    out: rows(out, width),
                    log_sum_exp,
                    d_out: rows(d_out, width),
                    d_q: rows(to_q, d_q.stride),
                    d_k: rows(to_k, d_k.stride),
                    d_v: rows(to_v, d_v.stride),
                    scratch: scratch.at_least(len),
                });
            }
        });
    }

    fn cross_entropy(&self, shape: CrossEntropy, logits: Span, losses: Span, gradient: bool) {
        let rows = shape.targets.len();
        sized("logits", logits, rows * shape.width);
        sized("losses", losses, rows);
        assert!(shape.vocabulary <= shape.width, "the vocabulary is wider than the logits");
        let outside =
            shape.targets.iter().find(|target| **target != IGNORED && **target as usize >= shape.vocabulary);
        assert!(outside.is_none(), "target {outside:?} is outside a vocabulary of {}", shape.vocabulary);
        let ([logits, losses], []) = resolve(&self.arena, [logits, losses], []);
        self.working().engine.each(rows, 1, 8 * shape.width, |rows| Losses {
            shape,
            logits,
            losses,
            gradient,
            rows,
        });
    }

    fn sum_of_squares(&self, x: Span) -> f64 {
        let ([], [x]) = resolve(&self.arena, [], [x]);
        let Working { engine, shared, .. } = &mut *self.working();
        let (family, blocks) = (engine.family, x.len().div_ceil(SQUARES_BLOCK));
        // Two f32 hold the bits of one f64.
        let sums = Elements::of_mut(&mut shared.at_least(2 * blocks)[..2 * blocks]);
        engine.split(blocks, 1, SQUARES_BLOCK, |range, _| {
            for block in range {
                let sum: f64 = family.run(Squares { x, block });
                // SAFETY: the scratch is aligned to a cache line, and each block has its own eight bytes.
                unsafe { sums.at(2 * block).cast::<f64>().write(sum) };
            }
        });
        // SAFETY: every block has written its sum.
        (0..blocks).map(|block| unsafe { sums.at(2 * block).cast::<f64>().read() }).sum()
    }

    fn adamw(&self, update: AdamW, parameter: Span, gradient: Span, moment1: Span, moment2: Span) {
        for (name, span) in [("gradient", gradient), ("moment1", moment1), ("moment2", moment2)] {
            sized(name, span, parameter.len);
        }
        let ([p, m, v], [g]) = resolve(&self.arena, [parameter, moment1, moment2], [gradient]);
        self.working().engine.each(parameter.len, LINE, 8, |range| Update {
            update,
            parameter: p,
            gradient: g,
            moment1: m,
            moment2: v,
            range,
        });
    }
}
