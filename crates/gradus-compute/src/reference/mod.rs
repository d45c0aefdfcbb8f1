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
    AdamW, Attention, CrossEntropy, Device, Embedding, Epilogue, Format, Linear, Matrix, Norm, Precision,
    Rope, Rows, Through, Use, Weight,
};
use crate::loss::CrossEntropyPart;
use crate::muon::{Muon, NewtonSchulz};
use crate::rounding::Rounding;
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

    /// An operand of a matrix product, in the precision of this device.
    fn operand(&self, matrix: Matrix, len: usize) -> Vec<f32> {
        self.rounded(self.get_first(matrix, len))
    }

    /// A weight in the precision of this device.
    fn weight(&self, weight: Weight, len: usize) -> Vec<f32> {
        match weight {
            Weight::Rows(matrix) => self.operand(matrix, len),
            Weight::Prepared(span) => self.get(span),
        }
    }

    /// All `len` elements of a matrix as f32.
    fn get_first(&self, matrix: Matrix, len: usize) -> Vec<f32> {
        let mut values = self.get_matrix(matrix);
        assert!(values.len() - len < matrix.format.each(), "a matrix has the wrong size");
        values.truncate(len);
        values
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

    /// Parameters after an update; in bf16 they are rounded at random.
    fn put_parameters(&self, to: Matrix, values: &[f32], rounding: Rounding, update: u64) {
        let stretches = rounding.stretches(update, 0..values.len());
        let rounded = stretches.flat_map(|(range, keys)| range.map(move |i| keys.rounded(i, values[i])));
        match to.format {
            Format::F32 => self.put(to.span, values),
            Format::Bf16 => self.write_bf16(to.span, &rounded.collect::<Vec<_>>()),
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

    fn convert(&self, from: Matrix, to: Matrix) {
        match (from.format, to.format) {
            (Format::Bf16, Format::F32) => self.put(to.span, &self.get_first(from, to.span.len)),
            (Format::F32, Format::Bf16) => self.write_bf16(to.span, &self.get(from.span)),
            _ => self.put(to.span, &self.get(from.span)),
        }
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
        out: Matrix,
        statistics: Span,
    ) {
        let bias = bias.map(|span| self.get(span));
        let (values, stats) = norm::forward(shape, &self.get(x), &self.get(weight), bias.as_deref());
        self.put_matrix(out, &values);
        self.put(statistics, &stats);
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
        let d_out = self.get_first(d_out, x.len);
        let mut gradients =
            norm::backward(shape, &self.get(x), &self.get(weight), &self.get(statistics), &d_out);
        if let Some(span) = d_residual {
            elementwise::accumulate(&mut gradients.x, &self.get(span));
        }
        self.put(d_x, &gradients.x);
        self.update(d_weight, |x| elementwise::accumulate(x, &gradients.weight));
        if let Some(span) = d_bias {
            self.update(span, |x| elementwise::accumulate(x, &gradients.bias));
        }
    }

    fn prepared_len(&self, shape: Linear, _: Use) -> usize {
        shape.outputs * shape.inputs
    }

    fn prepare(&self, shape: Linear, _: Use, weight: Matrix, to: Span) {
        self.put(to, &self.rounded(self.get_first(weight, shape.outputs * shape.inputs)));
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
        let Linear { rows, inputs, outputs } = shape;
        let (x, weight) = (self.operand(x, rows * inputs), self.weight(weight, outputs * inputs));
        let mut product = matmul::forward(shape, &x, &weight);
        if let Some(bias) = bias.map(|span| self.get(span)) {
            product.chunks_exact_mut(outputs).for_each(|row| elementwise::accumulate(row, &bias));
        }
        if let Some(residual) = residual {
            elementwise::accumulate(&mut product, &self.get(residual));
        }
        if let Epilogue::Rope(turn) = epilogue {
            elementwise::rope(turn, &mut product, outputs);
        }
        self.put_matrix(out, &product);
        match epilogue {
            Epilogue::None | Epilogue::Rope(_) => {}
            Epilogue::Gelu { activated } => self.gelu_forward(rows * outputs, out, activated),
            Epilogue::Swiglu { activated } => self.swiglu_forward(rows, outputs / 2, out, activated),
        }
    }

    fn linear_backward_input(
        &self,
        shape: Linear,
        d_out: Matrix,
        weight: Weight,
        through: Through,
        d_x: Matrix,
    ) {
        let Linear { rows, inputs, outputs } = shape;
        let (d_out, weight) = (self.operand(d_out, rows * outputs), self.weight(weight, outputs * inputs));
        let product = matmul::backward_input(shape, &d_out, &weight);
        let values = match through {
            Through::None => product,
            Through::Gelu { x } => {
                let pairs = self.get_first(x, product.len()).into_iter().zip(product);
                pairs.map(|(x, d)| d * elementwise::gelu_slope(x)).collect()
            }
            Through::Swiglu { gate_up } => {
                elementwise::swiglu_gradient(rows, &self.get_first(gate_up, 2 * product.len()), &product)
            }
        };
        self.put_matrix(d_x, &values);
    }

    fn linear_backward_weight(
        &self,
        shape: Linear,
        d_out: Matrix,
        x: Matrix,
        d_weight: Span,
        d_bias: Option<Span>,
    ) {
        let Linear { rows, inputs, outputs } = shape;
        let d_values = self.operand(d_out, rows * outputs);
        let product = matmul::backward_weight(shape, &d_values, &self.operand(x, rows * inputs));
        self.update(d_weight, |w| elementwise::accumulate(w, &product));
        if let Some(span) = d_bias {
            let sums = matmul::column_sums(shape, &self.get_first(d_out, rows * outputs));
            self.update(span, |b| elementwise::accumulate(b, &sums));
        }
    }

    fn gelu_forward(&self, len: usize, x: Matrix, out: Matrix) {
        let values: Vec<f32> = self.get_first(x, len).into_iter().map(elementwise::gelu).collect();
        self.put_matrix(out, &values);
    }

    fn gelu_backward(&self, len: usize, x: Matrix, d_out: Matrix, d_x: Matrix) {
        let pairs = self.get_first(x, len).into_iter().zip(self.get_first(d_out, len));
        let values: Vec<f32> = pairs.map(|(x, d)| d * elementwise::gelu_slope(x)).collect();
        self.put_matrix(d_x, &values);
    }

    fn swiglu_forward(&self, rows: usize, width: usize, gate_up: Matrix, out: Matrix) {
        let values = elementwise::swiglu(rows, &self.get_first(gate_up, 2 * rows * width));
        self.put_matrix(out, &values);
    }

    fn swiglu_backward(&self, rows: usize, width: usize, gate_up: Matrix, d_out: Matrix, d_gate_up: Matrix) {
        let (gate_up, d_out) =
            (self.get_first(gate_up, 2 * rows * width), self.get_first(d_out, rows * width));
        self.put_matrix(d_gate_up, &elementwise::swiglu_gradient(rows, &gate_up, &d_out));
    }

    fn rope(&self, shape: Rope, x: Rows) {
        let matrix = Matrix { span: x.span, format: x.format };
        let mut values = self.get_matrix(matrix);
        elementwise::rope(shape, &mut values, x.stride);
        self.put_matrix(matrix, &values);
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

    fn cross_entropy_maxima(&self, shape: CrossEntropyPart, logits: Span, maxima: Span) {
        self.put(maxima, &loss::part_maxima(shape, &self.get(logits)));
    }

    fn cross_entropy_sums(&self, shape: CrossEntropyPart, logits: Span, maxima: Span, sums: Span) {
        let mut values = self.get(logits);
        let row_sums = loss::part_sums(shape, &mut values, &self.get(maxima));
        if shape.gradient {
            self.put(logits, &values);
        }
        self.put(sums, &row_sums);
    }

    fn cross_entropy_losses(
        &self,
        shape: CrossEntropyPart,
        maxima: Span,
        sums: Span,
        logits: Span,
        losses: Span,
    ) {
        let (maxima, sums) = (self.get(maxima), self.get(sums));
        if shape.gradient {
            self.update(logits, |logits| loss::part_gradient(shape, logits, &sums));
        }
        self.put(losses, &loss::part_losses(shape, &maxima, &sums));
    }

    fn sum_of_squares(&self, x: Span) -> f64 {
        self.get(x).into_iter().map(|x| f64::from(x) * f64::from(x)).sum()
    }

    fn adamw(&self, update: AdamW, parameter: Matrix, gradient: Span, moment1: Span, moment2: Span) {
        let (mut p, g, mut m, mut v) = (
            self.get_first(parameter, gradient.len),
            self.get(gradient),
            self.get(moment1),
            self.get(moment2),
        );
        for i in 0..p.len() {
            loss::adamw(update, &mut p[i], g[i], &mut m[i], &mut v[i]);
        }
        self.put_parameters(parameter, &p, update.rounding, update.update);
        self.put(moment1, &m);
        self.put(moment2, &v);
    }

    fn orthogonalise(&self, shape: NewtonSchulz, from: Span, to: Span) {
        let values = muon::orthogonalise(shape, &self.get(from), &|operand| self.rounded(operand));
        self.put(to, &values);
    }

    fn muon(&self, update: Muon, parameter: Matrix, gradient: Span, moment: Span) {
        let gradient = self.get(gradient);
        self.update(moment, |moment| muon::combine(update.mixture(), moment, &gradient));
        let mut towards = self.get(moment);
        if update.nesterov {
            muon::combine(update.mixture(), &mut towards, &gradient);
        }
        let orthogonal = muon::orthogonalise(update.shape, &towards, &|operand| self.rounded(operand));
        let mut values = self.get_first(parameter, update.shape.len());
        muon::combine(update.step(), &mut values, &orthogonal);
        self.put_parameters(parameter, &values, update.rounding, update.update);
    }
}
