//! Newton and Schulz's iteration, on the products of linear layers.
//!
//! A matrix with more rows than columns is not turned: its transpose is what operands' lines make of it, along the depth
//! or across it. Invariant: nothing is allocated; all rooms are cut out of scratch that the device keeps.

use super::cells::Cells;
use super::device::LINE;
use super::elementwise::{Function, Map};
use super::engine::Engine;
use super::gemm::{Operand, Product};
use super::loss::{sum_of_squares, sums_len};
use super::memory::Elements;
use super::simd::Simd;
use crate::muon::NewtonSchulz;

/// The sum of `N` elements, each with its weight.
#[derive(Clone, Copy)]
struct Weighted<const N: usize>([f32; N]);

impl<const N: usize> Function<N> for Weighted<N> {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: [S::V; N]) -> S::V {
        let mut sum = s.mul(s.splat(self.0[0]), x[0]);
        for (weight, x) in self.0.into_iter().zip(x).skip(1) {
            sum = s.mul_add(s.splat(weight), x, sum);
        }
        sum
    }
}

/// `out = sum(weights[i] * inputs[i])`; an input may be the output.
pub fn combine<const N: usize>(engine: &mut Engine, weights: [f32; N], inputs: [Elements; N], out: Elements) {
    let (inputs, len, out) = (inputs.map(Cells::from), out.len(), Cells::from(out));
    engine.each(len, LINE, N, |range| Map { f: Weighted(weights), inputs, out, range });
}

/// What an iteration works in. All are apart.
#[derive(Clone, Copy)]
pub struct Rooms {
    /// `[M, N]`, for whoever iterates.
    pub matrix: Elements,
    /// `[M, N]`.
    product: Elements,
    /// `[S, S]`, with S the smaller of M and N.
    gram: Elements,
    /// `[S, S]`.
    polynomial: Elements,
    /// Sums on the way to the norm.
    sums: Elements,
}

impl Rooms {
    fn lens(shape: NewtonSchulz) -> [usize; 5] {
        let smaller = shape.rows.min(shape.columns);
        [shape.len(), shape.len(), smaller * smaller, smaller * smaller, sums_len(shape.len())]
    }

    /// Elements of memory for all of them, each from a cache line on.
    pub fn len(shape: NewtonSchulz) -> usize {
        Self::lens(shape).map(|len| len.next_multiple_of(LINE)).iter().sum()
    }

    /// Cuts [`Rooms::len`] elements.
    pub fn cut(shape: NewtonSchulz, memory: &mut [f32]) -> Self {
        let mut rest = memory;
        let [matrix, product, gram, polynomial, sums] = Self::lens(shape).map(|len| {
            let (room, behind) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(LINE));
            rest = behind;
            Elements::of_mut(&mut room[..len])
        });
        Self { matrix, product, gram, polynomial, sums }
    }
}

/// An iteration over `x`.
#[derive(Clone, Copy)]
pub struct Iteration {
    /// Sizes, and how often.
    pub shape: NewtonSchulz,
    /// `[M, N]`, apart from the rooms, or their matrix.
    pub x: Elements,
    /// What it works in.
    pub rooms: Rooms,
}

impl Iteration {
    /// Sets `x` to what comes of `from`, which may be `x`.
    ///
    /// # Safety
    /// All are valid for their sizes, and nobody else writes them or reads what is written.
    pub unsafe fn run(self, engine: &mut Engine, from: Elements) {
        let norm = sum_of_squares(engine, from, self.rooms.sums).sqrt() as f32;
        combine(engine, [1.0 / norm.max(NewtonSchulz::SMALLEST_NORM)], [from], self.x);
        for _ in 0..self.shape.iterations {
            // SAFETY: passed on.
            unsafe { self.improve(engine) };
        }
    }

    /// `x = a x + (b A + c A A) x`, or with the factors turned.
    unsafe fn improve(&self, engine: &mut Engine) {
        let [a, b, c] = NewtonSchulz::COEFFICIENTS;
        let Rooms { product, gram, polynomial, .. } = self.rooms;
        // SAFETY: the targets are apart from the operands, and all are of their sizes.
        unsafe {
            engine.product(self.gram());
            engine.product(self.square());
        }
        combine(engine, [b, c], [gram, polynomial], polynomial);
        // SAFETY: as above.
        unsafe { engine.product(self.turned()) };
        combine(engine, [a, 1.0], [self.x, product], self.x);
    }

    /// `x x^T`, or `x^T x` where there are more rows than columns.
    fn gram(&self) -> Product<'static> {
        let NewtonSchulz { rows, columns, .. } = self.shape;
        if rows > columns {
            let operand = Operand::across(self.x.at(0), columns);
            return Product::of([columns, columns, rows], [operand; 2], self.rooms.gram.at(0));
        }
        let operand = Operand::along(self.x.at(0), columns);
        Product::of([rows, rows, columns], [operand; 2], self.rooms.gram.at(0))
    }

    /// `A A`, in the polynomial's room.
    fn square(&self) -> Product<'static> {
        let (size, gram) = (self.shape.rows.min(self.shape.columns), self.rooms.gram.at(0));
        let operands = [Operand::along(gram, size), Operand::across(gram, size)];
        Product::of([size, size, size], operands, self.rooms.polynomial.at(0))
    }

    /// The polynomial times `x`, or `x` times it where there are more rows than columns.
    fn turned(&self) -> Product<'static> {
        let NewtonSchulz { rows, columns, .. } = self.shape;
        let (x, polynomial) = (self.x.at(0), self.rooms.polynomial.at(0));
        let (depth, operands) = if rows > columns {
            (columns, [Operand::along(x, columns), Operand::across(polynomial, columns)])
        } else {
            (rows, [Operand::along(polynomial, rows), Operand::across(x, columns)])
        };
        Product::of([rows, columns, depth], operands, self.rooms.product.at(0))
    }
}
