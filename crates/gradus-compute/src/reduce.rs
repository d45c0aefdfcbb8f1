//! Combining numbers, as collectives ask for it, on memory that another process may hand over: raw addresses, never
//! slices.
//!
//! Every operation gives the same bits whichever operand comes first, so that two ranks that exchange their numbers
//! agree: a result that is no number is always the same NaN, and of two zeros the minimum is the negative one. 16-bit
//! floats are combined in f32 and rounded to nearest, ties to even. Integers wrap around.

use crate::cpu::features::Family;
use crate::cpu::simd::{Operation, Simd};
use half::{bf16, f16};

/// How two numbers become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// a + b.
    Add,
    /// a * b.
    Multiply,
    /// The lesser; NaN if one is.
    Minimum,
    /// The greater; NaN if one is.
    Maximum,
}

/// What can be combined.
pub trait Combinable: Copy {
    /// a + b.
    fn add(a: Self, b: Self) -> Self;
    /// a * b.
    fn multiply(a: Self, b: Self) -> Self;
    /// The lesser.
    fn minimum(a: Self, b: Self) -> Self;
    /// The greater.
    fn maximum(a: Self, b: Self) -> Self;
}

/// What can be divided by a count.
pub trait Divisible: Copy {
    /// Rounded once to nearest, ties to even.
    fn divide(self, by: usize) -> Self;
}

macro_rules! floats {
    ($($float:ident)*) => { $(
        impl Combinable for $float {
            #[inline(always)]
            fn add(a: Self, b: Self) -> Self {
                let sum = a + b;
                if sum.is_nan() { Self::NAN } else { sum }
            }
            #[inline(always)]
            fn multiply(a: Self, b: Self) -> Self {
                let product = a * b;
                if product.is_nan() { Self::NAN } else { product }
            }
            #[inline(always)]
            fn minimum(a: Self, b: Self) -> Self {
                // Equal ones differ in the sign of zero at most.
                let equal = Self::from_bits(a.to_bits() | b.to_bits());
                if a < b { a } else if b < a { b } else if a == b { equal } else { Self::NAN }
            }
            #[inline(always)]
            fn maximum(a: Self, b: Self) -> Self {
                let equal = Self::from_bits(a.to_bits() & b.to_bits());
                if a > b { a } else if b > a { b } else if a == b { equal } else { Self::NAN }
            }
        }
        impl Divisible for $float {
            fn divide(self, by: usize) -> Self {
                self / by as Self
            }
        }
    )* };
}

macro_rules! short_floats {
    ($($float:ident)*) => { $(
        impl Combinable for $float {
            #[inline(always)]
            fn add(a: Self, b: Self) -> Self {
                Self::from_f32(Combinable::add(a.to_f32(), b.to_f32()))
            }
            #[inline(always)]
            fn multiply(a: Self, b: Self) -> Self {
                Self::from_f32(Combinable::multiply(a.to_f32(), b.to_f32()))
            }
            #[inline(always)]
            fn minimum(a: Self, b: Self) -> Self {
                Self::from_f32(Combinable::minimum(a.to_f32(), b.to_f32()))
            }
            #[inline(always)]
            fn maximum(a: Self, b: Self) -> Self {
                Self::from_f32(Combinable::maximum(a.to_f32(), b.to_f32()))
            }
        }
        impl Divisible for $float {
            fn divide(self, by: usize) -> Self {
                Self::from_f32(self.to_f32() / by as f32)
            }
        }
    )* };
}

macro_rules! integers {
    ($($integer:ident)*) => { $(
        impl Combinable for $integer {
            #[inline(always)]
            fn add(a: Self, b: Self) -> Self {
                a.wrapping_add(b)
            }
            #[inline(always)]
            fn multiply(a: Self, b: Self) -> Self {
                a.wrapping_mul(b)
            }
            #[inline(always)]
            fn minimum(a: Self, b: Self) -> Self {
                a.min(b)
            }
            #[inline(always)]
            fn maximum(a: Self, b: Self) -> Self {
                a.max(b)
            }
        }
    )* };
}

floats!(f32 f64);
short_floats!(f16 bf16);
integers!(i32 i64 u8);

