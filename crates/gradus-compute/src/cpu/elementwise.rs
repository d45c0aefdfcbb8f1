//! Operations on elements: sums, activations, rotary positions, embeddings.
//!
//! Each is an [`Operation`] on a part of its rows or elements; the device cuts the whole into parts. Addresses are
//! resolved and their sizes checked by the device, and parts write apart: that is what the SAFETY comments lean on.

use super::cells::Cells;
use super::math::sigmoid;
use super::memory::Elements;
use super::simd::{Operation, Simd};
use crate::device::IGNORED;
use std::ops::Range;

/// A function of `N` elements.
pub trait Function<const N: usize>: Copy {
    /// Its value; implement with `#[inline(always)]`.
    fn apply<S: Simd>(self, s: S, x: [S::V; N]) -> S::V;
}

/// `out[i] = f(inputs[..][i])` for `i` in `range`; an input may be the output.
pub struct Map<F, const N: usize> {
    /// The function.
    pub f: F,
    /// Its arguments.
    pub inputs: [Cells; N],
    /// Its values.
    pub out: Cells,
    /// The elements to compute.
    pub range: Range<usize>,
}

impl<F: Function<N>, const N: usize> Operation for Map<F, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = self.range.start + self.range.len() / S::LANES * S::LANES;
        for at in (self.range.start..whole).step_by(S::LANES) {
            self.vector(s, at, S::LANES);
        }
        if whole < self.range.end {
            self.vector(s, whole, self.range.end - whole);
        }
    }
}

impl<F: Function<N>, const N: usize> Map<F, N> {
    #[inline(always)]
    fn vector<S: Simd>(&self, s: S, at: usize, count: usize) {
        // SAFETY: the range lies inside all inputs and the output; nobody else writes it.
        unsafe {
            let mut x = [s.splat(0.0); N];
            for (x, input) in x.iter_mut().zip(&self.inputs) {
                *x = input.load(s, at, count);
            }
            self.out.store(s, at, count, self.f.apply(s, x));
        }
    }
}

/// `x`, from one format to another.
#[derive(Clone, Copy)]
pub struct Same;

impl Function<1> for Same {
    #[inline(always)]
    fn apply<S: Simd>(self, _: S, [x]: [S::V; 1]) -> S::V {
        x
    }
}

/// `a + b`.
#[derive(Clone, Copy)]
pub struct Sum;

impl Function<2> for Sum {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [a, b]: [S::V; 2]) -> S::V {
        s.add(a, b)
    }
}

/// sqrt(2 / pi), of the tanh form of gelu.
const GELU_SCALE: f32 = 0.797_884_6;
/// The cubic coefficient of the tanh form of gelu.
const GELU_CUBIC: f32 = 0.044_715;

/// `gelu(x) = x * sigmoid(2u)`, `u = scale * (x + cubic * x^3)`: the tanh form, since `(1 + tanh u) / 2 = sigmoid(2u)`.
#[derive(Clone, Copy)]
pub struct Gelu;

impl Function<1> for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::V; 1]) -> S::V {
        s.mul(x, gelu_gate(s, x))
    }
}

/// `sigmoid(2u)`.
#[inline(always)]
fn gelu_gate<S: Simd>(s: S, x: S::V) -> S::V {
    let cubic = s.mul_add(s.mul(x, x), s.splat(2.0 * GELU_SCALE * GELU_CUBIC), s.splat(2.0 * GELU_SCALE));
    sigmoid(s, s.mul(x, cubic))
}

/// `d * gelu'(x)` of `x` and `d`: with `g = sigmoid(2u)`, `gelu' = g + x * g * (1 - g) * 2u'`.
#[derive(Clone, Copy)]
pub struct GeluGradient;

impl Function<2> for GeluGradient {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x, d]: [S::V; 2]) -> S::V {
        let gate = gelu_gate(s, x);
        let slope = s.mul_add(s.mul(x, x), s.splat(6.0 * GELU_SCALE * GELU_CUBIC), s.splat(2.0 * GELU_SCALE));
        let rest = s.sub(gate, s.mul(gate, gate));
        s.mul(d, s.mul_add(s.mul(x, slope), rest, gate))
    }
}

/// `silu(gate) * up`.
#[inline(always)]
pub fn swiglu<S: Simd>(s: S, gate: S::V, up: S::V) -> S::V {
    s.mul(s.mul(gate, sigmoid(s, gate)), up)
}

