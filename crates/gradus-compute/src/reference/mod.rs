//! The oracle: plain loops over copies, sums in f64, no thought of speed.
//!
//! Every operation copies its inputs out of the arena, computes, and copies its outputs back, so that aliasing cannot
//! matter. Whatever another device computes is held against this.

mod attention;
mod elementwise;
mod loss;
mod matmul;
mod muon;
mod norm;

use crate::device::{
    AdamW, Attention, CrossEntropy, Device, Embedding, Format, Linear, Matrix, Norm, Precision, Rope, Rows,
};
use crate::muon::{Muon, NewtonSchulz};
use gradus_error::Result;
use gradus_memory::{Arena, HeapRange, RawRange, SharedHeap, Span};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The device of plain loops.
pub struct Reference {
    arena: Mutex<Arena>,
    precision: Precision,
}

impl Reference {
    /// A device with room for `capacity` elements.
    ///
    /// # Errors
    /// When that much address space cannot be reserved.
    pub fn new(precision: Precision, capacity: usize) -> Result<Self> {
        Ok(Self { arena: Mutex::new(Arena::reserve(capacity)?), precision })
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, span: Span) -> Vec<f32> {
        let arena = self.arena();
        // SAFETY: the lock keeps every other operation out, and the slice is copied before it is released.
        unsafe { arena.slice(span) }.to_vec()
    }

    fn put(&self, span: Span, values: &[f32]) {
        let arena = self.arena();
        // SAFETY: the lock keeps every other operation out while the slice lives.
        unsafe { arena.slice_mut(span) }.copy_from_slice(values);
    }

    /// Replaces a range by what `change` makes of it.
    fn update(&self, span: Span, change: impl FnOnce(&mut [f32])) {
        let mut values = self.get(span);
        change(&mut values);
        self.put(span, &values);
    }

    /// Rows out of a wider matrix, closed up.
    fn get_rows(&self, from: Rows, rows: usize, width: usize) -> Vec<f32> {
        let values = self.get_matrix(Matrix { span: from.span, format: from.format });
        (0..rows).flat_map(|row| values[row * from.stride..][..width].iter().copied()).collect()
    }

    /// Closed-up rows back into a wider matrix.
    fn put_rows(&self, to: Rows, rows: usize, width: usize, values: &[f32]) {
        let matrix = Matrix { span: to.span, format: to.format };
        let mut whole = self.get_matrix(matrix);
        for row in 0..rows {
            whole[row * to.stride..][..width].copy_from_slice(&values[row * width..][..width]);
        }
        self.put_matrix(matrix, &whole);
    }

    /// Operands of a matrix product, in the precision of this device.
    fn operand(&self, matrix: impl Into<Matrix>) -> Vec<f32> {
        self.rounded(self.get_matrix(matrix.into()))
    }

    /// A matrix as f32; of an odd number of elements in bf16 there is one zero too many.
    fn get_matrix(&self, matrix: Matrix) -> Vec<f32> {
        let values = self.get(matrix.span);
        let widen = |bits: u32| [f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000)];
        match matrix.format {
            Format::F32 => values,
            Format::Bf16 => values.into_iter().flat_map(|pair| widen(pair.to_bits())).collect(),
        }
    }

    /// The values of a whole matrix, in its format.
    fn put_matrix(&self, matrix: Matrix, values: &[f32]) {
        match matrix.format {
            Format::F32 => self.put(matrix.span, values),
            Format::Bf16 => self.write_bf16(matrix.span, values),
        }
    }

    fn rounded(&self, values: Vec<f32>) -> Vec<f32> {
        match self.precision {
            Precision::F32 => values,
            Precision::Bf16 => values.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect(),
        }
    }
}

