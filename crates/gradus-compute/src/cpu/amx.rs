//! AMX: matrix products of bf16 in tile registers (Intel, Architecture Instruction Set Extensions Programming
//! Reference, chapter 3).
//!
//! What: [`Tiles`] is a [`TileKernel`] of 32 x 32 that computes through [`TileRegisters`]: four tiles of sums, two of
//! rows, two of columns. How: the registers are either [`Hardware`] (inline assembly) or [`Emulated`] (plain loops by
//! the manual's pseudo-code), so that packing and driver are tested on every machine. Before the hardware is trusted,
//! [`hardware_agrees`] compares the two on integers, whose products and sums are exact in any order.

use super::gemm::{Finish as FinishInto, Target, TileKernel, Units, finish};
use super::simd::{Operation, Simd};
use std::marker::PhantomData;

/// Rows of a tile register, and its columns of 32 bits.
const SIDE: usize = 16;
/// Rows and columns of sums that a kernel computes: two tile registers each way.
const BLOCK: usize = 2 * SIDE;

/// The eight tile registers, each of 16 rows of 64 bytes.
pub trait TileRegisters: Copy + Send + Sync + 'static {
    /// Their content, where it is not in the processor.
    type State: Default;
    /// Makes the registers ready on this thread.
    fn configure();
    /// Gives them up on this thread.
    fn release();
    /// Sets register `T` to zero.
    ///
    /// # Safety
    /// The registers are configured.
    unsafe fn zero<const T: usize>(state: &mut Self::State);
    /// Loads register `T` from 16 rows, `stride` bytes apart.
    ///
    /// # Safety
    /// The registers are configured, and the rows readable.
    unsafe fn load<const T: usize>(state: &mut Self::State, from: *const f32, stride: usize);
    /// Adds to `C` the products of `A` (16 rows of 16 pairs) and `B` (16 pairs of 16 columns).
    ///
    /// # Safety
    /// The registers are configured.
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(state: &mut Self::State);
    /// Stores register `T` to 16 rows, `stride` bytes apart.
    ///
    /// # Safety
    /// The registers are configured, and the rows writable.
    unsafe fn store<const T: usize>(state: &mut Self::State, to: *mut f32, stride: usize);
}

/// The kernel; vectors of `S` pack and finish.
#[derive(Debug, Clone, Copy)]
pub struct Tiles<S, R> {
    s: S,
    registers: PhantomData<R>,
}

#[cfg(test)]
impl<S: Simd> Tiles<S, Emulated> {
    /// A kernel on emulated registers.
    pub fn emulated(s: S) -> Self {
        Self { s, registers: PhantomData }
    }
}

impl<S: Simd, R: TileRegisters> TileKernel for Tiles<S, R> {
    type S = S;
    const GROUP: usize = 2;
    const ROUND: bool = true;
    const ROW_RUN: usize = SIDE;

    fn simd(self) -> S {
        self.s
    }
    fn rows(self) -> usize {
        BLOCK
    }
    fn row_stride(self) -> usize {
        BLOCK
    }
    fn columns(self) -> usize {
        BLOCK
    }
    fn begin(self) {
        R::configure();
    }
    fn end(self) {
        R::release();
    }

    unsafe fn tile(self, units: usize, rows: Units, columns: Units, target: &Target<'_>) {
        debug_assert!(rows.stride == BLOCK && units.is_multiple_of(SIDE));
        let sides = Sides { blocks: units / SIDE, rows: rows.start, columns };
        if is_plain(target) {
            let (to, stride) = (target.start, target.stride);
            // SAFETY: the panels hold units / 16 blocks of 16 x 32 units each, the target a whole tile; begin() configured
            // the registers.
            return unsafe { multiply::<R>(sides, target.accumulate, to, stride) };
        }
        target.prefetch(self.s, BLOCK / S::LANES);
        let mut sums = Sums([0.0; BLOCK * BLOCK]);
        // SAFETY: as above, but for the target.
        unsafe { multiply::<R>(sides, false, sums.0.as_mut_ptr(), BLOCK) };
        match target.ending {
            Some(ending) => {
                self.s.vectorize(FinishInto { sums: &sums.0, width: BLOCK, target, ending });
            }
            None => self.s.vectorize(Finish { sums: &sums.0, target }),
        }
    }
}

/// On cache lines of its own, so that no stored row crosses one.
#[repr(align(64))]
struct Sums([f32; BLOCK * BLOCK]);

/// Whether the registers can add to a target, or set it, by themselves.
fn is_plain(target: &Target) -> bool {
    let whole = target.ending.is_none() && target.rows == BLOCK && target.columns == BLOCK;
    whole && target.bias.is_null() && target.residual.is_null() && target.row_scale.is_null()
}

/// What a tile is made of: blocks of 16 units of 32 rows, and of 32 columns.
#[derive(Clone, Copy)]
struct Sides {
    blocks: usize,
    rows: *const f32,
    columns: Units,
}

