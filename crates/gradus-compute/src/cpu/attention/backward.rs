//! Backward, in blocks of about [`DOWN`] queries and [`ACROSS`] keys.
//!
//! Probabilities are made again from the scores and their log-sum-exp. A block of scores lies with a query in each row:
//! as it stands it is the left side of the products that give `d_k` and `d_v`; transposed, of the one that gives `d_q`.

use super::{
    ACROSS, Deep, HeadRows, Item, Kernel, Pieces, SmallProduct, Useful, deepen, down, pack_lines, panels_len,
    pieces_len,
};
use crate::cpu::gemm::TileKernel;
use crate::cpu::math::exp2;
use crate::cpu::memory::Elements;
use crate::cpu::simd::{Operation, Simd};
use crate::device::Attention;
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

fn scratch_lens(shape: Attention) -> [usize; 13] {
    let (len, size) = (shape.key_len, shape.head_size);
    let (lines, depth) = (panels_len(len, size), panels_len(size, len));
    let block = ACROSS * ACROSS;
    [lines, lines, depth, lines, lines, depth, depth, block, block, block, len, len, len]
}

/// Elements of scratch that an item needs.
pub fn backward_scratch(shape: Attention) -> usize {
    pieces_len(&scratch_lens(shape))
}

/// An item's scratch.
struct Work<'a> {
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
    /// One block: probabilities, gradients of the scores, and these transposed.
    p: &'a mut [f32],
    d_scores: &'a mut [f32],
    transposed: &'a mut [f32],
    /// For each query: log-sum-exp in units of log 2, `sum(d_out * out)`, first key.
    sums: &'a mut [f32],
    means: &'a mut [f32],
    first: &'a mut [f32],
}

impl Operation for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        run(self, s);
    }
}

fn run<S: Simd>(mut this: Backward, s: S) {
    let mut pieces = Pieces(std::mem::take(&mut this.scratch));
    let [a, b, c, d, e, f, g, h, i, j, k, l, m] = scratch_lens(this.item.shape).map(|len| pieces.take(len));
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
        sums: k,
        means: l,
        first: m,
    };
    this.item.first_keys(work.first);
    this.begin_keys(s, &mut work);
    for head in this.item.heads() {
        this.begin_head(s, head, &mut work);
        for key in (0..this.item.shape.key_len).step_by(ACROSS) {
            this.keys(s, head, key..this.item.shape.key_len.min(key + ACROSS), &mut work);
        }
    }
}

impl Backward<'_> {
    /// Packs keys and values, and clears their gradients.
    fn begin_keys<S: Simd>(&self, s: S, work: &mut Work) {
        let Item { shape, kv_head, .. } = self.item;
        let (row, len, size) = (self.item.key_row(), shape.key_len, shape.head_size);
        let (k, v) = (self.k.at(row, kv_head, size), self.v.at(row, kv_head, size));
        // SAFETY: the item's keys and values are readable, their gradients its own, by the word of the device.
        unsafe {
            pack_lines(s, false, k, self.k.stride, len, size, work.keys);
            pack_lines(s, false, v, self.v.stride, len, size, work.values);
            work.keys_deep = deepen(s, k, self.k.stride, len, size, work.deep[0]);
            clear(self.d_k, row, kv_head, len, size);
            clear(self.d_v, row, kv_head, len, size);
        }
    }

    /// Packs one head's queries and output gradients, and clears the gradients of queries.
    fn begin_head<S: Simd>(&self, s: S, head: usize, work: &mut Work) {
        let (row, len, size) = (self.item.query_row(), self.item.shape.query_len, self.item.shape.head_size);
        let (q, d_out) = (self.q.at(row, head, size), self.d_out.at(row, head, size));
        // SAFETY: the head's rows are readable, and the gradient of its queries its own, by the word of the device.
        unsafe {
            pack_lines(s, true, q, self.q.stride, len, size, work.queries);
            pack_lines(s, true, d_out, self.d_out.stride, len, size, work.d_out);
            work.queries_deep = deepen(s, q, self.q.stride, len, size, work.deep[1]);
            work.d_out_deep = deepen(s, d_out, self.d_out.stride, len, size, work.deep[2]);
            clear(self.d_q, row, head, len, size);
        }
        for (query, sum) in work.sums.iter_mut().enumerate() {
            // SAFETY: the head's own log-sum-exp.
            let natural = unsafe { *self.log_sum_exp.at(self.item.sums_at(head) + query) };
            *sum = natural * std::f32::consts::LOG2_E;
        }
        s.vectorize(Means { of: self, head, means: work.means });
    }

    /// All queries that see a block of keys.
    fn keys<S: Simd>(&self, s: S, head: usize, keys: Range<usize>, work: &mut Work) {
        let (len, step) = (self.item.shape.query_len, down::<S>());
        for query in (keys.start / step * step..len).step_by(step) {
            if work.first[query] as usize >= keys.end {
                break;
            }
            self.block(s, head, query..len.min(query + step), keys.clone(), work);
        }
    }

    fn block<S: Simd>(&self, s: S, head: usize, queries: Range<usize>, keys: Range<usize>, work: &mut Work) {
        self.scores(s, work.queries, work.keys, &queries, &keys, work.p);
        self.scores(s, work.d_out, work.values, &queries, &keys, work.d_scores);
        let last = work.first[queries.end - 1] as usize;
        let masked = keys.end - 1 > queries.start || keys.start < last;
        s.vectorize(Slopes { of: self, queries: queries.clone(), keys: keys.clone(), masked, work });
        let kv_head = self.item.kv_head;
        let (key, query) = (self.item.key_row() + keys.start, self.item.query_row() + queries.start);
        let diagonal = queries.start as isize - keys.start as isize;
        let (rows, depth) = (keys.len(), queries.len());
        let (deep, useful) = (work.d_out_deep.from(queries.start), Useful::DepthFrom(diagonal));
        self.gradient(s, (work.p, rows), (deep, depth), (self.d_v, key, kv_head), useful);
        let deep = work.queries_deep.from(queries.start);
        self.gradient(s, (work.d_scores, rows), (deep, depth), (self.d_k, key, kv_head), useful);
        let (deep, useful) = (work.keys_deep.from(keys.start), Useful::DepthUpTo(diagonal));
        self.gradient(
            s,
            (work.transposed, queries.len()),
            (deep, keys.len()),
            (self.d_q, query, head),
            useful,
        );
    }

    /// Products of packed rows and packed columns along the head.
    fn scores<S: Simd>(
        &self,
        s: S,
        rows: &[f32],
        columns: &[f32],
        queries: &Range<usize>,
        keys: &Range<usize>,
        to: &mut [f32],
    ) {
        let kernel = Kernel::new(s);
        let size = self.item.shape.head_size;
        let product = SmallProduct {
            rows: queries.len(),
            columns: keys.len().next_multiple_of(kernel.columns()),
            depth: size,
            left: rows[queries.start / kernel.rows() * kernel.row_stride() * size..].as_ptr(),
            left_panel: kernel.row_stride() * size,
            left_stride: kernel.row_stride(),
            right: columns[keys.start * size..].as_ptr(),
            right_panel: kernel.columns() * size,
            right_stride: kernel.columns(),
            target: to.as_mut_ptr(),
            stride: ACROSS,
            accumulate: false,
            row_scale: std::ptr::null(),
            useful: Useful::ColumnsUpTo(queries.start as isize - keys.start as isize),
        };
        // SAFETY: blocks of queries and of keys begin with a panel; `to` holds a block.
        unsafe { product.run(s) };
    }

    /// Adds `left^T * deep` to `rows` rows of a gradient; `left` has a row of [`ACROSS`] for each of the depth.
    fn gradient<S: Simd>(
        &self,
        s: S,
        (left, rows): (&[f32], usize),
        (deep, depth): (Deep, usize),
        (to, row, head): (HeadRows, usize, usize),
        useful: Useful,
    ) {
        let kernel = Kernel::new(s);
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
        unsafe { product.run(s) };
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

/// `sum(d_out * out)` of each query of a head.
struct Means<'a> {
    of: &'a Backward<'a>,
    head: usize,
    means: &'a mut [f32],
}

