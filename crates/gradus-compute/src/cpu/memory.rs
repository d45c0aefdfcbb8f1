//! From spans to addresses: the one place in which the device turns names of ranges into memory.
//!
//! Invariant: a range that an operation writes overlaps no other range of the operation; where the operation may work
//! in place, the caller names the range once, among the written. Kernels read and write through raw addresses, so that
//! working in place and columns of a wider matrix need no borrowed slices that overlap.

use crate::device::Rows;
use gradus_error::Result;
use gradus_memory::{Arena, Span};

/// The address and number of the elements of a resolved range. Copies may go to other threads: the operation divides
/// what it writes among them.
#[derive(Clone, Copy)]
pub struct Elements {
    start: *mut f32,
    len: usize,
}

// SAFETY: an address; the operation that dereferences it divides the writes among its threads.
unsafe impl Send for Elements {}
// SAFETY: as above.
unsafe impl Sync for Elements {}

impl Elements {
    /// Of a slice that is only read through the result.
    pub fn of(slice: &[f32]) -> Self {
        Self { start: slice.as_ptr().cast_mut(), len: slice.len() }
    }

    /// Of a slice that may be written through the result.
    pub fn of_mut(slice: &mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// Of an arena's range.
    pub fn in_arena(arena: &Arena, span: Span) -> Self {
        let raw = arena.raw(span);
        Self { start: raw.start, len: raw.len }
    }

    /// Number of elements.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Address of element `index`, which may be one past the last.
    #[inline(always)]
    pub fn at(self, index: usize) -> *mut f32 {
        debug_assert!(index <= self.len, "element {index} of {}", self.len);
        self.start.wrapping_add(index)
    }

    /// The address, or null where there are no elements.
    pub fn or_null(self) -> *mut f32 {
        if self.is_empty() { std::ptr::null_mut() } else { self.start }
    }

    /// Elements `first..first + len` as a slice.
    ///
    /// # Safety
    /// The memory lives for `'a`, and nobody writes them meanwhile.
    pub unsafe fn slice<'a>(self, first: usize, len: usize) -> &'a [f32] {
        assert!(first + len <= self.len, "a slice must lie inside its range");
        // SAFETY: inside the range; the rest is the caller's word.
        unsafe { std::slice::from_raw_parts(self.at(first), len) }
    }

    /// Elements `first..first + len` as a slice to write.
    ///
    /// # Safety
    /// The memory lives for `'a`, and nobody else reads or writes them meanwhile.
    pub unsafe fn slice_mut<'a>(self, first: usize, len: usize) -> &'a mut [f32] {
        assert!(first + len <= self.len, "a slice must lie inside its range");
        // SAFETY: inside the range; the rest is the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.at(first), len) }
    }
}

/// The elements of the ranges of one operation.
///
/// # Panics
/// If a written range overlaps another range: a bug of the caller.
pub fn resolve<const W: usize, const R: usize>(
    arena: &Arena,
    written: [Span; W],
    read: [Span; R],
) -> ([Elements; W], [Elements; R]) {
    for (i, span) in written.iter().enumerate() {
        let clash = written[i + 1..].iter().chain(&read).find(|other| span.overlaps(other));
        assert!(clash.is_none(), "an operation writes {span:?}, which overlaps {clash:?}");
    }
    (written.map(|span| Elements::in_arena(arena, span)), read.map(|span| Elements::in_arena(arena, span)))
}

/// `span`, or nothing where it is `written`, the range that the operation works on in place.
pub fn unless_in_place(span: Span, written: Span) -> Span {
    if span == written { Span::default() } else { span }
}

/// Rows with their width: what two of them share can be told exactly.
#[derive(Clone, Copy)]
pub struct Columns {
    /// The rows.
    pub rows: Rows,
    /// Elements of each row in use.
    pub width: usize,
}

impl Columns {
    /// Rows of `width`, of which the span must hold `count`.
    ///
    /// # Panics
    /// If it does not.
    pub fn new(rows: Rows, count: usize, width: usize) -> Self {
        assert!(width <= rows.stride || count <= 1, "rows of {width} overlap at stride {}", rows.stride);
        assert!(
            count == 0 || rows.span.len >= rows.format.places((count - 1) * rows.stride + width),
            "{count} rows of {width} do not fit {rows:?}"
        );
        Self { rows, width }
    }

