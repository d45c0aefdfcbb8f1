//! Randomness: counters in, numbers out.
//!
//! Every random number that Gradus draws is a pure function of a key and a counter (Salmon et al., "Parallel Random
//! Numbers: As Easy as 1, 2, 3", SC 2011, section 4.3: Philox4x32 with ten rounds). What is drawn then depends on what
//! it is for, never on who drew before.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use std::array;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Philox4x32-10: four uniform words for a 64-bit key and a 128-bit counter.
#[inline]
pub fn philox(key: u64, counter: u128) -> [u32; 4] {
    let [words] = philox_each(key, [counter]);
    words
}

/// [`philox`] of several counters: a counter's rounds wait for each other, and those of another do not. Where it is inlined
/// into a function of wide registers, it uses them.
#[inline(always)]
pub fn philox_each<const COUNTERS: usize>(key: u64, counters: [u128; COUNTERS]) -> [[u32; 4]; COUNTERS] {
    // Words of the same place side by side, as registers hold them.
    let mut c = [0, 32, 64, 96].map(|shift| counters.map(|counter| (counter >> shift) as u32));
    let mut k = [key as u32, (key >> 32) as u32];
    for _ in 0..ROUNDS {
        #[expect(clippy::needless_range_loop, reason = "four rows are walked over, of which none leads")]
        for at in 0..COUNTERS {
            let low = u64::from(MULTIPLIERS[0]) * u64::from(c[0][at]);
            let high = u64::from(MULTIPLIERS[1]) * u64::from(c[2][at]);
            c[0][at] = (high >> 32) as u32 ^ c[1][at] ^ k[0];
            c[1][at] = high as u32;
            c[2][at] = (low >> 32) as u32 ^ c[3][at] ^ k[1];
            c[3][at] = low as u32;
        }
        k = [k[0].wrapping_add(KEY_STEPS[0]), k[1].wrapping_add(KEY_STEPS[1])];
    }
    array::from_fn(|at| c.map(|words| words[at]))
}

/// A stream of numbers for one purpose: seed and purpose make the key, the position is the counter.
#[derive(Debug, Clone)]
pub struct Stream {
    key: u64,
    position: u128,
}

impl Stream {
    /// The stream of `seed` for the purpose numbered `purpose`; streams of different purposes are independent.
    pub fn new(seed: u64, purpose: u64) -> Self {
        let words = philox(seed, u128::from(purpose) | 1 << 127);
        Self { key: u64::from(words[0]) << 32 | u64::from(words[1]), position: 0 }
    }

    /// The next four words.
    fn next_block(&mut self) -> [u32; 4] {
        let block = philox(self.key, self.position);
        self.position += 1;
        block
    }

    /// A uniform word.
    pub fn next_u64(&mut self) -> u64 {
        let block = self.next_block();
        u64::from(block[0]) << 32 | u64::from(block[1])
    }

    /// Uniform in [0, 1), with 53 bits.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..`bound`, without bias worth naming (64-bit multiply-shift); 0 for an empty range.
    pub fn next_below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Standard normal (Box and Muller 1958).
    pub fn next_normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.next_f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.next_f64()).cos()
    }
}

/// Fills `bytes` with what nobody can guess: for secrets, nonces and names that must differ between processes. Needs no
/// descriptor, so that a process that has run out of them can still shake hands, and say so.
///
/// # Panics
/// If the system refuses `getrandom`, which Linux has offered since 3.17 and which fails for no pool that is filled.
pub fn fill_from_system(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            // A signal came between.
            Err(Errno::INTR) => {}
            Err(error) => panic!("getrandom is refused: {error}"),
        }
    }
}

/// A seed from the operating system, for names that must differ between processes.
///
/// # Panics
/// As [`fill_from_system`].
pub fn seed_from_system() -> u64 {
    let mut bytes = [0; 8];
    fill_from_system(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // The known answers distributed with the authors' Random123 library, kat_vectors, philox4x32 10.
        assert_eq!(philox(0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(u64::MAX, u128::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let mut stream = Stream::new(1, 2);
        let draws: Vec<f64> = (0..20_000).map(|_| stream.next_normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        // Five standard errors of 20,000 draws: 5 / sqrt(20000) = 0.035; of the variance, sqrt(2) times that.
        assert!(mean.abs() < 0.036 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn purposes_differ_and_seeds_repeat() {
        assert_ne!(Stream::new(1, 2).next_u64(), Stream::new(1, 3).next_u64());
        assert_eq!(Stream::new(1, 2).next_u64(), Stream::new(1, 2).next_u64());
    }

    #[test]
    fn what_the_system_gives_differs_every_time() {
        let mut draws = [[0; 32]; 2];
        draws.iter_mut().for_each(|draw| fill_from_system(draw));
        assert!(draws[0] != draws[1] && draws[0] != [0; 32]);
    }
}
