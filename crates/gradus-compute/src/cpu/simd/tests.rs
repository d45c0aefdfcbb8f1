//! Each operation of each family against the same on single numbers.

use super::*;
use crate::cpu::features::{Family, Kernels};

/// Numbers of all kinds, ties of bf16 among them.
const VALUES: [f32; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    2.5,
    3.5,
    1.003_906_3,
    1.011_718_8,
    -1e30,
    1e-30,
    3.0e38,
    f32::MAX,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    123.456,
];

/// The first `LANES` lanes of vectors, as numbers.
#[derive(Clone, Copy)]
struct Lanes<S>(S);

impl<S: Simd> Lanes<S> {
    fn vector(self, values: &[f32]) -> S::V {
        assert!(values.len() >= S::LANES);
        // SAFETY: as asserted.
        unsafe { self.0.load(values.as_ptr()) }
    }

    fn numbers(self, v: S::V) -> Vec<f32> {
        let mut values = vec![0.0; S::LANES];
        // SAFETY: there are LANES.
        unsafe { self.0.store(values.as_mut_ptr(), v) };
        values
    }
}

#[track_caller]
fn assert_same(got: &[f32], right: impl Iterator<Item = f32>) {
    for (i, (got, right)) in got.iter().zip(right).enumerate() {
        assert!(
            got.to_bits() == right.to_bits() || (got.is_nan() && right.is_nan()),
            "lane {i}: {got} {right}"
        );
    }
}

struct Arithmetic;

impl Operation for Arithmetic {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let lanes = Lanes(s);
        let reversed: Vec<f32> = VALUES.iter().rev().copied().collect();
        for window in 0..=16 - S::LANES {
            let (x, y) = (&VALUES[window..], &reversed[window..]);
            let (a, b) = (lanes.vector(x), lanes.vector(y));
            let pairs = || x.iter().zip(y).map(|(x, y)| (*x, *y));
            assert_same(&lanes.numbers(s.add(a, b)), pairs().map(|(x, y)| x + y));
            assert_same(&lanes.numbers(s.sub(a, b)), pairs().map(|(x, y)| x - y));
            assert_same(&lanes.numbers(s.mul(a, b)), pairs().map(|(x, y)| x * y));
            assert_same(&lanes.numbers(s.div(a, b)), pairs().map(|(x, y)| x / y));
            assert_same(&lanes.numbers(s.sqrt(a)), x.iter().map(|x| x.sqrt()));
            let larger = |(x, y): (f32, f32)| if x > y { x } else { y };
            assert_same(&lanes.numbers(s.max(a, b)), pairs().map(larger));
            let smaller = |(x, y): (f32, f32)| if x < y { x } else { y };
            assert_same(&lanes.numbers(s.min(a, b)), pairs().map(smaller));
            let chosen = |(x, y): (f32, f32)| if x <= y { 1.0 } else { 2.0 };
            let got = s.select_le(a, b, s.splat(1.0), s.splat(2.0));
            assert_same(&lanes.numbers(got), pairs().map(chosen));
            let even = |x: &f32| if x.abs() < 1e6 { x.round_ties_even() + 0.0 } else { *x };
            let got: Vec<f32> = lanes.numbers(s.round(a)).iter().map(|x| x + 0.0).collect();
            assert_same(&got, x.iter().map(even));
        }
        let (a, b) = (lanes.vector(&[3.0; 16]), lanes.vector(&[0.5; 16]));
        assert_eq!(lanes.numbers(s.mul_add(a, b, b)), vec![2.0; S::LANES]);
        assert_eq!(lanes.numbers(s.splat(7.0)), vec![7.0; S::LANES]);
        for n in [-300, -149, -130, -1, 0, 1, 127, 128, 300] {
            let got = lanes.numbers(s.scale(s.splat(1.5), s.splat(n as f32)))[0];
            assert_eq!(got, (1.5 * f64::from(n).exp2()) as f32, "{n}");
        }
    }
}

struct Words;

