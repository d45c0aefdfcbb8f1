//! AVX-512: vectors of sixteen.

use super::{Operation, Simd};
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512 (F, BW, DQ, VL) and FMA, and if `BF16` also AVX512-BF16.
#[derive(Debug, Clone, Copy)]
pub struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        let base = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
        (base && (!BF16 || is_x86_feature_detected!("avx512bf16"))).then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn enter<const BF16: bool, O: Operation>(token: Avx512<BF16>, operation: O) -> O::Output {
    operation.run(token)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,avx512bf16")]
fn enter_bf16<const BF16: bool, O: Operation>(token: Avx512<BF16>, operation: O) -> O::Output {
    operation.run(token)
}

/// An expression of instructions that the token proves to exist, on values.
macro_rules! proven {
    ($expression:expr) => {
        // SAFETY: self proves that the processor has these instructions, and they touch registers only.
        unsafe { $expression }
    };
}

/// An instruction on the words of two vectors, that the token proves to exist.
macro_rules! words {
    ($instruction:ident, $a:expr, $b:expr) => {{
        let (a, b) = ($a, $b);
        proven!(_mm512_castsi512_ps($instruction(_mm512_castps_si512(a), _mm512_castps_si512(b))))
    }};
}

/// Mask of the first `count` lanes.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

/// bf16 in the upper half of each lane's bits, noise below.
#[inline(always)]
unsafe fn rounded_bits(a: __m512) -> __m512i {
    // SAFETY: callers hold a token.
    unsafe {
        let bits = _mm512_castps_si512(a);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
        _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x0040_0000))
    }
}

// SAFETY: detect() makes tokens only where the instructions are; the constants agree with the types.
unsafe impl<const BF16: bool> Simd for Avx512<BF16> {
    const LANES: usize = 16;
    // 28 sums, two vectors of columns and one broadcast row element fill 31 of 32 registers.
    const TILE_ROWS: usize = 14;
    const TILE_VECTORS: usize = 2;
    type V = __m512;
    type Square = [__m512; 16];

