//! Backward, in blocks of about [`DOWN`] queries and [`ACROSS`] keys.
//!
//! Probabilities are made again from the scores and their log-sum-exp. A block of scores lies with a query in each row:
//! as it stands it is the left side of the products that give `d_k` and `d_v`; transposed, of the one that gives `d_q`.

use super::slopes::Slopes;
use super::{
    ACROSS, Deep, DotOperation, HeadRows, Item, Kernel, Pieces, SmallProduct, Useful, deepen, down,
    pack_lines, panels_len, pieces_len, rounded,
};
use crate::cpu::gemm::{Dot, Operand, TileKernel};
use crate::cpu::memory::Elements;
use crate::cpu::simd::{Operation, Simd};
use crate::device::{Attention, Format};
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
    fn new(shape: Attention, format: Format) -> Self {
        let (len, size) = (shape.key_len, shape.head_size);
        Self {
            lines: panels_len(len, size),
            depth: panels_len(size, len),
            block: ACROSS * ACROSS,
            queries: len,
            sums: if format == Format::Bf16 { len * size } else { 0 },
        }
    }
}

/// Elements of scratch that an item needs whose gradients are kept in `format`.
pub fn backward_scratch(shape: Attention, format: Format) -> usize {
    let Lens { lines, depth, block, queries, sums } = Lens::new(shape, format);
    let of = |count: usize, len: usize| count * pieces_len(&[len]);
    of(4, lines) + of(3, depth) + of(3, block) + of(1, block / 2) + of(3, queries) + of(3, sums)
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
    /// Gradients of keys and values, and of one head's queries.
    d_keys: Gradient,
    d_values: Gradient,
    d_queries: Gradient,
    /// Room for these three, where they are kept in bf16.
    gradients: [&'a mut [f32]; 3],
    /// For each query: log-sum-exp in units of log 2, `sum(d_out * out)`, first key.
    pub(super) sums: &'a mut [f32],
    pub(super) means: &'a mut [f32],
    pub(super) first: &'a mut [f32],
}

impl<'a> Work<'a> {
    fn new(shape: Attention, format: Format, scratch: &'a mut [f32]) -> Self {
        let (mut pieces, lens) = (Pieces(scratch), Lens::new(shape, format));
        let [keys, values, queries, d_out] = pieces.take_each(lens.lines);
        let deep = pieces.take_each(lens.depth);
        let [p, d_scores, transposed] = pieces.take_each(lens.block);
        let along = pieces.take(lens.block / 2);
        let [sums, means, first] = pieces.take_each(lens.queries);
        Self {
            keys,
            values,
            keys_deep: Deep::NONE,
            queries,
            d_out,
            queries_deep: Deep::NONE,
            d_out_deep: Deep::NONE,
            deep,
            p,
            d_scores,
            transposed,
            along,
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

/// Where rows of a head's gradient are summed, in f32.
#[derive(Clone, Copy)]
struct Gradient {
    start: *mut f32,
    stride: usize,
}

impl Gradient {
    /// Before there is one.
    const NONE: Self = Self { start: std::ptr::null_mut(), stride: 0 };

    /// Of zeros: in its own place where that is f32, else in `room`.
    ///
    /// # Safety
    /// The rows are the caller's alone; so is the room, which holds them, for as long as the gradient is used.
    unsafe fn begin(to: Head, room: &mut [f32]) -> Self {
        let (start, stride) = match to.rows.format {
            Format::F32 => (to.at(), to.rows.stride),
            Format::Bf16 => (room.as_mut_ptr(), to.size),
        };
        for i in 0..to.count {
            // SAFETY: as the caller says.
            unsafe { start.add(i * stride).write_bytes(0, to.size) };
        }
        Self { start, stride }
    }

    /// The same from row `row` on.
    fn from(self, row: usize) -> Self {
        Self { start: self.start.wrapping_add(row * self.stride), ..self }
    }
}

/// Rows of one head, from row `row` on.
#[derive(Clone, Copy)]
struct Head {
    rows: HeadRows,
    row: usize,
    head: usize,
    /// How many.
    count: usize,
    /// Elements of each.
    size: usize,
}

impl Head {
    fn at(self) -> *mut f32 {
        self.rows.at(self.row, self.head, self.size)
    }

    fn along(self) -> Operand {
        self.rows.along(self.row, self.head, self.size)
    }

    fn across(self) -> Operand {
        self.rows.across(self.row, self.head, self.size)
    }
}

/// Writes a gradient, summed elsewhere, to its place.
struct Write {
    from: Gradient,
    to: Head,
}

impl Operation for Write {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Head { rows, row, head, count, size } = self.to;
        for i in 0..count {
            let (from, to) = (self.from.from(i).start, rows.at(row + i, head, size));
            for at in (0..size).step_by(S::LANES) {
                let count = S::LANES.min(size - at);
                // SAFETY: inside a row of the gradient, and of this item's own part of the tensor.
                unsafe { rows.store(s, to, at, count, s.load_up_to(from.add(at), count)) };
            }
        }
    }
}

impl DotOperation for Backward<'_> {
    fn run<S: Simd, D: Dot>(self, s: S) {
        run::<S, D>(self, s);
    }
}

fn run<S: Simd, D: Dot>(mut this: Backward, s: S) {
    let scratch = std::mem::take(&mut this.scratch);
    let mut work = Work::new(this.item.shape, this.d_q.format, scratch);
    this.item.first_keys(work.first);
    this.begin_keys::<S, D>(s, &mut work);
    for head in this.item.heads() {
        this.begin_head::<S, D>(s, head, &mut work);
        for key in (0..this.item.shape.key_len).step_by(ACROSS) {
            this.keys::<S, D>(s, key..this.item.shape.key_len.min(key + ACROSS), &mut work);
        }
        finish(s, work.d_queries, this.head_of_queries(this.d_q, head));
    }
    finish(s, work.d_keys, this.head_of_keys(this.d_k));
    finish(s, work.d_values, this.head_of_keys(this.d_v));
}

/// Writes a gradient, unless it was summed in its place.
fn finish<S: Simd>(s: S, from: Gradient, to: Head) {
    if to.rows.half() {
        s.vectorize(Write { from, to });
    }
}

impl Backward<'_> {
    /// The item's rows of keys, or the like.
    fn head_of_keys(&self, rows: HeadRows) -> Head {
        let Item { shape, kv_head, .. } = self.item;
        let (count, size) = (shape.key_len, shape.head_size);
        Head { rows, row: self.item.key_row(), head: kv_head, count, size }
    }

    /// The rows of a head's queries, or the like.
    fn head_of_queries(&self, rows: HeadRows, head: usize) -> Head {
        let (count, size) = (self.item.shape.query_len, self.item.shape.head_size);
        Head { rows, row: self.item.query_row(), head, count, size }
    }

    /// Packs keys and values, and clears their gradients.
    fn begin_keys<S: Simd, D: Dot>(&self, s: S, work: &mut Work) {
        let (k, v) = (self.head_of_keys(self.k), self.head_of_keys(self.v));
        // SAFETY: the item's keys and values are readable, their gradients its own, by the word of the device.
        unsafe {
            pack_lines::<S, D>(s, false, k.along(), k.count, k.size, work.keys);
            pack_lines::<S, D>(s, false, v.along(), v.count, v.size, work.values);
            work.keys_deep = deepen::<S, D>(s, k.across(), k.count, k.size, work.deep[0]);
            work.d_keys = Gradient::begin(self.head_of_keys(self.d_k), work.gradients[0]);
            work.d_values = Gradient::begin(self.head_of_keys(self.d_v), work.gradients[1]);
        }
    }

    /// Packs one head's queries and output gradients, and clears the gradients of queries.
    fn begin_head<S: Simd, D: Dot>(&self, s: S, head: usize, work: &mut Work) {
        let (q, d_out) = (self.head_of_queries(self.q, head), self.head_of_queries(self.d_out, head));
        // SAFETY: the head's rows are readable, and the gradient of its queries its own, by the word of the device.
        unsafe {
            pack_lines::<S, D>(s, true, q.along(), q.count, q.size, work.queries);
            pack_lines::<S, D>(s, true, d_out.along(), q.count, q.size, work.d_out);
            work.queries_deep = deepen::<S, D>(s, q.across(), q.count, q.size, work.deep[1]);
            work.d_out_deep = deepen::<S, D>(s, d_out.across(), q.count, q.size, work.deep[2]);
            work.d_queries = Gradient::begin(self.head_of_queries(self.d_q, head), work.gradients[2]);
        }
        for (query, sum) in work.sums.iter_mut().enumerate() {
            // SAFETY: the head's own log-sum-exp.
            let natural = unsafe { *self.log_sum_exp.at(self.item.sums_at(head) + query) };
            *sum = natural * std::f32::consts::LOG2_E;
        }
        s.vectorize(Means { of: self, head, means: work.means, dot: PhantomData::<D> });
    }

    /// All queries that see a block of keys.
    fn keys<S: Simd, D: Dot>(&self, s: S, keys: Range<usize>, work: &mut Work) {
        let (len, step) = (self.item.shape.query_len, down::<S, D>());
        for query in (keys.start / step * step..len).step_by(step) {
            if work.first[query] as usize >= keys.end {
                break;
            }
            self.block::<S, D>(s, query..len.min(query + step), keys.clone(), work);
        }
    }

    fn block<S: Simd, D: Dot>(&self, s: S, queries: Range<usize>, keys: Range<usize>, work: &mut Work) {
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
        let diagonal = queries.start as isize - keys.start as isize;
        let (rows, depth) = (keys.len(), queries.len());
        let (deep, useful) = (work.d_out_deep.from::<D>(queries.start), Useful::DepthFrom(diagonal));
        self.gradient::<S, D>(s, (work.p, rows), (deep, depth), work.d_values.from(keys.start), useful);
        let deep = work.queries_deep.from::<D>(queries.start);
        self.gradient::<S, D>(s, (work.d_scores, rows), (deep, depth), work.d_keys.from(keys.start), useful);
        let (deep, useful) = (work.keys_deep.from::<D>(keys.start), Useful::DepthUpTo(diagonal));
        self.gradient::<S, D>(
            s,
            (work.transposed, queries.len()),
            (deep, keys.len()),
            work.d_queries.from(queries.start),
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
        to: Gradient,
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
            target: to.start,
            stride: to.stride,
            accumulate: true,
            row_scale: std::ptr::null(),
            useful,
        };
        // SAFETY: a block's rows and depth are inside its piece and the panels; the gradient is this item's own.
        unsafe { product.run::<S, D>(s) };
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
                let (a, b) =
                    unsafe { (self.of.out.load(s, a, at, count), self.of.d_out.load(s, b, at, count)) };
                sum = s.mul_add(a, rounded::<S, D>(s, b), sum);
            }
            *mean = s.sum(sum);
        }
    }
}
