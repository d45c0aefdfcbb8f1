//! A sample, in the memory that it lies in.

use super::unit::Part;
use crate::crc32c::Crc32c;
use gradus_error::{Error, Result};
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

/// A sample, or part of one. Its bytes stay where they are, in pages of the cache or wherever they were read to, as long as it lives.
pub struct Sample {
    parts: Arc<[Part]>,
    offset: usize,
    len: usize,
}

impl Sample {
    pub(super) fn new(parts: Arc<[Part]>, offset: usize, len: usize) -> Self {
        Self { parts, offset, len }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes, in the pieces in which they lie.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let (mut skip, mut left) = (self.offset, self.len);
        self.parts.iter().filter_map(move |part| {
            let bytes = part.bytes();
            let skipped = skip.min(bytes.len());
            skip -= skipped;
            let taken = &bytes[skipped..skipped + left.min(bytes.len() - skipped)];
            left -= taken.len();
            (!taken.is_empty()).then_some(taken)
        })
    }

    /// Part of it, which lies where it lies.
    ///
    /// # Panics
    /// If it has no such bytes.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        Self { parts: self.parts.clone(), offset: self.offset + range.start, len: range.end - range.start }
    }

    /// Reads its bytes from the first on.
    pub fn reader(&self) -> impl Read {
        Reader { parts: self.parts().collect::<Vec<_>>().into_iter(), now: &[] }
    }

    /// Its bytes, copied together.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len);
        self.parts().for_each(|part| bytes.extend_from_slice(part));
        bytes
    }

    /// Compares the bytes with what they were when they were indexed, where that is known.
    pub(super) fn check(&self, crc32c: Option<u32>) -> Result<()> {
        let Some(expected) = crc32c else { return Ok(()) };
        let mut crc = Crc32c::new();
        self.parts().for_each(|part| crc.update(part));
        if crc.value() == expected {
            return Ok(());
        }
        Err(Error::corrupt(
            "is not what was indexed (CRC-32C): if the data were changed on purpose, index them again",
        ))
    }
}

/// What is left of some parts.
struct Reader<'a> {
    parts: std::vec::IntoIter<&'a [u8]>,
    now: &'a [u8],
}

impl Read for Reader<'_> {
    fn read(&mut self, space: &mut [u8]) -> std::io::Result<usize> {
        while self.now.is_empty() {
            let Some(next) = self.parts.next() else { return Ok(0) };
            self.now = next;
        }
        self.now.read(space)
    }
}
