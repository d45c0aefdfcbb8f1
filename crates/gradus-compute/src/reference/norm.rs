//! Normalisations.

use crate::device::{Norm, NormKind};

/// The output rows, and mean and reciprocal deviation of each.
pub(super) fn forward(shape: Norm, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> (Vec<f32>, Vec<f32>) {
    let (mut out, mut statistics) = (Vec::with_capacity(x.len()), Vec::new());
    for row in x.chunks_exact(shape.width) {
        let (mean, scale) = row_statistics(shape, row);
        for (i, x) in row.iter().enumerate() {
            let normal = (f64::from(*x) - mean) * scale * f64::from(weight[i]);
            out.push((normal + bias.map_or(0.0, |bias| f64::from(bias[i]))) as f32);
        }
        statistics.extend([mean as f32, scale as f32]);
    }
    (out, statistics)
}

fn row_statistics(shape: Norm, row: &[f32]) -> (f64, f64) {
    let width = shape.width as f64;
    let mean = match shape.kind {
        NormKind::Layer => row.iter().map(|x| f64::from(*x)).sum::<f64>() / width,
        NormKind::Rms => 0.0,
    };
    let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width;
    (mean, 1.0 / (variance + f64::from(shape.epsilon)).sqrt())
}

/// Gradients of one normalisation.
pub(super) struct Gradients {
    pub x: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

/// With `n` the normal form of a row and `g = d_out * weight`: `d_x = (g - mean(g) - n * mean(g * n)) * scale`, where
/// `mean(g)` is absent from RMS.
pub(super) fn backward(
    shape: Norm,
    x: &[f32],
    weight: &[f32],
    statistics: &[f32],
    d_out: &[f32],
) -> Gradients {
    let width = shape.width;
    let (mut d_x, mut d_weight, mut d_bias) = (Vec::new(), vec![0.0f64; width], vec![0.0f64; width]);
    for (row, (x, d_out)) in x.chunks_exact(width).zip(d_out.chunks_exact(width)).enumerate() {
        let (mean, scale) = (f64::from(statistics[2 * row]), f64::from(statistics[2 * row + 1]));
        let normal: Vec<f64> = x.iter().map(|x| (f64::from(*x) - mean) * scale).collect();
        let g: Vec<f64> = d_out.iter().zip(weight).map(|(d, w)| f64::from(*d) * f64::from(*w)).collect();
        let mean_g = match shape.kind {
            NormKind::Layer => g.iter().sum::<f64>() / width as f64,
            NormKind::Rms => 0.0,
        };
        let mean_gn = g.iter().zip(&normal).map(|(g, n)| g * n).sum::<f64>() / width as f64;
        for i in 0..width {
            d_x.push(((g[i] - mean_g - normal[i] * mean_gn) * scale) as f32);
            d_weight[i] += f64::from(d_out[i]) * normal[i];
            d_bias[i] += f64::from(d_out[i]);
        }
    }
    let narrow = |sums: Vec<f64>| sums.into_iter().map(|sum| sum as f32).collect();
    Gradients { x: d_x, weight: narrow(d_weight), bias: narrow(d_bias) }
}
