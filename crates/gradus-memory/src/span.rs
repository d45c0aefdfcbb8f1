//! Names of ranges.

/// A range of f32 elements in a device's memory. It is a name: holding one gives no access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl Span {
    /// The range of `len` elements from `start`.
    pub const fn new(start: usize, len: usize) -> Self {
        Self { start, len }
    }

    /// One past the last element.
    pub const fn end(&self) -> usize {
        self.start + self.len
    }

    /// Whether it names no element.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What both ranges have; empty where they share nothing.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, len: self.end().min(other.end()).saturating_sub(start) }
    }

    /// The part of `len` elements that begins `offset` elements into this range.
    ///
    /// # Panics
    /// If that part is not inside this range.
    #[must_use]
    pub const fn part(&self, offset: usize, len: usize) -> Self {
        assert!(offset + len <= self.len, "a part must lie inside its range");
        Self { start: self.start + offset, len }
    }

    /// Whether the two ranges share an element.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end() && self.len > 0 && other.len > 0
    }
}

/// Host memory of f32 elements, for a collective to read and write while others must leave it alone.
#[derive(Debug, Clone, Copy)]
pub struct RawRange {
    /// First element.
    pub start: *mut f32,
    /// Number of elements.
    pub len: usize,
}

impl RawRange {
    /// The memory of a slice, for as long as the slice is borrowed.
    pub fn of(slice: &mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// The part of `len` elements that begins `offset` elements into this range.
    ///
    /// # Panics
    /// If that part is not inside this range.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Self {
        assert!(offset + len <= self.len, "a part must lie inside its range");
        // SAFETY: offset is inside the range that start belongs to.
        Self { start: unsafe { self.start.add(offset) }, len }
    }
}

// SAFETY: a RawRange is an address; whoever dereferences it answers for exclusive access.
unsafe impl Send for RawRange {}
