//! Embeddings, activations, rotary positions.

use crate::device::{Embedding, IGNORED, Rope};

pub(super) fn accumulate(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

pub(super) fn embed(shape: Embedding, table: &[f32], positions: Option<&[f32]>) -> Vec<f32> {
    let width = shape.width;
    let mut out = Vec::with_capacity(shape.tokens.len() * width);
    for (row, token) in shape.tokens.iter().enumerate() {
        match *token {
            IGNORED => out.resize((row + 1) * width, 0.0),
            token => out.extend_from_slice(&table[token as usize * width..][..width]),
        }
        if let Some(positions) = positions {
            accumulate(&mut out[row * width..], &positions[shape.positions[row] as usize * width..][..width]);
        }
    }
    out
}

/// Adds each row of `d_out` to the row of `table` that `indices` names, if it names one.
pub(super) fn scatter(indices: &[u32], width: usize, d_out: &[f32], table: &mut [f32]) {
    for (index, row) in indices.iter().zip(d_out.chunks_exact(width)).filter(|(index, _)| **index != IGNORED)
    {
        accumulate(&mut table[*index as usize * width..][..width], row);
    }
}

/// sqrt(2 / pi), the constant of the tanh form.
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
/// The cubic coefficient of the tanh form.
const GELU_CUBIC: f64 = 0.044_715;

pub(super) fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + (GELU_SCALE * (x + GELU_CUBIC * x * x * x)).tanh())) as f32
}

pub(super) fn gelu_slope(x: f32) -> f32 {
    let x = f64::from(x);
    let tanh = (GELU_SCALE * (x + GELU_CUBIC * x * x * x)).tanh();
    let inner_slope = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
    (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner_slope) as f32
}

pub(super) fn swiglu(rows: usize, gate_up: &[f32]) -> Vec<f32> {
    let width = gate_up.len() / rows / 2;
    let mut out = Vec::with_capacity(rows * width);
    for row in gate_up.chunks_exact(2 * width) {
        let (gate, up) = row.split_at(width);
        out.extend(gate.iter().zip(up).map(|(gate, up)| (f64::from(*gate) * sigmoid(*gate)) as f32 * up));
    }
    out
}

pub(super) fn swiglu_gradient(rows: usize, gate_up: &[f32], d_out: &[f32]) -> Vec<f32> {
    let width = gate_up.len() / rows / 2;
    let mut out = vec![0.0; gate_up.len()];
    for row in 0..rows {
        for i in 0..width {
            let (gate, up) = (gate_up[row * 2 * width + i], gate_up[row * 2 * width + width + i]);
            let (sigmoid, d) = (sigmoid(gate), f64::from(d_out[row * width + i]));
            let slope = sigmoid * (1.0 + f64::from(gate) * (1.0 - sigmoid));
            out[row * 2 * width + i] = (d * f64::from(up) * slope) as f32;
            out[row * 2 * width + width + i] = (d * f64::from(gate) * sigmoid) as f32;
        }
    }
    out
}

fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}

pub(super) fn rope(shape: Rope, values: &mut [f32], stride: usize) {
    let half = shape.head_size / 2;
    for (row, position) in shape.positions.iter().enumerate() {
        for head in 0..shape.heads {
            let head = &mut values[row * stride + head * shape.head_size..][..shape.head_size];
            for i in 0..half {
                let exponent = -2.0 * i as f64 / shape.head_size as f64;
                let angle = f64::from(*position) * f64::from(shape.theta).powf(exponent);
                let (sin, cos) = if shape.inverse { (-angle.sin(), angle.cos()) } else { angle.sin_cos() };
                let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
                head[i] = (a * cos - b * sin) as f32;
                head[i + half] = (b * cos + a * sin) as f32;
            }
        }
    }
}
