//! What a product's sums become before they are stored: a bias, an activation, a turn, a gradient's way on through one,
//! and the rounding of what is kept in bf16.
//!
//! How: a kernel puts a tile's sums into the first cache, and [`Finish`] takes them from there, whatever the kernel. Some
//! functions take two columns together (an activation's gate and what it lets through, the two halves of a head that is
//! turned): such a product is *folded*, its panels hold vectors of the one and of the other in turn, so that both lie in
//! one tile. `fold` is how far the two are apart, [`unfold`] from a panel's line to the matrix's.
//! Invariant: a product with an ending has its whole depth in one block, so that a tile's sums are final.

use super::tile::Target;
use crate::cpu::cells::Cells;
use crate::cpu::elementwise::{Function, Gelu, GeluGradient, RopeTable, swiglu, swiglu_gradient, turned};
use crate::cpu::simd::{Operation, Simd};

/// Where sums go, and through what.
#[derive(Clone, Copy)]
pub struct Ending<'a> {
    /// The product's own target.
    pub out: Cells,
    /// Elements from one row of it to the next.
    pub stride: usize,
    /// One element for each column, or null.
    pub bias: *const f32,
    /// Elements from a column to the one that it is taken together with, or 0.
    pub fold: usize,
    /// Through what.
    pub then: Then<'a>,
}

// SAFETY: addresses; threads end tiles of disjoint rectangles.
unsafe impl Sync for Ending<'_> {}
// SAFETY: as above.
unsafe impl Send for Ending<'_> {}

impl Ending<'_> {
    /// Asks for what a tile's end will read and write: a cache line of each row, which of bf16 is a whole tile's.
    #[inline(always)]
    pub fn prefetch<S: Simd>(&self, s: S, target: &Target) {
        let column = unfold(target.column, self.fold, S::LANES);
        for row in target.row..target.row + target.rows {
            let at = row * self.stride + column;
            s.prefetch(self.out.at(at));
            match self.then {
                Then::GeluGradient { x } => s.prefetch(x.at(at)),
                Then::SwigluGradient { gate_up, width } => {
                    s.prefetch(gate_up.at(at));
                    s.prefetch(gate_up.at(at + width));
                }
                _ => {}
            }
        }
    }
}

/// What sums go through.
#[derive(Clone, Copy)]
pub enum Then<'a> {
    /// Nothing.
    Store,
    /// `out = x`, `activated = gelu(x)`, both in rows of the stride.
    Gelu {
        /// Of x as it is kept.
        activated: Cells,
    },
    /// `out = gelu'(x) * d`.
    GeluGradient {
        /// In rows of the stride.
        x: Cells,
    },
    /// Folded: `out = x`, `activated = silu(gate) * up` in rows of half the stride.
    Swiglu {
        /// Of x as it is kept.
        activated: Cells,
    },
    /// From a gradient of `fold` columns that of gate and up: `out` and `gate_up` have rows of the stride, twice as wide.
    SwigluGradient {
        /// Gate first in each row.
        gate_up: Cells,
        /// Columns of each.
        width: usize,
    },
    /// Folded: the two halves of heads turn.
    Turn {
        /// A position for each row.
        positions: &'a [u32],
        /// Holds all of them.
        table: &'a RopeTable,
        /// Columns that turn: the first ones of each row.
        columns: usize,
    },
}

/// The matrix's line of a panel's line, where `fold` lines further is taken together with it; vectors of `lanes`.
#[inline(always)]
pub fn unfold(line: usize, fold: usize, lanes: usize) -> usize {
    if fold == 0 {
        return line;
    }
    let (group, within) = (line / (2 * fold), line % (2 * fold));
    let (vector, lane) = (within / lanes, within % lanes);
    group * 2 * fold + vector / 2 * lanes + vector % 2 * fold + lane
}

/// From the sums of a tile to its target's ending.
pub struct Finish<'a> {
    /// A full tile's rows.
    pub sums: &'a [f32],
    /// Elements from one row of the sums to the next: a full tile's columns.
    pub width: usize,
    /// The tile's place.
    pub target: &'a Target<'a>,
    /// Its ending.
    pub ending: &'a Ending<'a>,
}

impl Operation for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.target.rows {
            match self.ending.fold {
                0 => self.singly(s, row),
                _ => self.by_twos(s, row),
            }
        }
    }
}

