//! The innermost kernel of a matrix product: one tile of the output, from two packed panels.
//!
//! A panel is a run of *units*, one for each step of the depth; a unit holds as many depth elements as the kernel
//! multiplies at once: one f32, or a pair of bf16 in the same 32 bits. In a column panel unit `p` of column `j` is
//! element `p * columns + j`; in a row panel unit `p` of row `i` is element `p * row_stride + i` (except for kernels
//! that keep [`TileKernel::ROW_RUN`] units of a row together).

use super::ending::{Ending, Finish};
use crate::cpu::simd::{Operation, Simd};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Where a tile goes, and what is added to it on the way.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// First row of the tile in the product's target; only an ending asks.
    pub row: usize,
    /// First column, as panels count them; only an ending asks.
    pub column: usize,
    /// What else sums go through; where it is given, nothing of the following but the numbers of rows and columns counts.
    pub ending: Option<&'a Ending<'a>>,
    /// First element of the tile.
    pub start: *mut f32,
    /// Elements from one row to the next, of the residual too.
    pub stride: usize,
    /// Valid rows of the tile.
    pub rows: usize,
    /// Valid columns of the tile.
    pub columns: usize,
    /// One element for each column, or null.
    pub bias: *const f32,
    /// The tile of the residual, or null; may be the target itself.
    pub residual: *const f32,
    /// Adds to what is there.
    pub accumulate: bool,
    /// With `accumulate`: a factor for each row of what is there, or null.
    pub row_scale: *const f32,
}

impl Target<'_> {
    /// What sums will be added to, or go through, is on its way while they are made: rows of so many vectors.
    #[inline(always)]
    pub fn prefetch<S: Simd>(&self, s: S, vectors: usize) {
        if let Some(ending) = self.ending {
            return ending.prefetch(s, self);
        }
        let before = if self.accumulate { self.start.cast_const() } else { self.residual };
        if before.is_null() {
            return;
        }
        for i in 0..self.rows {
            for j in 0..vectors {
                s.prefetch(before.wrapping_add(i * self.stride + j * S::LANES));
            }
        }
    }
}

/// One side of a tile: its units, one after another.
#[derive(Clone, Copy)]
pub struct Units {
    /// The first.
    pub start: *const f32,
    /// Elements from one to the next.
    pub stride: usize,
}

/// A kernel for tiles of `rows() x columns()`.
pub trait TileKernel: Copy + Send + Sync {
    /// Vectors used for packing and epilogues.
    type S: Simd;
    /// Depth elements in a unit: 1 (f32) or 2 (bf16 pairs).
    const GROUP: usize;
    /// Whether f32 units are rounded to bf16 while packing.
    const ROUND: bool;
    /// Units of one row that stand together in a row panel; panels are padded to a multiple of it.
    const ROW_RUN: usize;

    /// The vectors.
    fn simd(self) -> Self::S;
    /// Rows of a full tile.
    fn rows(self) -> usize;
    /// Elements from one unit of a row panel to the next: the rows, in whole vectors.
    fn row_stride(self) -> usize;
    /// Columns of a full tile: of a column panel.
    fn columns(self) -> usize;
    /// Prepares the calling thread for a run of tiles.
    fn begin(self) {}
    /// Ends what [`TileKernel::begin`] began.
    fn end(self) {}

    /// Computes a tile from `units` units of a row panel and a column panel.
    ///
    /// # Safety
    /// `rows` holds that many units of the target's rows (of all rows, where rows keep runs of units), `columns` of a
    /// full tile's columns; target, bias, residual and row factors are valid for the tile; `begin` was called on this
    /// thread.
    unsafe fn tile(self, units: usize, rows: Units, columns: Units, target: &Target<'_>);
}

/// How units are multiplied.
pub trait Dot: Copy + Send + Sync + 'static {
    /// As [`TileKernel::GROUP`].
    const GROUP: usize;
    /// As [`TileKernel::ROUND`].
    const ROUND: bool;
    /// `sums + a * b`.
    fn dot<S: Simd>(s: S, a: S::V, b: S::V, sums: S::V) -> S::V;
}

/// f32 times f32; rounded to bf16 before if `ROUND`, for processors without bf16 products.
#[derive(Debug, Clone, Copy)]
pub struct Single<const ROUND: bool>;
/// Pairs of bf16.
#[derive(Debug, Clone, Copy)]
pub struct Pairs;

