//! Matrix products: one driver for every kernel.
//!
//! What: `C[M, N] = A[M, K] * B[K, N]` with what is added on the way, for operands that run along or across the depth
//! `K`: a linear layer forward, its input's gradient and its weight's.
//! How (Goto and van de Geijn 2008; Van Zee and van de Geijn 2015): the depth is cut into blocks, columns into blocks,
//! rows into blocks; blocks are packed into panels, and the tile kernel runs over pairs of panels. A panel of columns
//! is reused from the first two caches by all row panels of a block, a block of rows from the second.
//! Threads: the output is cut into a grid of rectangles, one for each thread, and each thread packs what it needs;
//! no thread waits for another. Each element's sum is made in the same order whatever the grid.
//! A product with an ending has its whole depth in one block, since its sums must be final at once: blocks of rows and columns
//! are then smaller, and below a panel each (a depth of more than some 10,000) rows are packed again for each panel of columns.
//! Invariant: a step allocates nothing; a thread's scratch is what the deepest product with an ending needs, [`SCRATCH`] at least.

mod ending;
mod gemv;
mod pack;
mod tile;

pub use ending::{Ending, Finish, Then};
pub use gemv::{FEW_ROWS, FewRows, Mode, PairRows};
pub use pack::{Operand, PanelLayout, pack, units_of};
pub use tile::{Dot, Pairs, Single, Target, TileKernel, Units, Vectors, finish};

use super::pool::part;
use std::ops::Range;

/// Units of the depth in a block, where the depth may be cut.
const DEPTH_UNITS: usize = 384;
/// Elements of the panels of a block of rows: a third of a second-level cache of 1 MiB.
const ROW_PANELS: usize = 224 * DEPTH_UNITS;
/// Elements of the panels of a block of columns: 1.5 MiB, in the third-level cache.
const COLUMN_PANELS: usize = 1024 * DEPTH_UNITS;
/// Lines of the largest panel, and what fills up its last vector.
const LARGEST_PANEL: usize = 64;

/// Elements of scratch that a thread needs for most products.
pub const SCRATCH: usize = room(DEPTH_UNITS).0 + room(DEPTH_UNITS).1;

/// Room for the panels of a block of rows, and of a block of columns, of so many units: rows' units are whole vectors, at
/// most twice as wide as their rows, and each block has a panel at least.
const fn room(units: usize) -> (usize, usize) {
    let panel = LARGEST_PANEL * units;
    (2 * ROW_PANELS + panel, COLUMN_PANELS + panel)
}

/// A matrix product. All addresses are valid for its sizes, and the target overlaps no operand.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// `M`.
    pub rows: usize,
    /// `N`.
    pub columns: usize,
    /// `K`.
    pub depth: usize,
    /// Its lines are rows of the target.
    pub left: Operand,
    /// Its lines are columns of the target.
    pub right: Operand,
    /// Its panels, where they were packed before (see [`Preparation`]), or null.
    pub panels: *const f32,
    /// First element of the target.
    pub target: *mut f32,
    /// Elements from one row of the target to the next, and of the residual.
    pub stride: usize,
    /// One element for each column, or null.
    pub bias: *const f32,
    /// As the target, or null; may be the target itself.
    pub residual: *const f32,
    /// Adds to the target.
    pub accumulate: bool,
    /// Adds the sum of each left line to these, or null; only for left lines across the depth.
    pub left_sums: *mut f32,
    /// What else sums go through; then nothing is added, and the target is the ending's.
    pub ending: Option<Ending<'a>>,
}

// SAFETY: addresses; threads write disjoint rectangles of the target.
unsafe impl Send for Product<'_> {}
// SAFETY: as above.
unsafe impl Sync for Product<'_> {}

