//! Packing: from rows of f32 in memory to the panels that the tile kernel reads.
//!
//! A panel holds `width` *lines* (rows of the left operand, or columns of the right one) for a block of the depth. An
//! operand's lines either run along the depth in memory, and are transposed in registers, or across it, and are copied.
//! Lines and depth beyond the operand become zeros. Rounding to bf16 happens here, nowhere else.

use super::tile::TileKernel;
use crate::cpu::simd::{Operation, Simd};
use std::ops::Range;

/// A matrix whose lines are summed over with another's.
#[derive(Clone, Copy)]
pub struct Operand {
    /// First element.
    pub start: *const f32,
    /// Elements from one line to the next if lines run along the depth, else from one depth to the next.
    pub stride: usize,
    /// Whether a line's elements are neighbours in memory.
    pub along: bool,
}

impl Operand {
    /// The same matrix from line `line` and depth `depth` on.
    pub fn from(self, line: usize, depth: usize) -> Self {
        let offset = if self.along { line * self.stride + depth } else { depth * self.stride + line };
        Self { start: self.start.wrapping_add(offset), ..self }
    }
}

/// How a panel is laid out.
#[derive(Clone, Copy)]
pub struct PanelLayout {
    /// Lines of a panel.
    pub width: usize,
    /// Units of one line that stand together: 1, or a tile's worth.
    pub run: usize,
    /// Depth elements in a unit.
    pub group: usize,
    /// Whether single elements are rounded to bf16.
    pub round: bool,
}

impl PanelLayout {
    /// Of the left operand's panels.
    pub fn rows<K: TileKernel>(kernel: K) -> Self {
        Self { width: kernel.rows(), run: K::ROW_RUN, group: K::GROUP, round: K::ROUND }
    }

    /// Of the right operand's panels.
    pub fn columns<K: TileKernel>(kernel: K) -> Self {
        Self { width: kernel.columns(), run: 1, group: K::GROUP, round: K::ROUND }
    }
}

/// Units of a depth, padding included.
pub fn units_of<K: TileKernel>(depth: usize) -> usize {
    depth.div_ceil(K::GROUP).next_multiple_of(K::ROW_RUN)
}

/// Elements that a panel's stores may reach beyond its end; what is there must not matter.
pub const SLACK: usize = 16;

/// Units that are packed of one panel before the next one's turn, where lines run across the depth: a panel takes but
/// one or two cache lines of each row in memory, and its neighbours the rest.
const TURN: usize = 16;

/// Packs `lines` lines of `depth` elements into panels of `units * width` elements each, from `to` on.
///
/// # Safety
/// The operand is readable there; `to` is writable for all panels and [`SLACK`] elements more.
pub unsafe fn pack<S: Simd>(
    s: S,
    layout: PanelLayout,
    operand: Operand,
    lines: usize,
    depth: usize,
    units: usize,
    to: *mut f32,
) {
    s.vectorize(Panels { layout, operand, lines, depth, units, to, sums: std::ptr::null_mut() });
}

/// As [`pack`] for lines across the depth; adds the sum of each line's elements, not rounded, to `sums`.
///
/// # Safety
/// As there, and `sums` is valid for `lines` elements.
#[allow(clippy::too_many_arguments, reason = "pack's, and the sums")]
pub unsafe fn pack_and_sum<S: Simd>(
    s: S,
    layout: PanelLayout,
    operand: Operand,
    lines: usize,
    depth: usize,
    units: usize,
    to: *mut f32,
    sums: *mut f32,
) {
    debug_assert!(!operand.along, "lines along the depth are not summed");
    s.vectorize(Panels { layout, operand, lines, depth, units, to, sums });
}

/// All panels; what makes it safe to run is [`pack`]'s contract.
struct Panels {
    layout: PanelLayout,
    operand: Operand,
    lines: usize,
    depth: usize,
    units: usize,
    to: *mut f32,
    /// To be added to, or null.
    sums: *mut f32,
}