/// The gradients of gate and up from that of [`swiglu`].
#[inline(always)]
pub fn swiglu_gradient<S: Simd>(s: S, gate: S::V, up: S::V, d: S::V) -> (S::V, S::V) {
    let open = sigmoid(s, gate);
    let silu = s.mul(gate, open);
    // silu' = sigmoid * (1 + gate * (1 - sigmoid)) = sigmoid + silu - silu * sigmoid.
    let slope = s.add(open, s.sub(silu, s.mul(silu, open)));
    (s.mul(s.mul(d, up), slope), s.mul(d, silu))
}

/// `out[M, F] = silu(gate) * up` for rows `rows` of `gate_up[M, 2F]`.
pub struct Swiglu {
    /// Gate and up, side by side in each row.
    pub gate_up: Cells,
    /// `[M, F]`.
    pub out: Cells,
    /// `F`.
    pub width: usize,
    /// The rows to compute.
    pub rows: Range<usize>,
}

impl Operation for Swiglu {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.clone() {
            for at in (0..self.width).step_by(S::LANES) {
                let count = S::LANES.min(self.width - at);
                // SAFETY: inside row `row` of both, which this part alone writes.
                unsafe {
                    let gate = self.gate_up.load(s, 2 * row * self.width + at, count);
                    let up = self.gate_up.load(s, (2 * row + 1) * self.width + at, count);
                    self.out.store(s, row * self.width + at, count, swiglu(s, gate, up));
                }
            }
        }
    }
}

/// The gradient of [`Swiglu`]; `d_gate_up` may be `gate_up`.
pub struct SwigluGradient {
    /// Gate and up, side by side in each row.
    pub gate_up: Cells,
    /// `[M, F]`.
    pub d_out: Cells,
    /// As `gate_up`.
    pub d_gate_up: Cells,
    /// `F`.
    pub width: usize,
    /// The rows to compute.
    pub rows: Range<usize>,
}

impl Operation for SwigluGradient {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.clone() {
            for at in (0..self.width).step_by(S::LANES) {
                let count = S::LANES.min(self.width - at);
                let (first, second) = (2 * row * self.width + at, (2 * row + 1) * self.width + at);
                // SAFETY: inside row `row` of all three; both elements are read before either is written.
                unsafe {
                    let (gate, up) =
                        (self.gate_up.load(s, first, count), self.gate_up.load(s, second, count));
                    let d = self.d_out.load(s, row * self.width + at, count);
                    let (d_gate, d_up) = swiglu_gradient(s, gate, up, d);
                    self.d_gate_up.store(s, first, count, d_gate);
                    self.d_gate_up.store(s, second, count, d_up);
                }
            }
        }
    }
}

/// Cosines and sines of `position * theta^(-2i/D)`: `[position][D/2]` each, computed in f64.
#[derive(Default)]
pub struct RopeTable {
    theta: f32,
    half: usize,
    positions: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl RopeTable {
    /// Makes the table hold positions below `positions` for this base and half head size.
    pub fn extend(&mut self, theta: f32, half: usize, positions: usize) {
        if self.theta.to_bits() != theta.to_bits() || self.half != half {
            *self = Self { theta, half, ..Self::default() };
        }
        for position in self.positions..positions {
            for i in 0..half {
                let angle = position as f64 * f64::from(theta).powf(-2.0 * i as f64 / (2 * half) as f64);
                self.cosines.push(angle.cos() as f32);
                self.sines.push(angle.sin() as f32);
            }
        }
        self.positions = self.positions.max(positions);
    }

    /// Cosines and sines of one position, which the table holds.
    #[inline(always)]
    pub fn entry(&self, position: u32) -> (&[f32], &[f32]) {
        let entry = position as usize * self.half;
        (&self.cosines[entry..][..self.half], &self.sines[entry..][..self.half])
    }
}

/// The two halves `a` and `b` of a head, turned.
#[inline(always)]
pub fn turned<S: Simd>(s: S, a: S::V, b: S::V, cos: S::V, sin: S::V) -> (S::V, S::V) {
    (s.sub(s.mul(a, cos), s.mul(b, sin)), s.mul_add(b, cos, s.mul(a, sin)))
}

/// Turns the heads of rows `rows`.
pub struct Turn<'a> {
    /// Rows of heads.
    pub x: Cells,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Heads in a row.
    pub heads: usize,
    /// Half the head size.
    pub half: usize,
    /// Turn back.
    pub inverse: bool,
    /// A position for each row.
    pub positions: &'a [u32],
    /// Holds all of them.
    pub table: &'a RopeTable,
    /// The rows to turn.
    pub rows: Range<usize>,
}