/// Bytes from which it pays to enter code for wider vectors.
const WIDE_BYTES: usize = 256;

/// `to[i] = how(to[i], from[i])` for `len` elements, by the widest vectors that the processor has: the bits are the same.
///
/// # Safety
/// `to` is valid for reads and writes of `len` aligned elements, `from` for reads of `len` elements at any alignment;
/// they do not overlap, and nobody writes either meanwhile. Any bits are a value of `T`.
pub unsafe fn combine<T: Combinable>(how: Combine, to: *mut T, from: *const T, len: usize) {
    let all = Combination { how, to, from, len };
    if len * size_of::<T>() < WIDE_BYTES { all.carry_out() } else { Family::widest().run(all) }
}

/// A call of [`combine`]; whoever makes one passes on the caller's word.
struct Combination<T> {
    how: Combine,
    to: *mut T,
    from: *const T,
    len: usize,
}

impl<T: Combinable> Combination<T> {
    #[inline(always)]
    fn carry_out(self) {
        match self.how {
            Combine::Add => self.each(T::add),
            Combine::Multiply => self.each(T::multiply),
            Combine::Minimum => self.each(T::minimum),
            Combine::Maximum => self.each(T::maximum),
        }
    }

    #[inline(always)]
    fn each(self, how: impl Fn(T, T) -> T) {
        for i in 0..self.len {
            // SAFETY: i < len, and both are valid for len elements by the word of combine's caller.
            unsafe { *self.to.add(i) = how(*self.to.add(i), self.from.add(i).read_unaligned()) };
        }
    }
}

/// Compiled once for each family; the compiler makes the vectors.
impl<T: Combinable> Operation for Combination<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.carry_out();
    }
}