impl Operation for Means<'_> {
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
                sum =
                    unsafe { s.mul_add(s.load_up_to(a.add(at), count), s.load_up_to(b.add(at), count), sum) };
            }
            *mean = s.sum(sum);
        }
    }
}

/// From scores and gradients of probabilities to probabilities and gradients of scores, these also transposed.
struct Slopes<'a, 'b, 'c> {
    of: &'a Backward<'a>,
    queries: Range<usize>,
    keys: Range<usize>,
    masked: bool,
    work: &'b mut Work<'c>,
}

impl Operation for Slopes<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for i in 0..self.queries.len() {
            if self.masked {
                self.row::<S, true>(s, i);
            } else {
                self.row::<S, false>(s, i);
            }
        }
        self.transpose(s);
    }
}

impl Slopes<'_, '_, '_> {
    #[inline(always)]
    fn row<S: Simd, const MASKED: bool>(&mut self, s: S, i: usize) {
        let query = self.queries.start + i;
        let item = self.of.item;
        let (scale_log2, scale) = (s.splat(item.scale_log2()), s.splat(item.shape.scale));
        let (sum, mean) = (s.splat(self.work.sums[query]), s.splat(self.work.means[query]));
        let lanes: [f32; 16] = std::array::from_fn(|lane| lane as f32);
        // SAFETY: sixteen elements hold any vector.
        let lanes = unsafe { s.load(lanes.as_ptr()) };
        let (first, last) = (s.splat(self.work.first[query]), s.splat(query as f32));
        for at in (0..self.keys.len()).step_by(S::LANES) {
            let p = self.work.p[i * ACROSS + at..].as_mut_ptr();
            let d = self.work.d_scores[i * ACROSS + at..].as_mut_ptr();
            // SAFETY: a row of ACROSS elements holds whole vectors.
            unsafe {
                let mut value = exp2(s, s.sub(s.mul(s.load(p), scale_log2), sum));
                let mut slope = s.mul(s.mul(value, scale), s.sub(s.load(d), mean));
                if MASKED {
                    // Both: where no tile was made, what is there may not be a number.
                    let (zero, position) =
                        (s.splat(0.0), s.add(lanes, s.splat((self.keys.start + at) as f32)));
                    value = s.select_le(first, position, s.select_le(position, last, value, zero), zero);
                    slope = s.select_le(first, position, s.select_le(position, last, slope, zero), zero);
                }
                s.store(p, value);
                s.store(d, slope);
            }
        }
    }

    /// Squares beyond the last query or key move what no product reads.
    #[inline(always)]
    fn transpose<S: Simd>(&mut self, s: S) {
        for i in (0..self.queries.len()).step_by(S::LANES) {
            for j in (0..self.keys.len()).step_by(S::LANES) {
                let mut square = s.square();
                for (k, v) in square.as_mut().iter_mut().enumerate() {
                    // SAFETY: a block is ACROSS x ACROSS, a multiple of LANES each way.
                    *v = unsafe { s.load(self.work.d_scores[(i + k) * ACROSS + j..].as_ptr()) };
                }
                s.transpose(&mut square);
                for (k, v) in square.as_mut().iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { s.store(self.work.transposed[(j + k) * ACROSS + i..].as_mut_ptr(), *v) };
                }
            }
        }
    }
}
