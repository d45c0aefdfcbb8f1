//! The samples of one object, in columns.
//!
//! Three shapes: samples of one size at equal distances, which need no memory of their own; samples that are ranges of
//! the object, 12 bytes each; and samples within units that are decoded first, 8 bytes each and 48 for a unit. A
//! checksum adds 4 bytes. Invariant: units and samples are in the order of the object's bytes, and all ranges are
//! within it.

use super::MOST_SAMPLE_BYTES;
use super::decode::Decoding;
use std::ops::Range;

/// Samples of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Fixed {
    /// Where the first begins.
    pub(super) start: u64,
    /// Bytes from the beginning of one to that of the next.
    pub(super) stride: u64,
    /// Bytes of each: more than the stride where neighbours overlap.
    pub(super) len: u64,
    /// How many.
    pub(super) samples: u64,
}

impl Fixed {
    /// Whether all samples are within an object of `bytes` bytes.
    pub(super) fn is_within(&self, bytes: u64) -> bool {
        let last = self.samples.saturating_sub(1).checked_mul(self.stride);
        let end = last.and_then(|last| last.checked_add(self.start)?.checked_add(self.len));
        // Neighbours share a token or less: an index from elsewhere must not make a byte belong to any number of samples.
        let is_fine = self.stride > 0 && self.len / 2 <= self.stride && self.len <= MOST_SAMPLE_BYTES;
        is_fine && end.is_some_and(|end| end <= bytes)
    }
}

/// A part of an object that decodes on its own, and whose samples it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) raw: Range<u64>,
    /// Size when decoded.
    pub(super) bytes: u64,
    pub(super) decoding: Decoding,
    /// The number of its first sample among those of the object.
    pub(super) first: u64,
}

/// Where samples are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    Fixed(Fixed),
    /// Where each begins in the object.
    Ranges {
        offset: Vec<u64>,
        len: Vec<u32>,
    },
    /// Where each begins in its unit.
    Packed {
        units: Vec<Unit>,
        offset: Vec<u32>,
        len: Vec<u32>,
    },
}

/// The samples of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) shape: Shape,
    /// CRC-32C of each; empty where they are not known.
    pub(super) crc32c: Vec<u32>,
}

