//! Backward, in blocks of about [`DOWN`] queries and [`ACROSS`] keys.
//!
//! Probabilities are made again from the scores and their log-sum-exp. A block of scores lies with a query in each row:
//! as it stands it is the left side of the products that give `d_k` and `d_v`; transposed, of the one that gives `d_q`.

use super::slopes::Slopes;
use super::{
    ACROSS, Deep, DotOperation, HeadRows, Item, Kernel, Pieces, SmallProduct, Useful, deepen, down,
    pack_lines, panels_len, pieces_len, rounded,
};
use crate::cpu::gemm::{Dot, TileKernel};
use crate::cpu::memory::Elements;
use crate::cpu::simd::{Operation, Simd};
use crate::device::Attention;
use std::marker::PhantomData;
use std::ops::Range;

/// Gradients of one item.
pub struct Backward<'a> {
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
    /// As `out`.
    pub d_out: HeadRows,
    /// As `q`.
    pub d_q: HeadRows,
    /// As `k`.
    pub d_k: HeadRows,
    /// As `v`.
    pub d_v: HeadRows,
    /// At least [`backward_scratch`] elements.
    pub scratch: &'a mut [f32],
}

fn scratch_lens(shape: Attention) -> [usize; 14] {
    let (len, size) = (shape.key_len, shape.head_size);
    let (lines, depth) = (panels_len(len, size), panels_len(size, len));
    let block = ACROSS * ACROSS;
    [lines, lines, depth, lines, lines, depth, depth, block, block, block, block / 2, len, len, len]
}

/// Elements of scratch that an item needs.
pub fn backward_scratch(shape: Attention) -> usize {
    pieces_len(&scratch_lens(shape))
}

/// An item's scratch.
pub(super) struct Work<'a> {
    /// Keys and values as columns along the head, and keys as depth.
    keys: &'a mut [f32],
    values: &'a mut [f32],
    keys_deep: Deep,
    /// Queries and output gradients of one head as rows along the head, and as depth.
    queries: &'a mut [f32],
    d_out: &'a mut [f32],
    queries_deep: Deep,
    d_out_deep: Deep,
    /// Room for the last three, where they are packed.
    deep: [&'a mut [f32]; 3],
    /// One block: probabilities, gradients of the scores, and these transposed; all in units of the depth once [`Slopes`]
    /// has been there.
    pub(super) p: &'a mut [f32],
    pub(super) d_scores: &'a mut [f32],
    pub(super) transposed: &'a mut [f32],
    /// Where gradients of scores are paired along the keys before they are transposed: half a block.
    pub(super) along: &'a mut [f32],
    /// For each query: log-sum-exp in units of log 2, `sum(d_out * out)`, first key.
    pub(super) sums: &'a mut [f32],
    pub(super) means: &'a mut [f32],
    pub(super) first: &'a mut [f32],
}

impl DotOperation for Backward<'_> {
    fn run<S: Simd, D: Dot>(self, s: S) {
        run::<S, D>(self, s);
    }
}

fn run<S: Simd, D: Dot>(mut this: Backward, s: S) {
    let mut pieces = Pieces(std::mem::take(&mut this.scratch));
    let [a, b, c, d, e, f, g, h, i, j, n, k, l, m] =
        scratch_lens(this.item.shape).map(|len| pieces.take(len));
    let mut work = Work {
        keys: a,
        values: b,
        keys_deep: Deep::NONE,
        deep: [c, f, g],
        queries: d,
        d_out: e,
        queries_deep: Deep::NONE,
        d_out_deep: Deep::NONE,
        p: h,
        d_scores: i,
        transposed: j,
        along: n,
        sums: k,
        means: l,
        first: m,
    };
    this.item.first_keys(work.first);
    this.begin_keys::<S, D>(s, &mut work);
    for head in this.item.heads() {
        this.begin_head::<S, D>(s, head, &mut work);
        for key in (0..this.item.shape.key_len).step_by(ACROSS) {
            this.keys::<S, D>(s, head, key..this.item.shape.key_len.min(key + ACROSS), &mut work);
        }
    }
}

