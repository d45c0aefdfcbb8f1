//! Packing: from rows of f32 in memory to the panels that the tile kernel reads.
//!
//! A panel holds `width` *lines* (rows of the left operand, or columns of the right one) for a block of the depth. An
//! operand's lines either run along the depth in memory, and are transposed in registers, or across it, and are copied.
//! Lines and depth beyond the operand become zeros. Rounding to bf16 happens here, nowhere else.

use super::ending::unfold;
use super::tile::TileKernel;
use crate::cpu::simd::{Operation, Simd};
use crate::device::Format;
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
    /// Whether elements are bf16 in memory, two in the place of one f32.
    pub half: bool,
    /// How far apart lines are that an ending takes together, or 0: see [`unfold`]; only along the depth.
    pub fold: usize,
    /// The first line of a folded matrix that is meant: 0 where [`Operand::from`] was not asked for another.
    pub first: usize,
}

impl Operand {
    /// A matrix of f32 whose lines run along the depth, `stride` elements apart.
    pub fn along(start: *const f32, stride: usize) -> Self {
        Self { start, stride, along: true, half: false, fold: 0, first: 0 }
    }

    /// A matrix of f32 whose lines run across the depth, which is `stride` elements from one to the next.
    pub fn across(start: *const f32, stride: usize) -> Self {
        Self { along: false, ..Self::along(start, stride) }
    }

    /// The same matrix, kept in `format`.
    pub fn kept(self, format: Format) -> Self {
        Self { half: format == Format::Bf16, ..self }
    }

    /// The same matrix from line `line` and depth `depth` on.
    pub fn from(self, line: usize, depth: usize) -> Self {
        match (self.fold, self.along) {
            (0, true) => self.shifted(line * self.stride + depth),
            (0, false) => self.shifted(depth * self.stride + line),
            _ => Self { first: self.first + line, ..self.shifted(depth) },
        }
    }

    #[inline(always)]
    fn shifted(self, elements: usize) -> Self {
        Self { start: self.start.wrapping_byte_add(elements * self.bytes()), ..self }
    }

    /// Address of the first element of a line along the depth, for vectors of `lanes`.
    #[inline(always)]
    fn line(self, line: usize, lanes: usize) -> *const f32 {
        self.shifted(unfold(self.first + line, self.fold, lanes) * self.stride).start
    }

    /// Bytes of an element.
    #[inline(always)]
    fn bytes(self) -> usize {
        if self.half { 2 } else { 4 }
    }
}

/// How a panel is laid out.
#[derive(Clone, Copy)]
pub struct PanelLayout {
    /// Lines of a panel.
    pub lines: usize,
    /// Elements from one unit to the next: the lines, and what fills up their last vector.
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
        let (lines, width) = (kernel.rows(), kernel.row_stride());
        Self { lines, width, run: K::ROW_RUN, group: K::GROUP, round: K::ROUND }
    }

    /// Of the right operand's panels.
    pub fn columns<K: TileKernel>(kernel: K) -> Self {
        let lines = kernel.columns();
        Self { lines, width: lines, run: 1, group: K::GROUP, round: K::ROUND }
    }

    /// Elements of the panels of `lines` lines.
    pub fn len(&self, lines: usize, units: usize) -> usize {
        lines.div_ceil(self.lines) * self.width * units
    }
}

/// Units of a depth, padding included.
pub fn units_of<K: TileKernel>(depth: usize) -> usize {
    depth.div_ceil(K::GROUP).next_multiple_of(K::ROW_RUN)
}

/// Units that are packed of one panel before the next one's turn, where lines run across the depth: a panel takes but
/// one or two cache lines of each row in memory, and its neighbours the rest.
const TURN: usize = 16;

/// Packs `lines` lines of `depth` elements into panels of `units` units each, from `to` on. Adds the sum of each
/// line's elements, not rounded, to `sums` unless that is null; only for lines across the depth.
///
/// # Safety
/// The operand is readable there; `to` is writable for [`PanelLayout::len`] elements, `sums` for `lines`.
#[allow(clippy::too_many_arguments, reason = "an operand, its part, and two places")]
pub unsafe fn pack<S: Simd>(
    s: S,
    layout: PanelLayout,
    operand: Operand,
    lines: usize,
    depth: usize,
    units: usize,
    to: *mut f32,
    sums: *mut f32,
) {
    debug_assert!(sums.is_null() || !operand.along, "lines along the depth are not summed");
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
    sums: *mut f32,
}

impl Operation for Panels {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.operand.along, self.layout.group, self.layout.round, self.operand.half) {
            (true, 1, _, true) => self.each::<S, true, 1, true, true>(s),
            (true, _, _, true) => self.each::<S, true, 2, true, true>(s),
            (true, 1, false, _) => self.each::<S, true, 1, false, false>(s),
            (true, 1, true, _) => self.each::<S, true, 1, true, false>(s),
            (true, _, _, _) => self.each::<S, true, 2, true, false>(s),
            (false, 1, _, true) => self.each::<S, false, 1, true, true>(s),
            (false, _, _, true) => self.each::<S, false, 2, true, true>(s),
            (false, 1, false, _) => self.each::<S, false, 1, false, false>(s),
            (false, 1, true, _) => self.each::<S, false, 1, true, false>(s),
            (false, _, _, _) => self.each::<S, false, 2, true, false>(s),
        }
    }
}

