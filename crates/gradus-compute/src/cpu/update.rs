//! Updates of parameters, in f32 or in bf16 rounded at random.

use super::cells::Cells;
use super::memory::Elements;
use super::simd::{Operation, Simd};
use crate::device::{AdamW, Format, Matrix};
use crate::rounding::{Keys, MULTIPLIERS, Rounding, SHIFTS};
use std::ops::Range;

/// The numbers of lanes.
static NUMBERS: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

impl Keys {
    /// Sixteen random bits for each of the elements from `first` on: what `draw` makes of one.
    #[inline(always)]
    fn draws<S: Simd>(self, s: S, first: usize) -> S::V {
        let [before, behind] = self.whitening.map(|key| s.splat_word(key));
        let multipliers = MULTIPLIERS.map(|multiplier| s.splat_word(multiplier));
        // SAFETY: there are sixteen, as many as the widest vector's lanes.
        let lanes = unsafe { s.load(NUMBERS.as_ptr().cast()) };
        let x = s.xor(s.add_words(s.splat_word(self.number(first)), lanes), before);
        let x = s.multiply_words(s.xor(x, s.shift_right(x, SHIFTS[0])), multipliers[0]);
        let x = s.multiply_words(s.xor(x, s.shift_right(x, SHIFTS[1])), multipliers[1]);
        let x = s.add_words(s.xor(x, s.shift_right(x, SHIFTS[2])), behind);
        s.shift_right(s.multiply_words(x, multipliers[0]), 16)
    }

    /// Elements from `first` on, rounded to bf16. What is not finite stays so.
    #[inline(always)]
    fn rounded_vector<S: Simd>(self, s: S, first: usize, x: S::V) -> S::V {
        let moved = s.and(s.add_words(x, self.draws(s, first)), s.splat_word(0xffff_0000));
        let magnitude = s.and(x, s.splat_word(0x7fff_ffff));
        s.select_le(magnitude, s.splat(f32::MAX), moved, s.round_bf16(x))
    }
}

/// Parameters, and how an update rounds them.
#[derive(Clone, Copy)]
pub struct Parameters {
    cells: Cells,
    /// In bf16, with the number of the update.
    rounding: Option<(Rounding, u64)>,
}

impl Parameters {
    /// Of a matrix, where it was resolved to, in update `update`.
    pub fn new(places: Elements, matrix: Matrix, rounding: Rounding, update: u64) -> Self {
        let rounding = (matrix.format == Format::Bf16).then_some((rounding, update));
        Self { cells: Cells::new(places, matrix.format), rounding }
    }

    /// Elements `range`, in stretches that one set of keys rounds, if they are rounded.
    fn stretches(self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, Option<Keys>)> {
        let exact = self.rounding.is_none().then(|| (range.clone(), None));
        let rounded = self.rounding.into_iter().flat_map(move |(rounding, update)| {
            rounding.stretches(update, range.clone()).map(|(range, keys)| (range, Some(keys)))
        });
        exact.into_iter().chain(rounded)
    }

    /// Elements `first..first + count`.
    ///
    /// # Safety
    /// As [`Cells::load`].
    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, first: usize, count: usize) -> S::V {
        // SAFETY: passed on.
        unsafe { self.cells.load(s, first, count) }
    }

    /// Sets elements `first..first + count`, rounded by the keys of their stretch, if there are some.
    ///
    /// # Safety
    /// As [`Cells::store`].
    #[inline(always)]
    unsafe fn store<S: Simd>(self, s: S, first: usize, count: usize, keys: Option<Keys>, x: S::V) {
        let x = if let Some(keys) = keys { keys.rounded_vector(s, first, x) } else { x };
        // SAFETY: passed on.
        unsafe { self.cells.store(s, first, count, x) };
    }
}

/// Elements `range` of one update by AdamW.
pub struct Adaptive {
    /// The numbers of the update.
    pub update: AdamW,
    /// The parameters.
    pub parameter: Parameters,
    /// Their gradient.
    pub gradient: Elements,
    /// First moment.
    pub moment1: Elements,
    /// Second moment.
    pub moment2: Elements,
    /// The elements to update.
    pub range: Range<usize>,
}

impl Operation for Adaptive {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let update = self.update;
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(update.update as f64);
        let decay = s.splat(1.0 - update.learning_rate * update.weight_decay);
        let (beta1, rest1) = (s.splat(update.beta1), s.splat(1.0 - update.beta1));
        let (beta2, rest2) = (s.splat(update.beta2), s.splat(1.0 - update.beta2));
        let root = s.splat((1.0 / correction(update.beta2).sqrt()) as f32);
        let step = s.splat((f64::from(update.learning_rate) / correction(update.beta1)) as f32);
        let (epsilon, factor) = (s.splat(update.epsilon), s.splat(update.gradient_scale));
        for (range, keys) in self.parameter.stretches(self.range.clone()) {
            for at in range.clone().step_by(S::LANES) {
                let count = S::LANES.min(range.end - at);
                let (m, v) = (self.moment1.at(at), self.moment2.at(at));
                // SAFETY: the range lies inside all four, and this part alone touches it.
                unsafe {
                    let gradient = s.mul(s.load_up_to(self.gradient.at(at), count), factor);
                    let moment1 = s.mul_add(beta1, s.load_up_to(m, count), s.mul(rest1, gradient));
                    let square = s.mul(s.mul(rest2, gradient), gradient);
                    let moment2 = s.mul_add(beta2, s.load_up_to(v, count), square);
                    let denominator = s.mul_add(s.sqrt(moment2), root, epsilon);
                    let change = s.div(s.mul(step, moment1), denominator);
                    s.store_up_to(m, count, moment1);
                    s.store_up_to(v, count, moment2);
                    let kept = s.mul(self.parameter.load(s, at, count), decay);
                    self.parameter.store(s, at, count, keys, s.sub(kept, change));
                }
            }
        }
    }
}

/// Elements `range` of one update by Muon: weighted sums of parameters and orthogonal matrix.
pub struct Orthogonal {
    /// Of both.
    pub weights: [f32; 2],
    /// The parameters.
    pub parameter: Parameters,
    /// The orthogonal matrix.
    pub matrix: Elements,
    /// The elements to update.
    pub range: Range<usize>,
}

impl Operation for Orthogonal {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [kept, moved] = self.weights.map(|weight| s.splat(weight));
        for (range, keys) in self.parameter.stretches(self.range.clone()) {
            for at in range.clone().step_by(S::LANES) {
                let count = S::LANES.min(range.end - at);
                // SAFETY: the range lies inside both, and this part alone touches these parameters.
                unsafe {
                    let matrix = s.load_up_to(self.matrix.at(at), count);
                    let kept = s.mul(kept, self.parameter.load(s, at, count));
                    self.parameter.store(s, at, count, keys, s.mul_add(moved, matrix, kept));
                }
            }
        }
    }
}