impl Backward<'_> {
    /// Packs keys and values, and clears their gradients.
    fn begin_keys<S: Simd, D: Dot>(&self, s: S, work: &mut Work) {
        let Item { shape, kv_head, .. } = self.item;
        let (row, len, size) = (self.item.key_row(), shape.key_len, shape.head_size);
        let (k, v) = (self.k.at(row, kv_head, size), self.v.at(row, kv_head, size));
        // SAFETY: the item's keys and values are readable, their gradients its own, by the word of the device.
        unsafe {
            pack_lines::<S, D>(s, false, k, self.k.stride, len, size, work.keys);
            pack_lines::<S, D>(s, false, v, self.v.stride, len, size, work.values);
            work.keys_deep = deepen::<S, D>(s, k, self.k.stride, len, size, work.deep[0]);
            clear(self.d_k, row, kv_head, len, size);
            clear(self.d_v, row, kv_head, len, size);
        }
    }

    /// Packs one head's queries and output gradients, and clears the gradients of queries.
    fn begin_head<S: Simd, D: Dot>(&self, s: S, head: usize, work: &mut Work) {
        let (row, len, size) = (self.item.query_row(), self.item.shape.query_len, self.item.shape.head_size);
        let (q, d_out) = (self.q.at(row, head, size), self.d_out.at(row, head, size));
        // SAFETY: the head's rows are readable, and the gradient of its queries its own, by the word of the device.
        unsafe {
            pack_lines::<S, D>(s, true, q, self.q.stride, len, size, work.queries);
            pack_lines::<S, D>(s, true, d_out, self.d_out.stride, len, size, work.d_out);
            work.queries_deep = deepen::<S, D>(s, q, self.q.stride, len, size, work.deep[1]);
            work.d_out_deep = deepen::<S, D>(s, d_out, self.d_out.stride, len, size, work.deep[2]);
            clear(self.d_q, row, head, len, size);
        }
        for (query, sum) in work.sums.iter_mut().enumerate() {
            // SAFETY: the head's own log-sum-exp.
            let natural = unsafe { *self.log_sum_exp.at(self.item.sums_at(head) + query) };
            *sum = natural * std::f32::consts::LOG2_E;
        }
        s.vectorize(Means { of: self, head, means: work.means, dot: PhantomData::<D> });
    }

    /// All queries that see a block of keys.
    fn keys<S: Simd, D: Dot>(&self, s: S, head: usize, keys: Range<usize>, work: &mut Work) {
        let (len, step) = (self.item.shape.query_len, down::<S, D>());
        for query in (keys.start / step * step..len).step_by(step) {
            if work.first[query] as usize >= keys.end {
                break;
            }
            self.block::<S, D>(s, head, query..len.min(query + step), keys.clone(), work);
        }
    }

    fn block<S: Simd, D: Dot>(
        &self,
        s: S,
        head: usize,
        queries: Range<usize>,
        keys: Range<usize>,
        work: &mut Work,
    ) {
        self.scores::<S, D>(s, work.queries, work.keys, &queries, &keys, work.p);
        self.scores::<S, D>(s, work.d_out, work.values, &queries, &keys, work.d_scores);
        let last = work.first[queries.end - 1] as usize;
        // A unit that is not full is filled up by masking what comes after the last key.
        let open = !keys.len().is_multiple_of(D::GROUP);
        let masked = keys.end - 1 > queries.start || keys.start < last || open;
        s.vectorize(Slopes {
            item: self.item,
            queries: queries.clone(),
            keys: keys.clone(),
            masked,
            work,
            dot: PhantomData::<D>,
        });
        let kv_head = self.item.kv_head;
        let (key, query) = (self.item.key_row() + keys.start, self.item.query_row() + queries.start);
        let diagonal = queries.start as isize - keys.start as isize;
        let (rows, depth) = (keys.len(), queries.len());
        let (deep, useful) = (work.d_out_deep.from::<D>(queries.start), Useful::DepthFrom(diagonal));
        self.gradient::<S, D>(s, (work.p, rows), (deep, depth), (self.d_v, key, kv_head), useful);
        let deep = work.queries_deep.from::<D>(queries.start);
        self.gradient::<S, D>(s, (work.d_scores, rows), (deep, depth), (self.d_k, key, kv_head), useful);
        let (deep, useful) = (work.keys_deep.from::<D>(keys.start), Useful::DepthUpTo(diagonal));
        self.gradient::<S, D>(
            s,
            (work.transposed, queries.len()),
            (deep, keys.len()),
            (self.d_q, query, head),
            useful,
        );
    }

    /// Products of packed rows and packed columns along the head.
    fn scores<S: Simd, D: Dot>(
        &self,
        s: S,
        rows: &[f32],
        columns: &[f32],
        queries: &Range<usize>,
        keys: &Range<usize>,
        to: &mut [f32],
    ) {
        let kernel = Kernel::<S, D>::new(s);
        let size = self.item.shape.head_size;
        let units = size.div_ceil(D::GROUP);
        let product = SmallProduct {
            rows: queries.len(),
            columns: keys.len().next_multiple_of(kernel.columns()),
            depth: size,
            left: rows[queries.start / kernel.rows() * kernel.row_stride() * units..].as_ptr(),
            left_panel: kernel.row_stride() * units,
            left_stride: kernel.row_stride(),
            right: columns[keys.start * units..].as_ptr(),
            right_panel: kernel.columns() * units,
            right_stride: kernel.columns(),
            target: to.as_mut_ptr(),
            stride: ACROSS,
            accumulate: false,
            row_scale: std::ptr::null(),
            useful: Useful::ColumnsUpTo(queries.start as isize - keys.start as isize),
        };
        // SAFETY: blocks of queries and of keys begin with a panel; `to` holds a block.
        unsafe { product.run::<S, D>(s) };
    }

    /// Adds `left^T * deep` to `rows` rows of a gradient; `left` has a row of [`ACROSS`] for each unit of the depth.
    fn gradient<S: Simd, D: Dot>(
        &self,
        s: S,
        (left, rows): (&[f32], usize),
        (deep, depth): (Deep, usize),
        (to, row, head): (HeadRows, usize, usize),
        useful: Useful,
    ) {
        let kernel = Kernel::<S, D>::new(s);
        let Item { shape, .. } = self.item;
        let product = SmallProduct {
            rows,
            columns: shape.head_size,
            depth,
            left: left.as_ptr(),
            left_panel: kernel.rows(),
            left_stride: ACROSS,
            right: deep.start,
            right_panel: deep.panel,
            right_stride: deep.stride,
            target: to.at(row, head, shape.head_size),
            stride: to.stride,
            accumulate: true,
            row_scale: std::ptr::null(),
            useful,
        };
        // SAFETY: a block's rows and depth are inside its piece and the panels; the gradient is this item's own.
        unsafe { product.run::<S, D>(s) };
    }
}

