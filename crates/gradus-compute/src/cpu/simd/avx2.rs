//! AVX2 and FMA: vectors of eight.

use super::{Operation, Simd};
use std::arch::x86_64::*;

/// Proof that the processor has AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma")]
fn enter<O: Operation>(token: Avx2, operation: O) -> O::Output {
    operation.run(token)
}

/// An expression of instructions that the token proves to exist, on values.
macro_rules! proven {
    ($expression:expr) => {
        // SAFETY: self proves that the processor has these instructions, and they touch registers only.
        unsafe { $expression }
    };
}

/// All ones in the first eight, zeros in the next: read from `8 - count` on it masks the first `count` lanes.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// An instruction on the words of two vectors, that the token proves to exist.
macro_rules! words {
    ($instruction:ident, $a:expr, $b:expr) => {{
        let (a, b) = ($a, $b);
        proven!(_mm256_castsi256_ps($instruction(_mm256_castps_si256(a), _mm256_castps_si256(b))))
    }};
}

/// Mask of the first `count` lanes.
#[inline(always)]
unsafe fn first(count: usize) -> __m256i {
    // SAFETY: callers hold a token and pass count <= 8, so eight elements from 8 - count on are inside.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - count).cast()) }
}

/// bf16 in the upper half of each lane's bits, noise below.
#[inline(always)]
unsafe fn rounded_bits(a: __m256) -> __m256i {
    // SAFETY: callers hold a token.
    unsafe {
        let bits = _mm256_castps_si256(a);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
        _mm256_blendv_epi8(up, quiet, nan)
    }
}

// SAFETY: detect() makes tokens only where the instructions are; the constants agree with the types.
unsafe impl Simd for Avx2 {
    const LANES: usize = 8;
    // Twelve sums, two vectors of columns and one broadcast row element fill 15 of 16 registers.
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 2;
    type V = __m256;
    type Square = [__m256; 8];

