//! Products of blocks: packed rows and columns, and scores in scratch.

use super::rows::Head;
use crate::cpu::gemm::{PanelLayout, Target, TileKernel, Units, pack, units_of};
use std::ops::Range;

/// Whether products over queries or keys are made turned: where kernels take runs of units of a row, a block of scores in
/// units of its rows is the right side of a product as it stands, so that the target is transposed, once for many blocks,
/// and not each of them.
pub const fn turned<K: TileKernel>() -> bool {
    K::ROW_RUN > 1
}

/// Depth elements that begin and end together: those of a run of units.
pub const fn run_of<K: TileKernel>() -> usize {
    K::GROUP * K::ROW_RUN
}

/// Lines of the widest panel of any kernel.
pub const PANEL: usize = 32;
/// Units of the longest run of any kernel.
const LONGEST_RUN: usize = 16;

/// Elements of the panels of `lines` lines of `depth`, whatever the kernel: a unit is at most twice as wide as its
/// lines; where units stand in runs it is as wide, and holds two elements.
pub fn panels_len(lines: usize, depth: usize) -> usize {
    (2 * lines + PANEL) * depth.max(LONGEST_RUN)
}

/// A side of a product.
#[derive(Clone, Copy)]
pub enum Side {
    /// Its lines are rows of the target.
    Left,
    /// Its lines are columns of the target.
    Right,
}

impl Side {
    /// Of rows that products over rows take: see [`turned`].
    pub const fn of_deep<K: TileKernel>() -> Self {
        if turned::<K>() { Self::Left } else { Self::Right }
    }

    fn layout<K: TileKernel>(self, kernel: K) -> PanelLayout {
        match self {
            Self::Left => PanelLayout::rows(kernel),
            Self::Right => PanelLayout::columns(kernel),
        }
    }
}

/// One side's panels.
#[derive(Clone, Copy)]
pub struct Panels {
    /// The first unit.
    pub start: *const f32,
    /// Elements from one panel to the next.
    pub panel: usize,
    /// Elements from one unit to the next.
    pub stride: usize,
}

impl Panels {
    /// Before there are any.
    pub const NONE: Self = Self { start: std::ptr::null(), panel: 0, stride: 0 };

    /// Rows of a head as lines along it.
    ///
    /// # Safety
    /// The rows are readable; `to` stays as it is for as long as the panels are read.
    pub unsafe fn of_lines<K: TileKernel>(kernel: K, side: Side, head: Head, to: &mut [f32]) -> Self {
        let (layout, units) = (side.layout(kernel), units_of::<K>(head.size));
        assert!(to.len() >= layout.len(head.count, units), "panels must fit their piece of scratch");
        let (s, sums) = (kernel.simd(), std::ptr::null_mut());
        // SAFETY: as the caller says, and as asserted.
        unsafe { pack(s, layout, head.along(), head.count, head.size, units, to.as_mut_ptr(), sums) };
        Self { start: to.as_ptr(), panel: layout.width * units, stride: layout.width }
    }

    /// Elements of a head as lines across its rows: in place where they are multiplied as they are and the head is whole
    /// panels of columns, else packed.
    ///
    /// # Safety
    /// As [`Panels::of_lines`]; and so do the rows.
    pub unsafe fn of_depth<K: TileKernel>(kernel: K, side: Side, head: Head, to: &mut [f32]) -> Self {
        let (layout, units, from) = (side.layout(kernel), units_of::<K>(head.count), head.across());
        if !K::ROUND && !from.half && head.size.is_multiple_of(layout.lines) {
            return Self { start: from.start, panel: layout.lines, stride: from.stride };
        }
        assert!(to.len() >= layout.len(head.size, units), "panels must fit their piece of scratch");
        let (s, sums) = (kernel.simd(), std::ptr::null_mut());
        // SAFETY: as the caller says, and as asserted.
        unsafe { pack(s, layout, from, head.size, head.count, units, to.as_mut_ptr(), sums) };
        Self { start: to.as_ptr(), panel: layout.width * units, stride: layout.width }
    }

    /// The same from line `line` on, which begins a panel of `lines`.
    pub fn at_line(self, line: usize, lines: usize) -> Self {
        debug_assert!(line.is_multiple_of(lines), "line {line} is in the middle of a panel");
        Self { start: self.start.wrapping_add(line / lines * self.panel), ..self }
    }