/// Sets a head's rows to zero.
///
/// # Safety
/// They are the caller's alone.
unsafe fn clear(to: HeadRows, row: usize, head: usize, rows: usize, size: usize) {
    for i in 0..rows {
        // SAFETY: as the caller says.
        unsafe { to.elements.slice_mut((row + i) * to.stride + head * size, size).fill(0.0) };
    }
}

/// `sum(d_out * out)` of each query of a head: the mean of the gradients of its probabilities. They are made of the rounded
/// `d_out`, and so is this, or what is left of their difference would be the rounding.
struct Means<'a, D> {
    of: &'a Backward<'a>,
    head: usize,
    means: &'a mut [f32],
    dot: PhantomData<D>,
}

impl<D: Dot> Operation for Means<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (row, size) = (self.of.item.query_row(), self.of.item.shape.head_size);
        for (query, mean) in self.means.iter_mut().enumerate() {
            let a = self.of.out.at(row + query, self.head, size);
            let b = self.of.d_out.at(row + query, self.head, size);
            let mut sum = s.splat(0.0);
            for at in (0..size).step_by(S::LANES) {
                let count = S::LANES.min(size - at);
                // SAFETY: inside the head.
                let (a, b) = unsafe { (s.load_up_to(a.add(at), count), s.load_up_to(b.add(at), count)) };
                sum = s.mul_add(a, rounded::<S, D>(s, b), sum);
            }
            *mean = s.sum(sum);
        }
    }
}
