//! Causal attention in blocks, forward and backward, never storing all scores (Dao et al. 2022, algorithms 1 and 4).
//!
//! What: one [`Item`] is a sequence and a key-value head, with all the query heads that read it; items are shared out
//! among threads. How: keys, values and queries are packed into the panels of the matrix kernels (see `gemm`), a block
//! of scores is made by these kernels in scratch that stays in the first cache, turned into probabilities in place, and
//! multiplied on. Blocks in which no query sees a key are skipped. Scores are kept in units of log 2, so that
//! probabilities are powers of two.
//! Products multiply as the device's precision says: in f32, or with operands rounded to bf16 (queries, keys, values,
//! output gradients, probabilities and gradients of scores), which are packed in pairs where the processor multiplies pairs.
//! Sums, scores and the softmax are f32 in any case. Tensors may be kept in bf16: then what is written is rounded once, after
//! all of its sum was made in f32 (gradients in scratch), and what is read is packed without rounding.
//! Invariants: an item writes only its own rows and heads; its sums are made in a fixed order.

mod backward;
mod decode;
mod forward;
mod slopes;

pub use backward::{Backward, backward_scratch};
pub use decode::{Decode, FEW_QUERIES, decode_scratch};
pub use forward::{Forward, forward_scratch};

use super::gemm::{Dot, Operand, PanelLayout, Target, TileKernel, Units, Vectors, pack};
use super::memory::Elements;
use super::simd::Simd;
use crate::device::{Attention, Format};
use std::ops::Range;

/// Queries (forward) or keys (backward) across a block of scores: a multiple of every family's panel of columns.
const ACROSS: usize = 64;
/// About as many keys (forward) or queries (backward) down a block of scores.
const DOWN: usize = 56;
/// Below every score, and finite, so that differences of two are numbers.
const LOWEST: f32 = -1e30;

/// The tile kernel that attention uses.
type Kernel<S, D> = Vectors<S, D>;

/// Work that is compiled for each family and each way to multiply.
pub trait DotOperation {
    /// Does it.
    fn run<S: Simd, D: Dot>(self, s: S);
}

/// A probability, or the like, as products take it.
#[inline(always)]
fn rounded<S: Simd, D: Dot>(s: S, x: S::V) -> S::V {
    if D::ROUND { s.round_bf16(x) } else { x }
}

/// Rows of heads.
#[derive(Clone, Copy)]
pub struct HeadRows {
    /// All of them.
    pub elements: Elements,
    /// Elements from one row to the next.
    pub stride: usize,
    /// How elements are kept.
    pub format: Format,
}

impl HeadRows {
    /// Whether elements are bf16.
    #[inline(always)]
    fn half(&self) -> bool {
        self.format == Format::Bf16
    }

    /// Address of a row's head, of whatever format.
    #[inline(always)]
    fn at(&self, row: usize, head: usize, head_size: usize) -> *mut f32 {
        let index = row * self.stride + head * head_size;
        debug_assert!(index <= self.elements.len() * self.format.each(), "element {index} is outside");
        self.elements.at(0).wrapping_byte_add(index * if self.half() { 2 } else { 4 })
    }

    /// A head of the rows from `row` on, as lines along it.
    fn along(&self, row: usize, head: usize, head_size: usize) -> Operand {
        Operand { half: self.half(), ..Operand::along(self.at(row, head, head_size), self.stride) }
    }

    /// The same as lines across them: each is an element of the head.
    fn across(&self, row: usize, head: usize, head_size: usize) -> Operand {
        Operand { along: false, ..self.along(row, head, head_size) }
    }

    /// `count` elements from element `at` of a head on, zero in the other lanes.
    ///
    /// # Safety
    /// They are readable from `head`, an address of [`HeadRows::at`], on.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, head: *const f32, at: usize, count: usize) -> S::V {
        // SAFETY: passed on.
        unsafe {
            if self.half() {
                s.widen(head.cast::<u16>().add(at), count)
            } else {
                s.load_up_to(head.add(at), count)
            }
        }
    }

    /// Sets `count` elements from element `at` of a head on.
    ///
    /// # Safety
    /// They are writable from `head`, an address of [`HeadRows::at`], on.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, head: *mut f32, at: usize, count: usize, v: S::V) {
        // SAFETY: passed on.
        unsafe {
            if self.half() {
                s.narrow(head.cast::<u16>().add(at), count, v);
            } else {
                s.store_up_to(head.add(at), count, v);
            }
        }
    }
}

/// A sequence and a key-value head.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    /// The operation's shape.
    pub shape: Attention<'a>,
    /// Which sequence.
    pub batch: usize,
    /// Which key-value head.
    pub kv_head: usize,
}

