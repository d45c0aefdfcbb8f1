//! Rounding to bf16 at random.
//!
//! A number between two neighbours in bf16 becomes the one further from zero with the probability of what is cut off, in
//! units of their distance, else the other (stochastic rounding; Gupta et al. 2015, "Deep learning with limited numerical
//! precision"): on average nothing is lost, where to the nearest an update smaller than half that distance would be lost
//! each time.
//!
//! What is drawn is a pure function of the seed, the update and the element, so that neither threads nor kernels nor how
//! ranks cut a tensor change a bit. Philox (Salmon et al. 2011) makes keys of seed, update, and the upper half of the
//! element's number. Its lower half goes through MurmurHash3's finaliser (Appleby 2011; Steele et al. 2014 make a generator of
//! its like), for which vectors have the instructions, with one key before and one behind, and is multiplied once more: after
//! two multiplications the upper halves of 2^18 numbers that follow each other are not yet uniform.

use gradus_host::random::philox;
use std::ops::Range;

/// Which random numbers round the parameters that are kept in bf16; without meaning for those in f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rounding {
    /// Numbers of different seeds are independent.
    pub seed: u64,
    /// The number that the first element has among all: two elements that are updated have two numbers, wherever they lie.
    pub first: u64,
}

/// Tells these keys from others that philox makes of the same seed.
const PURPOSE: u128 = 1 << 126;

/// Shifts of the finaliser.
pub(crate) const SHIFTS: [u32; 3] = [16, 13, 16];
/// Its multipliers; the first one also multiplies at the end.
pub(crate) const MULTIPLIERS: [u32; 2] = [0x85eb_ca6b, 0xc2b2_ae35];

impl Rounding {
    /// Elements `range`, in stretches whose numbers share their upper half, with the keys of an update.
    pub(crate) fn stretches(
        self,
        update: u64,
        range: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, Keys)> {
        let mut next = range.start;
        std::iter::from_fn(move || {
            let number = self.first.wrapping_add(next as u64);
            let left = (1 << 32) - (number & 0xffff_ffff);
            let end = range.end.min(next.saturating_add(left as usize));
            let stretch = next..end;
            next = end;
            (!stretch.is_empty()).then(|| (stretch, self.keys(update, number)))
        })
    }

    /// Keys for the numbers that share their upper half with this one.
    fn keys(self, update: u64, number: u64) -> Keys {
        let counter = u128::from(update) | u128::from(number >> 32) << 64 | PURPOSE;
        let [first, second, ..] = philox(self.seed, counter);
        Keys { whitening: [first, second], first: self.first as u32 }
    }
}

/// What makes random numbers of the numbers of a stretch of elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys {
    /// One before the finaliser, one behind.
    pub whitening: [u32; 2],
    /// The lower half of the number of element 0.
    pub first: u32,
}

impl Keys {
    /// The lower half of an element's number.
    #[inline(always)]
    pub fn number(self, element: usize) -> u32 {
        self.first.wrapping_add(element as u32)
    }

    /// Sixteen random bits for an element.
    fn draw(self, element: usize) -> u32 {
        let mut x = self.number(element) ^ self.whitening[0];
        x = (x ^ x >> SHIFTS[0]).wrapping_mul(MULTIPLIERS[0]);
        x = (x ^ x >> SHIFTS[1]).wrapping_mul(MULTIPLIERS[1]);
        x = (x ^ x >> SHIFTS[2]).wrapping_add(self.whitening[1]);
        x.wrapping_mul(MULTIPLIERS[0]) >> 16
    }

    /// An element rounded to bf16. What is not finite stays so.
    pub fn rounded(self, element: usize, x: f32) -> f32 {
        if !x.is_finite() {
            return half::bf16::from_f32(x).to_f32();
        }
        f32::from_bits(x.to_bits().wrapping_add(self.draw(element)) & 0xffff_0000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 1 << 18;

    /// The draws of some elements, from zero to one.
    fn draws(rounding: Rounding, update: u64) -> Vec<f64> {
        let stretches = rounding.stretches(update, 0..DRAWS);
        stretches
            .flat_map(|(range, keys)| range.map(move |element| f64::from(keys.draw(element)) / 65_536.0))
            .collect()
    }

    /// Of numbers from zero to one that have nothing to do with each other: 1/12 is the variance of one.
    #[track_caller]
    fn assert_independent(a: &[f64], b: &[f64]) {
        let products = a.iter().zip(b).map(|(a, b)| (a - 0.5) * (b - 0.5));
        let mean = products.sum::<f64>() / a.len() as f64;
        // Five standard errors of a product's mean.
        assert!(mean.abs() < 5.0 / 12.0 / (a.len() as f64).sqrt(), "{mean}");
    }

    #[test]
    fn draws_are_uniform() {
        for (seed, first) in [(0, 0), (1, 0), (0, 1 << 20), (7, (1 << 40) - 1000)] {
            let draws = draws(Rounding { seed, first }, 3);
            let mut counts = [0u32; 256];
            draws.iter().for_each(|draw| counts[(draw * 256.0) as usize] += 1);
            // Chi-square of 255 degrees of freedom: mean 255, deviation 22.6.
            let expected = DRAWS as f64 / 256.0;
            let square: f64 =
                counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
            assert!((square - 255.0).abs() < 5.0 * 22.6, "{seed} {first}: {square}");
        }
    }

    #[test]
    fn draws_of_other_elements_updates_and_seeds_are_independent() {
        let rounding = Rounding { seed: 1, first: 5 };
        let here = draws(rounding, 3);
        for apart in [1, 2, 3, 4, 16, 31, 256, 1024, 4096, 65_536] {
            assert_independent(&here[apart..], &here[..DRAWS - apart]);
        }
        for (seed, first, update) in [(1, 5, 4), (1, 5, 2), (2, 5, 3), (0, 5, 3), (1, 5 + (1 << 32), 3)] {
            assert_independent(&draws(Rounding { seed, first }, update), &here);
        }
    }

    #[test]
    fn an_element_draws_by_its_number_wherever_it_lies() {
        let whole = draws(Rounding { seed: 9, first: (1 << 32) - 1000 }, 1);
        for apart in [1, 16, 999, 1000, 1001, 5000] {
            let behind = draws(Rounding { seed: 9, first: (1 << 32) - 1000 + apart as u64 }, 1);
            assert_eq!(whole[apart..], behind[..DRAWS - apart]);
        }
    }

    #[test]
    fn what_bf16_holds_stays() {
        let (_, keys) = Rounding { seed: 3, first: 0 }.stretches(1, 0..1).next().unwrap();
        for bits in 0..=u16::MAX {
            let x = half::bf16::from_bits(bits).to_f32();
            let rounded = keys.rounded(usize::from(bits), x);
            assert!(rounded.to_bits() == x.to_bits() || rounded.is_nan() && x.is_nan(), "{bits:x}");
        }
    }
}