impl Panels {
    #[inline(always)]
    fn each<S: Simd, const ALONG: bool, const GROUP: usize, const ROUND: bool, const HALF: bool>(
        &self,
        s: S,
    ) {
        let turn = if ALONG { self.units.max(1) } else { TURN };
        for unit in (0..self.units).step_by(turn) {
            for index in 0..self.lines.div_ceil(self.layout.lines) {
                let panel = self.panel(index);
                let units = unit..self.units.min(unit + turn);
                // SAFETY: by the contract of pack.
                unsafe {
                    if ALONG {
                        panel.along::<S, GROUP, ROUND, HALF>(s, units);
                    } else {
                        panel.across::<S, GROUP, ROUND, HALF>(s, units);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn panel(&self, index: usize) -> Panel {
        let first = index * self.layout.lines;
        Panel {
            layout: self.layout,
            operand: self.operand.from(first, 0),
            lines: self.lines - first,
            depth: self.depth,
            to: self.to.wrapping_add(index * self.units * self.layout.width),
            sums: if self.sums.is_null() { self.sums } else { self.sums.wrapping_add(first) },
        }
    }
}

/// One panel; what makes it safe to run is [`pack`]'s contract.
struct Panel {
    layout: PanelLayout,
    operand: Operand,
    /// Lines that the operand has from the panel's first on: fewer or more than the panel's own.
    lines: usize,
    depth: usize,
    to: *mut f32,
    sums: *mut f32,
}

impl Panel {
    /// One vector of units from `LANES * GROUP` depth elements of one line, zero beyond `left` if `EDGE`.
    #[inline(always)]
    unsafe fn units_along<
        S: Simd,
        const GROUP: usize,
        const ROUND: bool,
        const EDGE: bool,
        const HALF: bool,
    >(
        s: S,
        from: *const f32,
        left: usize,
    ) -> S::V {
        if HALF {
            let count = if EDGE { left.min(GROUP * S::LANES) } else { GROUP * S::LANES };
            // SAFETY: left elements are readable by the caller's word, and no more are read.
            return unsafe {
                if GROUP == 1 { s.widen(from.cast(), count) } else { s.load_pairs(from.cast(), count) }
            };
        }
        // SAFETY: left elements are readable by the caller's word, and no more are read.
        unsafe {
            let first =
                if EDGE { s.load_first(from, left.min(S::LANES), s.splat(0.0)) } else { s.load(from) };
            if GROUP == 1 {
                return if ROUND { s.round_bf16(first) } else { first };
            }
            let (from, left) = (from.wrapping_add(S::LANES), left.saturating_sub(S::LANES).min(S::LANES));
            let second = if EDGE { s.load_first(from, left, s.splat(0.0)) } else { s.load(from) };
            s.pair_adjacent(first, second)
        }
    }

    /// Lines along the depth.
    #[inline(always)]
    unsafe fn along<S: Simd, const GROUP: usize, const ROUND: bool, const HALF: bool>(
        &self,
        s: S,
        units: Range<usize>,
    ) {
        for line in (0..self.layout.width).step_by(S::LANES) {
            let whole =
                if line + S::LANES <= self.lines { self.depth / (S::LANES * GROUP) * S::LANES } else { 0 };
            for unit in units.clone().step_by(S::LANES) {
                // SAFETY: units from unit on, and lines from line on, are inside the panel.
                unsafe {
                    let square = match unit < whole {
                        true => self.square_along::<S, GROUP, ROUND, false, HALF>(s, unit, line),
                        false => self.square_along::<S, GROUP, ROUND, true, HALF>(s, unit, line),
                    };
                    self.put_lines(s, unit, units.end, line, square);
                }
            }
        }
    }

    /// `LANES` units of `LANES` lines. Lines beyond the operand's last repeat it: nothing reads what comes of them.
    #[inline(always)]
    unsafe fn square_along<
        S: Simd,
        const GROUP: usize,
        const ROUND: bool,
        const EDGE: bool,
        const HALF: bool,
    >(
        &self,
        s: S,
        unit: usize,
        line: usize,
    ) -> S::Square {
        let stride = self.operand.stride;
        let (left, last) = (self.depth.saturating_sub(unit * GROUP), self.lines - 1);
        let line = if EDGE { line.min(last) } else { line };
        // Of an empty rest nothing is read, wherever it would be. Lines of one vector follow each other, folded or not.
        let bytes = if HALF { 2 } else { 4 };
        let mut from = self.operand.line(line, S::LANES).wrapping_byte_add(unit * GROUP * bytes);
        let mut square = s.square();
        for (i, v) in square.as_mut().iter_mut().enumerate() {
            // SAFETY: a line of the operand, of which left elements remain.
            *v = unsafe { Self::units_along::<S, GROUP, ROUND, EDGE, HALF>(s, from, left) };
            from = from.wrapping_byte_add(if EDGE && line + i >= last { 0 } else { stride * bytes });
        }
        square
    }

    /// Stores a square whose vectors are lines.
    #[inline(always)]
    unsafe fn put_lines<S: Simd>(&self, s: S, unit: usize, end: usize, line: usize, mut square: S::Square) {
        let PanelLayout { width, run, .. } = self.layout;
        let (first, step, count) = match run {
            1 => (unit * width + line, width, S::LANES.min(end - unit)),
            _ => (unit / run * run * width + unit % run + line * run, run, S::LANES),
        };
        if run == 1 {
            s.transpose(&mut square);
        }
        let mut to = self.to.wrapping_add(first);
        for (i, v) in square.as_mut().iter().enumerate() {
            if i < count {
                // SAFETY: a run is a multiple of LANES, and the width too: the vector is inside the panel.
                unsafe { s.store(to, *v) };
            }
            to = to.wrapping_add(step);
        }
    }

    /// One vector of the units of `LANES` lines at one unit of the depth, and the sums of their elements.
    #[inline(always)]
    unsafe fn units_across<S: Simd, const GROUP: usize, const ROUND: bool, const HALF: bool>(
        &self,
        s: S,
        unit: usize,
        line: usize,
    ) -> (S::V, S::V) {
        let count = self.lines.saturating_sub(line).min(S::LANES);
        let depth = unit * GROUP;
        if count == 0 || depth >= self.depth {
            return (s.splat(0.0), s.splat(0.0));
        }
        let stride = self.operand.stride;
        let from = self.operand.shifted(depth * stride + line).start;
        let turn = self.operand.shifted((depth + TURN * GROUP) * stride + line).start;
        s.prefetch(turn);
        // SAFETY: count lines at one or two depths of the operand.
        unsafe {
            let v = Self::load::<S, HALF>(s, from, count);
            if GROUP == 1 {
                return (if ROUND && !HALF { s.round_bf16(v) } else { v }, v);
            }
            let bytes = if HALF { 2 } else { 4 };
            s.prefetch(turn.wrapping_byte_add(stride * bytes));
            let second = match depth + 1 < self.depth {
                true => Self::load::<S, HALF>(s, from.wrapping_byte_add(stride * bytes), count),
                false => s.splat(0.0),
            };
            (s.pair(v, second), s.add(v, second))
        }
    }

    /// `count` neighbours.
    ///
    /// # Safety
    /// They are readable.
    #[inline(always)]
    unsafe fn load<S: Simd, const HALF: bool>(s: S, from: *const f32, count: usize) -> S::V {
        // SAFETY: passed on.
        unsafe { if HALF { s.widen(from.cast(), count) } else { s.load_up_to(from, count) } }
    }

    /// Adds to the sums of the panel's lines from `line` on.
    #[inline(always)]
    unsafe fn add_sums<S: Simd>(&self, s: S, line: usize, sums: S::V) {
        let lines = self.lines.min(self.layout.lines);
        if self.sums.is_null() || line >= lines {
            return;
        }
        let (to, count) = (self.sums.wrapping_add(line), S::LANES.min(lines - line));
        // SAFETY: the sums of all lines are valid by the contract of pack.
        unsafe { s.store_up_to(to, count, s.add(s.load_up_to(to, count), sums)) };
    }

    /// Lines across the depth.
    #[inline(always)]
    unsafe fn across<S: Simd, const GROUP: usize, const ROUND: bool, const HALF: bool>(
        &self,
        s: S,
        units: Range<usize>,
    ) {
        for line in (0..self.layout.width).step_by(S::LANES) {
            let mut sums = s.splat(0.0);
            if self.layout.run == 1 {
                for unit in units.clone() {
                    // SAFETY: inside the operand and the panel.
                    unsafe {
                        let (v, sum) = self.units_across::<S, GROUP, ROUND, HALF>(s, unit, line);
                        sums = s.add(sums, sum);
                        s.store(self.to.add(unit * self.layout.width + line), v);
                    }
                }
            } else {
                for unit in units.clone().step_by(S::LANES) {
                    let mut square = s.square();
                    for (i, v) in square.as_mut().iter_mut().enumerate() {
                        // SAFETY: inside the operand, zero beyond.
                        let (units, sum) =
                            unsafe { self.units_across::<S, GROUP, ROUND, HALF>(s, unit + i, line) };
                        sums = s.add(sums, sum);
                        *v = units;
                    }
                    s.transpose(&mut square);
                    // SAFETY: inside the panel.
                    unsafe { self.put_lines(s, unit, units.end, line, square) };
                }
            }
            // SAFETY: by the contract of pack.
            unsafe { self.add_sums(s, line, sums) };
        }
    }
}