    /// The same from depth `depth` on, which begins a run.
    pub fn at_depth<K: TileKernel>(self, depth: usize) -> Self {
        debug_assert!(depth.is_multiple_of(run_of::<K>()), "depth {depth} is in the middle of a run");
        Self { start: self.start.wrapping_add(depth / K::GROUP * self.stride), ..self }
    }

    /// The units of panel `index` from `unit` on.
    fn units(self, index: usize, unit: usize) -> Units {
        let start = self.start.wrapping_add(index * self.panel + unit * self.stride);
        Units { start, stride: self.stride }
    }
}

/// Which part of a product on the diagonal of attention is of any use: elements where a key comes after its query are
/// masked, so that tiles of nothing else need not be made, nor such depths be added.
#[derive(Clone, Copy)]
pub enum Useful {
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

/// A product of packed lines and of scores.
#[derive(Clone, Copy)]
pub struct SmallProduct {
    /// Rows and columns of the target.
    pub rows: usize,
    pub columns: usize,
    /// Elements of the depth.
    pub depth: usize,
    /// Lines of rows.
    pub left: Panels,
    /// Lines of columns.
    pub right: Panels,
    /// First element of the target, and elements from one of its rows to the next.
    pub target: *mut f32,
    pub stride: usize,
    /// Adds to the target.
    pub accumulate: bool,
    /// With `accumulate`: a factor for each row of what is there, or null.
    pub row_scale: *const f32,
    /// What of it is needed.
    pub useful: Useful,
    /// Whether this is the transpose of what `useful` speaks of.
    pub turned: bool,
}

impl SmallProduct {
    /// The transposed product, into the same place.
    pub fn turn(self) -> Self {
        let Self { rows, columns, left, right, turned, .. } = self;
        Self { rows: columns, columns: rows, left: right, right: left, turned: !turned, ..self }
    }

    /// Runs all tiles.
    ///
    /// # Safety
    /// The panels hold these rows, columns and depth, in whole runs, and the target is writable for them. In a run
    /// whatever is beyond the depth is zero on both sides, for the sums to be right.
    pub unsafe fn run<K: TileKernel>(self, kernel: K) {
        for (i, column) in (0..self.columns).step_by(kernel.columns()).enumerate() {
            for (j, row) in (0..self.rows).step_by(kernel.rows()).enumerate() {
                let rows = row..self.rows.min(row + kernel.rows());
                let columns = column..self.columns.min(column + kernel.columns());
                let units = self.units::<K>(&rows, &columns);
                // Where nothing is added, what is there still takes its factor.
                if units.is_empty() && self.row_scale.is_null() {
                    continue;
                }
                let target = self.target(rows, columns);
                let (left, right) = (self.left.units(j, units.start), self.right.units(i, units.start));
                // SAFETY: panels and target as the caller says.
                unsafe { kernel.tile(units.len(), left, right, &target) };
            }
        }
    }

    /// The units that a tile needs: whole runs. What they hold beside the depths asked for is zero: masked, or beyond the
    /// end.
    fn units<K: TileKernel>(&self, rows: &Range<usize>, columns: &Range<usize>) -> Range<usize> {
        let depths = match self.turned {
            false => self.useful.depths(rows, columns, self.depth),
            true => self.useful.depths(columns, rows, self.depth),
        };
        if depths.is_empty() {
            return 0..0;
        }
        depths.start / run_of::<K>() * K::ROW_RUN..depths.end.div_ceil(run_of::<K>()) * K::ROW_RUN
    }

    fn target(&self, rows: Range<usize>, columns: Range<usize>) -> Target<'static> {
        let scale = match self.row_scale.is_null() {
            true => self.row_scale,
            false => self.row_scale.wrapping_add(rows.start),
        };
        Target {
            row: rows.start,
            column: columns.start,
            ending: None,
            start: self.target.wrapping_add(rows.start * self.stride + columns.start),
            stride: self.stride,
            rows: rows.len(),
            columns: columns.len(),
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            accumulate: self.accumulate,
            row_scale: scale,
        }
    }
}
