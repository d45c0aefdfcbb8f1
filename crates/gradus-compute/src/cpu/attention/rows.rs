//! Rows of heads: where they lie, and moving them.

use super::{ACROSS, Item};
use crate::cpu::gemm::Operand;
use crate::cpu::memory::Elements;
use crate::cpu::simd::{Operation, Simd};
use crate::device::Format;

/// Rows of heads.
#[derive(Clone, Copy)]
pub struct HeadRows {
    /// All of them.
    pub elements: Elements,
    /// Elements from one row to the next.
    pub stride: usize,
    /// How elements are kept.
    pub format: Format,
}

impl HeadRows {
    /// Whether elements are bf16.
    #[inline(always)]
    fn half(&self) -> bool {
        self.format == Format::Bf16
    }

    /// Address of a row's head, of whatever format.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, head: usize, head_size: usize) -> *mut f32 {
        let index = row * self.stride + head * head_size;
        debug_assert!(index <= self.elements.len() * self.format.each(), "element {index} is outside");
        self.elements.at(0).wrapping_byte_add(index * if self.half() { 2 } else { 4 })
    }
}

/// Some rows of one head.
#[derive(Clone, Copy)]
pub(super) struct Head {
    /// Of all heads.
    rows: HeadRows,
    /// The first row.
    row: usize,
    head: usize,
    /// How many rows.
    pub(super) count: usize,
    /// Elements of each.
    pub(super) size: usize,
}

impl Head {
    /// The item's keys, or what lies as they do.
    pub(super) fn of_keys(item: Item, rows: HeadRows) -> Self {
        let (count, size) = (item.shape.key_len, item.shape.head_size);
        Self { rows, row: item.key_row(), head: item.kv_head, count, size }
    }

    /// A head's queries, or what lies as they do.
    pub(super) fn of_queries(item: Item, rows: HeadRows, head: usize) -> Self {
        let (count, size) = (item.shape.query_len, item.shape.head_size);
        Self { rows, row: item.query_row(), head, count, size }
    }

    /// `count` of them from row `start` on.
    pub(super) fn part(self, start: usize, count: usize) -> Self {
        debug_assert!(start + count <= self.count, "rows {start} to {} of {}", start + count, self.count);
        Self { row: self.row + start, count, ..self }
    }

    /// How elements are kept.
    pub(super) fn format(self) -> Format {
        self.rows.format
    }

    /// Elements from one row to the next.
    pub(super) fn stride(self) -> usize {
        self.rows.stride
    }

    /// Address of the first row's head, of whatever format.
    #[inline(always)]
    pub(super) fn start(self) -> *mut f32 {
        self.rows.at(self.row, self.head, self.size)
    }

    /// The rows as lines along the head.
    pub(super) fn along(self) -> Operand {
        Operand { half: self.rows.half(), ..Operand::along(self.start(), self.rows.stride) }
    }

    /// The elements of the head as lines across the rows.
    pub(super) fn across(self) -> Operand {
        Operand { along: false, ..self.along() }
    }

    /// Row `row` of them.
    #[inline(always)]
    pub(super) fn row(self, row: usize) -> Row {
        let start = self.rows.at(self.row + row, self.head, self.size);
        let half = self.rows.half();
        Row { start, half, size: self.size, stride: self.rows.stride * if half { 2 } else { 4 } }
    }
}

/// A row of a head.
#[derive(Clone, Copy)]
pub(super) struct Row {
    start: *mut f32,
    half: bool,
    size: usize,
    /// Bytes to the next row.
    stride: usize,
}

impl Row {
    /// Asks for the elements from `at` on of the row that comes `rows` later, if there is one.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(self, s: S, at: usize, rows: usize) {
        s.prefetch(self.start.wrapping_byte_add(rows * self.stride + at * if self.half { 2 } else { 4 }));
    }

    /// A vector of elements from `at` on, zero beyond the head.
    ///
    /// # Safety
    /// The row is readable, and `at` inside it.
    #[inline(always)]
    pub(super) unsafe fn load<S: Simd>(self, s: S, at: usize) -> S::V {
        let count = S::LANES.min(self.size - at);
        // SAFETY: as the caller says.
        unsafe {
            if self.half {
                s.widen(self.start.cast::<u16>().add(at), count)
            } else {
                s.load_up_to(self.start.add(at), count)
            }
        }
    }

    /// Sets a vector of elements from `at` on, but for those beyond the head.
    ///
    /// # Safety
    /// The row is writable, and `at` inside it.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(self, s: S, at: usize, v: S::V) {
        let count = S::LANES.min(self.size - at);
        // SAFETY: as the caller says.
        unsafe {
            if self.half {
                s.narrow(self.start.cast::<u16>().add(at), count, v);
            } else {
                s.store_up_to(self.start.add(at), count, v);
            }
        }
    }
}

/// Copies rows of f32 to a head.
pub(super) struct Straight {
    /// The first, `stride` elements before the next.
    pub(super) from: *const f32,
    pub(super) stride: usize,
    pub(super) to: Head,
}

impl Operation for Straight {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in 0..self.to.count {
            let (from, to) = (self.from.wrapping_add(i * self.stride), self.to.row(i));
            for at in (0..self.to.size).step_by(S::LANES) {
                let count = S::LANES.min(self.to.size - at);
                // SAFETY: inside a row here and there; the item that asks for this has the head to itself.
                unsafe { to.store(s, at, s.load_up_to(from.add(at), count)) };
            }
        }
    }
}

/// Copies at most [`ACROSS`] columns of f32 to the rows of a head.
pub(super) struct Turned {
    /// A row of [`ACROSS`] for each element of the head, and as many more as fill a vector.
    pub(super) from: *const f32,
    pub(super) to: Head,
    /// [`ACROSS`] elements, one to multiply each column with; or null.
    pub(super) factors: *const f32,
}

impl Operation for Turned {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in (0..self.to.count).step_by(S::LANES) {
            let mut factor = s.splat(1.0);
            if !self.factors.is_null() {
                // SAFETY: ACROSS elements are whole vectors.
                factor = unsafe { s.load(self.factors.add(row)) };
            }
            for at in (0..self.to.size).step_by(S::LANES) {
                let mut square = s.square();
                for (k, v) in square.as_mut().iter_mut().enumerate() {
                    // SAFETY: rows hold ACROSS elements, and there are whole vectors of rows.
                    *v = unsafe { s.mul(s.load(self.from.add((at + k) * ACROSS + row)), factor) };
                }
                s.transpose(&mut square);
                let rows = S::LANES.min(self.to.count - row);
                for (k, v) in square.as_mut().iter().enumerate().take(rows) {
                    // SAFETY: inside a row; the item that asks for this has the head to itself.
                    unsafe { self.to.row(row + k).store(s, at, *v) };
                }
            }
        }
    }
}
