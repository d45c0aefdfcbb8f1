//! A shuffle is a function.
//!
//! What: for a seed and an epoch, a keyed bijection between positions `0..samples` and samples `0..samples`, with its
//! inverse, in O(1) memory. How: a balanced Feistel network (Luby and Rackoff, "How to construct pseudorandom
//! permutations from pseudorandom functions", SIAM J. Comput. 1988) over the least power of four that is no smaller
//! than `samples`, with Philox as its round function; values outside the range are sent round again until they fall
//! inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, section 3). Fewer
//! than four passes are expected, since the range fills more than a quarter of the domain. Why: every rank knows the
//! whole future, resuming needs one number, and a change of world size neither repeats nor drops a sample.
//!
//! Invariant: for each epoch, `position_of(epoch, sample_at(epoch, p)) == p` for every `p` below `samples`.

use gradus_host::random::{Stream, philox_each};
use multiversion::multiversion;
use std::array;

/// Names the stream from which an order's key is drawn, apart from every other use of the same seed.
const PURPOSE: u64 = 0x006f_7264_6572;

/// Four rounds make a strong pseudorandom permutation of a large domain (Luby and Rackoff); small domains, whose
/// halves are a few bits, want more to look shuffled.
const ROUNDS: u64 = 8;

/// Positions whose samples are computed side by side.
const LANES: usize = 16;

/// Positions of which those that want another pass are gathered.
const BATCH: usize = 32;

/// The order of `samples` samples under one seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleOrder {
    key: u64,
    samples: u64,
    half_bits: u32,
}

impl SampleOrder {
    /// The order of `samples` samples under `seed`.
    ///
    /// # Panics
    /// If `samples` is 0: a data set that opens has at least one.
    pub fn new(seed: u64, samples: u64) -> Self {
        Self::keyed(Stream::new(seed, PURPOSE).next_u64(), samples)
    }

    /// The order under a key, of which another one knows that it is used for nothing else.
    pub(super) fn keyed(key: u64, samples: u64) -> Self {
        assert!(samples > 0, "an order needs at least one sample");
        let bits = u64::BITS - (samples - 1).leading_zeros();
        Self { key, samples, half_bits: bits.div_ceil(2) }
    }

    /// Number of samples in an epoch.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The sample at `position` of `epoch`.
    ///
    /// # Panics
    /// If `position` is not below the number of samples.
    pub fn sample_at(&self, epoch: u64, position: u64) -> u64 {
        assert!(position < self.samples, "position {position} of {} samples", self.samples);
        self.walk(position, |value| {
            let [value] = self.encipher(epoch, [value]);
            value
        })
    }

    /// The samples at some positions of `epoch`, in their stead.
    ///
    /// # Panics
    /// If a position is not below the number of samples.
    pub(super) fn samples_at(&self, epoch: u64, positions: &mut [u64]) {
        assert!(positions.iter().all(|position| *position < self.samples), "positions behind the last");
        positions.chunks_mut(BATCH).for_each(|batch| walk_each(self, epoch, batch));
    }

    /// The position of `sample` in `epoch`: the inverse of [`SampleOrder::sample_at`].
    ///
    /// # Panics
    /// If `sample` is not below the number of samples.
    pub fn position_of(&self, epoch: u64, sample: u64) -> u64 {
        assert!(sample < self.samples, "sample {sample} of {}", self.samples);
        self.walk(sample, |value| self.decipher(epoch, value))
    }

    /// Applies a permutation of the domain until the value is a sample again; the cycle through a value inside the
    /// range comes back into it, at the latest at the value itself.
    fn walk(&self, mut value: u64, permute: impl Fn(u64) -> u64) -> u64 {
        loop {
            value = permute(value);
            if value < self.samples {
                return value;
            }
        }
    }

    // Inlined into a function of wide registers, it uses them; so do rounds.
    #[inline(always)]
    fn encipher<const LANES: usize>(&self, epoch: u64, values: [u64; LANES]) -> [u64; LANES] {
        let (mut left, mut right) =
            (values.map(|value| self.halves(value).0), values.map(|value| self.halves(value).1));
        for round in 0..ROUNDS {
            let words = self.round(epoch, round, right);
            (left, right) = (right, array::from_fn(|lane| left[lane] ^ words[lane]));
        }
        array::from_fn(|lane| left[lane] << self.half_bits | right[lane])
    }

    fn decipher(&self, epoch: u64, value: u64) -> u64 {
        let (mut left, mut right) = self.halves(value);
        for round in (0..ROUNDS).rev() {
            let [word] = self.round(epoch, round, [left]);
            (left, right) = (right ^ word, left);
        }
        left << self.half_bits | right
    }

    fn halves(&self, value: u64) -> (u64, u64) {
        (value >> self.half_bits, value & self.half_mask())
    }

    fn half_mask(&self) -> u64 {
        (1 << self.half_bits) - 1
    }

