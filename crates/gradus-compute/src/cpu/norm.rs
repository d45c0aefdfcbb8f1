//! Normalisations of rows.

use super::cells::Cells;
use super::memory::Elements;
use super::simd::{Operation, Simd};
use crate::device::{Norm, NormKind};
use std::ops::Range;

/// Vectors that a pass over a row keeps as separate sums, so that additions need not wait for each other.
const SUMS: usize = 4;

/// `sum(f(i))` over a row: `f` is given by a method of the same name in both passes below.
trait RowSum<const N: usize> {
    fn terms<S: Simd>(&self, s: S, at: usize, count: usize) -> [S::V; N];
}

/// Sums of `N` terms over `0..width`, in a fixed order. Terms beyond a row's end must be zero.
#[inline(always)]
fn row_sums<S: Simd, R: RowSum<N>, const N: usize>(s: S, row: &R, width: usize) -> [f32; N] {
    let mut sums = [[s.splat(0.0); SUMS]; N];
    let step = SUMS * S::LANES;
    let whole = width / step * step;
    for first in (0..whole).step_by(step) {
        for j in 0..SUMS {
            let terms = row.terms(s, first + j * S::LANES, S::LANES);
            for (sums, term) in sums.iter_mut().zip(terms) {
                sums[j] = s.add(sums[j], term);
            }
        }
    }
    for at in (whole..width).step_by(S::LANES) {
        let terms = row.terms(s, at, S::LANES.min(width - at));
        for (sums, term) in sums.iter_mut().zip(terms) {
            sums[0] = s.add(sums[0], term);
        }
    }
    let mut totals = [0.0; N];
    for (total, [a, b, c, d]) in totals.iter_mut().zip(sums) {
        *total = s.sum(s.add(s.add(a, b), s.add(c, d)));
    }
    totals
}

struct Plainly(*const f32);

impl RowSum<1> for Plainly {
    #[inline(always)]
    fn terms<S: Simd>(&self, s: S, at: usize, count: usize) -> [S::V; 1] {
        // SAFETY: row_sums stays inside the row.
        [unsafe { s.load_up_to(self.0.add(at), count) }]
    }
}

struct SquaresAround(*const f32, f32);

impl RowSum<1> for SquaresAround {
    #[inline(always)]
    fn terms<S: Simd>(&self, s: S, at: usize, count: usize) -> [S::V; 1] {
        let mean = s.splat(self.1);
        // SAFETY: row_sums stays inside the row; lanes beyond its end hold the mean, so that they add nothing.
        let x = unsafe {
            if count == S::LANES { s.load(self.0.add(at)) } else { s.load_first(self.0.add(at), count, mean) }
        };
        let x = s.sub(x, mean);
        [s.mul(x, x)]
    }
}

/// Rows `rows` of `out` and of the statistics.
pub struct Forward {
    /// The operation's shape.
    pub shape: Norm,
    /// `[M, C]`.
    pub x: Elements,
    /// `[C]`.
    pub weight: Elements,
    /// `[C]` or empty.
    pub bias: Elements,
    /// `[M, C]`.
    pub out: Cells,
    /// `[M, 2]`.
    pub statistics: Elements,
    /// The rows to compute.
    pub rows: Range<usize>,
}

impl Operation for Forward {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.shape.width;
        for row in self.rows.clone() {
            let x = self.x.at(row * width).cast_const();
            let mean = match self.shape.kind {
                NormKind::Layer => row_sums(s, &Plainly(x), width)[0] / width as f32,
                NormKind::Rms => 0.0,
            };
            let variance = row_sums(s, &SquaresAround(x, mean), width)[0] / width as f32;
            let scale = 1.0 / (variance + self.shape.epsilon).sqrt();
            // SAFETY: two statistics for each row, which this part alone writes.
            unsafe {
                *self.statistics.at(2 * row) = mean;
                *self.statistics.at(2 * row + 1) = scale;
            }
            for at in (0..width).step_by(S::LANES) {
                let count = S::LANES.min(width - at);
                // SAFETY: inside the row and the parameters.
                unsafe {
                    let normal = s.mul(s.sub(s.load_up_to(x.add(at), count), s.splat(mean)), s.splat(scale));
                    let weight = s.load_up_to(self.weight.at(at), count);
                    let value = match self.bias.is_empty() {
                        true => s.mul(normal, weight),
                        false => s.mul_add(normal, weight, s.load_up_to(self.bias.at(at), count)),
                    };
                    self.out.store(s, row * width + at, count, value);
                }
            }
        }
    }
}