impl Operation for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let sign = s.splat(if self.inverse { -1.0 } else { 1.0 });
        for row in self.rows.clone() {
            let (cosines, sines) = self.table.entry(self.positions[row]);
            for head in 0..self.heads {
                let first = row * self.stride + 2 * head * self.half;
                for at in (0..self.half).step_by(S::LANES) {
                    let count = S::LANES.min(self.half - at);
                    let (low, high) = (first + at, first + self.half + at);
                    // SAFETY: inside this head of this row, and inside the table's entry.
                    unsafe {
                        let cos = s.load_up_to(cosines.as_ptr().add(at), count);
                        let sin = s.mul(sign, s.load_up_to(sines.as_ptr().add(at), count));
                        let (a, b) = (self.x.load(s, low, count), self.x.load(s, high, count));
                        let (a, b) = turned(s, a, b, cos, sin);
                        self.x.store(s, low, count, a);
                        self.x.store(s, high, count, b);
                    }
                }
            }
        }
    }
}

/// A table of rows, in f32 or bf16.
#[derive(Clone, Copy)]
pub struct Table {
    /// Its elements.
    pub cells: Cells,
    /// How many there are.
    pub len: usize,
}

impl Table {
    /// Sets `out` to row `row`, or adds it.
    ///
    /// # Panics
    /// If the table has no such row.
    ///
    /// # Safety
    /// `out` is valid for a row, and nobody else's.
    #[inline(always)]
    unsafe fn take<S: Simd>(self, s: S, row: usize, out: &mut [f32], add: bool) {
        let first = row * out.len();
        assert!(first + out.len() <= self.len, "row {row} is not in the table");
        for at in (0..out.len()).step_by(S::LANES) {
            let count = S::LANES.min(out.len() - at);
            // SAFETY: inside the row, which is inside the table.
            unsafe {
                let mut v = self.cells.load(s, first + at, count);
                let to = out.as_mut_ptr().add(at);
                if add {
                    v = s.add(s.load_up_to(to, count), v);
                }
                s.store_up_to(to, count, v);
            }
        }
    }
}

/// `out[M, C] = table[token] (+ position_table[position])` for rows `rows`.
pub struct Embed<'a> {
    /// A row of the table for each row, or [`IGNORED`].
    pub tokens: &'a [u32],
    /// A row of the position table for each row, if there is one.
    pub positions: &'a [u32],
    /// `C`.
    pub width: usize,
    /// Rows of `C`.
    pub table: Table,
    /// Rows of `C`, or empty.
    pub position_table: Table,
    /// `[M, C]`.
    pub out: Elements,
    /// The rows to compute.
    pub rows: Range<usize>,
}

impl Operation for Embed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.clone() {
            // SAFETY: this part alone writes the row.
            unsafe {
                let out = self.out.slice_mut(row * self.width, self.width);
                match self.tokens[row] {
                    IGNORED => out.fill(0.0),
                    token => self.table.take(s, token as usize, out, false),
                }
                if self.position_table.len > 0 {
                    self.position_table.take(s, self.positions[row] as usize, out, true);
                }
            }
        }
    }
}

/// Adds columns `columns` of each row of `d_out[M, C]` to the row of the table that `indices` names, if it names one, in row
/// order: the order of sums does not depend on the number of threads.
pub struct Scatter<'a> {
    /// A row of the table for each row, or [`IGNORED`].
    pub indices: &'a [u32],
    /// `C`.
    pub width: usize,
    /// `[M, C]`.
    pub d_out: Elements,
    /// Rows of `C`.
    pub d_table: Elements,
    /// The columns to add.
    pub columns: Range<usize>,
}

impl Operation for Scatter<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (first, count) = (self.columns.start, self.columns.len());
        for (row, index) in self.indices.iter().enumerate().filter(|(_, index)| **index != IGNORED) {
            // SAFETY: slices are held against their ranges; this part alone touches these columns of the table.
            unsafe {
                let from = Elements::of(self.d_out.slice(row * self.width + first, count));
                let to =
                    Elements::of_mut(self.d_table.slice_mut(*index as usize * self.width + first, count));
                let [to, from] = [to, from].map(Cells::from);
                Map { f: Sum, inputs: [to, from], out: to, range: 0..count }.run(s);
            }
        }
    }
}