impl<'a> Item<'a> {
    /// Item `index` of the `B * K` of an operation.
    pub fn new(shape: Attention<'a>, index: usize) -> Self {
        Self { shape, batch: index / shape.kv_heads, kv_head: index % shape.kv_heads }
    }

    /// Query heads that read this key-value head.
    fn heads(&self) -> Range<usize> {
        let group = self.shape.heads / self.shape.kv_heads;
        self.kv_head * group..(self.kv_head + 1) * group
    }

    /// First of this sequence's query rows.
    fn query_row(&self) -> usize {
        self.batch * self.shape.query_len
    }

    /// First of this sequence's key rows.
    fn key_row(&self) -> usize {
        self.batch * self.shape.key_rows
    }

    /// First element of a head's log-sum-exp.
    fn sums_at(&self, head: usize) -> usize {
        (self.batch * self.shape.heads + head) * self.shape.query_len
    }

    /// Position of query `query` among the keys: the last key that it sees.
    fn last_key(&self, query: usize) -> usize {
        self.shape.key_len - self.shape.query_len + query
    }

    /// For each query the first key that it sees: the first of its document. Whole numbers, exact below 2^24.
    fn first_keys(&self, first: &mut [f32]) {
        first.fill(0.0);
        let Some(documents) = self.shape.documents else { return };
        let documents = &documents[self.query_row()..][..self.shape.query_len];
        for query in 1..self.shape.query_len {
            let same = documents[query] == documents[query - 1];
            first[query] = if same { first[query - 1] } else { query as f32 };
        }
    }

    /// Factor from a product to a score in units of log 2.
    fn scale_log2(&self) -> f32 {
        self.shape.scale * std::f32::consts::LOG2_E
    }
}

/// Takes pieces from the front of the scratch.
struct Pieces<'a>(&'a mut [f32]);

impl<'a> Pieces<'a> {
    fn take(&mut self, len: usize) -> &'a mut [f32] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(len.next_multiple_of(16));
        self.0 = rest;
        &mut piece[..len]
    }

    fn take_each<const N: usize>(&mut self, len: usize) -> [&'a mut [f32]; N] {
        std::array::from_fn(|_| self.take(len))
    }
}

/// Elements that [`Pieces::take`] uses for pieces of these lengths.
fn pieces_len(lens: &[usize]) -> usize {
    lens.iter().map(|len| len.next_multiple_of(16)).sum()
}

/// Lines of the widest panel of any family.
const PANEL: usize = 32;

/// Elements of the panels of `lines` lines of `depth`, whatever the family: a unit is at most twice as wide as its
/// lines.
fn panels_len(lines: usize, depth: usize) -> usize {
    (2 * lines + PANEL) * depth
}

/// Rows in a block of scores: whole panels of rows, and whole units of the products over them.
fn down<S: Simd, D: Dot>() -> usize {
    let granule = if S::TILE_ROWS.is_multiple_of(D::GROUP) { S::TILE_ROWS } else { S::TILE_ROWS * D::GROUP };
    DOWN / granule * granule
}

/// Packs rows of one head as lines that run along the head: the left (`rows`) or the right side of a product.
///
/// # Safety
/// `from` is readable for `lines` lines, and `to` holds their panels.
unsafe fn pack_lines<S: Simd, D: Dot>(
    s: S,
    rows: bool,
    from: Operand,
    lines: usize,
    size: usize,
    to: &mut [f32],
) {
    let kernel = Kernel::<S, D>::new(s);
    let layout = if rows { PanelLayout::rows(kernel) } else { PanelLayout::columns(kernel) };
    let units = size.div_ceil(D::GROUP);
    assert!(to.len() >= layout.len(lines, units), "panels must fit their piece of scratch");
    // SAFETY: as the caller says, and as asserted.
    unsafe { pack(s, layout, from, lines, size, units, to.as_mut_ptr(), std::ptr::null_mut()) };
}

/// Rows of one head as the right side of a product over rows: column panels of the head's elements.
#[derive(Clone, Copy)]
struct Deep {
    start: *const f32,
    /// Elements from one panel to the next.
    panel: usize,
    /// Elements from one unit of rows to the next.
    stride: usize,
}

impl Deep {
    /// Before there are any.
    const NONE: Self = Self { start: std::ptr::null(), panel: 0, stride: 0 };

    /// The same from row `row` on, which begins a unit.
    fn from<D: Dot>(self, row: usize) -> Self {
        debug_assert!(row.is_multiple_of(D::GROUP), "row {row} is in the middle of a unit");
        Self { start: self.start.wrapping_add(row / D::GROUP * self.stride), ..self }
    }
}