/// `to[i] /= by` for `len` elements.
///
/// # Safety
/// `to` is valid for reads and writes of `len` aligned elements, and nobody else touches them meanwhile.
pub unsafe fn divide<T: Divisible>(to: *mut T, len: usize, by: usize) {
    for i in 0..len {
        // SAFETY: i < len, and `to` is valid for len elements by the caller's word.
        unsafe { *to.add(i) = (*to.add(i)).divide(by) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Combine; 4] = [Combine::Add, Combine::Multiply, Combine::Minimum, Combine::Maximum];

    fn one<T: Combinable>(how: Combine, a: T, b: T) -> T {
        let mut to = a;
        // SAFETY: one element on both sides, apart.
        unsafe { combine(how, &raw mut to, &raw const b, 1) };
        to
    }

    #[test]
    fn combines_elementwise_from_any_alignment() {
        let mut to = [1.0f32, 2.0, 3.0];
        let mut bytes = [0u8; 13];
        for (i, x) in [10.0f32, 20.0, 30.0].iter().enumerate() {
            bytes[1 + 4 * i..5 + 4 * i].copy_from_slice(&x.to_le_bytes());
        }
        // SAFETY: both hold three elements; bytes starts one byte off.
        unsafe { combine(Combine::Add, to.as_mut_ptr(), bytes.as_ptr().add(1).cast(), 3) };
        assert_eq!(to, [11.0, 22.0, 33.0]);
    }

    #[test]
    fn many_are_combined_as_one_is() {
        fn check<T: Combinable + PartialEq + std::fmt::Debug>(make: impl Fn(i16) -> T) {
            for (how, len) in ALL.into_iter().flat_map(|how| (0..300).map(move |len| (how, len))) {
                let from: Vec<T> = (0..len).map(|i| make(i * 37 % 101 - 50)).collect();
                let mut to: Vec<T> = (0..len).map(|i| make(i * 53 % 97 - 48)).collect();
                let expected: Vec<T> = to.iter().zip(&from).map(|(a, b)| one(how, *a, *b)).collect();
                // SAFETY: both hold as many elements.
                unsafe { combine(how, to.as_mut_ptr(), from.as_ptr(), to.len()) };
                assert_eq!(to, expected, "{how:?} of {len}");
            }
        }
        check(|i| f32::from(i) / 3.0);
        check(|i| f64::from(i) / 3.0);
        check(|i| f16::from_f32(f32::from(i) / 3.0));
        check(|i| bf16::from_f32(f32::from(i) / 3.0));
        check(i32::from);
        check(i64::from);
        check(|i| i as u8);
    }

    #[test]
    fn what_is_no_number_stays_so() {
        for how in ALL {
            for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::NAN, f32::INFINITY)] {
                assert!(one(how, a, b).is_nan(), "{how:?} {a} {b}");
                assert!(one(how, f16::from_f32(a), f16::from_f32(b)).is_nan());
                assert!(one(how, bf16::from_f32(a), bf16::from_f32(b)).is_nan());
                assert!(one(how, f64::from(a), f64::from(b)).is_nan());
            }
        }
    }

    #[test]
    fn zeros_have_an_order() {
        assert!(one(Combine::Minimum, 0.0f32, -0.0).is_sign_negative());
        assert!(one(Combine::Minimum, -0.0f64, 0.0).is_sign_negative());
        assert!(one(Combine::Maximum, -0.0f32, 0.0).is_sign_positive());
        assert!(one(Combine::Minimum, f16::ZERO, f16::NEG_ZERO).is_sign_negative());
    }

    #[test]
    fn integers_wrap() {
        assert_eq!(one(Combine::Add, i32::MAX, 1), i32::MIN);
        assert_eq!(one(Combine::Multiply, 200u8, 2), 144);
        assert_eq!(one(Combine::Add, i64::MIN, -1), i64::MAX);
        assert_eq!((one(Combine::Minimum, -3i64, 2), one(Combine::Maximum, 3u8, 200)), (-3, 200));
    }

    #[test]
    fn short_floats_round_to_even() {
        // Spacing at 2048 is 2 in f16, at 256 it is 2 in bf16: sums in the middle go to the even neighbour.
        assert_eq!(one(Combine::Add, f16::from_f32(2048.0), f16::ONE).to_f32(), 2048.0);
        assert_eq!(one(Combine::Add, f16::from_f32(2050.0), f16::ONE).to_f32(), 2052.0);
        assert_eq!(one(Combine::Add, bf16::from_f32(256.0), bf16::ONE).to_f32(), 256.0);
        assert_eq!(one(Combine::Add, bf16::from_f32(258.0), bf16::ONE).to_f32(), 260.0);
        assert_eq!(one(Combine::Multiply, f16::MAX, f16::MAX), f16::INFINITY);
    }

    #[test]
    fn means_are_rounded_once() {
        let mut values = [1.0f32, 10.0];
        let mut short = [f16::from_f32(1.0)];
        // SAFETY: as many elements as are named.
        unsafe {
            divide(values.as_mut_ptr(), 2, 3);
            divide(short.as_mut_ptr(), 1, 3);
        }
        assert_eq!(values, [1.0 / 3.0, 10.0 / 3.0]);
        assert_eq!(short[0], f16::from_f32(1.0 / 3.0));
    }

    proptest! {
        #[test]
        fn the_first_operand_is_no_better_than_the_second(a in any::<u32>(), b in any::<u32>()) {
            for how in ALL {
                let (x, y) = (f32::from_bits(a), f32::from_bits(b));
                prop_assert_eq!(one(how, x, y).to_bits(), one(how, y, x).to_bits());
                let (x, y) = (f16::from_bits(a as u16), f16::from_bits(b as u16));
                prop_assert_eq!(one(how, x, y).to_bits(), one(how, y, x).to_bits());
                let (x, y) = (bf16::from_bits(a as u16), bf16::from_bits(b as u16));
                prop_assert_eq!(one(how, x, y).to_bits(), one(how, y, x).to_bits());
                prop_assert_eq!(one(how, a as i32, b as i32), one(how, b as i32, a as i32));
            }
        }

        #[test]
        fn sums_of_numbers_are_the_machines(a in any::<f32>(), b in any::<f32>()) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            let sum = one(Combine::Add, a, b);
            prop_assert!(sum.to_bits() == (a + b).to_bits() || sum.is_nan() && (a + b).is_nan());
            prop_assert_eq!(one(Combine::Minimum, a, b), a.min(b));
            prop_assert_eq!(one(Combine::Maximum, a, b), a.max(b));
        }
    }
}
