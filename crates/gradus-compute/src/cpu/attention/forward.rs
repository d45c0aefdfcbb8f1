//! Forward, in blocks of [`ACROSS`] queries and about as many keys.
//!
//! A block of scores lies with a key in each row and a query in each column: the running maxima and sums of queries
//! are then vectors, and the block, in units of its rows, is a side of the product with the values as it stands: the
//! left one, or the right one of the turned product, whose sums lie with a query in each column until they are written.

use super::product::{PANEL, Panels, Side, SmallProduct, Useful, panels_len, run_of, turned};
use super::rows::{Head, HeadRows, Turned};
use super::{ACROSS, Item, KernelOperation, LOWEST, Pieces, down, pieces_len, rounded};
use crate::cpu::gemm::TileKernel;
use crate::cpu::math::exp2;
use crate::cpu::memory::Elements;
use crate::cpu::simd::{Operation, Simd};
use crate::device::Attention;
use std::marker::PhantomData;
use std::ops::Range;

/// Attention of one item for blocks `blocks` of its queries.
pub struct Forward<'a> {
    /// Which item.
    pub item: Item<'a>,
    /// Queries.
    pub q: HeadRows,
    /// Keys.
    pub k: HeadRows,
    /// Values.
    pub v: HeadRows,
    /// `[B * T, H * D]`.
    pub out: HeadRows,
    /// `[B, H, T]`.
    pub log_sum_exp: Elements,
    /// The blocks to compute, of [`Forward::blocks`].
    pub blocks: Range<usize>,
    /// At least [`forward_scratch`] elements.
    pub scratch: &'a mut [f32],
}

fn scratch_lens(shape: Attention) -> [usize; 7] {
    let size = shape.head_size;
    [
        panels_len(shape.key_len, size),
        panels_len(size, shape.key_len),
        panels_len(ACROSS, size),
        ACROSS * ACROSS,
        ACROSS * size.next_multiple_of(PANEL),
        4 * ACROSS,
        shape.query_len + ACROSS,
    ]
}

/// Elements of scratch that an item needs.
pub fn forward_scratch(shape: Attention) -> usize {
    pieces_len(&scratch_lens(shape))
}

/// An item's scratch, its keys and values packed.
struct Work<'a> {
    keys: Panels,
    values: Panels,
    queries: &'a mut [f32],
    scores: &'a mut [f32],
    /// A row for each query of a block, or, turned, a row of [`ACROSS`] for each element of the head.
    sums: &'a mut [f32],
    running: &'a mut [f32],
    first: &'a mut [f32],
}

/// Queries `start..start + count` of one head.
#[derive(Clone, Copy)]
struct Block {
    head: usize,
    start: usize,
    count: usize,
}

impl Forward<'_> {
    /// Blocks of queries in an item.
    pub fn blocks(shape: Attention) -> usize {
        shape.query_len.div_ceil(ACROSS)
    }
}

impl KernelOperation for Forward<'_> {
    fn run<K: TileKernel>(mut self, kernel: K) {
        if self.blocks.is_empty() {
            return;
        }
        let shape = self.item.shape;
        let mut pieces = Pieces(std::mem::take(&mut self.scratch));
        let [keys, values, queries, scores, sums, running, first] =
            scratch_lens(shape).map(|len| pieces.take(len));
        let (k, v) = (Head::of_keys(self.item, self.k), Head::of_keys(self.item, self.v));
        // SAFETY: the item's keys and values are readable by the word of the device; their pieces are not used again.
        let (keys, values) = unsafe {
            (
                Panels::of_lines(kernel, Side::Left, k, keys),
                Panels::of_depth(kernel, Side::of_deep::<K>(), v, values),
            )
        };
        let mut work = Work { keys, values, queries, scores, sums, running, first };
        self.item.first_keys(work.first);
        kernel.begin();
        for head in self.item.heads() {
            for block in self.blocks.clone() {
                let start = block * ACROSS;
                let block = Block { head, start, count: ACROSS.min(shape.query_len - start) };
                self.block(kernel, block, &mut work);
            }
        }
        kernel.end();
    }
}

