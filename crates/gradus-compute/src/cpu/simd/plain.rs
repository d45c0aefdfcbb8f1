//! Arrays of eight, for processors without the other families; the compiler makes of them what it can.

use super::{Operation, Simd, bf16_bits};

/// Needs nothing.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

const LANES: usize = 8;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

/// A function of the bits of each lane.
#[inline(always)]
fn words(a: [f32; LANES], b: [f32; LANES], f: impl Fn(u32, u32) -> u32) -> [f32; LANES] {
    each(|i| f32::from_bits(f(a[i].to_bits(), b[i].to_bits())))
}

// SAFETY: no instructions are needed; the constants agree with the types.
unsafe impl Simd for Plain {
    const LANES: usize = LANES;
    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;
    type V = [f32; LANES];
    type Square = [[f32; LANES]; LANES];

    fn vectorize<O: Operation>(self, operation: O) -> O::Output {
        operation.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: eight elements are readable by the caller's word.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize, rest: Self::V) -> Self::V {
        // SAFETY: only lanes below count are read.
        each(|i| if i < count { unsafe { *from.add(i) } } else { rest[i] })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::V) {
        // SAFETY: eight elements are writable by the caller's word.
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, v: Self::V) {
        for (i, x) in v.iter().enumerate().take(count) {
            // SAFETY: only lanes below count are written.
            unsafe { *to.add(i) = *x };
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] / b[i])
    }
    // Not f32::mul_add: without the instruction that is a call of a library function.
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        each(|i| a[i].sqrt())
    }
    // Adding and taking away 1.5 * 2^23 leaves no room for a fraction; larger numbers have none.
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        const MAGIC: f32 = 12_582_912.0;
        each(|i| if a[i].abs() < 4_194_304.0 { (a[i] + MAGIC) - MAGIC } else { a[i] })
    }
    #[inline(always)]
    fn scale(self, a: Self::V, n: Self::V) -> Self::V {
        each(|i| {
            // Three factors, each a normal number, reach over- and underflow; the first two are the same third.
            let n = n[i] as i32;
            let third = n / 3;
            let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
            a[i] * power(third) * power(third) * power(n - 2 * third)
        })
    }
    #[inline(always)]
    fn select_le(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        each(|i| if a[i] <= b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn add_words(self, a: Self::V, b: Self::V) -> Self::V {
        words(a, b, u32::wrapping_add)
    }
    #[inline(always)]
    fn multiply_words(self, a: Self::V, b: Self::V) -> Self::V {
        words(a, b, u32::wrapping_mul)
    }
    #[inline(always)]
    fn xor(self, a: Self::V, b: Self::V) -> Self::V {
        words(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn and(self, a: Self::V, b: Self::V) -> Self::V {
        words(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn shift_right(self, a: Self::V, count: u32) -> Self::V {
        words(a, a, |a, _| a >> count)
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        a.into_iter().fold(a[0], |largest, x| if largest > x { largest } else { x })
    }
    #[inline(always)]
    fn add_squares(self, a: Self::V, sums: &mut [f64; 16]) {
        for (sum, x) in sums.iter_mut().zip(a) {
            *sum += f64::from(x) * f64::from(x);
        }
    }

    #[inline(always)]
    fn round_bf16(self, a: Self::V) -> Self::V {
        each(|i| f32::from_bits(bf16_bits(a[i]) << 16))
    }
    #[inline(always)]
    fn pair(self, low: Self::V, high: Self::V) -> Self::V {
        each(|i| f32::from_bits(bf16_bits(low[i]) | bf16_bits(high[i]) << 16))
    }
    #[inline(always)]
    fn pair_adjacent(self, first: Self::V, second: Self::V) -> Self::V {
        let at = |i: usize| if i < LANES { first[i] } else { second[i - LANES] };
        self.pair(each(|i| at(2 * i)), each(|i| at(2 * i + 1)))
    }

    #[inline(always)]
    unsafe fn widen(self, from: *const u16, count: usize) -> Self::V {
        // SAFETY: count elements are readable by the caller's word.
        let at = |i: usize| unsafe { from.add(i).read_unaligned() };
        each(|i| if i < count { f32::from_bits(u32::from(at(i)) << 16) } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn load_pairs(self, from: *const u16, count: usize) -> Self::V {
        // SAFETY: count elements are readable by the caller's word.
        let at = |i: usize| if i < count { u32::from(unsafe { from.add(i).read_unaligned() }) } else { 0 };
        each(|i| f32::from_bits(at(2 * i) | at(2 * i + 1) << 16))
    }
    #[inline(always)]
    unsafe fn narrow(self, to: *mut u16, count: usize, v: Self::V) {
        for (i, x) in v.iter().enumerate().take(count) {
            // SAFETY: only elements below count are written.
            unsafe { to.add(i).write_unaligned(bf16_bits(*x) as u16) };
        }
    }

    #[inline(always)]
    fn dot_pairs(self, a: Self::V, b: Self::V, sums: Self::V) -> Self::V {
        let low = |x: f32| f32::from_bits(x.to_bits() << 16);
        let high = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
        each(|i| sums[i] + low(a[i]) * low(b[i]) + high(a[i]) * high(b[i]))
    }

    #[inline(always)]
    fn prefetch(self, _at: *const f32) {}

    #[inline(always)]
    fn square(self) -> Self::Square {
        [[0.0; LANES]; LANES]
    }
    #[inline(always)]
    fn transpose(self, square: &mut Self::Square) {
        let from = *square;
        *square = std::array::from_fn(|i| each(|j| from[j][i]));
    }
}
