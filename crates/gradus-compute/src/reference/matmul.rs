//! Matrix products.

use crate::device::Linear;

/// `out[M, N] = x[M, K] * w[N, K]^T`.
pub(super) fn forward(shape: Linear, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(shape.rows * shape.outputs);
    for row in x.chunks_exact(shape.inputs) {
        out.extend(weight.chunks_exact(shape.inputs).map(|column| dot(row, column)));
    }
    out
}

/// `d_x[M, K] = d_out[M, N] * w[N, K]`.
pub(super) fn backward_input(shape: Linear, d_out: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut d_x = Vec::with_capacity(shape.rows * shape.inputs);
    for row in rows(d_out, shape.rows) {
        let mut sums = vec![0.0f64; shape.inputs];
        for (d, weights) in row.iter().zip(weight.chunks_exact(shape.inputs)) {
            sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum += f64::from(*d) * f64::from(*w));
        }
        d_x.extend(sums.into_iter().map(|sum| sum as f32));
    }
    d_x
}

/// `d_w[N, K] = d_out[M, N]^T * x[M, K]`.
pub(super) fn backward_weight(shape: Linear, d_out: &[f32], x: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0f64; shape.outputs * shape.inputs];
    for (d_row, x_row) in rows(d_out, shape.rows).zip(x.chunks_exact(shape.inputs)) {
        for (d, row) in d_row.iter().zip(sums.chunks_exact_mut(shape.inputs)) {
            row.iter_mut().zip(x_row).for_each(|(sum, x)| *sum += f64::from(*d) * f64::from(*x));
        }
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// `d_b[N]`: each column of `d_out[M, N]`, summed.
pub(super) fn column_sums(shape: Linear, d_out: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0f64; shape.outputs];
    for row in rows(d_out, shape.rows) {
        sums.iter_mut().zip(row).for_each(|(sum, d)| *sum += f64::from(*d));
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// The rows of a matrix, which may be empty: a layer may have no outputs.
fn rows(values: &[f32], count: usize) -> impl Iterator<Item = &[f32]> {
    let width = values.len() / count.max(1);
    (0..count).map(move |row| &values[row * width..][..width])
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}
