//! Cross entropy, and the sum of squares.

mod part;

pub use part::{PartLosses, PartMaxima, PartSums};

use super::engine::Engine;
use super::math::exp;
use super::memory::Elements;
use super::simd::{Operation, Simd};
use crate::device::{CrossEntropy, IGNORED};
use std::ops::Range;

/// Vectors worked on side by side, so that operations need not wait for each other.
const ABREAST: usize = 4;

/// Rows `rows` of the losses and, if `gradient`, of the logits' gradient.
pub struct Losses<'a> {
    /// The operation's shape.
    pub shape: CrossEntropy<'a>,
    /// `[M, width]`.
    pub logits: Elements,
    /// `[M]`.
    pub losses: Elements,
    /// Whether logits become their gradient.
    pub gradient: bool,
    /// The rows to compute.
    pub rows: Range<usize>,
}

impl Operation for Losses<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.clone() {
            // SAFETY: this part alone touches the row's logits and loss.
            let (logits, loss) = unsafe {
                let logits = self.logits.slice_mut(row * self.shape.width, self.shape.width);
                (logits, &mut self.losses.slice_mut(row, 1)[0])
            };
            *loss = self.row(s, logits, self.shape.targets[row]);
        }
    }
}

impl Losses<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, logits: &mut [f32], target: u32) -> f32 {
        let (real, padding) = logits.split_at_mut(self.shape.vocabulary);
        if self.gradient {
            padding.fill(0.0);
        }
        if target == IGNORED {
            if self.gradient {
                real.fill(0.0);
            }
            return 0.0;
        }
        let right = real[target as usize];
        let highest = largest(s, real);
        let sum = if self.gradient {
            exponentials::<S, true>(s, real, highest)
        } else {
            exponentials::<S, false>(s, real, highest)
        };
        if self.gradient {
            scale(s, real, 1.0 / sum);
            real[target as usize] -= 1.0;
        }
        highest + sum.ln() - right
    }
}

/// The largest element; of no use where one is not a number, which the sum then shows.
#[inline(always)]
fn largest<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut most = [s.splat(f32::NEG_INFINITY); ABREAST];
    let mut blocks = values.chunks_exact(ABREAST * S::LANES);
    for block in &mut blocks {
        for (j, most) in most.iter_mut().enumerate() {
            // SAFETY: a block holds ABREAST vectors.
            *most = s.max(*most, unsafe { s.load(block.as_ptr().add(j * S::LANES)) });
        }
    }
    for rest in blocks.remainder().chunks(S::LANES) {
        // SAFETY: a chunk of at most LANES elements.
        let v = unsafe { s.load_first(rest.as_ptr(), rest.len(), s.splat(f32::NEG_INFINITY)) };
        most[0] = s.max(most[0], v);
    }
    s.largest(s.max(s.max(most[0], most[1]), s.max(most[2], most[3])))
}

/// `sum(e^(x - highest))`, in a fixed order; the terms are kept if `KEEP`.
#[inline(always)]
fn exponentials<S: Simd, const KEEP: bool>(s: S, values: &mut [f32], highest: f32) -> f32 {
    let shift = s.splat(highest);
    let mut sums = [s.splat(0.0); ABREAST];
    let mut blocks = values.chunks_exact_mut(ABREAST * S::LANES);
    for block in &mut blocks {
        for (j, sum) in sums.iter_mut().enumerate() {
            let at = block.as_mut_ptr().wrapping_add(j * S::LANES);
            // SAFETY: a block holds ABREAST vectors.
            unsafe {
                let term = exp(s, s.sub(s.load(at), shift));
                *sum = s.add(*sum, term);
                if KEEP {
                    s.store(at, term);
                }
            }
        }
    }
    for rest in blocks.into_remainder().chunks_mut(S::LANES) {
        // SAFETY: a chunk of at most LANES elements; the exponential of the other lanes is zero.
        unsafe {
            let x = s.load_first(rest.as_ptr(), rest.len(), s.splat(f32::NEG_INFINITY));
            let term = exp(s, s.sub(x, shift));
            sums[0] = s.add(sums[0], term);
            if KEEP {
                s.store_first(rest.as_mut_ptr(), rest.len(), term);
            }
        }
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

#[inline(always)]
fn scale<S: Simd>(s: S, values: &mut [f32], factor: f32) {
    for chunk in values.chunks_mut(S::LANES) {
        // SAFETY: a chunk of at most LANES elements.
        unsafe {
            let x = s.load_up_to(chunk.as_ptr(), chunk.len());
            s.store_up_to(chunk.as_mut_ptr(), chunk.len(), s.mul(x, s.splat(factor)));
        }
    }
}

/// Elements in a block of [`Squares`]: the blocks' sums are added in order, whoever made them.
const SQUARES_BLOCK: usize = 16_384;

/// Elements of scratch that [`sum_of_squares`] of `len` elements needs: two hold the bits of one f64.
pub fn sums_len(len: usize) -> usize {
    2 * len.div_ceil(SQUARES_BLOCK)
}

/// The sum of squares of `x`, in f64; `sums` are [`sums_len`] elements from a cache line on.
pub fn sum_of_squares(engine: &mut Engine, x: Elements, sums: Elements) -> f64 {
    assert_eq!(sums.len(), sums_len(x.len()), "the sums of blocks have another size");
    let (family, blocks) = (engine.family, x.len().div_ceil(SQUARES_BLOCK));
    engine.split(blocks, 1, SQUARES_BLOCK, |range, _| {
        for block in range {
            let sum: f64 = family.run(Squares { x, block });
            // SAFETY: the scratch is aligned to a cache line, and each block has its own eight bytes.
            unsafe { sums.at(2 * block).cast::<f64>().write(sum) };
        }
    });
    // SAFETY: every block has written its sum.
    (0..blocks).map(|block| unsafe { sums.at(2 * block).cast::<f64>().read() }).sum()
}

/// The sum of squares of one block, in f64.
struct Squares {
    /// All elements.
    x: Elements,
    /// Which block.
    block: usize,
}

impl Operation for Squares {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let end = self.x.len().min((self.block + 1) * SQUARES_BLOCK);
        let mut sums = [[0.0f64; 16]; ABREAST];
        for first in (self.block * SQUARES_BLOCK..end).step_by(ABREAST * S::LANES) {
            for (j, sums) in sums.iter_mut().enumerate() {
                let at = first + j * S::LANES;
                if at < end {
                    // SAFETY: inside the range.
                    s.add_squares(unsafe { s.load_up_to(self.x.at(at), S::LANES.min(end - at)) }, sums);
                }
            }
        }
        sums.iter().flatten().sum()
    }
}
