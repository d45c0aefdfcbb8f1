//! From scores to what the products of the backward pass take: probabilities and gradients of scores, as units of the depth.
//!
//! A block has a query in each row and a key in each column. Products over queries (for keys and values) take units of rows
//! that follow each other, products over keys (for queries) units of columns, transposed, or in runs of a row. Where a
//! unit is a pair, two rows become one, stored where the first of them, or an earlier one, was.

use super::backward::Work;
use super::product::{run_of, turned};
use super::{ACROSS, Item, rounded};
use crate::cpu::gemm::TileKernel;
use crate::cpu::math::exp2;
use crate::cpu::simd::{Operation, Simd};
use std::ops::Range;

/// Lanes of the widest vector of any family.
const WIDEST: usize = 16;

/// From scores (in `work.p`) and gradients of probabilities (in `work.d_scores`) to probabilities and gradients of scores,
/// these also in units along the keys.
pub struct Slopes<'a, 'b, 'c, K> {
    /// The sequence and key-value head.
    pub item: Item<'a>,
    /// The block's queries.
    pub queries: Range<usize>,
    /// Its keys.
    pub keys: Range<usize>,
    /// Whether some query does not see some key, or a last run of units is not full.
    pub masked: bool,
    /// Where everything lies.
    pub work: &'b mut Work<'c>,
    /// What multiplies.
    pub kernel: K,
}

/// What is the same for all elements.
struct Constants<S: Simd> {
    scale: S::V,
    scale_log2: S::V,
    zero: S::V,
    lanes: S::V,
}

/// What is the same for all elements of a row.
struct Row<S: Simd> {
    /// The log-sum-exp in units of log 2, negative.
    less_sum: S::V,
    mean: S::V,
    first: S::V,
    last: S::V,
}

impl<K: TileKernel> Operation for Slopes<'_, '_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let lanes: [f32; WIDEST] = std::array::from_fn(|lane| lane as f32);
        let constants = Constants::<S> {
            scale: s.splat(self.item.shape.scale),
            scale_log2: s.splat(self.item.scale_log2()),
            zero: s.splat(0.0),
            // SAFETY: sixteen elements hold any vector.
            lanes: unsafe { s.load(lanes.as_ptr()) },
        };
        match (self.masked, K::GROUP) {
            (true, 1) => self.singles::<S, true>(s, &constants),
            (false, 1) => self.singles::<S, false>(s, &constants),
            (true, _) => self.pairs::<S, true>(s, &constants),
            (false, _) => self.pairs::<S, false>(s, &constants),
        }
    }
}