/// Rows of one head, as lines across them, as the right side of a product over rows: in place where they are multiplied as
/// they are and the head is whole panels, else packed.
///
/// # Safety
/// `from` is readable for `rows` rows.
unsafe fn deepen<S: Simd, D: Dot>(s: S, from: Operand, rows: usize, size: usize, to: &mut [f32]) -> Deep {
    let layout = PanelLayout::columns(Kernel::<S, D>::new(s));
    if !D::ROUND && !from.half && size.is_multiple_of(layout.lines) {
        return Deep { start: from.start, panel: layout.lines, stride: from.stride };
    }
    let units = rows.div_ceil(D::GROUP);
    assert!(to.len() >= layout.len(size, units), "panels must fit their piece of scratch");
    // SAFETY: as the caller says, and as asserted.
    unsafe { pack(s, layout, from, size, rows, units, to.as_mut_ptr(), std::ptr::null_mut()) };
    Deep { start: to.as_ptr(), panel: layout.width * units, stride: layout.width }
}

/// Which part of a product on the diagonal of attention is of any use: elements where a key comes after its query are
/// masked, so that tiles of nothing else need not be made, nor such depths be added.
#[derive(Clone, Copy)]
enum Useful {
    /// Targets with `row - column <= offset`.
    RowsUpTo(isize),
    /// Targets with `column - row <= offset`.
    ColumnsUpTo(isize),
    /// Depths with `depth - row <= offset`.
    DepthUpTo(isize),
    /// Depths with `row - depth <= offset`.
    DepthFrom(isize),
}

impl Useful {
    /// The depths that a tile needs, of `depth`; none if it is not needed.
    fn depths(self, rows: &Range<usize>, columns: &Range<usize>, depth: usize) -> Range<usize> {
        let whole = |needed: bool| if needed { 0..depth } else { 0..0 };
        match self {
            Self::RowsUpTo(offset) => whole(rows.start as isize - (columns.end as isize - 1) <= offset),
            Self::ColumnsUpTo(offset) => whole(columns.start as isize - (rows.end as isize - 1) <= offset),
            Self::DepthUpTo(offset) => 0..depth.min((rows.end as isize + offset).max(0) as usize),
            Self::DepthFrom(offset) => {
                (rows.start as isize - offset).clamp(0, depth as isize) as usize..depth
            }
        }
    }
}

/// A product of packed or scratch rows with packed columns.
#[derive(Clone, Copy)]
struct SmallProduct {
    /// Rows and columns of the target.
    rows: usize,
    columns: usize,
    /// Elements of the depth.
    depth: usize,
    /// First row panel, and elements from one panel to the next.
    left: *const f32,
    left_panel: usize,
    /// Elements from one unit of a row panel to the next.
    left_stride: usize,
    /// First column panel, elements from one panel to the next, and from one unit to the next.
    right: *const f32,
    right_panel: usize,
    right_stride: usize,
    target: *mut f32,
    stride: usize,
    accumulate: bool,
    row_scale: *const f32,
    useful: Useful,
}

impl SmallProduct {
    /// Runs all tiles.
    ///
    /// # Safety
    /// The panels hold these rows, columns and depth, and the target is writable for them.
    unsafe fn run<S: Simd, D: Dot>(self, s: S) {
        let kernel = Kernel::<S, D>::new(s);
        for (i, column) in (0..self.columns).step_by(kernel.columns()).enumerate() {
            for (j, row) in (0..self.rows).step_by(kernel.rows()).enumerate() {
                let rows = kernel.rows().min(self.rows - row);
                let columns = kernel.columns().min(self.columns - column);
                let depths = self.useful.depths(&(row..row + rows), &(column..column + columns), self.depth);
                // Where nothing is added, what is there still takes its factor.
                if depths.is_empty() && self.row_scale.is_null() {
                    continue;
                }
                let units = if depths.is_empty() {
                    0..0
                } else {
                    // What a unit holds beside the depths asked for is zero: masked, or beyond the end.
                    depths.start / D::GROUP..depths.end.div_ceil(D::GROUP)
                };
                let target = Target {
                    row,
                    column,
                    ending: None,
                    start: self.target.wrapping_add(row * self.stride + column),
                    stride: self.stride,
                    rows,
                    columns,
                    bias: std::ptr::null(),
                    residual: std::ptr::null(),
                    accumulate: self.accumulate,
                    row_scale: if self.row_scale.is_null() {
                        self.row_scale
                    } else {
                        self.row_scale.wrapping_add(row)
                    },
                };
                // SAFETY: panels and target as the caller says.
                unsafe {
                    let rows = Units {
                        start: self.left.add(j * self.left_panel + units.start * self.left_stride),
                        stride: self.left_stride,
                    };
                    let columns = Units {
                        start: self.right.add(i * self.right_panel + units.start * self.right_stride),
                        stride: self.right_stride,
                    };
                    kernel.tile(units.len(), rows, columns, &target);
                }
            }
        }
    }
}
