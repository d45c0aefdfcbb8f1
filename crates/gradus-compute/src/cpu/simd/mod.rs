//! Vectors of f32, one type for each family of processors.
//!
//! What: [`Simd`] is a set of operations on vectors of `LANES` elements. A value of an implementing type is a *token*:
//! it can be had only where the processor has the instructions, so holding one makes the operations safe.
//! How: a kernel is an [`Operation`], written once for any `S: Simd`, every function in it `#[inline(always)]`, and is
//! run by [`Simd::vectorize`], which enters a function compiled with the family's instructions. Whatever is inlined
//! there is compiled with them; a function that is not inlined would be correct but slow.
//! Why: three families from one text, and `unsafe` for instructions only in the three files below.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod plain;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use plain::Plain;

/// Work to be compiled for each family.
pub trait Operation {
    /// What it returns.
    type Output;
    /// Does it; implement with `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Operations on vectors; see the module.
///
/// # Safety
/// A value must exist only where its instructions do, and the constants must be right: kernels size buffers by them.
pub unsafe trait Simd: Copy + Send + Sync + 'static {
    /// Elements of a vector.
    const LANES: usize;
    /// Rows of a matrix kernel's tile: what fits the registers beside `TILE_VECTORS` vectors of columns.
    const TILE_ROWS: usize;
    /// Vectors in a row of a matrix kernel's tile.
    const TILE_VECTORS: usize;
    /// A vector.
    type V: Copy;
    /// As many vectors as a vector has elements.
    type Square: Copy + AsMut<[Self::V]>;

    /// Runs `operation` compiled for this family.
    fn vectorize<O: Operation>(self, operation: O) -> O::Output;

    /// Every lane `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Elements `from[0..LANES]`.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// Elements `from[0..count]`, in the other lanes `rest`.
    ///
    /// # Safety
    /// They are readable, and `count <= LANES`.
    unsafe fn load_first(self, from: *const f32, count: usize, rest: Self::V) -> Self::V;
    /// Sets `to[0..LANES]`.
    ///
    /// # Safety
    /// They are writable.
    unsafe fn store(self, to: *mut f32, v: Self::V);
    /// Sets `to[0..count]` only.
    ///
    /// # Safety
    /// They are writable, and `count <= LANES`.
    unsafe fn store_first(self, to: *mut f32, count: usize, v: Self::V);

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the family can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` if either is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if either is not a number.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Square root.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `a * 2^n` for integral `-300 <= n <= 300`.
    fn scale(self, a: Self::V, n: Self::V) -> Self::V;
    /// `yes` where `a <= b`, else `no`.
    fn select_le(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// Sum of two words of 32 bits, those of each lane; what overflows is lost. So below.
    fn add_words(self, a: Self::V, b: Self::V) -> Self::V;
    /// The lower half of the product of two words.
    fn multiply_words(self, a: Self::V, b: Self::V) -> Self::V;
    /// Bits that are set in one of two words only.
    fn xor(self, a: Self::V, b: Self::V) -> Self::V;
    /// Bits that are set in both.
    fn and(self, a: Self::V, b: Self::V) -> Self::V;
    /// A word's bits moved towards the lowest, with zeros behind; `count < 32`.
    fn shift_right(self, a: Self::V, count: u32) -> Self::V;
    /// Sum of the lanes, in a fixed order.
    fn sum(self, a: Self::V) -> f32;
    /// Largest lane.
    fn largest(self, a: Self::V) -> f32;
    /// Sum of squares of the lanes, added to `LANES` sums in f64 kept in `sums`, lane by lane.
    fn add_squares(self, a: Self::V, sums: &mut [f64; 16]);

    /// Each lane rounded to bf16 (nearest, ties to even; NaN stays NaN), as f32.
    fn round_bf16(self, a: Self::V) -> Self::V;
    /// Lane `i`: bf16 of `low[i]` in the lower half of the bits, of `high[i]` in the upper.
    fn pair(self, low: Self::V, high: Self::V) -> Self::V;
    /// As [`Simd::pair`] for the elements `2i` and `2i + 1` of `first` followed by `second`.
    fn pair_adjacent(self, first: Self::V, second: Self::V) -> Self::V;

    /// bf16 `from[0..count]` as f32, zero in the other lanes; at any alignment.
    ///
    /// # Safety
    /// They are readable, and `count <= LANES`.
    unsafe fn widen(self, from: *const u16, count: usize) -> Self::V;
    /// bf16 `from[0..count]` as pairs of neighbours, zero in the other places; at any alignment.
    ///
    /// # Safety
    /// They are readable, and `count <= 2 * LANES`.
    unsafe fn load_pairs(self, from: *const u16, count: usize) -> Self::V;
    /// Sets `to[0..count]` only, rounded to bf16 (nearest, ties to even; NaN stays NaN; subnormals may become zero); at any
    /// alignment.
    ///
    /// # Safety
    /// They are writable, and `count <= LANES`.
    unsafe fn narrow(self, to: *mut u16, count: usize, v: Self::V);

    /// `sums[i] + a[2i] * b[2i] + a[2i+1] * b[2i+1]` of pairs of bf16 (subnormals may count as zero).
    fn dot_pairs(self, a: Self::V, b: Self::V, sums: Self::V) -> Self::V;

    /// Asks for the cache line of an address, which need not be valid.
    fn prefetch(self, at: *const f32);

    /// A square of zeros.
    fn square(self) -> Self::Square;
    /// Exchanges rows and columns.
    fn transpose(self, square: &mut Self::Square);

    /// Every lane of these bits.
    #[inline(always)]
    fn splat_word(self, bits: u32) -> Self::V {
        self.splat(f32::from_bits(bits))
    }

    /// As [`Simd::load_first`], whole where `count` is `LANES`, zero elsewhere.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn load_up_to(self, from: *const f32, count: usize) -> Self::V {
        // SAFETY: passed on.
        unsafe {
            if count == Self::LANES { self.load(from) } else { self.load_first(from, count, self.splat(0.0)) }
        }
    }

    /// As [`Simd::store_first`], whole where `count` is `LANES`.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn store_up_to(self, to: *mut f32, count: usize, v: Self::V) {
        // SAFETY: passed on.
        unsafe { if count == Self::LANES { self.store(to, v) } else { self.store_first(to, count, v) } }
    }
}

/// bf16 bits of `x`: nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { bits >> 16 | 0x40 } else { bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16 }
}

#[cfg(test)]
mod tests;