impl Product<'_> {
    /// The product of two operands and nothing besides, of so many rows, columns and depths; the target's rows follow each
    /// other.
    pub fn of([rows, columns, depth]: [usize; 3], [left, right]: [Operand; 2], target: *mut f32) -> Self {
        Self {
            rows,
            columns,
            depth,
            left,
            right,
            panels: std::ptr::null(),
            target,
            stride: columns,
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            accumulate: false,
            left_sums: std::ptr::null_mut(),
            ending: None,
        }
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        2.0 * self.rows as f64 * self.columns as f64 * self.depth as f64
    }

    /// Elements of scratch that a thread needs.
    pub fn scratch<K: TileKernel>(&self) -> usize {
        let (rows, columns) = room(units_of::<K>(self.depth_block::<K>()).max(DEPTH_UNITS));
        rows + columns
    }

    /// Depth elements in a block: as even as multiples of 32 allow; all of them where sums must be final at once.
    fn depth_block<K: TileKernel>(&self) -> usize {
        let blocks = match self.ending {
            Some(_) => 1,
            None => self.depth.div_ceil(DEPTH_UNITS * K::GROUP).max(1),
        };
        self.depth.div_ceil(blocks).next_multiple_of(32).max(32)
    }

    /// The rectangle of thread `index` of `threads`: of the grids with that many cells, the one that packs least.
    fn rectangle<K: TileKernel>(
        &self,
        kernel: K,
        threads: usize,
        index: usize,
    ) -> (Range<usize>, Range<usize>) {
        let cost = |down: usize| self.rows.div_ceil(down) + self.columns.div_ceil(threads / down);
        let grids = (1..=threads).filter(|down| threads.is_multiple_of(*down));
        let down = grids.min_by_key(|down| cost(*down)).unwrap_or(1);
        let across = threads / down;
        (
            part(self.rows, kernel.rows(), down, index / across),
            part(self.columns, kernel.columns(), across, index % across),
        )
    }

    /// Does the part of thread `index` of `threads` with [`Product::scratch`] elements.
    ///
    /// # Safety
    /// The product is valid, and parts of different indices may run at once but no other writer.
    pub unsafe fn run<K: TileKernel>(&self, kernel: K, threads: usize, index: usize, scratch: &mut [f32]) {
        let (rows, columns) = self.rectangle(kernel, threads, index);
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        kernel.begin();
        // SAFETY: passed on; the rectangles of different indices do not overlap.
        unsafe { self.blocks(kernel, rows, columns, scratch) };
        kernel.end();
    }

    /// Blocks of columns, of the depth, of rows.
    unsafe fn blocks<K: TileKernel>(
        &self,
        kernel: K,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &mut [f32],
    ) {
        let depth_block = self.depth_block::<K>();
        let most_units = units_of::<K>(depth_block);
        let (row_room, column_room) = room(most_units.max(DEPTH_UNITS));
        assert!(scratch.len() >= row_room + column_room, "a product's scratch must hold its panels");
        let (row_panels, column_panels) = scratch.split_at_mut(row_room);
        let row_block = block_of(ROW_PANELS / most_units, kernel.rows());
        let column_block = block_of(COLUMN_PANELS / most_units, kernel.columns());
        for column in columns.clone().step_by(column_block) {
            let width = column_block.min(columns.end - column);
            // A depth of zero still has its one, empty block: the target is to be set.
            for depth in (0..self.depth.max(1)).step_by(depth_block) {
                let deep = depth_block.min(self.depth - depth);
                let units = units_of::<K>(deep);
                let block = Block { kernel, units, first: depth == 0 };
                // SAFETY: passed on.
                let columns_packed = unsafe {
                    self.columns(kernel, column..column + width, depth..depth + deep, column_panels)
                };
                for row in rows.clone().step_by(row_block) {
                    let height = row_block.min(rows.end - row);
                    // SAFETY: as above.
                    unsafe {
                        // Each row is summed by the one thread, and at the one block, that has the first column.
                        let sums = if column == 0 { self.left_sums } else { std::ptr::null_mut() };
                        self.pack_rows(kernel, row..row + height, depth..depth + deep, row_panels, sums);
                        self.tiles(
                            block,
                            row..row + height,
                            column..column + width,
                            row_panels,
                            columns_packed,
                        );
                    }
                }
            }
        }
    }

    /// Panels of a block of columns: packed now, or found where they were before.
    unsafe fn columns<K: TileKernel>(
        &self,
        kernel: K,
        columns: Range<usize>,
        depth: Range<usize>,
        to: &mut [f32],
    ) -> Panels {
        let units = units_of::<K>(depth.len());
        if !self.panels.is_null() {
            // Blocks of the depth are whole units, and a run of them.
            let (all, width) = (units_of::<K>(self.depth), kernel.columns());
            let offset = columns.start / width * width * all + depth.start / K::GROUP * width;
            return Panels { start: self.panels.wrapping_add(offset), units: all };
        }
        let layout = PanelLayout::columns(kernel);
        assert!(layout.len(columns.len(), units) <= to.len(), "a block of columns must fit");
        let preparation = Preparation {
            operand: self.right.from(columns.start, depth.start),
            lines: columns.len(),
            depth: depth.len(),
            to: to.as_mut_ptr(),
        };
        // SAFETY: inside the operand, and the panels fit.
        unsafe { preparation.run(kernel, 0..columns.len()) };
        Panels { start: to.as_ptr(), units }
    }

    /// Packs a block of rows; adds the sums of its rows to those of `sums` unless that is null.
    unsafe fn pack_rows<K: TileKernel>(
        &self,
        kernel: K,
        rows: Range<usize>,
        depth: Range<usize>,
        to: &mut [f32],
        sums: *mut f32,
    ) {
        let (s, layout, operand) =
            (kernel.simd(), PanelLayout::rows(kernel), self.left.from(rows.start, depth.start));
        let units = units_of::<K>(depth.len());
        assert!(layout.len(rows.len(), units) <= to.len(), "a block of rows must fit");
        let sums = if sums.is_null() { sums } else { sums.wrapping_add(rows.start) };
        // SAFETY: inside the operand; the panels fit; a row's sum is written by one thread.
        unsafe { pack(s, layout, operand, rows.len(), depth.len(), units, to.as_mut_ptr(), sums) };
    }

    /// All pairs of panels of one block.
    unsafe fn tiles<K: TileKernel>(
        &self,
        block: Block<K>,
        rows: Range<usize>,
        columns: Range<usize>,
        row_panels: &[f32],
        column_panels: Panels,
    ) {
        let (tile_rows, tile_columns) = (block.kernel.rows(), block.kernel.columns());
        let row_stride = block.kernel.row_stride();
        for column in columns.clone().step_by(tile_columns) {
            let column_panel =
                column_panels.start.wrapping_add((column - columns.start) * column_panels.units);
            for row in rows.clone().step_by(tile_rows) {
                let row_panel = &row_panels[(row - rows.start) / tile_rows * row_stride * block.units..];
                let offset = row * self.stride + column;
                let shifted = |p: *const f32, by: usize| {
                    if p.is_null() || !block.first { std::ptr::null() } else { p.wrapping_add(by) }
                };
                let target = Target {
                    row,
                    column,
                    ending: self.ending.as_ref(),
                    start: self.target.wrapping_add(offset),
                    stride: self.stride,
                    rows: tile_rows.min(rows.end - row),
                    columns: tile_columns.min(columns.end - column),
                    bias: shifted(self.bias, column),
                    residual: shifted(self.residual, offset),
                    accumulate: self.accumulate || !block.first,
                    row_scale: std::ptr::null(),
                };
                let rows = Units { start: row_panel.as_ptr(), stride: row_stride };
                let columns = Units { start: column_panel, stride: tile_columns };
                // SAFETY: both panels hold the block's units; the target is inside this thread's rectangle.
                unsafe { block.kernel.tile(block.units, rows, columns, &target) };
            }
        }
    }
}

