//! What the optimizer Muon asks of a device.

use crate::rounding::Rounding;

/// Newton and Schulz's iteration towards a matrix with the same singular vectors whose singular values are near 1, by the
/// quintic of Jordan et al. (2024, "Muon: an optimizer for hidden layers in neural networks").
///
/// `X = G / |G|` (Frobenius' norm, at least [`NewtonSchulz::SMALLEST_NORM`]); then, `iterations` times over, with
/// `A = X X^T`, `X = a X + (b A + c A A) X`. A matrix with more rows than columns is iterated as its transpose, so that `A`
/// is the smaller of the two products. Operands of products are rounded as those of linear layers are; `X` itself and
/// sums stay f32. After 5 iterations singular values that were at least 1/500 of the norm lie from 0.68 to 1.21, but for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewtonSchulz {
    /// `M`.
    pub rows: usize,
    /// `N`.
    pub columns: usize,
    /// How often the polynomial is applied.
    pub iterations: usize,
}

impl NewtonSchulz {
    /// `a`, `b`, `c`: chosen for the steepest slope at 0, `a`, not to converge to 1.
    pub const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];
    /// What a smaller norm is taken for: a matrix of zeros stays one. As torch's `Muon` has it.
    pub const SMALLEST_NORM: f32 = 1e-7;

    /// Elements of the matrix.
    #[allow(clippy::len_without_is_empty, reason = "a shape, not a container")]
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }
}

/// One update of a matrix by Muon (Jordan et al. 2024), with decoupled weight decay and a factor for its shape (Liu et al.
/// 2025, "Muon is scalable for LLM training"); in torch's order of operations (`torch.optim.Muon`).
///
/// With `g = gradient_scale * gradient`: `m = momentum m + (1 - momentum) g`; `u = m`, or `momentum m + (1 - momentum) g`
/// with Nesterov's way; `w = (1 - learning_rate * weight_decay) w - learning_rate * adjustment * orthogonal(u)`.
#[derive(Debug, Clone, Copy)]
pub struct Muon {
    /// The matrix, and how its update is made orthogonal.
    pub shape: NewtonSchulz,
    /// Step size now.
    pub learning_rate: f32,
    /// Factor of the step, not of the decay.
    pub adjustment: f32,
    /// Decay of the moment.
    pub momentum: f32,
    /// Whether the update looks ahead by one more decay.
    pub nesterov: bool,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Factor of the gradient: one over the targets of the step, times clipping.
    pub gradient_scale: f32,
    /// Updates made, this one included: from 1. Only the rounding asks.
    pub update: u64,
    /// How a parameter in bf16 is rounded.
    pub rounding: Rounding,
}

impl Muon {
    /// Factors of moment and gradient in their new mixture.
    pub(crate) fn mixture(&self) -> [f32; 2] {
        [self.momentum, (1.0 - self.momentum) * self.gradient_scale]
    }

    /// Factors of the weights and of the orthogonal matrix in the new weights.
    pub(crate) fn step(&self) -> [f32; 2] {
        [1.0 - self.learning_rate * self.weight_decay, -self.learning_rate * self.adjustment]
    }
}
