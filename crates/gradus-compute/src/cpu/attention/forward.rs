//! Forward, in blocks of [`ACROSS`] queries and about [`DOWN`] keys.
//!
//! A block of scores lies with a key in each row and a query in each column: the running maxima and sums of queries
//! are then vectors, and the block is the left side of the product with the values as it stands.

use super::{
    ACROSS, Deep, DotOperation, HeadRows, Item, Kernel, LOWEST, PANEL, Pieces, SmallProduct, Useful, deepen,
    down, pack_lines, panels_len, pieces_len, rounded,
};
use crate::cpu::gemm::{Dot, TileKernel};
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
    keys: &'a mut [f32],
    values: Deep,
    queries: &'a mut [f32],
    scores: &'a mut [f32],
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

impl DotOperation for Forward<'_> {
    fn run<S: Simd, D: Dot>(self, s: S) {
        run::<S, D>(self, s);
    }
}

fn run<S: Simd, D: Dot>(mut this: Forward, s: S) {
    if this.blocks.is_empty() {
        return;
    }
    let shape = this.item.shape;
    let mut pieces = Pieces(std::mem::take(&mut this.scratch));
    let [keys, values, queries, scores, sums, running, first] =
        scratch_lens(shape).map(|len| pieces.take(len));
    let (row, head, size) = (this.item.key_row(), this.item.kv_head, shape.head_size);
    // SAFETY: the item's keys and values are readable by the word of the device.
    let values = unsafe {
        pack_lines::<S, D>(s, true, this.k.along(row, head, size), shape.key_len, size, keys);
        deepen::<S, D>(s, this.v.across(row, head, size), shape.key_len, size, values)
    };
    let mut work = Work { keys, values, queries, scores, sums, running, first };
    this.item.first_keys(work.first);
    for head in this.item.heads() {
        for block in this.blocks.clone() {
            let start = block * ACROSS;
            let block = Block { head, start, count: ACROSS.min(shape.query_len - start) };
            this.block::<S, D>(s, block, &mut work);
        }
    }
}

impl Forward<'_> {
    fn block<S: Simd, D: Dot>(&self, s: S, block: Block, work: &mut Work) {
        let size = self.item.shape.head_size;
        // SAFETY: the block's queries are readable; the piece was sized for a block.
        unsafe {
            let queries = self.q.along(self.item.query_row() + block.start, block.head, size);
            pack_lines::<S, D>(s, false, queries, block.count, size, work.queries);
        }
        work.sums.fill(0.0);
        work.running[..ACROSS].fill(LOWEST);
        work.running[ACROSS..].fill(0.0);
        let step = down::<S, D>();
        let first = work.first[block.start] as usize / step * step;
        let end = self.item.last_key(block.start + block.count - 1) + 1;
        for key in (first..end).step_by(step) {
            self.keys::<S, D>(s, block, key..end.min(key + step), work);
        }
        s.vectorize(Finish { of: self, block, sums: work.sums, running: work.running });
    }

    /// One block of keys: scores, probabilities, and what they add to the sums.
    fn keys<S: Simd, D: Dot>(&self, s: S, block: Block, keys: Range<usize>, work: &mut Work) {
        let kernel = Kernel::<S, D>::new(s);
        let size = self.item.shape.head_size;
        let units = size.div_ceil(D::GROUP);
        let diagonal = self.item.last_key(block.start) as isize - keys.start as isize;
        let scores = SmallProduct {
            rows: keys.len(),
            columns: block.count.next_multiple_of(kernel.columns()),
            depth: size,
            left: work.keys[keys.start / kernel.rows() * kernel.row_stride() * units..].as_ptr(),
            left_panel: kernel.row_stride() * units,
            left_stride: kernel.row_stride(),
            right: work.queries.as_ptr(),
            right_panel: kernel.columns() * units,
            right_stride: kernel.columns(),
            target: work.scores.as_mut_ptr(),
            stride: ACROSS,
            accumulate: false,
            row_scale: std::ptr::null(),
            useful: Useful::RowsUpTo(diagonal),
        };
        // SAFETY: a block of keys begins with a panel; the scores' piece holds a block.
        unsafe { scores.run::<S, D>(s) };
        let last = block.start + block.count - 1;
        let masked = keys.end - 1 > self.item.last_key(block.start) || keys.start < work.first[last] as usize;
        let dot = PhantomData::<D>;
        s.vectorize(Soften { of: self, block, keys: keys.clone(), masked, work, dot });
        let values = work.values.from::<D>(keys.start);
        let weighted = SmallProduct {
            rows: block.count,
            columns: size.next_multiple_of(kernel.columns()),
            depth: keys.len(),
            left: work.scores.as_ptr(),
            left_panel: kernel.rows(),
            left_stride: ACROSS,
            right: values.start,
            right_panel: values.panel,
            right_stride: values.stride,
            target: work.sums.as_mut_ptr(),
            stride: size.next_multiple_of(PANEL),
            accumulate: true,
            row_scale: work.running[2 * ACROSS..].as_ptr(),
            useful: Useful::DepthUpTo(diagonal),
        };
        // SAFETY: scores are rows of ACROSS; panels of values hold all keys; the sums' rows hold whole panels.
        unsafe { weighted.run::<S, D>(s) };
    }
}

