//! Backward, in blocks of about as many queries as [`ACROSS`] keys.
//!
//! Probabilities are made again from the scores and their log-sum-exp. A block of scores lies with a query in each
//! row. Of the products that give `d_k` and `d_v` it is the left side as it stands, in units of its rows, or the right
//! side of the turned products; of the one that gives `d_q` it is the left side, transposed, or in runs of units as it
//! stands.

use super::gradient::{Across, Gradient};
use super::product::{PANEL, Panels, Side, SmallProduct, Useful, panels_len, run_of, turned};
use super::rows::{Head, HeadRows};
use super::slopes::Slopes;
use super::{ACROSS, Item, KernelOperation, Pieces, down, pieces_len, rounded};
use crate::cpu::gemm::TileKernel;
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

/// Lengths of the pieces of scratch.
struct Lens {
    lines: usize,
    depth: usize,
    block: usize,
    queries: usize,
    sums: usize,
}

impl Lens {
    fn new(shape: Attention, apart: bool) -> Self {
        let (len, size) = (shape.key_len, shape.head_size);
        Self {
            lines: panels_len(len, size),
            depth: panels_len(size, len),
            block: ACROSS * ACROSS,
            queries: len,
            sums: if apart { len.next_multiple_of(ACROSS) * size.next_multiple_of(PANEL) } else { 0 },
        }
    }
}

/// Elements of scratch that an item needs; more where gradients are summed `apart` from their place, being kept in bf16 or
/// made on tiles.
pub fn backward_scratch(shape: Attention, apart: bool) -> usize {
    let Lens { lines, depth, block, queries, sums } = Lens::new(shape, apart);
    let of = |count: usize, len: usize| count * pieces_len(&[len]);
    of(4, lines) + of(3, depth) + of(3, block) + of(1, block / 2) + of(3, queries) + of(3, sums)
}