impl Operation for Words {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let lanes = Lanes(s);
        let words: [u32; 16] = std::array::from_fn(|i| (i as u32 + 1).wrapping_mul(0x9e37_79b9));
        let reversed: [u32; 16] = std::array::from_fn(|i| words[15 - i]);
        let (a, b) = (lanes.vector(&words.map(f32::from_bits)), lanes.vector(&reversed.map(f32::from_bits)));
        let check = |got: S::V, right: &dyn Fn(u32, u32) -> u32| {
            let got: Vec<u32> = lanes.numbers(got).iter().map(|x| x.to_bits()).collect();
            let right: Vec<u32> = (0..S::LANES).map(|i| right(words[i], reversed[i])).collect();
            assert_eq!(got, right);
        };
        check(s.add_words(a, b), &u32::wrapping_add);
        check(s.multiply_words(a, b), &u32::wrapping_mul);
        check(s.xor(a, b), &|a, b| a ^ b);
        check(s.and(a, b), &|a, b| a & b);
        for count in [0, 1, 13, 16, 31] {
            check(s.shift_right(a, count), &|a, _| a >> count);
        }
        check(s.splat_word(0xff80_0001), &|_, _| 0xff80_0001);
    }
}

struct Memory;

impl Operation for Memory {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let lanes = Lanes(s);
        let values: [f32; 16] = std::array::from_fn(|i| i as f32 + 1.0);
        for count in 0..=S::LANES {
            // SAFETY: count elements of sixteen.
            let (first, up_to) = unsafe {
                (s.load_first(values.as_ptr(), count, s.splat(-1.0)), s.load_up_to(values.as_ptr(), count))
            };
            assert_same(
                &lanes.numbers(first),
                (0..S::LANES).map(|i| if i < count { values[i] } else { -1.0 }),
            );
            assert_same(
                &lanes.numbers(up_to),
                (0..S::LANES).map(|i| if i < count { values[i] } else { 0.0 }),
            );
            let mut stored = [[0.0; 16]; 2];
            // SAFETY: count elements of sixteen.
            unsafe {
                s.store_first(stored[0].as_mut_ptr(), count, lanes.vector(&values));
                s.store_up_to(stored[1].as_mut_ptr(), count, lanes.vector(&values));
            }
            for stored in stored {
                assert_same(&stored, (0..16).map(|i| if i < count { values[i] } else { 0.0 }));
            }
        }
        s.prefetch(std::ptr::null());
    }
}

struct Across;

impl Operation for Across {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let lanes = Lanes(s);
        let values: [f32; 16] = std::array::from_fn(|i| (i * i) as f32 - 20.0);
        let v = lanes.vector(&values);
        assert_eq!(s.sum(v), values[..S::LANES].iter().sum());
        assert_eq!(s.largest(v), values[S::LANES - 1]);
        let mut sums = [1.0f64; 16];
        s.add_squares(v, &mut sums);
        for (i, sum) in sums.iter().enumerate() {
            let square = if i < S::LANES { f64::from(values[i]).powi(2) } else { 0.0 };
            assert_eq!(*sum, 1.0 + square);
        }
        let mut square = s.square();
        for (i, row) in square.as_mut().iter_mut().enumerate() {
            *row = lanes.vector(&std::array::from_fn::<f32, 16, _>(|j| (100 * i + j) as f32));
        }
        s.transpose(&mut square);
        for (i, row) in square.as_mut().iter().enumerate() {
            assert_same(&lanes.numbers(*row), (0..S::LANES).map(|j| (100 * j + i) as f32));
        }
    }
}

struct Halves;