impl Device for Reference {
    fn describe(&self) -> String {
        format!("reference: plain loops, 1 thread, {:?}", self.precision).to_lowercase()
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn allocate(&self, len: usize) -> Result<Span> {
        self.arena().allocate(len)
    }

    fn allocate_shared(&self, len: usize, heap: &SharedHeap) -> Result<(Span, HeapRange)> {
        self.arena().allocate_shared(len, heap)
    }

    fn allocated(&self) -> usize {
        self.arena().used()
    }

    fn write(&self, to: Span, values: &[f32]) {
        self.put(to, values);
    }

    fn write_bf16(&self, to: Span, values: &[f32]) {
        let bits = |x: Option<&f32>| x.map_or(0, |x| u32::from(half::bf16::from_f32(*x).to_bits()));
        let pair = |pair: &[f32]| f32::from_bits(bits(pair.first()) | bits(pair.get(1)) << 16);
        self.put(to, &values.chunks(2).map(pair).collect::<Vec<_>>());
    }

    fn read(&self, from: Span, values: &mut [f32]) {
        values.copy_from_slice(&self.get(from));
    }

    fn raw(&self, span: Span) -> RawRange {
        self.arena().raw(span)
    }

    fn fill(&self, span: Span, value: f32) {
        self.update(span, |x| x.fill(value));
    }

    fn add(&self, a: Span, b: Span, out: Span) {
        let sums: Vec<f32> = self.get(a).iter().zip(self.get(b)).map(|(a, b)| a + b).collect();
        self.put(out, &sums);
    }

    fn copy_rows(&self, rows: usize, width: usize, from: Rows, to: Rows) {
        let values = self.get_rows(from, rows, width);
        self.put_rows(to, rows, width, &values);
    }

    fn embedding_forward(&self, shape: Embedding, table: Matrix, position_table: Option<Matrix>, out: Span) {
        let positions = position_table.map(|table| self.get_matrix(table));
        let values = elementwise::embed(shape, &self.get_matrix(table), positions.as_deref());
        self.put(out, &values);
    }

    fn embedding_backward(
        &self,
        shape: Embedding,
        d_out: Span,
        d_table: Span,
        d_position_table: Option<Span>,
    ) {
        let d_out = self.get(d_out);
        self.update(d_table, |table| elementwise::scatter(shape.tokens, shape.width, &d_out, table));
        if let Some(span) = d_position_table {
            self.update(span, |table| elementwise::scatter(shape.positions, shape.width, &d_out, table));
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
        let bias = bias.map(|span| self.get(span));
        let (values, stats) = norm::forward(shape, &self.get(x), &self.get(weight), bias.as_deref());
        self.put(out, &values);
        self.put(statistics, &stats);
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
        let mut gradients =
            norm::backward(shape, &self.get(x), &self.get(weight), &self.get(statistics), &self.get(d_out));
        if let Some(span) = d_residual {
            elementwise::accumulate(&mut gradients.x, &self.get(span));
        }
        self.put(d_x, &gradients.x);
        self.update(d_weight, |x| elementwise::accumulate(x, &gradients.weight));
        if let Some(span) = d_bias {
            self.update(span, |x| elementwise::accumulate(x, &gradients.bias));
        }
    }

    fn linear_forward(
        &self,
        shape: Linear,
        x: Span,
        weight: Matrix,
        bias: Option<Span>,
        residual: Option<Span>,
        out: Span,
    ) {
        let mut weight = self.rounded(self.get_matrix(weight));
        weight.truncate(shape.outputs * shape.inputs);
        let mut product = matmul::forward(shape, &self.operand(x), &weight);
        if let Some(bias) = bias.map(|span| self.get(span)) {
            product.chunks_exact_mut(shape.outputs).for_each(|row| elementwise::accumulate(row, &bias));
        }
        if let Some(residual) = residual {
            elementwise::accumulate(&mut product, &self.get(residual));
        }
        self.put(out, &product);
    }

    fn linear_backward_input(&self, shape: Linear, d_out: Span, weight: Span, d_x: Span, accumulate: bool) {
        let product = matmul::backward_input(shape, &self.operand(d_out), &self.operand(weight));
        self.update(d_x, |x| {
            if !accumulate {
                x.fill(0.0);
            }
            elementwise::accumulate(x, &product);
        });
    }

    fn linear_backward_weight(
        &self,
        shape: Linear,
        d_out: Span,
        x: Span,
        d_weight: Span,
        d_bias: Option<Span>,
    ) {
        let product = matmul::backward_weight(shape, &self.operand(d_out), &self.operand(x));
        self.update(d_weight, |w| elementwise::accumulate(w, &product));
        if let Some(span) = d_bias {
            let sums = matmul::column_sums(shape, &self.get(d_out));
            self.update(span, |b| elementwise::accumulate(b, &sums));
        }
    }

    fn gelu_forward(&self, x: Span, out: Span) {
        let values: Vec<f32> = self.get(x).into_iter().map(elementwise::gelu).collect();
        self.put(out, &values);
    }

    fn gelu_backward(&self, x: Span, d_out: Span, d_x: Span) {
        let pairs = self.get(x).into_iter().zip(self.get(d_out));
        let values: Vec<f32> = pairs.map(|(x, d)| d * elementwise::gelu_slope(x)).collect();
        self.put(d_x, &values);
    }

    fn swiglu_forward(&self, rows: usize, gate_up: Span, out: Span) {
        let values = elementwise::swiglu(rows, &self.get(gate_up));
        self.put(out, &values);
    }

    fn swiglu_backward(&self, rows: usize, gate_up: Span, d_out: Span, d_gate_up: Span) {
        let values = elementwise::swiglu_gradient(rows, &self.get(gate_up), &self.get(d_out));
        self.put(d_gate_up, &values);
    }

    fn rope(&self, shape: Rope, x: Rows) {
        self.update(x.span, |values| elementwise::rope(shape, values, x.stride));
    }

    fn attention_forward(&self, shape: Attention, q: Rows, k: Rows, v: Rows, out: Matrix, log_sum_exp: Span) {
        let inputs = attention::Inputs::read(self, shape, q, k, v);
        let (values, lse) = attention::forward(shape, &inputs);
        self.put_matrix(out, &values);
        self.put(log_sum_exp, &lse);
    }

    fn attention_backward(
        &self,
        shape: Attention,
        q: Rows,
        k: Rows,
        v: Rows,
        _out: Matrix,
        _log_sum_exp: Span,
        d_out: Matrix,
        d_q: Rows,
        d_k: Rows,
        d_v: Rows,
    ) {
        let inputs = attention::Inputs::read(self, shape, q, k, v);
        let gradients = attention::backward(shape, &inputs, &self.get_matrix(d_out));
        let rows = shape.batch * shape.query_len;
        self.put_rows(d_q, rows, shape.heads * shape.head_size, &gradients.q);
        self.put_rows(d_k, rows, shape.kv_heads * shape.head_size, &gradients.k);
        self.put_rows(d_v, rows, shape.kv_heads * shape.head_size, &gradients.v);
    }

    fn cross_entropy(&self, shape: CrossEntropy, logits: Span, losses: Span, gradient: bool) {
        let mut values = self.get(logits);
        let row_losses = loss::cross_entropy(shape, &mut values);
        if gradient {
            self.put(logits, &values);
        }
        self.put(losses, &row_losses);
    }

    fn sum_of_squares(&self, x: Span) -> f64 {
        self.get(x).into_iter().map(|x| f64::from(x) * f64::from(x)).sum()
    }

    fn adamw(&self, update: AdamW, parameter: Span, gradient: Span, moment1: Span, moment2: Span) {
        let (mut p, g, mut m, mut v) =
            (self.get(parameter), self.get(gradient), self.get(moment1), self.get(moment2));
        for i in 0..p.len() {
            loss::adamw(update, &mut p[i], g[i], &mut m[i], &mut v[i]);
        }
        self.put(parameter, &p);
        self.put(moment1, &m);
        self.put(moment2, &v);
    }

    fn orthogonalise(&self, shape: NewtonSchulz, from: Span, to: Span) {
        let values = muon::orthogonalise(shape, &self.get(from), &|operand| self.rounded(operand));
        self.put(to, &values);
    }

    fn muon(&self, update: Muon, parameter: Span, gradient: Span, moment: Span) {
        let gradient = self.get(gradient);
        self.update(moment, |moment| muon::combine(update.mixture(), moment, &gradient));
        let mut towards = self.get(moment);
        if update.nesterov {
            muon::combine(update.mixture(), &mut towards, &gradient);
        }
        let orthogonal = muon::orthogonalise(update.shape, &towards, &|operand| self.rounded(operand));
        self.update(parameter, |parameter| muon::combine(update.step(), parameter, &orthogonal));
    }
}