/// Rows `rows` of `d_x`, and what they add to the gradients of the parameters, in `partial`.
///
/// With `n` the normal form of a row and `g = d_out * weight`: `d_x = (g - mean(g) - n * mean(g * n)) * scale`, where
/// `mean(g)` is absent from RMS.
pub struct Backward {
    /// The operation's shape.
    pub shape: Norm,
    /// `[M, C]`.
    pub x: Elements,
    /// `[C]`.
    pub weight: Elements,
    /// `[M, 2]`.
    pub statistics: Elements,
    /// `[M, C]`.
    pub d_out: Cells,
    /// `[M, C]` or empty; may be `d_x`.
    pub d_residual: Elements,
    /// `[M, C]`; may be `d_out`.
    pub d_x: Elements,
    /// `[2, C]`: this part's gradients of weight and bias, to be added to.
    pub partial: Elements,
    /// The rows to compute.
    pub rows: Range<usize>,
}

/// One row of [`Backward`].
struct Row<'a> {
    of: &'a Backward,
    x: *const f32,
    /// The row's first element.
    first: usize,
    mean: f32,
    scale: f32,
}

impl Row<'_> {
    /// The normal form and `d_out * weight`, and `d_out`; zero beyond the row's end.
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, at: usize, count: usize) -> (S::V, S::V, S::V) {
        let mean = s.splat(self.mean);
        // SAFETY: callers stay inside the row.
        unsafe {
            let x = if count == S::LANES {
                s.load(self.x.add(at))
            } else {
                s.load_first(self.x.add(at), count, mean)
            };
            let normal = s.mul(s.sub(x, mean), s.splat(self.scale));
            let d_out = self.of.d_out.load(s, self.first + at, count);
            (normal, s.mul(d_out, s.load_up_to(self.of.weight.at(at), count)), d_out)
        }
    }

    /// Writes `d_x` from the two means.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, at: usize, count: usize, means: [f32; 2]) {
        let (normal, g, d_out) = self.load(s, at, count);
        let centred = s.sub(s.sub(g, s.splat(means[0])), s.mul(normal, s.splat(means[1])));
        let to = self.first + at;
        // SAFETY: inside the row and the partial sums, which this part alone writes.
        unsafe {
            let d_x = match self.of.d_residual.is_empty() {
                true => s.mul(centred, s.splat(self.scale)),
                false => {
                    s.mul_add(centred, s.splat(self.scale), s.load_up_to(self.of.d_residual.at(to), count))
                }
            };
            s.store_up_to(self.of.d_x.at(to), count, d_x);
            let (weight, bias) = (self.of.partial.at(at), self.of.partial.at(self.of.shape.width + at));
            s.store_up_to(weight, count, s.mul_add(d_out, normal, s.load_up_to(weight, count)));
            s.store_up_to(bias, count, s.add(s.load_up_to(bias, count), d_out));
        }
    }
}

impl RowSum<2> for Row<'_> {
    #[inline(always)]
    fn terms<S: Simd>(&self, s: S, at: usize, count: usize) -> [S::V; 2] {
        let (normal, g, _) = self.load(s, at, count);
        [g, s.mul(g, normal)]
    }
}

impl Operation for Backward {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.shape.width;
        for row in self.rows.clone() {
            // SAFETY: two statistics for each row.
            let (mean, scale) = unsafe { (*self.statistics.at(2 * row), *self.statistics.at(2 * row + 1)) };
            let this = Row { of: &self, x: self.x.at(row * width), first: row * width, mean, scale };
            let mut means = row_sums(s, &this, width).map(|sum| sum / width as f32);
            if self.shape.kind == NormKind::Rms {
                means[0] = 0.0;
            }
            for at in (0..width).step_by(S::LANES) {
                this.finish(s, at, S::LANES.min(width - at), means);
            }
        }
    }
}