impl Forward<'_> {
    /// A block's rows of queries, or of what lies as they do.
    fn rows_of(&self, rows: HeadRows, block: Block) -> Head {
        Head::of_queries(self.item, rows, block.head).part(block.start, block.count)
    }

    fn block<K: TileKernel>(&self, kernel: K, block: Block, work: &mut Work) {
        let s = kernel.simd();
        // SAFETY: the block's queries are readable; the piece was sized for a block, and is packed anew after it.
        let queries =
            unsafe { Panels::of_lines(kernel, Side::Right, self.rows_of(self.q, block), work.queries) };
        work.sums.fill(0.0);
        work.running[..ACROSS].fill(LOWEST);
        work.running[ACROSS..].fill(0.0);
        let step = down(kernel);
        let first = work.first[block.start] as usize / step * step;
        let end = self.item.last_key(block.start + block.count - 1) + 1;
        for key in (first..end).step_by(step) {
            self.keys(kernel, block, queries, key..end.min(key + step), work);
        }
        self.log_sums(block, work.running);
        if turned::<K>() {
            reciprocals(work.running);
            let (from, factors) = (work.sums.as_ptr(), work.running[3 * ACROSS..].as_ptr());
            s.vectorize(Turned { from, to: self.rows_of(self.out, block), factors });
        } else {
            s.vectorize(Divide { of: self, block, sums: work.sums, running: work.running });
        }
    }

    /// One block of keys: scores, probabilities, and what they add to the sums.
    fn keys<K: TileKernel>(
        &self,
        kernel: K,
        block: Block,
        queries: Panels,
        keys: Range<usize>,
        work: &mut Work,
    ) {
        let diagonal = self.item.last_key(block.start) as isize - keys.start as isize;
        let scores = SmallProduct {
            rows: keys.len(),
            columns: block.count.next_multiple_of(kernel.columns()),
            depth: self.item.shape.head_size,
            left: work.keys.at_line(keys.start, kernel.rows()),
            right: queries,
            target: work.scores.as_mut_ptr(),
            stride: ACROSS,
            accumulate: false,
            row_scale: std::ptr::null(),
            useful: Useful::RowsUpTo(diagonal),
            turned: false,
        };
        // SAFETY: a block of keys begins with a panel; the scores' piece holds a block.
        unsafe { scores.run(kernel) };
        let last = block.start + block.count - 1;
        let masked = keys.end - 1 > self.item.last_key(block.start) || keys.start < work.first[last] as usize;
        let (of, over) = (self, keys.clone());
        kernel.simd().vectorize(Soften { of, block, keys: over, masked, work, kernel: PhantomData::<K> });
        self.weighted(kernel, block, keys, diagonal, work);
    }

    /// Adds the values of some keys, by their probabilities.
    fn weighted<K: TileKernel>(
        &self,
        kernel: K,
        block: Block,
        keys: Range<usize>,
        diagonal: isize,
        work: &mut Work,
    ) {
        let size = self.item.shape.head_size;
        let panel = if turned::<K>() { kernel.columns() } else { kernel.rows() };
        let product = SmallProduct {
            rows: if turned::<K>() { block.count.next_multiple_of(kernel.columns()) } else { block.count },
            columns: size.next_multiple_of(if turned::<K>() { kernel.rows() } else { kernel.columns() }),
            depth: keys.len(),
            left: Panels { start: work.scores.as_ptr(), panel, stride: ACROSS },
            right: work.values.at_depth::<K>(keys.start),
            target: work.sums.as_mut_ptr(),
            stride: if turned::<K>() { ACROSS } else { size.next_multiple_of(PANEL) },
            accumulate: true,
            row_scale: if turned::<K>() { std::ptr::null() } else { work.running[2 * ACROSS..].as_ptr() },
            useful: Useful::DepthUpTo(diagonal),
            turned: false,
        };
        let product = if turned::<K>() { product.turn() } else { product };
        // SAFETY: scores are rows of ACROSS, zero where they fill up a run; panels of values hold all keys; the sums' rows hold
        // whole panels.
        unsafe { product.run(kernel) };
    }

    /// Writes the log-sum-exp of a block's queries.
    fn log_sums(&self, block: Block, running: &[f32]) {
        for i in 0..block.count {
            let sum = (running[i] + running[ACROSS + i].log2()) * std::f32::consts::LN_2;
            // SAFETY: this item's own element.
            unsafe { *self.log_sum_exp.at(self.item.sums_at(block.head) + block.start + i) = sum };
        }
    }
}