impl<K: TileKernel> Slopes<'_, '_, '_, K> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, i: usize) -> Row<S> {
        let query = self.queries.start + i;
        Row {
            less_sum: s.splat(-self.work.sums[query]),
            mean: s.splat(self.work.means[query]),
            first: s.splat(self.work.first[query]),
            last: s.splat(query as f32),
        }
    }

    /// Probabilities and gradients of scores of row `i`, from column `at` on.
    #[inline(always)]
    fn slopes<S: Simd, const MASKED: bool>(
        &self,
        s: S,
        constants: &Constants<S>,
        row: &Row<S>,
        i: usize,
        at: usize,
    ) -> (S::V, S::V) {
        let place = i * ACROSS + at;
        // SAFETY: a row of ACROSS elements holds whole vectors.
        let (score, d_p) =
            unsafe { (s.load(self.work.p[place..].as_ptr()), s.load(self.work.d_scores[place..].as_ptr())) };
        let p = exp2(s, s.mul_add(score, constants.scale_log2, row.less_sum));
        let slope = s.mul(s.mul(p, constants.scale), s.sub(d_p, row.mean));
        if !MASKED {
            return (p, slope);
        }
        let position = s.add(constants.lanes, s.splat((self.keys.start + at) as f32));
        // Both: where no tile was made, what is there may not be a number.
        (seen(s, constants, row, position, p), seen(s, constants, row, position, slope))
    }

    #[inline(always)]
    fn singles<S: Simd, const MASKED: bool>(&mut self, s: S, constants: &Constants<S>) {
        for i in 0..self.queries.len() {
            let row = self.row(s, i);
            for at in (0..self.keys.len()).step_by(S::LANES) {
                let (p, slope) = self.slopes::<S, MASKED>(s, constants, &row, i, at);
                let place = i * ACROSS + at;
                // SAFETY: a row of ACROSS elements holds whole vectors.
                unsafe {
                    s.store(self.work.p[place..].as_mut_ptr(), rounded::<S, K>(s, p));
                    s.store(self.work.d_scores[place..].as_mut_ptr(), rounded::<S, K>(s, slope));
                }
            }
        }
        for i in (0..self.queries.len()).step_by(S::LANES) {
            for j in (0..self.keys.len()).step_by(S::LANES) {
                transpose(
                    s,
                    &self.work.d_scores[i * ACROSS + j..],
                    ACROSS,
                    &mut self.work.transposed[j * ACROSS + i..],
                );
            }
        }
    }

    #[inline(always)]
    fn pairs<S: Simd, const MASKED: bool>(&mut self, s: S, constants: &Constants<S>) {
        let columns = self.keys.len().next_multiple_of(run_of::<K>());
        for i in (0..self.queries.len()).step_by(2) {
            let rows = [self.row(s, i), self.row(s, (i + 1).min(self.queries.len() - 1))];
            let both = i + 1 < self.queries.len();
            for at in (0..columns).step_by(2 * S::LANES) {
                self.unit::<S, MASKED>(s, constants, &rows, (i, both), at);
            }
        }
        if turned::<K>() {
            return self.fill_run(s, columns);
        }
        for i in (0..self.queries.len()).step_by(S::LANES) {
            for j in (0..self.keys.len().div_ceil(2)).step_by(S::LANES) {
                let from = &self.work.along[i * (ACROSS / 2) + j..];
                transpose(s, from, ACROSS / 2, &mut self.work.transposed[j * ACROSS + i..]);
            }
        }
    }

    /// Zeros in the units of rows that fill up the last run.
    #[inline(always)]
    fn fill_run<S: Simd>(&mut self, s: S, columns: usize) {
        let rows = self.queries.len();
        for unit in rows.div_ceil(K::GROUP)..rows.next_multiple_of(run_of::<K>()) / K::GROUP {
            for at in (0..columns).step_by(S::LANES) {
                let place = unit * ACROSS + at;
                // SAFETY: a row of ACROSS elements holds whole vectors, and a block whole runs of rows.
                unsafe {
                    s.store(self.work.p[place..].as_mut_ptr(), s.splat(0.0));
                    s.store(self.work.d_scores[place..].as_mut_ptr(), s.splat(0.0));
                }
            }
        }
    }

    /// Where the units along the keys of row `i` go, from column `at` on.
    #[inline(always)]
    fn along(&self, i: usize, at: usize) -> usize {
        let unit = at / K::GROUP;
        if !turned::<K>() {
            return i * (ACROSS / K::GROUP) + unit;
        }
        let (rows, stride, run) = (self.kernel.rows(), self.kernel.row_stride(), K::ROW_RUN);
        let panel = i / rows * stride * (ACROSS / K::GROUP);
        panel + unit / run * run * stride + i % rows * run + unit % run
    }

    /// Two vectors of columns of two rows; the second row is zero unless there are `both`.
    #[inline(always)]
    fn unit<S: Simd, const MASKED: bool>(
        &mut self,
        s: S,
        constants: &Constants<S>,
        rows: &[Row<S>; 2],
        (i, both): (usize, bool),
        at: usize,
    ) {
        // No closures here: one that is not inlined is compiled without the family's instructions.
        let (next, nothing) = (at + S::LANES, (constants.zero, constants.zero));
        let left = self.slopes::<S, MASKED>(s, constants, &rows[0], i, at);
        let right = self.slopes::<S, MASKED>(s, constants, &rows[0], i, next);
        let (mut under, mut beneath) = (nothing, nothing);
        if both {
            under = self.slopes::<S, MASKED>(s, constants, &rows[1], i + 1, at);
            beneath = self.slopes::<S, MASKED>(s, constants, &rows[1], i + 1, next);
        }
        // SAFETY: a row of ACROSS elements, a multiple of two vectors, holds both; `along` has half as many
        // for each query of a block of ACROSS, an even number; a run is whole vectors.
        unsafe {
            let place = i / 2 * ACROSS + at;
            s.store(self.work.p[place..].as_mut_ptr(), s.pair(left.0, under.0));
            s.store(self.work.p[place + S::LANES..].as_mut_ptr(), s.pair(right.0, beneath.0));
            s.store(self.work.d_scores[place..].as_mut_ptr(), s.pair(left.1, under.1));
            s.store(self.work.d_scores[place + S::LANES..].as_mut_ptr(), s.pair(right.1, beneath.1));
            let place = self.along(i, at);
            s.store(self.work.along[place..].as_mut_ptr(), s.pair_adjacent(left.1, right.1));
            let place = self.along(i + 1, at);
            s.store(self.work.along[place..].as_mut_ptr(), s.pair_adjacent(under.1, beneath.1));
        }
    }
}

/// `x` where a row's query sees a key, else zero.
#[inline(always)]
fn seen<S: Simd>(s: S, constants: &Constants<S>, row: &Row<S>, position: S::V, x: S::V) -> S::V {
    let x = s.select_le(position, row.last, x, constants.zero);
    s.select_le(row.first, position, x, constants.zero)
}

/// A square from rows of `stride` to rows of [`ACROSS`]. Squares beyond the last query or key move what no product reads.
#[inline(always)]
fn transpose<S: Simd>(s: S, from: &[f32], stride: usize, to: &mut [f32]) {
    let mut square = s.square();
    for (k, v) in square.as_mut().iter_mut().enumerate() {
        // SAFETY: a block is a multiple of LANES each way.
        *v = unsafe { s.load(from[k * stride..][..S::LANES].as_ptr()) };
    }
    s.transpose(&mut square);
    for (k, v) in square.as_mut().iter().enumerate() {
        // SAFETY: as above.
        unsafe { s.store(to[k * ACROSS..][..S::LANES].as_mut_ptr(), *v) };
    }
}