    fn vectorize<O: Operation>(self, operation: O) -> O::Output {
        // SAFETY: self proves that the processor has the instructions.
        unsafe { enter(self, operation) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        proven!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: eight elements are readable by the caller's word.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize, rest: __m256) -> __m256 {
        // SAFETY: masked lanes are not read.
        unsafe {
            let mask = first(count);
            _mm256_blendv_ps(rest, _mm256_maskload_ps(from, mask), _mm256_castsi256_ps(mask))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m256) {
        // SAFETY: eight elements are writable by the caller's word.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, v: __m256) {
        // SAFETY: masked lanes are not written.
        unsafe { _mm256_maskstore_ps(to, first(count), v) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        proven!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        proven!(_mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        proven!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    // Three factors, each a normal number, reach over- and underflow; the first two are the same third.
    #[inline(always)]
    fn scale(self, a: __m256, n: __m256) -> __m256 {
        proven!({
            let third = self.round(self.mul(n, self.splat(1.0 / 3.0)));
            let power = |n: __m256| {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            };
            let rest = self.sub(n, self.add(third, third));
            let factor = power(third);
            self.mul(self.mul(self.mul(a, factor), factor), power(rest))
        })
    }
    #[inline(always)]
    fn select_le(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        proven!(_mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LE_OQ>(a, b)))
    }
    #[inline(always)]
    fn add_words(self, a: __m256, b: __m256) -> __m256 {
        words!(_mm256_add_epi32, a, b)
    }
    #[inline(always)]
    fn multiply_words(self, a: __m256, b: __m256) -> __m256 {
        words!(_mm256_mullo_epi32, a, b)
    }
    #[inline(always)]
    fn xor(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_xor_ps(a, b))
    }
    #[inline(always)]
    fn and(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_and_ps(a, b))
    }
    #[inline(always)]
    fn shift_right(self, a: __m256, count: u32) -> __m256 {
        words!(_mm256_srlv_epi32, a, self.splat_word(count))
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        proven!({
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        proven!({
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn add_squares(self, a: __m256, sums: &mut [f64; 16]) {
        // SAFETY: self proves the instructions; the two quarters are eight elements inside sums.
        unsafe {
            let low = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
            let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(a));
            let to = sums.as_mut_ptr();
            _mm256_storeu_pd(to, _mm256_fmadd_pd(low, low, _mm256_loadu_pd(to)));
            _mm256_storeu_pd(to.add(4), _mm256_fmadd_pd(high, high, _mm256_loadu_pd(to.add(4))));
        }
    }

    #[inline(always)]
    fn round_bf16(self, a: __m256) -> __m256 {
        proven!(_mm256_castsi256_ps(_mm256_and_si256(
            rounded_bits(a),
            _mm256_set1_epi32(0xffff_0000u32 as i32)
        )))
    }
    #[inline(always)]
    fn pair(self, low: __m256, high: __m256) -> __m256 {
        proven!({
            let low = _mm256_srli_epi32::<16>(rounded_bits(low));
            _mm256_castsi256_ps(_mm256_blend_epi16::<0xaa>(low, rounded_bits(high)))
        })
    }
    #[inline(always)]
    fn pair_adjacent(self, first: __m256, second: __m256) -> __m256 {
        proven!({
            // The shuffles leave quarters in the order 0, 2, 1, 3; the permutation mends that.
            let even = _mm256_shuffle_ps::<0x88>(first, second);
            let odd = _mm256_shuffle_ps::<0xdd>(first, second);
            let pairs = _mm256_castps_pd(self.pair(even, odd));
            _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(pairs))
        })
    }

    #[inline(always)]
    unsafe fn widen(self, from: *const u16, count: usize) -> __m256 {
        let mut part = [0u16; 8];
        // SAFETY: count elements are readable by the caller's word, and there is room for eight.
        unsafe {
            let from = if count == 8 {
                from
            } else {
                std::ptr::copy_nonoverlapping(from.cast::<u8>(), part.as_mut_ptr().cast(), 2 * count);
                part.as_ptr()
            };
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, from: *const u16, count: usize) -> __m256 {
        let mut part = [0u16; 16];
        // SAFETY: count elements are readable by the caller's word, and there is room for sixteen.
        unsafe {
            let from = if count == 16 {
                from
            } else {
                std::ptr::copy_nonoverlapping(from.cast::<u8>(), part.as_mut_ptr().cast(), 2 * count);
                part.as_ptr()
            };
            _mm256_loadu_ps(from.cast())
        }
    }
    #[inline(always)]
    unsafe fn narrow(self, to: *mut u16, count: usize, v: __m256) {
        // SAFETY: self proves the instructions; count elements are writable by the caller's word, and part has eight.
        unsafe {
            let wide = _mm256_srli_epi32::<16>(rounded_bits(v));
            let halves = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
            if count == 8 {
                return _mm_storeu_si128(to.cast(), halves);
            }
            let mut part = [0u16; 8];
            _mm_storeu_si128(part.as_mut_ptr().cast(), halves);
            std::ptr::copy_nonoverlapping(part.as_ptr().cast::<u8>(), to.cast(), 2 * count);
        }
    }

    #[inline(always)]
    fn dot_pairs(self, a: __m256, b: __m256, sums: __m256) -> __m256 {
        proven!({
            let low = |x: __m256| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(x)));
            let high = |x: __m256| {
                let upper = _mm256_set1_epi32(0xffff_0000u32 as i32);
                _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(x), upper))
            };
            let sums = self.mul_add(low(a), low(b), sums);
            self.mul_add(high(a), high(b), sums)
        })
    }

    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }

    #[inline(always)]
    fn square(self) -> [__m256; 8] {
        [self.splat(0.0); 8]
    }
    // Pairs of rows, then of pairs, within each half; then halves change places.
    #[inline(always)]
    fn transpose(self, r: &mut [__m256; 8]) {
        proven!({
            let mut t = *r;
            for i in (0..8).step_by(2) {
                t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
                t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
            }
            let mut u = t;
            for g in 0..2 {
                let (a, b, c, d) = (t[4 * g], t[4 * g + 1], t[4 * g + 2], t[4 * g + 3]);
                u[4 * g] = _mm256_shuffle_ps::<0x44>(a, c);
                u[4 * g + 1] = _mm256_shuffle_ps::<0xee>(a, c);
                u[4 * g + 2] = _mm256_shuffle_ps::<0x44>(b, d);
                u[4 * g + 3] = _mm256_shuffle_ps::<0xee>(b, d);
            }
            for c in 0..4 {
                r[c] = _mm256_permute2f128_ps::<0x20>(u[c], u[4 + c]);
                r[4 + c] = _mm256_permute2f128_ps::<0x31>(u[c], u[4 + c]);
            }
        })
    }
}
