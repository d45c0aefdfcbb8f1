//! Elements in memory that are f32 or bf16, as vectors of f32.
//!
//! What a kernel reads and writes in either format it reaches through [`Cells`]: the format is asked for each vector, which
//! costs a branch that is always taken the same way.

use super::memory::Elements;
use super::simd::Simd;
use crate::device::Format;

/// Elements from an address on.
#[derive(Debug, Clone, Copy)]
pub struct Cells {
    start: *mut f32,
    format: Format,
}

// SAFETY: an address; the operation that dereferences it divides the writes among its threads.
unsafe impl Send for Cells {}
// SAFETY: as above.
unsafe impl Sync for Cells {}

impl From<Elements> for Cells {
    fn from(places: Elements) -> Self {
        Self::new(places, Format::F32)
    }
}

impl Cells {
    /// Of resolved places.
    pub fn new(places: Elements, format: Format) -> Self {
        Self { start: places.at(0), format }
    }

    /// Address of element `index`: no element's where that lies outside.
    #[inline(always)]
    pub fn at(self, index: usize) -> *mut f32 {
        let bytes = match self.format {
            Format::F32 => 4,
            Format::Bf16 => 2,
        };
        self.start.wrapping_byte_add(index * bytes)
    }

    /// `v` as it would be read again.
    #[inline(always)]
    pub fn kept<S: Simd>(self, s: S, v: S::V) -> S::V {
        match self.format {
            Format::F32 => v,
            Format::Bf16 => s.round_bf16(v),
        }
    }

    /// Elements `index..index + count`, zero in the other lanes.
    ///
    /// # Safety
    /// They are readable, and `count <= LANES`.
    #[inline(always)]
    pub unsafe fn load<S: Simd>(self, s: S, index: usize, count: usize) -> S::V {
        let from = self.at(index).cast_const();
        // SAFETY: passed on.
        unsafe {
            match self.format {
                Format::F32 => s.load_up_to(from, count),
                Format::Bf16 => s.widen(from.cast(), count),
            }
        }
    }

    /// Sets elements `index..index + count`, in bf16 to the nearest.
    ///
    /// # Safety
    /// They are writable, and `count <= LANES`.
    #[inline(always)]
    pub unsafe fn store<S: Simd>(self, s: S, index: usize, count: usize, v: S::V) {
        let to = self.at(index);
        // SAFETY: passed on.
        unsafe {
            match self.format {
                Format::F32 => s.store_up_to(to, count, v),
                Format::Bf16 => s.narrow(to.cast(), count, v),
            }
        }
    }
}