impl Operation for Panels {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.operand.along, self.layout.group) {
            (true, 1) => self.each::<S, true, 1>(s),
            (true, _) => self.each::<S, true, 2>(s),
            (false, 1) => self.each::<S, false, 1>(s),
            (false, _) => self.each::<S, false, 2>(s),
        }
    }
}

impl Panels {
    #[inline(always)]
    fn each<S: Simd, const ALONG: bool, const GROUP: usize>(&self, s: S) {
        let turn = if ALONG { self.units.max(1) } else { TURN };
        for unit in (0..self.units).step_by(turn) {
            for index in 0..self.lines.div_ceil(self.layout.width) {
                let panel = self.panel(index);
                let units = unit..self.units.min(unit + turn);
                // SAFETY: by the contract of pack.
                unsafe {
                    if ALONG {
                        panel.along::<S, GROUP>(s, units);
                    } else {
                        panel.across::<S, GROUP>(s, units);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn panel(&self, index: usize) -> Panel {
        let first = index * self.layout.width;
        Panel {
            layout: self.layout,
            operand: self.operand.from(first, 0),
            lines: self.layout.width.min(self.lines - first),
            depth: self.depth,
            units: self.units,
            to: self.to.wrapping_add(index * self.units * self.layout.width),
            sums: if self.sums.is_null() { self.sums } else { self.sums.wrapping_add(first) },
        }
    }
}

/// One panel; what makes it safe to run is [`pack`]'s contract.
struct Panel {
    layout: PanelLayout,
    operand: Operand,
    lines: usize,
    depth: usize,
    units: usize,
    to: *mut f32,
    sums: *mut f32,
}

impl Panel {
    /// One vector of units from `2 * LANES` (or `LANES`) depth elements of one line, zero beyond `left`.
    #[inline(always)]
    unsafe fn units_along<S: Simd, const GROUP: usize>(&self, s: S, from: *const f32, left: usize) -> S::V {
        // SAFETY: left elements are readable by the caller's word, and no more are read.
        unsafe {
            if GROUP == 1 {
                let v = s.load_up_to(from, left.min(S::LANES));
                return if self.layout.round { s.round_bf16(v) } else { v };
            }
            let first = s.load_up_to(from, left.min(S::LANES));
            let beyond = left.saturating_sub(S::LANES).min(S::LANES);
            let second =
                if beyond == 0 { s.splat(0.0) } else { s.load_up_to(from.wrapping_add(S::LANES), beyond) };
            s.pair_adjacent(first, second)
        }
    }

    /// Lines along the depth.
    #[inline(always)]
    unsafe fn along<S: Simd, const GROUP: usize>(&self, s: S, units: Range<usize>) {
        for unit in units.step_by(S::LANES) {
            let depth = unit * GROUP;
            let left = self.depth.saturating_sub(depth);
            for line in (0..self.layout.width).step_by(S::LANES) {
                let mut square = s.square();
                let valid = self.lines.saturating_sub(line);
                for (i, v) in square.as_mut().iter_mut().enumerate() {
                    if i < valid && left > 0 {
                        let from = self.operand.start.wrapping_add((line + i) * self.operand.stride + depth);
                        // SAFETY: a valid line, of which left elements remain.
                        *v = unsafe { self.units_along::<S, GROUP>(s, from, left) };
                    }
                }
                // SAFETY: units from unit on, lines from line on, are inside the panel.
                unsafe { self.put_lines(s, unit, line, &mut square) };
            }
        }
    }

    /// Stores a square whose vectors are lines.
    #[inline(always)]
    unsafe fn put_lines<S: Simd>(&self, s: S, unit: usize, line: usize, square: &mut S::Square) {
        if self.layout.run == 1 {
            s.transpose(square);
            // SAFETY: as for this function.
            unsafe { self.put_units(s, unit, line, square) };
            return;
        }
        let block = unit / self.layout.run * self.layout.run * self.layout.width + unit % self.layout.run;
        for (i, v) in square.as_mut().iter().enumerate() {
            // SAFETY: a run is a multiple of LANES, and the width too: the vector is inside the panel.
            unsafe { s.store(self.to.add(block + (line + i) * self.layout.run), *v) };
        }
    }

    /// Stores a square whose vectors are units.
    #[inline(always)]
    unsafe fn put_units<S: Simd>(&self, s: S, unit: usize, line: usize, square: &mut S::Square) {
        for (i, v) in square.as_mut().iter().enumerate() {
            if unit + i < self.units {
                // SAFETY: inside the panel.
                unsafe { self.put(s, unit + i, line, *v) };
            }
        }
    }

    /// Stores one vector of a unit. It may reach over the panel's width into the next unit, which is stored after it;
    /// that of the last unit is cut.
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, unit: usize, line: usize, v: S::V) {
        let to = self.to.wrapping_add(unit * self.layout.width + line);
        let left = self.layout.width - line;
        // SAFETY: inside the panel, of which another unit follows unless the vector is cut.
        unsafe {
            if left < S::LANES && unit + 1 == self.units {
                s.store_first(to, left, v)
            } else {
                s.store(to, v)
            }
        }
    }

    /// One vector of the units of `LANES` lines at one unit of the depth, and the sums of their elements.
    #[inline(always)]
    unsafe fn units_across<S: Simd, const GROUP: usize>(
        &self,
        s: S,
        unit: usize,
        line: usize,
    ) -> (S::V, S::V) {
        let valid = self.lines.saturating_sub(line).min(S::LANES);
        let depth = unit * GROUP;
        if valid == 0 || depth >= self.depth {
            return (s.splat(0.0), s.splat(0.0));
        }
        let from = self.operand.start.wrapping_add(depth * self.operand.stride + line);
        // SAFETY: valid lines at one or two depths of the operand.
        unsafe {
            let v = s.load_up_to(from, valid);
            if GROUP == 1 {
                return (if self.layout.round { s.round_bf16(v) } else { v }, v);
            }
            let second = match depth + 1 < self.depth {
                true => s.load_up_to(from.wrapping_add(self.operand.stride), valid),
                false => s.splat(0.0),
            };
            (s.pair(v, second), s.add(v, second))
        }
    }

    /// Adds to the sums of lines from `line` on.
    #[inline(always)]
    unsafe fn add_sums<S: Simd>(&self, s: S, line: usize, sums: S::V) {
        if self.sums.is_null() || line >= self.lines {
            return;
        }
        let (to, count) = (self.sums.wrapping_add(line), S::LANES.min(self.lines - line));
        // SAFETY: the sums of all lines are valid by the contract of pack_and_sum.
        unsafe { s.store_up_to(to, count, s.add(s.load_up_to(to, count), sums)) };
    }

    /// Lines across the depth.
    #[inline(always)]
    unsafe fn across<S: Simd, const GROUP: usize>(&self, s: S, units: Range<usize>) {
        for line in (0..self.layout.width).step_by(S::LANES) {
            let mut sums = s.splat(0.0);
            for unit in units.clone().step_by(if self.layout.run == 1 { 1 } else { S::LANES }) {
                // SAFETY: inside the operand and the panel.
                unsafe {
                    if self.layout.run == 1 {
                        let (v, sum) = self.units_across::<S, GROUP>(s, unit, line);
                        sums = s.add(sums, sum);
                        self.put(s, unit, line, v);
                        continue;
                    }
                    let mut square = s.square();
                    for (i, v) in square.as_mut().iter_mut().enumerate() {
                        let (units, sum) = self.units_across::<S, GROUP>(s, unit + i, line);
                        sums = s.add(sums, sum);
                        *v = units;
                    }
                    s.transpose(&mut square);
                    self.put_lines(s, unit, line, &mut square);
                }
            }
            // SAFETY: by the contract of pack_and_sum.
            unsafe { self.add_sums(s, line, sums) };
        }
    }
}