/// An item's scratch.
pub(super) struct Work<'a> {
    /// Keys and values as columns along the head, and keys as depth.
    keys: Panels,
    values: Panels,
    keys_deep: Panels,
    /// Queries and output gradients of one head as rows along the head, and as depth.
    queries: Panels,
    d_out: Panels,
    queries_deep: Panels,
    d_out_deep: Panels,
    /// Room for all these, in two sizes.
    lines: [&'a mut [f32]; 4],
    deep: [&'a mut [f32]; 3],
    /// One block: probabilities and gradients of the scores, both in units of the depth once [`Slopes`] has been there.
    pub(super) p: &'a mut [f32],
    pub(super) d_scores: &'a mut [f32],
    /// Gradients of the scores in units along the keys: in runs, or, half a block, to be transposed.
    pub(super) along: &'a mut [f32],
    /// The same transposed.
    pub(super) transposed: &'a mut [f32],
    /// Gradients of keys and values, and of one head's queries.
    d_keys: Gradient,
    d_values: Gradient,
    d_queries: Gradient,
    /// Room for these three, where they are not summed in their place.
    gradients: [&'a mut [f32]; 3],
    /// For each query: log-sum-exp in units of log 2, `sum(d_out * out)`, first key.
    pub(super) sums: &'a mut [f32],
    pub(super) means: &'a mut [f32],
    pub(super) first: &'a mut [f32],
}

impl<'a> Work<'a> {
    fn new(shape: Attention, apart: bool, scratch: &'a mut [f32]) -> Self {
        let (mut pieces, lens) = (Pieces(scratch), Lens::new(shape, apart));
        let (lines, deep) = (pieces.take_each(lens.lines), pieces.take_each(lens.depth));
        let [p, d_scores, transposed] = pieces.take_each(lens.block);
        let along = pieces.take(lens.block / 2);
        let [sums, means, first] = pieces.take_each(lens.queries);
        Self {
            keys: Panels::NONE,
            values: Panels::NONE,
            keys_deep: Panels::NONE,
            queries: Panels::NONE,
            d_out: Panels::NONE,
            queries_deep: Panels::NONE,
            d_out_deep: Panels::NONE,
            lines,
            deep,
            p,
            d_scores,
            along,
            transposed,
            d_keys: Gradient::NONE,
            d_values: Gradient::NONE,
            d_queries: Gradient::NONE,
            gradients: pieces.take_each(lens.sums),
            sums,
            means,
            first,
        }
    }
}

impl KernelOperation for Backward<'_> {
    fn run<K: TileKernel>(mut self, kernel: K) {
        let s = kernel.simd();
        let apart = Gradient::apart::<K>(self.d_q.format);
        let mut work = Work::new(self.item.shape, apart, std::mem::take(&mut self.scratch));
        self.item.first_keys(work.first);
        self.begin_keys(kernel, &mut work);
        kernel.begin();
        for head in self.item.heads() {
            self.begin_head(kernel, head, &mut work);
            for key in (0..self.item.shape.key_len).step_by(ACROSS) {
                self.keys(kernel, key..self.item.shape.key_len.min(key + ACROSS), &mut work);
            }
            work.d_queries.write(s, Head::of_queries(self.item, self.d_q, head));
        }
        kernel.end();
        work.d_keys.write(s, Head::of_keys(self.item, self.d_k));
        work.d_values.write(s, Head::of_keys(self.item, self.d_v));
    }
}

impl Backward<'_> {
    /// Packs keys and values, and clears their gradients.
    fn begin_keys<K: TileKernel>(&self, kernel: K, work: &mut Work) {
        let of = |rows| Head::of_keys(self.item, rows);
        let Work { lines: [keys, values, ..], deep: [deep, ..], gradients: [d_keys, d_values, _], .. } = work;
        // SAFETY: the item's keys and values are readable, their gradients its own, by the word of the device; each piece of
        // scratch has one use.
        unsafe {
            work.keys = Panels::of_lines(kernel, Side::Right, of(self.k), keys);
            work.values = Panels::of_lines(kernel, Side::Right, of(self.v), values);
            work.keys_deep = Panels::of_depth(kernel, Side::Right, of(self.k), deep);
            work.d_keys = Gradient::begin::<K>(of(self.d_k), Across::Keys, d_keys);
            work.d_values = Gradient::begin::<K>(of(self.d_v), Across::Keys, d_values);
        }
    }

    /// Packs one head's queries and output gradients, and clears the gradients of queries.
    fn begin_head<K: TileKernel>(&self, kernel: K, head: usize, work: &mut Work) {
        let of = |rows| Head::of_queries(self.item, rows, head);
        let Work { lines: [.., queries, d_out], deep: [_, deep, d_out_deep], gradients: [.., d_q], .. } =
            work;
        // SAFETY: the head's rows are readable, and the gradient of its queries its own, by the word of the device; each piece
        // of scratch has one use, which ends with the head.
        unsafe {
            work.queries = Panels::of_lines(kernel, Side::Left, of(self.q), queries);
            work.d_out = Panels::of_lines(kernel, Side::Left, of(self.d_out), d_out);
            work.queries_deep = Panels::of_depth(kernel, Side::of_deep::<K>(), of(self.q), deep);
            work.d_out_deep = Panels::of_depth(kernel, Side::of_deep::<K>(), of(self.d_out), d_out_deep);
            work.d_queries = Gradient::begin::<K>(of(self.d_q), Across::Queries, d_q);
        }
        for (query, sum) in work.sums.iter_mut().enumerate() {
            // SAFETY: the head's own log-sum-exp.
            let natural = unsafe { *self.log_sum_exp.at(self.item.sums_at(head) + query) };
            *sum = natural * std::f32::consts::LOG2_E;
        }
        let (out, d_out) = (of(self.out), of(self.d_out));
        kernel.simd().vectorize(Means { out, d_out, means: work.means, kernel: PhantomData::<K> });
    }

    /// All queries that see a block of keys.
    fn keys<K: TileKernel>(&self, kernel: K, keys: Range<usize>, work: &mut Work) {
        let (len, step) = (self.item.shape.query_len, down(kernel));
        for query in (keys.start / step * step..len).step_by(step) {
            if work.first[query] as usize >= keys.end {
                break;
            }
            self.block(kernel, query..len.min(query + step), keys.clone(), work);
        }
    }

    fn block<K: TileKernel>(&self, kernel: K, queries: Range<usize>, keys: Range<usize>, work: &mut Work) {
        self.scores(kernel, (work.queries, work.keys), &queries, &keys, work.p);
        self.scores(kernel, (work.d_out, work.values), &queries, &keys, work.d_scores);
        let last = work.first[queries.end - 1] as usize;
        // A run that is not full is filled up by masking what comes after the last key.
        let open = !keys.len().is_multiple_of(run_of::<K>());
        let masked = keys.end - 1 > queries.start || keys.start < last || open;
        let (item, of, over) = (self.item, queries.clone(), keys.clone());
        kernel.simd().vectorize(Slopes { item, queries: of, keys: over, masked, work, kernel });
        let diagonal = queries.start as isize - keys.start as isize;
        let (deep, useful) = (work.d_out_deep.at_depth::<K>(queries.start), Useful::DepthFrom(diagonal));
        let to = work.d_values.from(keys.start);
        self.of_keys(kernel, work.p, deep, (keys.len(), queries.len()), to, useful);
        let deep = work.queries_deep.at_depth::<K>(queries.start);
        let to = work.d_keys.from(keys.start);
        self.of_keys(kernel, work.d_scores, deep, (keys.len(), queries.len()), to, useful);
        self.of_queries(kernel, queries, keys, diagonal, work);
    }

    /// Products of packed rows and packed columns along the head.
    fn scores<K: TileKernel>(
        &self,
        kernel: K,
        (rows, columns): (Panels, Panels),
        queries: &Range<usize>,
        keys: &Range<usize>,
        to: &mut [f32],
    ) {
        let product = SmallProduct {
            rows: queries.len(),
            columns: keys.len().next_multiple_of(kernel.columns()),
            depth: self.item.shape.head_size,
            left: rows.at_line(queries.start, kernel.rows()),
            right: columns.at_line(keys.start, kernel.columns()),
            target: to.as_mut_ptr(),
            stride: ACROSS,
            accumulate: false,
            row_scale: std::ptr::null(),
            useful: Useful::ColumnsUpTo(queries.start as isize - keys.start as isize),
            turned: false,
        };
        // SAFETY: blocks of queries and of keys begin with a panel; `to` holds a block.
        unsafe { product.run(kernel) };
    }

    /// Adds the products of a block of `(keys, queries)`, in units of queries, with `deep` to a gradient of keys.
    fn of_keys<K: TileKernel>(
        &self,
        kernel: K,
        block: &[f32],
        deep: Panels,
        (keys, queries): (usize, usize),
        to: Gradient,
        useful: Useful,
    ) {
        let panel = if turned::<K>() { kernel.columns() } else { kernel.rows() };
        let product = SmallProduct {
            rows: if turned::<K>() { keys.next_multiple_of(kernel.columns()) } else { keys },
            columns: to.columns,
            depth: queries,
            left: Panels { start: block.as_ptr(), panel, stride: ACROSS },
            right: deep,
            target: to.start,
            stride: to.stride,
            accumulate: true,
            row_scale: std::ptr::null(),
            useful,
            turned: false,
        };
        let product = if turned::<K>() { product.turn() } else { product };
        // SAFETY: a block's rows and depth are inside its piece, zero where they fill up a run, and the panels; the gradient is
        // this item's own, and where it is turned it has room for whole tiles.
        unsafe { product.run(kernel) };
    }

    /// Adds the products of a block of gradients of scores with keys to the gradient of queries.
    fn of_queries<K: TileKernel>(
        &self,
        kernel: K,
        queries: Range<usize>,
        keys: Range<usize>,
        diagonal: isize,
        work: &Work,
    ) {
        let to = work.d_queries.from(queries.start);
        let left = if turned::<K>() {
            let (stride, units) = (kernel.row_stride(), ACROSS / K::GROUP);
            Panels { start: work.along.as_ptr(), panel: stride * units, stride }
        } else {
            Panels { start: work.transposed.as_ptr(), panel: kernel.rows(), stride: ACROSS }
        };
        let product = SmallProduct {
            rows: queries.len(),
            columns: to.columns,
            depth: keys.len(),
            left,
            right: work.keys_deep.at_depth::<K>(keys.start),
            target: to.start,
            stride: to.stride,
            accumulate: true,
            row_scale: std::ptr::null(),
            useful: Useful::DepthUpTo(diagonal),
            turned: false,
        };
        // SAFETY: as in of_keys.
        unsafe { product.run(kernel) };
    }
}

/// Rows that are asked for before they are read: a row is read in a few cycles, and lies far from the next.
const AHEAD: usize = 12;

/// `sum(d_out * out)` of each query of a head: the mean of the gradients of its probabilities. They are made of the rounded
/// `d_out`, and so is this, or what is left of their difference would be the rounding.
struct Means<'a, K> {
    out: Head,
    d_out: Head,
    means: &'a mut [f32],
    kernel: PhantomData<K>,
}

impl<K: TileKernel> Operation for Means<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (query, mean) in self.means.iter_mut().enumerate() {
            let (a, b) = (self.out.row(query), self.d_out.row(query));
            let mut sum = s.splat(0.0);
            for at in (0..self.out.size).step_by(S::LANES) {
                a.prefetch(s, at, AHEAD);
                // SAFETY: inside the head.
                let (a, b) = unsafe { (a.load(s, at), b.load(s, at)) };
                sum = s.mul_add(a, rounded::<S, K>(s, b), sum);
            }
            *mean = s.sum(sum);
        }
    }
}