impl Operation for Halves {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let lanes = Lanes(s);
        let right = |x: f32| half::bf16::from_f32(x);
        let word =
            |low: f32, high: f32| u32::from(right(low).to_bits()) | u32::from(right(high).to_bits()) << 16;
        let same = |got: f32, low: f32, high: f32| {
            let halves = [got.to_bits() as u16, (got.to_bits() >> 16) as u16].map(half::bf16::from_bits);
            let close = |got: half::bf16, x: f32| got == right(x) || (got.is_nan() && x.is_nan());
            assert!(
                close(halves[0], low) && close(halves[1], high),
                "{:x} {:x}",
                got.to_bits(),
                word(low, high)
            );
        };
        for window in 0..=16 - S::LANES {
            let x = &VALUES[window..];
            let reversed: Vec<f32> = x.iter().rev().copied().collect();
            let (a, b) = (lanes.vector(x), lanes.vector(&reversed));
            assert_same(&lanes.numbers(s.round_bf16(a)), x.iter().map(|x| right(*x).to_f32()));
            let (pairs, adjacent) = (lanes.numbers(s.pair(a, b)), lanes.numbers(s.pair_adjacent(a, b)));
            let row: Vec<f32> = x[..S::LANES].iter().chain(&reversed[..S::LANES]).copied().collect();
            for i in 0..S::LANES {
                same(pairs[i], x[i], reversed[i]);
                same(adjacent[i], row[2 * i], row[2 * i + 1]);
            }
        }
        for window in 0..=16 - S::LANES {
            let x = &VALUES[window..];
            for count in 0..=S::LANES {
                // To an odd address, between bytes that stay.
                let mut bytes = [0xa5u8; 34];
                // SAFETY: count elements of sixteen.
                unsafe { s.narrow(bytes[1..].as_mut_ptr().cast(), count, lanes.vector(x)) };
                for (i, got) in bytes[1..33].chunks(2).enumerate() {
                    let got = half::bf16::from_le_bytes([got[0], got[1]]);
                    match x.get(i) {
                        Some(x) if i < count && x.is_nan() => assert!(got.is_nan()),
                        Some(x) if i < count => assert_eq!(got.to_bits(), right(*x).to_bits(), "{x}"),
                        _ => assert_eq!(got.to_bits(), 0xa5a5),
                    }
                }
                assert_eq!([bytes[0], bytes[33]], [0xa5; 2]);
            }
        }
        // From an odd address on.
        let bytes: Vec<u8> =
            std::iter::once(0).chain((0..32u16).flat_map(|i| (0x3f80 + i).to_le_bytes())).collect();
        let (halves, at) = (
            bytes[1..].as_ptr().cast::<u16>(),
            |i: usize, count| if i < count { 0x3f80 + i as u32 } else { 0 },
        );
        for count in 0..=2 * S::LANES {
            // SAFETY: count elements of 32.
            let pairs = unsafe { lanes.numbers(s.load_pairs(halves, count)) };
            assert_same(
                &pairs,
                (0..S::LANES).map(|i| f32::from_bits(at(2 * i, count) | at(2 * i + 1, count) << 16)),
            );
            // SAFETY: as above.
            let wide = unsafe { lanes.numbers(s.widen(halves, count.min(S::LANES))) };
            assert_same(&wide, (0..S::LANES).map(|i| f32::from_bits(at(i, count) << 16)));
        }
        let small: [f32; 16] = std::array::from_fn(|i| i as f32 - 5.0);
        let (a, b) = (s.pair(lanes.vector(&small), s.splat(2.0)), s.pair(s.splat(3.0), s.splat(-4.0)));
        let got = lanes.numbers(s.dot_pairs(a, b, s.splat(0.5)));
        assert_same(&got, small.iter().map(|x| 0.5 + 3.0 * x - 8.0));
    }
}

fn every_family(operation: impl Operation<Output = ()> + Copy) {
    for kernels in Kernels::ALL.into_iter().filter(|kernels| kernels.supported()) {
        Family::of(kernels).unwrap().run(operation);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(s) = Avx512::<true>::detect() {
        s.vectorize(operation);
    }
}

macro_rules! tests {
    ($($name:ident: $operation:ident),*) => {
        $(
            impl Clone for $operation {
                fn clone(&self) -> Self {
                    *self
                }
            }
            impl Copy for $operation {}
            #[test]
            fn $name() {
                every_family($operation);
            }
        )*
    };
}

tests! {
    arithmetic_is_that_of_single_numbers: Arithmetic,
    words_are_those_of_single_numbers: Words,
    loads_and_stores_touch_what_they_say: Memory,
    sums_and_transposes: Across,
    rounding_to_bf16_is_to_nearest_even: Halves
}
