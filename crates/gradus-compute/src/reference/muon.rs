//! Orthogonal updates, as plain as torch's `Muon` states them.

use super::matmul;
use crate::device::Linear;
use crate::muon::NewtonSchulz;

/// What [`NewtonSchulz`] makes of a matrix; `rounded` does to operands of products what the device does.
pub(super) fn orthogonalise(
    shape: NewtonSchulz,
    matrix: &[f32],
    rounded: &dyn Fn(Vec<f32>) -> Vec<f32>,
) -> Vec<f32> {
    let NewtonSchulz { rows, columns, .. } = shape;
    if rows > columns {
        let turned = NewtonSchulz { rows: columns, columns: rows, ..shape };
        let orthogonal = orthogonalise(turned, &transposed(matrix, columns), rounded);
        return transposed(&orthogonal, rows);
    }
    let norm = matrix.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt() as f32;
    let factor = 1.0 / norm.max(NewtonSchulz::SMALLEST_NORM);
    let mut x: Vec<f32> = matrix.iter().map(|x| x * factor).collect();
    for _ in 0..shape.iterations {
        x = improved(shape, &x, rounded);
    }
    x
}

/// `a X + (b A + c A A) X` with `A = X X^T`, of a matrix with no more rows than columns.
fn improved(shape: NewtonSchulz, x: &[f32], rounded: &dyn Fn(Vec<f32>) -> Vec<f32>) -> Vec<f32> {
    let [a, b, c] = NewtonSchulz::COEFFICIENTS;
    let NewtonSchulz { rows, columns, .. } = shape;
    let operand = rounded(x.to_vec());
    let gram = matmul::forward(Linear { rows, inputs: columns, outputs: rows }, &operand, &operand);
    let of_gram = rounded(gram.clone());
    let square = matmul::backward_input(Linear { rows, inputs: rows, outputs: rows }, &of_gram, &of_gram);
    let polynomial = rounded(gram.iter().zip(&square).map(|(gram, square)| b * gram + c * square).collect());
    let shape = Linear { rows, inputs: columns, outputs: rows };
    let product = matmul::backward_input(shape, &polynomial, &operand);
    x.iter().zip(&product).map(|(x, product)| a * x + product).collect()
}

/// `to = weights[0] * to + weights[1] * with`.
pub(super) fn combine(weights: [f32; 2], to: &mut [f32], with: &[f32]) {
    to.iter_mut().zip(with).for_each(|(to, with)| *to = weights[0] * *to + weights[1] * with);
}

/// The transpose of a matrix of so many columns.
fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    let rows = matrix.len() / columns;
    (0..matrix.len()).map(|i| matrix[i % rows * columns + i / rows]).collect()
}
