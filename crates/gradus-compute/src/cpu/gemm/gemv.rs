//! Products of a few rows: decoding.
//!
//! With so few rows each weight is used but a few times, so packing would cost more than it brings: the weights are
//! streamed once, each against all rows, and memory sets the pace.

use crate::cpu::memory::Elements;
use crate::cpu::simd::{Operation, Simd};
use crate::device::Format;
use std::ops::Range;

/// Rows up to which this is used.
pub const FEW_ROWS: usize = 8;

/// Weights (rows of `w[N, K]`) that are streamed side by side, against one row or two: the more, the more of memory is asked
/// for at once. More rows take the registers.
const MANY_SIDES: usize = 4;
const FEW_SIDES: usize = 2;

/// How weights are read and multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// f32 as they are.
    Single,
    /// f32, rounded to bf16.
    Rounded,
    /// bf16, widened to f32.
    Widened,
    /// bf16, in pairs.
    Pairs,
}

impl Mode {
    /// For weights of a format, where operands are rounded to bf16 or not.
    pub fn of(format: Format, round: bool) -> Self {
        match (format, round) {
            (Format::F32, false) => Self::Single,
            (Format::F32, true) => Self::Rounded,
            (Format::Bf16, false) => Self::Widened,
            (Format::Bf16, true) => Self::Pairs,
        }
    }
}

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
    /// How weights are read.
    pub mode: Mode,
    /// `[M, K]`, rounded already where weights are; as [`PairRows`] leaves them for [`Mode::Pairs`].
    pub x: Elements,
    /// `[N, K]`, in f32 or bf16.
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
            match self.mode {
                Mode::Single => self.rows::<S, SINGLE>(s),
                Mode::Rounded => self.rows::<S, ROUNDED>(s),
                Mode::Widened => self.rows::<S, WIDENED>(s),
                Mode::Pairs => self.rows::<S, PAIRS>(s),
            }
        }
    }
}

/// [`Mode`], for compiled kernels.
const SINGLE: u8 = 0;
const ROUNDED: u8 = 1;
const WIDENED: u8 = 2;
const PAIRS: u8 = 3;

impl FewRows {
    #[inline(always)]
    unsafe fn rows<S: Simd, const MODE: u8>(&self, s: S) {
        // SAFETY: passed on.
        unsafe {
            match self.rows {
                1 => self.columns::<S, MODE, 1, MANY_SIDES>(s),
                2 => self.columns::<S, MODE, 2, MANY_SIDES>(s),
                3 => self.columns::<S, MODE, 3, FEW_SIDES>(s),
                4 => self.columns::<S, MODE, 4, FEW_SIDES>(s),
                5 => self.columns::<S, MODE, 5, FEW_SIDES>(s),
                6 => self.columns::<S, MODE, 6, FEW_SIDES>(s),
                7 => self.columns::<S, MODE, 7, FEW_SIDES>(s),
                _ => self.columns::<S, MODE, 8, FEW_SIDES>(s),
            }
        }
    }

    #[inline(always)]
    unsafe fn columns<S: Simd, const MODE: u8, const ROWS: usize, const SIDES: usize>(&self, s: S) {
        let last = self.columns.end - 1;
        for column in self.columns.clone().step_by(SIDES) {
            // At the end the last column may be computed more than once, to the same value; it is stored once.
            let neighbours: [usize; SIDES] = std::array::from_fn(|j| (column + j).min(last));
            // SAFETY: columns below the end.
            let sums = unsafe { self.dots::<S, MODE, ROWS, SIDES>(s, neighbours) };
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
    unsafe fn dots<S: Simd, const MODE: u8, const ROWS: usize, const SIDES: usize>(
        &self,
        s: S,
        columns: [usize; SIDES],
    ) -> [[S::V; SIDES]; ROWS] {
        let mut sums = [[s.splat(0.0); SIDES]; ROWS];
        let bytes = if MODE == WIDENED || MODE == PAIRS { 2 } else { 4 };
        let step = if MODE == PAIRS { 2 * S::LANES } else { S::LANES };
        let mut weights = [self.weight.at(0).cast_const(); SIDES];
        for (weight, column) in weights.iter_mut().zip(columns) {
            *weight = weight.wrapping_byte_add(column * self.depth * bytes);
        }
        let whole = self.depth / step * step;
        for depth in (0..whole).step_by(step) {
            // SAFETY: a whole vector of the depth.
            unsafe { self.step::<S, MODE, ROWS, SIDES>(s, weights, depth, step, &mut sums) };
        }
        if whole < self.depth {
            // SAFETY: the rest of the depth.
            unsafe { self.step::<S, MODE, ROWS, SIDES>(s, weights, whole, self.depth - whole, &mut sums) };
        }
        sums
    }

    #[inline(always)]
    unsafe fn step<S: Simd, const MODE: u8, const ROWS: usize, const SIDES: usize>(
        &self,
        s: S,
        weights: [*const f32; SIDES],
        depth: usize,
        count: usize,
        sums: &mut [[S::V; SIDES]; ROWS],
    ) {
        // SAFETY: count elements from depth on of these weights and of each row of x, whose pairs are as many units.
        unsafe {
            let mut w = [s.splat(0.0); SIDES];
            for (w, weight) in w.iter_mut().zip(weights) {
                *w = match MODE {
                    SINGLE => s.load_up_to(weight.add(depth), count),
                    ROUNDED => s.round_bf16(s.load_up_to(weight.add(depth), count)),
                    WIDENED => s.widen(weight.cast::<u16>().add(depth), count),
                    _ => s.load_pairs(weight.cast::<u16>().add(depth), count),
                };
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                if MODE == PAIRS {
                    let units = self.depth.div_ceil(2);
                    let x = s.load_up_to(self.x.at(row * units + depth / 2), count.div_ceil(2));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = s.dot_pairs(x, w, *sum);
                    }
                } else {
                    let x = s.load_up_to(self.x.at(row * self.depth + depth), count);
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = s.mul_add(x, w, *sum);
                    }
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

/// Rows of f32 as pairs of bf16, each row from a place of its own on.
pub struct PairRows {
    /// `M`.
    pub rows: usize,
    /// `K`.
    pub depth: usize,
    /// `[M, K]`.
    pub x: Elements,
    /// `[M, K / 2]`, rounded up.
    pub out: Elements,
}

impl Operation for PairRows {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let units = self.depth.div_ceil(2);
        for row in 0..self.rows {
            for unit in (0..units).step_by(S::LANES) {
                let left = self.depth - 2 * unit;
                let from = self.x.at(row * self.depth + 2 * unit);
                // SAFETY: left elements of the row are readable from there on, and its units writable; both are the
                // operation's own.
                unsafe {
                    let first = s.load_up_to(from, left.min(S::LANES));
                    let rest = left.saturating_sub(S::LANES).min(S::LANES);
                    let second = s.load_up_to(from.wrapping_add(S::LANES), rest);
                    let count = S::LANES.min(units - unit);
                    s.store_up_to(self.out.at(row * units + unit), count, s.pair_adjacent(first, second));
                }
            }
        }
    }
}