/// Where a sample is in its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) unit: Range<u64>,
    pub(super) unit_bytes: u64,
    pub(super) decoding: Decoding,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Table {
    pub(super) fn fixed(fixed: Fixed) -> Self {
        Self { shape: Shape::Fixed(fixed), crc32c: Vec::new() }
    }

    pub(super) fn ranges() -> Self {
        Self { shape: Shape::Ranges { offset: Vec::new(), len: Vec::new() }, crc32c: Vec::new() }
    }

    pub(super) fn packed() -> Self {
        Self {
            shape: Shape::Packed { units: Vec::new(), offset: Vec::new(), len: Vec::new() },
            crc32c: Vec::new(),
        }
    }

    /// The arithmetic of samples of one size, if they are.
    pub(super) fn as_fixed(&self) -> Option<Fixed> {
        match self.shape {
            Shape::Fixed(fixed) => Some(fixed),
            _ => None,
        }
    }

    pub(super) fn samples(&self) -> u64 {
        match &self.shape {
            Shape::Fixed(fixed) => fixed.samples,
            Shape::Ranges { len, .. } | Shape::Packed { len, .. } => len.len() as u64,
        }
    }

    /// Adds a sample to a table of ranges.
    pub(super) fn push_range(&mut self, start: u64, bytes: u32) {
        if let Shape::Ranges { offset, len } = &mut self.shape {
            offset.push(start);
            len.push(bytes);
        }
    }

    /// Begins a unit of a packed table, unless it is the one that the last sample is in.
    pub(super) fn begin_unit(&mut self, raw: Range<u64>, bytes: u64, decoding: Decoding) {
        if let Shape::Packed { units, len, .. } = &mut self.shape
            && units.last().is_none_or(|unit| unit.raw != raw)
        {
            units.push(Unit { raw, bytes, decoding, first: len.len() as u64 });
        }
    }

    /// Adds a sample to the last unit of a packed table.
    pub(super) fn push_packed(&mut self, start: u32, bytes: u32) {
        if let Shape::Packed { offset, len, .. } = &mut self.shape {
            offset.push(start);
            len.push(bytes);
        }
    }

    /// Tells how many samples there are of a size; of one size, more than once.
    pub(super) fn sizes(&self, tell: &mut dyn FnMut(u64, u64)) {
        match &self.shape {
            Shape::Fixed(fixed) => tell(fixed.len, fixed.samples),
            Shape::Ranges { len, .. } | Shape::Packed { len, .. } => {
                len.iter().for_each(|bytes| tell(u64::from(*bytes), 1));
            }
        }
    }

    /// Where sample `index` is.
    ///
    /// # Panics
    /// If there is no such sample.
    pub(super) fn place(&self, index: u64) -> Place {
        match &self.shape {
            Shape::Fixed(fixed) => {
                assert!(index < fixed.samples, "sample {index} of {}", fixed.samples);
                raw_place(fixed.start + index * fixed.stride, fixed.len)
            }
            Shape::Ranges { offset, len } => {
                raw_place(offset[index as usize], u64::from(len[index as usize]))
            }
            Shape::Packed { units, offset, len } => {
                let unit = &units[units.partition_point(|unit| unit.first <= index) - 1];
                Place {
                    unit: unit.raw.clone(),
                    unit_bytes: unit.bytes,
                    decoding: unit.decoding,
                    offset: u64::from(offset[index as usize]),
                    len: u64::from(len[index as usize]),
                }
            }
        }
    }

    /// The samples that need any byte of a range of the object.
    pub(super) fn samples_in(&self, raw: Range<u64>) -> Range<u64> {
        if raw.is_empty() {
            return 0..0;
        }
        let range = match &self.shape {
            Shape::Fixed(fixed) => {
                // The first whose end is after the start of the range.
                let end = fixed.start + fixed.len;
                let first = if raw.start < end { 0 } else { (raw.start - end) / fixed.stride + 1 };
                let last = raw.end.saturating_sub(fixed.start).div_ceil(fixed.stride);
                first..last.min(fixed.samples)
            }
            Shape::Ranges { offset, len } => {
                let end = |at: usize| offset[at] + u64::from(len[at]);
                first_where(len.len(), |at| end(at) > raw.start)..first_where(len.len(), |at| {
                    offset[at] >= raw.end
                })
            }
            Shape::Packed { units, len, .. } => {
                let first_of = |at: usize| units.get(at).map_or(len.len() as u64, |unit| unit.first);
                let first = units.partition_point(|unit| unit.raw.end <= raw.start);
                let last = units.partition_point(|unit| unit.raw.start < raw.end);
                first_of(first)..first_of(last)
            }
        };
        if range.start < range.end { range } else { 0..0 }
    }
}

fn raw_place(start: u64, len: u64) -> Place {
    Place { unit: start..start + len, unit_bytes: len, decoding: Decoding::Raw, offset: 0, len }
}

/// The first of `count` numbers for which `holds` is true; it stays true from there on.
fn first_where(count: usize, holds: impl Fn(usize) -> bool) -> u64 {
    let mut range = 0..count;
    while !range.is_empty() {
        let middle = range.start + (range.end - range.start) / 2;
        if holds(middle) {
            range.end = middle;
        } else {
            range.start = middle + 1;
        }
    }
    range.start as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_belongs_to_few_samples_of_one_size() {
        let fixed = |stride, len, samples| Fixed { start: 0, stride, len, samples }.is_within(1 << 20);
        // Tokens: a sample has one more than its stride, of one to four bytes.
        assert!(fixed(64, 66, 100) && fixed(2, 4, 9));
        assert!(!fixed(1, 1 << 19, 1000), "each byte would belong to any number");
        assert!(!fixed(0, 1, 1) && !fixed(64, 66, 1 << 20) && !fixed(u64::MAX, 1, 3));
    }
}
