//! Exponentials of vectors.
//!
//! The argument is split into an integral power of two and a rest of at most half; the rest's exponential is a
//! polynomial of degree six through Chebyshev nodes, whose own error is below 2e-9, so that rounding decides: at most
//! two units in the last place, held by the tests over the whole range. Below the smallest subnormal the result is
//! zero, above the largest number infinite; NaN stays NaN.

use super::simd::Simd;

/// The polynomial for `e^x` with `|x| <= ln(2) / 2`, constant term last.
const EXP: [f32; 7] = [0.001_394_121_3, 0.008_375_21, 0.041_666_35, 0.166_664_14, 0.5, 1.0, 1.0];

/// The polynomial for `2^x` with `|x| <= 1 / 2`, constant term last.
const EXP2: [f32; 7] = [
    0.000_154_615_61,
    0.001_340_056_2,
    0.009_618_056,
    0.055_503_268,
    0.240_226_5,
    std::f32::consts::LN_2,
    1.0,
];

#[inline(always)]
fn polynomial<S: Simd>(s: S, coefficients: [f32; 7], x: S::V) -> S::V {
    let mut sum = s.splat(coefficients[0]);
    for coefficient in &coefficients[1..] {
        sum = s.mul_add(sum, x, s.splat(*coefficient));
    }
    sum
}

/// `x` held between `low` and `high`; NaN stays NaN.
#[inline(always)]
fn clamp<S: Simd>(s: S, x: S::V, low: f32, high: f32) -> S::V {
    s.max(s.splat(low), s.min(s.splat(high), x))
}

/// `e^x`.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // ln(2) in two parts, the first with zeros at its end, so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    let x = clamp(s, x, -104.0, 89.0);
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let rest = s.mul_add(n, s.splat(-LN2_HIGH), x);
    let rest = s.mul_add(n, s.splat(-LN2_LOW), rest);
    s.scale(polynomial(s, EXP, rest), n)
}

/// `2^x`.
#[inline(always)]
pub fn exp2<S: Simd>(s: S, x: S::V) -> S::V {
    let x = clamp(s, x, -151.0, 129.0);
    let n = s.round(x);
    s.scale(polynomial(s, EXP2, s.sub(x, n)), n)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(s.splat(1.0), s.add(s.splat(1.0), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::features::{Family, Kernels};
    use crate::cpu::simd::Operation;

    struct Worst {
        base2: bool,
        from: f32,
        to: f32,
    }

    impl Operation for Worst {
        type Output = f64;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f64 {
            let mut worst = 0.0f64;
            for i in 0..200_000 {
                let x = self.from + (self.to - self.from) * (i as f32 / 200_000.0);
                let mut y = [0.0; 16];
                let v = if self.base2 { exp2(s, s.splat(x)) } else { exp(s, s.splat(x)) };
                // SAFETY: sixteen elements hold any vector.
                unsafe { s.store(y.as_mut_ptr(), v) };
                let right = if self.base2 { f64::from(x).exp2() } else { f64::from(x).exp() };
                worst = worst.max((f64::from(y[0]) - right).abs() / right);
            }
            worst
        }
    }

    #[test]
    fn exponentials_are_right_to_two_units_in_the_last_place() {
        for kernels in Kernels::ALL.into_iter().filter(|kernels| kernels.supported()) {
            let family = Family::of(kernels).unwrap();
            for base2 in [false, true] {
                // One unit in the last place is at most 2^-23 of the value.
                let worst = family.run(Worst { base2, from: -87.0, to: 88.0 });
                assert!(worst <= 2.0 * f64::from(f32::EPSILON), "{kernels:?} {base2} {worst:e}");
            }
        }
    }

    struct Ends;

    impl Operation for Ends {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = Vec::new();
            for x in [f32::NEG_INFINITY, -1e30, -200.0, 200.0, 1e30, f32::INFINITY, f32::NAN, 0.0, -100.0] {
                for v in [exp(s, s.splat(x)), exp2(s, s.splat(x))] {
                    let mut y = [0.0; 16];
                    // SAFETY: sixteen elements hold any vector.
                    unsafe { s.store(y.as_mut_ptr(), v) };
                    out.push(y[0]);
                }
            }
            out
        }
    }

    #[test]
    fn ends_of_the_range_are_zero_infinite_or_nan() {
        for kernels in Kernels::ALL.into_iter().filter(|kernels| kernels.supported()) {
            let y = Family::of(kernels).unwrap().run(Ends);
            assert_eq!(y[..6], [0.0; 6], "{kernels:?}");
            assert_eq!(y[6..12], [f32::INFINITY; 6], "{kernels:?}");
            assert!(y[12].is_nan() && y[13].is_nan(), "{kernels:?}");
            assert_eq!(y[14..16], [1.0; 2]);
            assert!(y[16] > 0.0 && y[16] < 1e-43 && y[17] > 0.0 && y[17] < 1e-30, "subnormals: {y:?}");
        }
    }
}