impl Finish<'_> {
    /// Vectors that are taken one by one.
    #[inline(always)]
    fn singly<S: Simd>(&self, s: S, row: usize) {
        for at in (0..self.target.columns).step_by(S::LANES) {
            let count = S::LANES.min(self.target.columns - at);
            let column = self.target.column + at;
            let sum = self.sum(s, row, at, column, count);
            // SAFETY: the target's rows and columns are valid by the contract of TileKernel::tile.
            unsafe { self.single(s, self.target.row + row, column, count, sum) };
        }
    }

    /// A vector of sums, with the bias.
    #[inline(always)]
    fn sum<S: Simd>(&self, s: S, row: usize, at: usize, column: usize, count: usize) -> S::V {
        // SAFETY: a full tile's row of sums holds whole vectors; the bias has an element for each column.
        unsafe {
            let sum = s.load(self.sums[row * self.width + at..].as_ptr());
            if self.ending.bias.is_null() {
                return sum;
            }
            s.add(sum, s.load_up_to(self.ending.bias.add(column), count))
        }
    }

    #[inline(always)]
    unsafe fn single<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, x: S::V) {
        let (ending, at) = (self.ending, row * self.ending.stride + column);
        // SAFETY: passed on.
        unsafe {
            match ending.then {
                Then::Gelu { activated } => {
                    ending.out.store(s, at, count, x);
                    activated.store(s, at, count, Gelu.apply(s, [ending.out.kept(s, x)]));
                }
                Then::GeluGradient { x: before } => {
                    let before = before.load(s, at, count);
                    ending.out.store(s, at, count, GeluGradient.apply(s, [before, x]));
                }
                Then::SwigluGradient { gate_up, width } => {
                    let (gate, up) = (gate_up.load(s, at, count), gate_up.load(s, at + width, count));
                    let (d_gate, d_up) = swiglu_gradient(s, gate, up, x);
                    ending.out.store(s, at, count, d_gate);
                    ending.out.store(s, at + width, count, d_up);
                }
                _ => ending.out.store(s, at, count, x),
            }
        }
    }

    /// Vectors that are taken two by two: a folded product has whole ones only.
    #[inline(always)]
    fn by_twos<S: Simd>(&self, s: S, row: usize) {
        let fold = self.ending.fold;
        for at in (0..self.target.columns).step_by(2 * S::LANES) {
            let column = unfold(self.target.column + at, fold, S::LANES);
            let a = self.sum(s, row, at, column, S::LANES);
            let b = self.sum(s, row, at + S::LANES, column + fold, S::LANES);
            // SAFETY: the target's rows and columns are valid by the contract of TileKernel::tile.
            unsafe { self.two(s, self.target.row + row, column, a, b) };
        }
    }

    #[inline(always)]
    unsafe fn two<S: Simd>(&self, s: S, row: usize, column: usize, mut a: S::V, mut b: S::V) {
        let (ending, fold) = (self.ending, self.ending.fold);
        // SAFETY: passed on; a head's columns have an entry each in the table's row.
        unsafe {
            match ending.then {
                Then::Swiglu { activated } => {
                    let value = swiglu(s, ending.out.kept(s, a), ending.out.kept(s, b));
                    activated.store(s, row * ending.stride / 2 + column, S::LANES, value);
                }
                Then::Turn { positions, table, columns } if column < columns => {
                    let (cosines, sines) = table.entry(positions[row]);
                    let at = column % (2 * fold);
                    let (cos, sin) = (s.load(cosines[at..].as_ptr()), s.load(sines[at..].as_ptr()));
                    (a, b) = turned(s, a, b, cos, sin);
                }
                _ => {}
            }
            ending.out.store(s, row * ending.stride + column, S::LANES, a);
            ending.out.store(s, row * ending.stride + column + fold, S::LANES, b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfolding_is_a_permutation_that_brings_two_together() {
        for (fold, lines, lanes) in [(32, 192, 16), (48, 96, 16), (16, 64, 8), (8, 16, 8)] {
            let mut seen = vec![false; lines];
            for line in 0..lines {
                let place = unfold(line, fold, lanes);
                assert!(!std::mem::replace(&mut seen[place], true));
                if line / lanes % 2 == 0 {
                    assert_eq!(unfold(line + lanes, fold, lanes), place + fold);
                }
            }
        }
        assert_eq!(unfold(77, 0, 16), 77);
    }
}