    fn vectorize<O: Operation>(self, operation: O) -> O::Output {
        if BF16 {
            // SAFETY: self proves that the processor has the instructions.
            unsafe { enter_bf16(self, operation) }
        } else {
            // SAFETY: as above.
            unsafe { enter(self, operation) }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: sixteen elements are readable by the caller's word.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize, rest: __m512) -> __m512 {
        // SAFETY: masked lanes are not read.
        unsafe { _mm512_mask_loadu_ps(rest, first(count), from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m512) {
        // SAFETY: sixteen elements are writable by the caller's word.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, v: __m512) {
        // SAFETY: masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(to, first(count), v) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        proven!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        proven!(_mm512_roundscale_ps::<0x08>(a))
    }
    #[inline(always)]
    fn scale(self, a: __m512, n: __m512) -> __m512 {
        proven!(_mm512_scalef_ps(a, n))
    }
    #[inline(always)]
    fn select_le(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        proven!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b), no, yes))
    }
    #[inline(always)]
    fn add_words(self, a: __m512, b: __m512) -> __m512 {
        words!(_mm512_add_epi32, a, b)
    }
    #[inline(always)]
    fn multiply_words(self, a: __m512, b: __m512) -> __m512 {
        words!(_mm512_mullo_epi32, a, b)
    }
    #[inline(always)]
    fn xor(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_xor_ps(a, b))
    }
    #[inline(always)]
    fn and(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_and_ps(a, b))
    }
    #[inline(always)]
    fn shift_right(self, a: __m512, count: u32) -> __m512 {
        words!(_mm512_srlv_epi32, a, self.splat_word(count))
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        proven!(_mm512_reduce_add_ps(a))
    }
    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        proven!(_mm512_reduce_max_ps(a))
    }
    #[inline(always)]
    fn add_squares(self, a: __m512, sums: &mut [f64; 16]) {
        // SAFETY: self proves the instructions; both halves of sums are eight elements inside it.
        unsafe {
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
            let high = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(a));
            let to = sums.as_mut_ptr();
            _mm512_storeu_pd(to, _mm512_fmadd_pd(low, low, _mm512_loadu_pd(to)));
            _mm512_storeu_pd(to.add(8), _mm512_fmadd_pd(high, high, _mm512_loadu_pd(to.add(8))));
        }
    }

    #[inline(always)]
    fn round_bf16(self, a: __m512) -> __m512 {
        proven!(_mm512_castsi512_ps(_mm512_and_si512(
            rounded_bits(a),
            _mm512_set1_epi32(0xffff_0000u32 as i32)
        )))
    }
    #[inline(always)]
    fn pair(self, low: __m512, high: __m512) -> __m512 {
        if BF16 {
            return proven!({
                // The conversion puts all of one vector before all of the other; words change places once more.
                let order = _mm512_set_epi16(
                    31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                    19, 3, 18, 2, 17, 1, 16, 0,
                );
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, both))
            });
        }
        proven!({
            let low = _mm512_srli_epi32::<16>(rounded_bits(low));
            let upper_half = 0xaaaa_aaaa;
            _mm512_castsi512_ps(_mm512_mask_blend_epi16(upper_half, low, rounded_bits(high)))
        })
    }
    #[inline(always)]
    fn pair_adjacent(self, first: __m512, second: __m512) -> __m512 {
        if BF16 {
            return proven!(std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second, first)));
        }
        proven!({
            let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            self.pair(_mm512_permutex2var_ps(first, even, second), _mm512_permutex2var_ps(first, odd, second))
        })
    }

    #[inline(always)]
    unsafe fn widen(self, from: *const u16, count: usize) -> __m512 {
        // SAFETY: masked elements are not read.
        unsafe {
            let halves = match count {
                16 => _mm256_loadu_si256(from.cast()),
                _ => _mm256_maskz_loadu_epi16(first(count), from.cast()),
            };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, from: *const u16, count: usize) -> __m512 {
        // SAFETY: masked elements are not read.
        unsafe {
            if count == 32 {
                return _mm512_loadu_ps(from.cast());
            }
            _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((1u32 << count) - 1, from.cast()))
        }
    }
    #[inline(always)]
    unsafe fn narrow(self, to: *mut u16, count: usize, v: __m512) {
        // SAFETY: self proves the instructions; masked elements are not written.
        unsafe {
            let halves = if BF16 {
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))
            } else {
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded_bits(v)))
            };
            if count == 16 {
                return _mm256_storeu_si256(to.cast(), halves);
            }
            _mm256_mask_storeu_epi16(to.cast(), first(count), halves);
        }
    }

    #[inline(always)]
    fn dot_pairs(self, a: __m512, b: __m512, sums: __m512) -> __m512 {
        if BF16 {
            // SAFETY: self proves AVX512-BF16; the casts keep bits.
            return unsafe {
                let (a, b) =
                    (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b));
                _mm512_dpbf16_ps(sums, a, b)
            };
        }
        proven!({
            let low = |x: __m512| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(x)));
            let high = |x: __m512| {
                let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
                _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), upper))
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
    fn square(self) -> [__m512; 16] {
        [self.splat(0.0); 16]
    }
    // Pairs of rows, then of pairs, within each quarter; then quarters change places in two rounds.
    #[inline(always)]
    fn transpose(self, r: &mut [__m512; 16]) {
        proven!({
            let mut t = *r;
            for i in (0..16).step_by(2) {
                t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
                t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
            }
            let double = |v: __m512| _mm512_castps_pd(v);
            let single = |v: __m512d| _mm512_castpd_ps(v);
            // u[4g + c]: in quarter q, column 4q + c of rows 4g..4g + 4.
            let mut u = t;
            for g in 0..4 {
                let (a, b, c, d) = (t[4 * g], t[4 * g + 1], t[4 * g + 2], t[4 * g + 3]);
                u[4 * g] = single(_mm512_unpacklo_pd(double(a), double(c)));
                u[4 * g + 1] = single(_mm512_unpackhi_pd(double(a), double(c)));
                u[4 * g + 2] = single(_mm512_unpacklo_pd(double(b), double(d)));
                u[4 * g + 3] = single(_mm512_unpackhi_pd(double(b), double(d)));
            }
            for c in 0..4 {
                let low01 = _mm512_shuffle_f32x4::<0x88>(u[c], u[4 + c]);
                let low23 = _mm512_shuffle_f32x4::<0x88>(u[8 + c], u[12 + c]);
                let high01 = _mm512_shuffle_f32x4::<0xdd>(u[c], u[4 + c]);
                let high23 = _mm512_shuffle_f32x4::<0xdd>(u[8 + c], u[12 + c]);
                r[c] = _mm512_shuffle_f32x4::<0x88>(low01, low23);
                r[8 + c] = _mm512_shuffle_f32x4::<0xdd>(low01, low23);
                r[4 + c] = _mm512_shuffle_f32x4::<0x88>(high01, high23);
                r[12 + c] = _mm512_shuffle_f32x4::<0xdd>(high01, high23);
            }
        })
    }
}