/// Vectors of queries worked on side by side.
const ABREAST: usize = 4;

/// From scores to probabilities relative to the running maximum; updates maximum, sum and the factor of what came
/// before: `running` holds [`ACROSS`] of each, in this order, then positions.
struct Soften<'a, 'b, 'c, D> {
    of: &'a Forward<'a>,
    block: Block,
    keys: Range<usize>,
    masked: bool,
    work: &'b mut Work<'c>,
    dot: PhantomData<D>,
}

impl<D: Dot> Operation for Soften<'_, '_, '_, D> {
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

impl<D: Dot> Soften<'_, '_, '_, D> {
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
        let mut sums = [s.splat(0.0); ABREAST];
        for i in (0..self.keys.len()).step_by(D::GROUP) {
            let row = scores.wrapping_add(i * ACROSS);
            for j in 0..ABREAST {
                let at = row.wrapping_add(j * S::LANES);
                // SAFETY: as above; a unit is stored where its keys, or earlier ones, were.
                unsafe {
                    let p = Self::probability::<S, MASKED>(s, at, scale, most[j]);
                    sums[j] = s.add(sums[j], p);
                    let mut unit = rounded::<S, D>(s, p);
                    if D::GROUP == 2 {
                        let mut second = s.splat(0.0);
                        if i + 1 < self.keys.len() {
                            second = Self::probability::<S, MASKED>(s, at.add(ACROSS), scale, most[j]);
                            sums[j] = s.add(sums[j], second);
                        }
                        unit = s.pair(p, second);
                    }
                    s.store(scores.wrapping_add(i / D::GROUP * ACROSS + j * S::LANES), unit);
                }
            }
        }
        for j in 0..ABREAST {
            let at = running.wrapping_add(j * S::LANES);
            // SAFETY: three rows of ACROSS queries.
            unsafe {
                let factor = exp2(s, s.sub(before[j], most[j]));
                s.store(at, most[j]);
                let sum = s.load(at.add(ACROSS));
                s.store(at.add(ACROSS), s.mul_add(sum, factor, sums[j]));
                s.store(at.add(2 * ACROSS), factor);
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
        most: S::V,
    ) -> S::V {
        // SAFETY: passed on.
        let score = unsafe { s.load(at) };
        // Masked scores have their factor already.
        let score = if MASKED { score } else { s.mul(score, scale) };
        exp2(s, s.sub(score, most))
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
struct Finish<'a> {
    of: &'a Forward<'a>,
    block: Block,
    sums: &'a [f32],
    running: &'a [f32],
}

impl Operation for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let item = self.of.item;
        let size = item.shape.head_size;
        for i in 0..self.block.count {
            let (most, total) = (self.running[i], self.running[ACROSS + i]);
            let from = &self.sums[i * size.next_multiple_of(PANEL)..][..size];
            let row = item.query_row() + self.block.start + i;
            let to = self.of.out.at(row, self.block.head, size);
            for at in (0..size).step_by(S::LANES) {
                let count = S::LANES.min(size - at);
                // SAFETY: inside the query's head of the output, which this item alone writes.
                unsafe {
                    let v = s.load_up_to(from.as_ptr().add(at), count);
                    self.of.out.store(s, to, at, count, s.mul(v, s.splat(1.0 / total)));
                }
            }
            let sum = (most + total.log2()) * std::f32::consts::LN_2;
            // SAFETY: this item's own element.
            unsafe { *self.of.log_sum_exp.at(item.sums_at(self.block.head) + self.block.start + i) = sum };
        }
    }
}