impl<const ROUND: bool> Dot for Single<ROUND> {
    const GROUP: usize = 1;
    const ROUND: bool = ROUND;
    #[inline(always)]
    fn dot<S: Simd>(s: S, a: S::V, b: S::V, sums: S::V) -> S::V {
        s.mul_add(a, b, sums)
    }
}

impl Dot for Pairs {
    const GROUP: usize = 2;
    const ROUND: bool = true;
    #[inline(always)]
    fn dot<S: Simd>(s: S, a: S::V, b: S::V, sums: S::V) -> S::V {
        s.dot_pairs(a, b, sums)
    }
}

/// The kernel of vectors: `TILE_ROWS x TILE_VECTORS` sums in registers.
#[derive(Debug, Clone, Copy)]
pub struct Vectors<S, D> {
    s: S,
    dot: PhantomData<D>,
}

impl<S: Simd, D: Dot> Vectors<S, D> {
    /// Of the family that `s` proves.
    pub fn new(s: S) -> Self {
        Self { s, dot: PhantomData }
    }
}

impl<S: Simd, D: Dot> TileKernel for Vectors<S, D> {
    type S = S;
    const GROUP: usize = D::GROUP;
    const ROUND: bool = D::ROUND;
    const ROW_RUN: usize = 1;

    fn simd(self) -> S {
        self.s
    }
    fn rows(self) -> usize {
        S::TILE_ROWS
    }
    fn row_stride(self) -> usize {
        S::TILE_ROWS.next_multiple_of(S::LANES)
    }
    fn columns(self) -> usize {
        S::TILE_VECTORS * S::LANES
    }

    unsafe fn tile(self, units: usize, rows: Units, columns: Units, target: &Target<'_>) {
        debug_assert!(target.rows <= S::TILE_ROWS && target.columns <= self.columns());
        // One compiled kernel for each number of rows: a short tile costs only its own rows.
        macro_rules! of_rows {
            ($($rows:literal)*) => {
                match (target.rows, S::TILE_VECTORS) {
                    $(($rows, 1) if $rows <= S::TILE_ROWS => {
                        self.s.vectorize(Tile::<D, $rows, 1> { units, rows, columns, target, dot: PhantomData });
                    })*
                    $(($rows, 2) if $rows <= S::TILE_ROWS => {
                        self.s.vectorize(Tile::<D, $rows, 2> { units, rows, columns, target, dot: PhantomData });
                    })*
                    other => unreachable!("no kernel for a tile of {other:?}"),
                }
            };
        }
        of_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }
}

/// One tile; what makes it safe to run is [`TileKernel::tile`]'s contract.
struct Tile<'a, D, const ROWS: usize, const VECTORS: usize> {
    units: usize,
    rows: Units,
    columns: Units,
    target: &'a Target<'a>,
    dot: PhantomData<D>,
}

impl<D: Dot, const ROWS: usize, const VECTORS: usize> Operation for Tile<'_, D, ROWS, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.target.prefetch(s, VECTORS);
        let mut sums = [[s.splat(0.0); VECTORS]; ROWS];
        let (mut row, mut column) = (self.rows.start, self.columns.start);
        for _ in 0..self.units {
            // SAFETY: each unit of both panels is readable by the contract of TileKernel::tile.
            unsafe {
                let mut b = [s.splat(0.0); VECTORS];
                for (j, b) in b.iter_mut().enumerate() {
                    *b = s.load(column.add(j * S::LANES));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = s.splat(*row.add(i));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = D::dot(s, a, b, *sum);
                    }
                }
                row = row.wrapping_add(self.rows.stride);
                column = column.wrapping_add(self.columns.stride);
            }
        }
        if let Some(ending) = self.target.ending {
            return end_tile::<S, ROWS, VECTORS>(s, self.target, ending, sums);
        }
        // SAFETY: the target is valid for this tile by the same contract.
        unsafe { finish_tile(s, self.target, sums) };
    }
}