/// Panels of columns, from some block on.
#[derive(Clone, Copy)]
struct Panels {
    start: *const f32,
    /// Units of a whole panel: each column of it takes so many elements.
    units: usize,
}

/// The panels of a right side, packed for one product's block or, whole, once for many products.
#[derive(Clone, Copy)]
pub struct Preparation {
    /// Its lines are columns of targets.
    pub operand: Operand,
    /// How many there are.
    pub lines: usize,
    /// Elements of each.
    pub depth: usize,
    /// Where they go: room for [`Preparation::len`] elements.
    pub to: *mut f32,
}

// SAFETY: addresses; threads write disjoint panels.
unsafe impl Send for Preparation {}
// SAFETY: as above.
unsafe impl Sync for Preparation {}

impl Preparation {
    /// Elements that the panels of `lines` lines of `depth` take.
    pub fn len<K: TileKernel>(kernel: K, lines: usize, depth: usize) -> usize {
        PanelLayout::columns(kernel).len(lines, units_of::<K>(depth))
    }

    /// Packs `lines`, which begin a panel, and end one or all.
    ///
    /// # Safety
    /// The operand is readable, and its panels are writable and nobody else's.
    pub unsafe fn run<K: TileKernel>(&self, kernel: K, lines: Range<usize>) {
        let (layout, units) = (PanelLayout::columns(kernel), units_of::<K>(self.depth));
        let (operand, to) = (self.operand.from(lines.start, 0), self.to.wrapping_add(lines.start * units));
        // SAFETY: passed on; a panel's lines are all its width.
        unsafe {
            pack(kernel.simd(), layout, operand, lines.len(), self.depth, units, to, std::ptr::null_mut());
        }
    }
}

/// A block of the depth.
#[derive(Clone, Copy)]
struct Block<K> {
    kernel: K,
    units: usize,
    first: bool,
}

/// The most lines, whole panels of `panel` and one at least, of about `lines`.
fn block_of(lines: usize, panel: usize) -> usize {
    (lines / panel).max(1) * panel
}