    #[inline(always)]
    fn round<const LANES: usize>(&self, epoch: u64, round: u64, halves: [u64; LANES]) -> [u64; LANES] {
        // A half has at most 32 bits, so that epoch, round and half never share a bit of the counter.
        let counter = |half: u64| u128::from(epoch) << 64 | u128::from(round) << 32 | u128::from(half);
        philox_each(self.key, halves.map(counter)).map(|words| u64::from(words[0]) & self.half_mask())
    }
}

/// As [`SampleOrder::walk`], for at most [`BATCH`] values, in the widest registers that there are.
#[multiversion(targets = "simd")]
fn walk_each(order: &SampleOrder, epoch: u64, values: &mut [u64]) {
    let mut outside: [usize; BATCH] = array::from_fn(|at| at);
    let mut count = values.len();
    while count > 0 {
        for group in outside[..count].chunks(LANES) {
            // Where a group is not full, the last lanes do what the first does.
            let lanes = array::from_fn(|lane| values[*group.get(lane).unwrap_or(&group[0])]);
            let permuted: [u64; LANES] = order.encipher(epoch, lanes);
            group.iter().zip(permuted).for_each(|(at, value)| values[*at] = value);
        }
        let mut left = 0;
        for number in 0..count {
            let at = outside[number];
            outside[left] = at;
            left += usize::from(values[at] >= order.samples);
        }
        count = left;
    }
}

/// The sample at `position` of `epoch`; for many calls make a [`SampleOrder`] once.
///
/// # Panics
/// If `position` is not below `samples`.
pub fn sample_at(seed: u64, epoch: u64, samples: u64, position: u64) -> u64 {
    SampleOrder::new(seed, samples).sample_at(epoch, position)
}

/// The position of `sample` in `epoch`: the inverse of [`sample_at`].
///
/// # Panics
/// If `sample` is not below `samples`.
pub fn position_of(seed: u64, epoch: u64, samples: u64, sample: u64) -> u64 {
    SampleOrder::new(seed, samples).position_of(epoch, sample)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_permutation(order: &SampleOrder, epoch: u64) -> bool {
        let mut seen = vec![false; order.samples() as usize];
        (0..order.samples()).all(|position| {
            let sample = order.sample_at(epoch, position);
            order.position_of(epoch, sample) == position
                && !std::mem::replace(&mut seen[sample as usize], true)
        })
    }

    #[test]
    fn every_small_size_is_a_bijection_with_its_inverse() {
        for samples in 1..=300 {
            assert!(is_permutation(&SampleOrder::new(7, samples), 3), "{samples} samples");
        }
    }

    /// Numbers of a second implementation: runs that have begun go on in their order.
    #[test]
    fn orders_stay_what_they_were() {
        let of = |seed, epoch, samples, count| {
            (0..count).map(|p| sample_at(seed, epoch, samples, p)).collect::<Vec<_>>()
        };
        assert_eq!(of(7, 0, 10, 10), [7, 9, 3, 8, 6, 1, 4, 0, 2, 5]);
        assert_eq!(of(42, 3, 1_000_000, 5), [795_317, 702_774, 534_365, 600_526, 74_118]);
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let list = |seed, epoch| (0..1000).map(|p| sample_at(seed, epoch, 1000, p)).collect::<Vec<_>>();
        assert_ne!(list(1, 0), list(1, 1));
        assert_ne!(list(1, 0), list(2, 0));
        assert_eq!(list(1, 0), list(1, 0));
    }

    #[test]
    fn a_position_meets_every_sample_of_a_small_set_about_equally_often() {
        let samples = 6;
        let mut counts = vec![[0u32; 6]; 6];
        for epoch in 0..6000 {
            for position in 0..samples {
                counts[position as usize][sample_at(9, epoch, samples, position) as usize] += 1;
            }
        }
        // 6000 draws of probability 1/6: mean 1000, deviation 29; six deviations are 173.
        assert!(counts.iter().flatten().all(|count| count.abs_diff(1000) < 173), "{counts:?}");
    }

    #[test]
    fn the_largest_set_has_its_inverse() {
        for position in [0, 1, u64::MAX / 2, u64::MAX - 1] {
            assert_eq!(position_of(5, 1, u64::MAX, sample_at(5, 1, u64::MAX, position)), position);
        }
    }

    proptest! {
        #[test]
        fn any_size_is_a_bijection(seed: u64, epoch: u64, samples in 1u64..5000) {
            prop_assert!(is_permutation(&SampleOrder::new(seed, samples), epoch));
        }

        #[test]
        fn large_sizes_have_an_inverse(seed: u64, epoch: u64, samples in 1u64.., position: u64) {
            let position = position % samples;
            prop_assert_eq!(position_of(seed, epoch, samples, sample_at(seed, epoch, samples, position)), position);
        }
    }
}