/// What to multiply queries' sums with, where positions were.
fn reciprocals(running: &mut [f32]) {
    let (before, factors) = running.split_at_mut(3 * ACROSS);
    for (factor, total) in factors.iter_mut().zip(&before[ACROSS..]) {
        *factor = 1.0 / total;
    }
}

/// Vectors of queries worked on side by side.
const ABREAST: usize = 4;

/// From scores to probabilities relative to the running maximum; updates maximum, sum and the factor of what came
/// before: `running` holds [`ACROSS`] of each, in this order, then positions.
struct Soften<'a, 'b, 'c, K> {
    of: &'a Forward<'a>,
    block: Block,
    keys: Range<usize>,
    masked: bool,
    work: &'b mut Work<'c>,
    kernel: PhantomData<K>,
}

impl<K: TileKernel> Operation for Soften<'_, '_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for query in (0..self.block.count).step_by(ABREAST * S::LANES) {
            if self.masked {
                self.columns::<S, true>(s, query);
            } else {
                self.columns::<S, false>(s, query);
            }
        }
    }
}

impl<K: TileKernel> Soften<'_, '_, '_, K> {
    #[inline(always)]
    fn columns<S: Simd, const MASKED: bool>(&mut self, s: S, query: usize) {
        let scale = s.splat(self.of.item.scale_log2());
        let running = self.work.running.as_mut_ptr().wrapping_add(query);
        let before = load(s, running);
        let mut most = before;
        let scores = self.work.scores.as_mut_ptr().wrapping_add(query);
        let (first, last) = self.limits::<S, MASKED>(s, query);
        for (i, key) in self.keys.clone().enumerate() {
            let row = scores.wrapping_add(i * ACROSS);
            for j in 0..ABREAST {
                let at = row.wrapping_add(j * S::LANES);
                // SAFETY: ABREAST vectors from a multiple of their size on are inside a row of the scores.
                unsafe {
                    let mut score = s.mul(s.load(at), scale);
                    if MASKED {
                        let position = s.splat(key as f32);
                        let lowest = s.splat(f32::NEG_INFINITY);
                        score = s.select_le(position, last[j], score, lowest);
                        score = s.select_le(first[j], position, score, lowest);
                        s.store(at, score);
                    }
                    most[j] = s.max(most[j], score);
                }
            }
        }
        let mut less_most = most;
        for less in &mut less_most {
            *less = s.sub(s.splat(0.0), *less);
        }
        let mut sums = [s.splat(0.0); ABREAST];
        for i in (0..self.keys.len()).step_by(K::GROUP) {
            let row = scores.wrapping_add(i * ACROSS);
            for j in 0..ABREAST {
                let at = row.wrapping_add(j * S::LANES);
                // SAFETY: as above; a unit is stored where its keys, or earlier ones, were.
                unsafe {
                    let p = Self::probability::<S, MASKED>(s, at, scale, less_most[j]);
                    sums[j] = s.add(sums[j], p);
                    let mut unit = rounded::<S, K>(s, p);
                    if K::GROUP == 2 {
                        let mut second = s.splat(0.0);
                        if i + 1 < self.keys.len() {
                            second = Self::probability::<S, MASKED>(s, at.add(ACROSS), scale, less_most[j]);
                            sums[j] = s.add(sums[j], second);
                        }
                        unit = s.pair(p, second);
                    }
                    s.store(scores.wrapping_add(i / K::GROUP * ACROSS + j * S::LANES), unit);
                }
            }
        }
        let mut factors = before;
        for j in 0..ABREAST {
            let at = running.wrapping_add(j * S::LANES);
            // SAFETY: three rows of ACROSS queries.
            unsafe {
                let factor = exp2(s, s.sub(before[j], most[j]));
                s.store(at, most[j]);
                let sum = s.load(at.add(ACROSS));
                s.store(at.add(ACROSS), s.mul_add(sum, factor, sums[j]));
                s.store(at.add(2 * ACROSS), factor);
                factors[j] = factor;
            }
        }
        if turned::<K>() {
            self.fill_run(s, query);
            self.rescale(s, query, &factors);
        }
    }

    /// Zeros in the units that fill up the last run.
    #[inline(always)]
    fn fill_run<S: Simd>(&mut self, s: S, query: usize) {
        let units =
            self.keys.len().div_ceil(K::GROUP)..self.keys.len().next_multiple_of(run_of::<K>()) / K::GROUP;
        for unit in units {
            for j in 0..ABREAST {
                let to = self.work.scores[unit * ACROSS + query + j * S::LANES..].as_mut_ptr();
                // SAFETY: a vector of a row of the scores, of which a block has whole runs.
                unsafe { s.store(to, s.splat(0.0)) };
            }
        }
    }

    /// Multiplies turned sums, unless no maximum has grown.
    #[inline(always)]
    fn rescale<S: Simd>(&mut self, s: S, query: usize, factors: &[S::V; ABREAST]) {
        let (one, mut grown) = (s.splat(1.0), s.splat(0.0));
        for factor in factors {
            // Where there is no query, what is there may not be a number: that counts as grown.
            grown = s.add(grown, s.select_le(one, *factor, s.splat(0.0), one));
        }
        if s.sum(grown) == 0.0 {
            return;
        }
        let sums = self.work.sums.as_mut_ptr().wrapping_add(query);
        for row in 0..self.of.item.shape.head_size {
            for (j, factor) in factors.iter().enumerate() {
                let at = sums.wrapping_add(row * ACROSS + j * S::LANES);
                // SAFETY: turned sums have a row of ACROSS for each element of the head.
                unsafe { s.store(at, s.mul(s.load(at), *factor)) };
            }
        }
    }

    /// A vector of probabilities, relative to the queries' maxima, from scores.
    ///
    /// # Safety
    /// They are readable.
    #[inline(always)]
    unsafe fn probability<S: Simd, const MASKED: bool>(
        s: S,
        at: *const f32,
        scale: S::V,
        less_most: S::V,
    ) -> S::V {
        // SAFETY: passed on.
        let score = unsafe { s.load(at) };
        // Masked scores have their factor already.
        exp2(s, if MASKED { s.add(score, less_most) } else { s.mul_add(score, scale, less_most) })
    }

    /// First and last key of each query.
    #[inline(always)]
    fn limits<S: Simd, const MASKED: bool>(
        &mut self,
        s: S,
        query: usize,
    ) -> ([S::V; ABREAST], [S::V; ABREAST]) {
        if !MASKED {
            return ([s.splat(0.0); ABREAST], [s.splat(0.0); ABREAST]);
        }
        let positions = &mut self.work.running[3 * ACROSS..];
        for (i, position) in positions.iter_mut().enumerate() {
            *position = self.of.item.last_key(self.block.start + i) as f32;
        }
        let first = self.work.first[self.block.start + query..].as_ptr();
        (load(s, first), load(s, positions[query..].as_ptr()))
    }
}