/// Hands a tile's sums to its ending.
#[inline(always)]
fn end_tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    s: S,
    target: &Target,
    ending: &Ending,
    sums: [[S::V; VECTORS]; ROWS],
) {
    // Memory of its own: sums whose address is taken would never have been in registers.
    let mut memory = MaybeUninit::<[[S::V; VECTORS]; ROWS]>::uninit();
    let (first, width) = (memory.as_mut_ptr().cast::<f32>(), VECTORS * S::LANES);
    for (i, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            // SAFETY: a vector is LANES elements, by the contract of Simd.
            unsafe { s.store(first.add(i * width + j * S::LANES), *sum) };
        }
    }
    // SAFETY: all of it was stored just now, and vectors are at least as aligned as their elements.
    let sums = unsafe { std::slice::from_raw_parts(first, ROWS * width) };
    s.vectorize(Finish { sums, width, target, ending });
}

/// Stores a tile's sums by the shortest way that its target allows: a tile may take no longer than a hundred steps of
/// multiplication, so that even this counts.
#[inline(always)]
unsafe fn finish_tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    s: S,
    target: &Target,
    sums: [[S::V; VECTORS]; ROWS],
) {
    let whole = target.columns == VECTORS * S::LANES;
    let plain = target.bias.is_null() && target.residual.is_null();
    // SAFETY: the target is valid for a tile of this size by the caller's word.
    unsafe {
        match (whole, plain, target.accumulate) {
            (true, true, false) => finish_whole::<S, ROWS, VECTORS, SET>(s, target, sums),
            (true, true, true) if target.row_scale.is_null() => {
                finish_whole::<S, ROWS, VECTORS, ADD>(s, target, sums);
            }
            (true, true, true) => finish_whole::<S, ROWS, VECTORS, ADD_SCALED>(s, target, sums),
            (true, false, false) if target.residual.is_null() => {
                finish_whole::<S, ROWS, VECTORS, SET_WITH_BIAS>(s, target, sums);
            }
            _ => {
                for (i, sums) in sums.iter().enumerate() {
                    for (j, sum) in sums.iter().enumerate() {
                        finish(s, target, i, j * S::LANES, *sum);
                    }
                }
            }
        }
    }
}

const SET: u8 = 0;
const SET_WITH_BIAS: u8 = 1;
const ADD: u8 = 2;
const ADD_SCALED: u8 = 3;

/// One of these ends for a tile with all its columns.
#[inline(always)]
unsafe fn finish_whole<S: Simd, const ROWS: usize, const VECTORS: usize, const END: u8>(
    s: S,
    target: &Target,
    sums: [[S::V; VECTORS]; ROWS],
) {
    let mut to = target.start;
    // SAFETY: the target is valid for a tile of this size by the caller's word.
    unsafe {
        let mut bias = [s.splat(0.0); VECTORS];
        if END == SET_WITH_BIAS {
            for (j, bias) in bias.iter_mut().enumerate() {
                *bias = s.load(target.bias.add(j * S::LANES));
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                let mut sum = *sum;
                let at = to.add(j * S::LANES);
                match END {
                    SET => {}
                    SET_WITH_BIAS => sum = s.add(sum, bias[j]),
                    ADD => sum = s.add(s.load(at), sum),
                    _ => sum = s.mul_add(s.load(at), s.splat(*target.row_scale.add(i)), sum),
                }
                s.store(at, sum);
            }
            to = to.wrapping_add(target.stride);
        }
    }
}

/// Adds to the sums of row `row`, columns `column..`, what the target asks for, and stores them.
///
/// # Safety
/// The target is valid, and `row` is one of its rows.
#[inline(always)]
pub unsafe fn finish<S: Simd>(s: S, target: &Target, row: usize, column: usize, mut sum: S::V) {
    if column >= target.columns {
        return;
    }
    let count = (target.columns - column).min(S::LANES);
    // SAFETY: count columns from column on are valid by the caller's word.
    unsafe {
        let at = row * target.stride + column;
        if !target.bias.is_null() {
            sum = s.add(sum, s.load_up_to(target.bias.add(column), count));
        }
        if !target.residual.is_null() {
            sum = s.add(sum, s.load_up_to(target.residual.add(at), count));
        }
        if target.accumulate {
            let before = s.load_up_to(target.start.add(at), count);
            sum = match target.row_scale.is_null() {
                true => s.add(before, sum),
                false => s.mul_add(before, s.splat(*target.row_scale.add(row)), sum),
            };
        }
        s.store_up_to(target.start.add(at), count, sum);
    }
}