/// Sets the four quarters of `to`, whose rows are `stride` elements apart, or adds to them.
///
/// # Safety
/// The panels hold the blocks, `to` is 32 rows of 32, and the registers are configured.
unsafe fn multiply<R: TileRegisters>(sides: Sides, accumulate: bool, to: *mut f32, stride: usize) {
    const ROW_BYTES: usize = SIDE * 4;
    let Sides { blocks, rows, columns } = sides;
    let (column_bytes, bytes) = (4 * columns.stride, 4 * stride);
    let below = SIDE * stride;
    let mut state = R::State::default();
    // SAFETY: inside the panels and the target by the caller's word.
    unsafe {
        if accumulate {
            R::load::<0>(&mut state, to, bytes);
            R::load::<1>(&mut state, to.add(SIDE), bytes);
            R::load::<2>(&mut state, to.add(below), bytes);
            R::load::<3>(&mut state, to.add(below + SIDE), bytes);
        } else {
            R::zero::<0>(&mut state);
            R::zero::<1>(&mut state);
            R::zero::<2>(&mut state);
            R::zero::<3>(&mut state);
        }
        for block in 0..blocks {
            let row = rows.add(block * SIDE * BLOCK);
            let column = columns.start.add(block * SIDE * columns.stride);
            R::load::<4>(&mut state, row, ROW_BYTES);
            R::load::<6>(&mut state, column, column_bytes);
            R::dot::<0, 4, 6>(&mut state);
            R::load::<7>(&mut state, column.add(SIDE), column_bytes);
            R::dot::<1, 4, 7>(&mut state);
            R::load::<5>(&mut state, row.add(SIDE * SIDE), ROW_BYTES);
            R::dot::<2, 5, 6>(&mut state);
            R::dot::<3, 5, 7>(&mut state);
        }
        R::store::<0>(&mut state, to, bytes);
        R::store::<1>(&mut state, to.add(SIDE), bytes);
        R::store::<2>(&mut state, to.add(below), bytes);
        R::store::<3>(&mut state, to.add(below + SIDE), bytes);
    }
}

/// From sums to the target.
struct Finish<'a> {
    sums: &'a [f32; BLOCK * BLOCK],
    target: &'a Target<'a>,
}

impl Operation for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.target.rows {
            for column in (0..self.target.columns).step_by(S::LANES) {
                // SAFETY: LANES divides 32, so the vector is inside its row; the target is valid by tile's contract.
                unsafe {
                    let sum = s.load(self.sums.as_ptr().add(row * BLOCK + column));
                    finish(s, self.target, row, column, sum);
                }
            }
        }
    }
}

/// Tile registers in memory, by the manual's pseudo-code.
#[derive(Debug, Clone, Copy)]
pub struct Emulated;

/// Eight registers of 16 rows of 16 words.
pub struct EmulatedState(Box<[[[u32; SIDE]; SIDE]; 8]>);

impl Default for EmulatedState {
    fn default() -> Self {
        Self(Box::new([[[0; SIDE]; SIDE]; 8]))
    }
}

/// The two bf16 of a word.
fn halves(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

impl TileRegisters for Emulated {
    type State = EmulatedState;

    fn configure() {}
    fn release() {}

    unsafe fn zero<const T: usize>(state: &mut EmulatedState) {
        state.0[T] = [[0; SIDE]; SIDE];
    }

    unsafe fn load<const T: usize>(state: &mut EmulatedState, from: *const f32, stride: usize) {
        for (row, words) in state.0[T].iter_mut().enumerate() {
            // SAFETY: 16 rows of 16 words are readable by the caller's word.
            *words = unsafe { from.byte_add(row * stride).cast::<[u32; SIDE]>().read_unaligned() };
        }
    }

    unsafe fn dot<const C: usize, const A: usize, const B: usize>(state: &mut EmulatedState) {
        for row in 0..SIDE {
            for column in 0..SIDE {
                let mut sums = [0.0f32; 2];
                for pair in 0..SIDE {
                    let (a, b) = (halves(state.0[A][row][pair]), halves(state.0[B][pair][column]));
                    sums = [sums[0] + a[0] * b[0], sums[1] + a[1] * b[1]];
                }
                let sum = f32::from_bits(state.0[C][row][column]) + (sums[0] + sums[1]);
                state.0[C][row][column] = sum.to_bits();
            }
        }
    }

    unsafe fn store<const T: usize>(state: &mut EmulatedState, to: *mut f32, stride: usize) {
        for (row, words) in state.0[T].iter().enumerate() {
            // SAFETY: 16 rows of 16 words are writable by the caller's word.
            unsafe { to.byte_add(row * stride).cast::<[u32; SIDE]>().write_unaligned(*words) };
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use hardware::{Hardware, detect, hardware_agrees};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod hardware;

/// Without the instructions there is nothing to detect.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub fn detect() -> bool {
    false
}

#[cfg(test)]
mod tests;
