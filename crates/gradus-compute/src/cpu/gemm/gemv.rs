//! Products of a few rows: decoding.
//!
//! With so few rows each weight is used but a few times, so packing would cost more than it brings: the weights are
//! streamed once, each against all rows, and memory sets the pace.

use crate::cpu::memory::Elements;
use crate::cpu::simd::{Operation, Simd};
use std::ops::Range;

/// Rows up to which this is used.
pub const FEW_ROWS: usize = 8;

/// Weights (rows of `w[N, K]`) that are streamed side by side.
const SIDE_BY_SIDE: usize = 2;

/// `out[M, N] = x[M, K] * w[N, K]^T`, plus bias and residual, for columns `columns` and `M <= FEW_ROWS`.
#[derive(Clone)]
pub struct FewRows {
    /// `M`.
    pub rows: usize,
    /// `K`.
    pub depth: usize,
    /// `N` of the whole output.
    pub width: usize,
    /// Columns to compute.
    pub columns: Range<usize>,
    /// Operands are rounded to bf16.
    pub round: bool,
    /// `[M, K]`, rounded already where `round`.
    pub x: Elements,
    /// `[N, K]`.
    pub weight: Elements,
    /// `[N]` or empty.
    pub bias: Elements,
    /// `[M, N]` or empty; may be `out`.
    pub residual: Elements,
    /// `[M, N]`.
    pub out: Elements,
}

impl Operation for FewRows {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the ranges have these sizes, and this call alone writes these columns, by the word of the device.
        unsafe {
            match self.rows {
                1 => self.columns::<S, 1>(s),
                2 => self.columns::<S, 2>(s),
                3 => self.columns::<S, 3>(s),
                4 => self.columns::<S, 4>(s),
                5 => self.columns::<S, 5>(s),
                6 => self.columns::<S, 6>(s),
                7 => self.columns::<S, 7>(s),
                _ => self.columns::<S, 8>(s),
            }
        }
    }
}

impl FewRows {
    #[inline(always)]
    unsafe fn columns<S: Simd, const ROWS: usize>(&self, s: S) {
        let last = self.columns.end - 1;
        for column in self.columns.clone().step_by(SIDE_BY_SIDE) {
            // At an odd end the last column is computed twice, to the same value, and stored once.
            let neighbours: [usize; SIDE_BY_SIDE] = std::array::from_fn(|j| (column + j).min(last));
            // SAFETY: columns below the end.
            let sums = unsafe { self.dots::<S, ROWS>(s, neighbours) };
            for (j, column) in neighbours.into_iter().enumerate() {
                if j > 0 && column == neighbours[j - 1] {
                    break;
                }
                for (row, sums) in sums.iter().enumerate() {
                    // SAFETY: inside the output, and this call's own column.
                    unsafe { self.put(row, column, s.sum(sums[j])) };
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dots<S: Simd, const ROWS: usize>(
        &self,
        s: S,
        columns: [usize; SIDE_BY_SIDE],
    ) -> [[S::V; SIDE_BY_SIDE]; ROWS] {
        let mut sums = [[s.splat(0.0); SIDE_BY_SIDE]; ROWS];
        let weights = columns.map(|column| self.weight.at(column * self.depth));
        let whole = self.depth / S::LANES * S::LANES;
        for depth in (0..whole).step_by(S::LANES) {
            // SAFETY: a whole vector of the depth.
            unsafe { self.step::<S, ROWS>(s, weights, depth, S::LANES, &mut sums) };
        }
        if whole < self.depth {
            // SAFETY: the rest of the depth.
            unsafe { self.step::<S, ROWS>(s, weights, whole, self.depth - whole, &mut sums) };
        }
        sums
    }

    #[inline(always)]
    unsafe fn step<S: Simd, const ROWS: usize>(
        &self,
        s: S,
        weights: [*mut f32; SIDE_BY_SIDE],
        depth: usize,
        count: usize,
        sums: &mut [[S::V; SIDE_BY_SIDE]; ROWS],
    ) {
        // SAFETY: count elements from depth on of these weights and of each row of x.
        unsafe {
            let mut w = [s.splat(0.0); SIDE_BY_SIDE];
            for (w, weight) in w.iter_mut().zip(weights) {
                *w = s.load_up_to(weight.add(depth), count);
                if self.round {
                    *w = s.round_bf16(*w);
                }
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = s.load_up_to(self.x.at(row * self.depth + depth), count);
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = s.mul_add(x, w, *sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn put(&self, row: usize, column: usize, mut sum: f32) {
        let at = row * self.width + column;
        // SAFETY: inside the ranges.
        unsafe {
            if !self.bias.is_empty() {
                sum += *self.bias.at(column);
            }
            if !self.residual.is_empty() {
                sum += *self.residual.at(at);
            }
            *self.out.at(at) = sum;
        }
    }
}