#[inline(always)]
fn load<S: Simd>(s: S, from: *const f32) -> [S::V; ABREAST] {
    let mut vectors = [s.splat(0.0); ABREAST];
    for (j, v) in vectors.iter_mut().enumerate() {
        // SAFETY: callers pass ACROSS elements less a multiple of ABREAST vectors, each a divisor of it.
        *v = unsafe { s.load(from.wrapping_add(j * S::LANES)) };
    }
    vectors
}

/// Divides the sums by the queries' totals and writes them out.
struct Divide<'a> {
    of: &'a Forward<'a>,
    block: Block,
    sums: &'a [f32],
    running: &'a [f32],
}

impl Operation for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (to, size) = (self.of.rows_of(self.of.out, self.block), self.of.item.shape.head_size);
        for i in 0..self.block.count {
            let (factor, to) = (s.splat(1.0 / self.running[ACROSS + i]), to.row(i));
            let from = &self.sums[i * size.next_multiple_of(PANEL)..][..size];
            for at in (0..size).step_by(S::LANES) {
                let count = S::LANES.min(size - at);
                // SAFETY: inside the query's head of the output, which this item alone writes.
                unsafe {
                    let v = s.load_up_to(from.as_ptr().add(at), count);
                    to.store(s, at, s.mul(v, factor));
                }
            }
        }
    }
}
