//! The memory that a collective reads and writes.

use crate::element::{Element, Number};
use crate::plan::Region;
use gradus_memory::RawRange;

/// Elements in host memory, by address: holding one gives no access.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    pub(crate) start: *mut u8,
    pub(crate) len: usize,
    pub(crate) element: Element,
}

// SAFETY: an address; who starts a collective answers for the memory behind it until the collective is over.
unsafe impl Send for Buffer {}

impl Buffer {
    /// The memory of a slice, to be written.
    pub fn of<T: Number>(slice: &mut [T]) -> Self {
        Self { start: slice.as_mut_ptr().cast(), len: slice.len(), element: T::ELEMENT }
    }

    /// The memory of a slice, to be read: an input.
    pub fn input<T: Number>(slice: &[T]) -> Self {
        Self { start: slice.as_ptr().cast_mut().cast(), len: slice.len(), element: T::ELEMENT }
    }

    /// No elements.
    pub fn empty<T: Number>() -> Self {
        Self::of::<T>(&mut [])
    }

    /// `len` elements of bf16 that lie in this memory, two in the place of one f32.
    ///
    /// # Panics
    /// If there is not so much of it.
    pub fn of_bf16(range: RawRange, len: usize) -> Self {
        let buffer = Self { start: range.start.cast(), len, element: Element::Bf16 };
        assert!(buffer.bytes() <= Self::from(range).bytes(), "elements must lie inside their range");
        buffer
    }

    fn bytes(&self) -> usize {
        self.len * self.element.bytes()
    }
}

impl From<RawRange> for Buffer {
    fn from(range: RawRange) -> Self {
        Self { start: range.start.cast(), len: range.len, element: Element::F32 }
    }
}

/// What a collective works on.
#[derive(Debug, Clone, Copy)]
pub enum Memory {
    /// One buffer, which brings and takes.
    InPlace(Buffer),
    /// Two that share no element: the input is only read.
    Apart {
        /// What this rank brings.
        input: Buffer,
        /// Where its result goes.
        output: Buffer,
    },
}

impl Memory {
    pub(crate) fn element(&self) -> Element {
        let (Self::InPlace(output) | Self::Apart { output, .. }) = self;
        output.element
    }
}

/// Scratch memory, in words as wide as the widest element; given back when a collective is over.
pub(crate) type Scratch = Vec<u64>;

/// Start and bytes of each region.
pub(crate) struct Regions {
    starts: [*mut u8; 3],
    bytes: [usize; 3],
    /// Keeps the third one alive.
    scratch: Scratch,
}

// SAFETY: addresses, as in `Buffer`.
unsafe impl Send for Regions {}

impl Regions {
    pub(crate) fn new(memory: Memory, mut scratch: Scratch) -> Self {
        let (input, output) = match memory {
            Memory::InPlace(buffer) => (Buffer { len: 0, ..buffer }, buffer),
            Memory::Apart { input, output } => (input, output),
        };
        let starts = [input.start, output.start, scratch.as_mut_ptr().cast()];
        Self { starts, bytes: [input.bytes(), output.bytes(), size_of_val(&*scratch)], scratch }
    }

    /// Where a region begins.
    pub(crate) fn start(&self, region: Region) -> *mut u8 {
        self.starts[region as usize]
    }

    pub(crate) fn bytes(&self, region: Region) -> usize {
        self.bytes[region as usize]
    }

    pub(crate) fn into_scratch(self) -> Scratch {
        self.scratch
    }
}
