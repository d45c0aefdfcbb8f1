//! Where a gradient is summed, and how it comes to its place.

use super::ACROSS;
use super::product::{PANEL, turned};
use super::rows::{Head, Straight, Turned};
use crate::cpu::gemm::TileKernel;
use crate::cpu::simd::Simd;
use crate::device::Format;

/// Where the gradient of a head's rows is summed, in f32.
#[derive(Clone, Copy)]
pub struct Gradient {
    /// The first element.
    pub start: *mut f32,
    /// From one row of what products write to the next.
    pub stride: usize,
    /// Elements of the head that products may write: all of them, and in scratch what fills up a tile.
    pub columns: usize,
    /// From one of the head's rows to the next, or, turned, what [`ACROSS`] of them take in all, for each.
    row: usize,
    kept: Kept,
}

/// Rows of what the gradient belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Across {
    /// It is made of blocks of scores as they stand, and turned if the kernel wants that.
    Keys,
    /// It is made of transposed blocks.
    Queries,
}

/// In what form.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// In its place.
    There,
    /// In scratch, row by row.
    Straight,
    /// In scratch, in blocks of [`ACROSS`] rows, which are columns.
    Turned,
}

impl Gradient {
    /// Before there is one.
    pub const NONE: Self =
        Self { start: std::ptr::null_mut(), stride: 0, columns: 0, row: 0, kept: Kept::There };

    /// Whether it is summed in scratch: if it is rounded, or turned, or kernels should find whole tiles.
    pub fn apart<K: TileKernel>(format: Format) -> bool {
        turned::<K>() || format == Format::Bf16
    }

    /// Of zeros, in its place or in `room`.
    ///
    /// # Safety
    /// The rows are the caller's alone; so is the room, for as long as the gradient is used.
    pub unsafe fn begin<K: TileKernel>(to: Head, across: Across, room: &mut [f32]) -> Self {
        if !Self::apart::<K>(to.format()) {
            let (start, stride) = (to.start(), to.stride());
            let this = Self { start, stride, columns: to.size, row: stride, kept: Kept::There };
            // SAFETY: passed on.
            unsafe { this.clear(to) };
            return this;
        }
        let (start, width) = (room.as_mut_ptr(), to.size.next_multiple_of(PANEL));
        room[..to.count.next_multiple_of(ACROSS) * width].fill(0.0);
        let (stride, kept) = match turned::<K>() && across == Across::Keys {
            true => (ACROSS, Kept::Turned),
            false => (width, Kept::Straight),
        };
        Self { start, stride, columns: width, row: width, kept }
    }

    /// Sets all rows, in their place, to zero.
    ///
    /// # Safety
    /// As [`Gradient::begin`].
    unsafe fn clear(self, to: Head) {
        for row in 0..to.count {
            // SAFETY: a row of the head.
            unsafe { self.from(row).start.write_bytes(0, to.size) };
        }
    }

    /// The same from row `row` on, a multiple of [`ACROSS`] if it is turned.
    pub fn from(self, row: usize) -> Self {
        debug_assert!(self.kept != Kept::Turned || row.is_multiple_of(ACROSS), "row {row} begins no block");
        Self { start: self.start.wrapping_add(row * self.row), ..self }
    }

    /// Writes it to its place, which it was begun for.
    pub fn write<S: Simd>(self, s: S, to: Head) {
        match self.kept {
            Kept::There => {}
            Kept::Straight => s.vectorize(Straight { from: self.start, stride: self.stride, to }),
            Kept::Turned => {
                for row in (0..to.count).step_by(ACROSS) {
                    let part = to.part(row, ACROSS.min(to.count - row));
                    s.vectorize(Turned { from: self.from(row).start, to: part, factors: std::ptr::null() });
                }
            }
        }
    }
}