    /// Whether they may share a place: exact for columns of one matrix, cautious otherwise.
    pub fn overlaps(&self, other: &Self) -> bool {
        if !self.rows.span.overlaps(&other.rows.span) {
            return false;
        }
        let [(stride, width), (other_stride, other_width)] = [self, other].map(Self::places);
        let apart = (other.rows.span.start + stride - self.rows.span.start % stride) % stride;
        stride != other_stride || apart < width || apart + other_width > stride
    }

    /// From one row to the next, and of each row in use.
    fn places(&self) -> (usize, usize) {
        let format = self.rows.format;
        (format.places(self.rows.stride), format.places(self.width))
    }
}

/// As [`resolve`], for rows.
///
/// # Panics
/// If written rows share an element with other rows: a bug of the caller.
pub fn resolve_rows<const W: usize, const R: usize>(
    arena: &Arena,
    written: [Columns; W],
    read: [Columns; R],
) -> ([Elements; W], [Elements; R]) {
    for (i, columns) in written.iter().enumerate() {
        let clash = written[i + 1..].iter().chain(&read).any(|other| columns.overlaps(other));
        assert!(!clash, "an operation writes {:?}, which other rows of it overlap", columns.rows);
    }
    let elements = |columns: Columns| Elements::in_arena(arena, columns.rows.span);
    (written.map(elements), read.map(elements))
}

/// Memory that an operation needs beside its ranges: kept from step to step, so that a step allocates nothing once
/// the largest operation has been seen.
pub struct Scratch {
    arena: Arena,
    whole: Span,
}

impl Scratch {
    /// Room for `len` elements.
    ///
    /// # Errors
    /// When the system refuses the reservation.
    pub fn new(len: usize) -> Result<Self> {
        let arena = Arena::reserve(len.next_multiple_of(16))?;
        let whole = arena.allocate(len)?;
        Ok(Self { arena, whole })
    }

    /// Elements held.
    pub fn len(&self) -> usize {
        self.whole.len
    }

    /// At least `len` elements, aligned to a cache line; what they held is lost if they must grow.
    ///
    /// # Panics
    /// When the system refuses the memory: an operation has no way to say so.
    pub fn at_least(&mut self, len: usize) -> &mut [f32] {
        if self.whole.len < len {
            *self = Self::new(len.next_power_of_two())
                .expect("the system has memory for the scratch of an operation");
        }
        // SAFETY: self is borrowed exclusively for as long as the slice lives.
        unsafe { self.arena.slice_mut(self.whole) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Format;

    fn columns(start: usize, width: usize, stride: usize) -> Columns {
        let span = Span::new(start, 9 * stride + width);
        Columns::new(Rows { span, stride, format: Format::F32 }, 10, width)
    }

    #[test]
    fn columns_of_one_matrix_overlap_only_where_they_share_an_element() {
        let (q, k, v) = (columns(64, 8, 24), columns(72, 8, 24), columns(80, 8, 24));
        assert!(!q.overlaps(&k) && !k.overlaps(&q) && !k.overlaps(&v) && !v.overlaps(&q));
        assert!(q.overlaps(&q) && q.overlaps(&columns(71, 8, 24)) && q.overlaps(&columns(57, 8, 24)));
        assert!(q.overlaps(&columns(72, 8, 25)), "other strides are told apart only by their spans");
    }

    #[test]
    fn elements_are_those_of_the_arena() {
        let arena = Arena::reserve(64).unwrap();
        let (a, b) = (arena.allocate(4).unwrap(), arena.allocate(4).unwrap());
        let ([x], [y]) = resolve(&arena, [a], [b]);
        // SAFETY: one thread, two ranges apart.
        let (x, y) = unsafe { (x.slice_mut(0, 4), y.slice(1, 3)) };
        x.fill(1.0);
        assert_eq!(y, [0.0; 3]);
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn overlap_is_a_bug() {
        let arena = Arena::reserve(64).unwrap();
        let a = arena.allocate(20).unwrap();
        let _ = resolve(&arena, [a.part(0, 10)], [a.part(9, 2)]);
    }

    #[test]
    fn scratch_grows() {
        let mut scratch = Scratch::new(10).unwrap();
        assert!(scratch.at_least(10).len() >= 10);
        scratch.at_least(1000)[999] = 1.0;
        assert_eq!(scratch.at_least(5)[999], 1.0);
    }
}
