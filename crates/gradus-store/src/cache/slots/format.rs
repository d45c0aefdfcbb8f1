//! What stands in the file of records: a header, then one record for each slot; little-endian, each with its CRC-32C.

use crate::blocks::{BLOCK_BYTES, BlockKey};
use crate::crc32c::crc32c;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of a record, and of the header: a divisor of a disk's sector, so that none lies across two.
pub(super) const RECORD_BYTES: usize = 64;

/// The last byte is the version of this format.
const MAGIC: [u8; 16] = *b"gradus blocks\0\0\x01";

/// Where the checksum of a record or of the header stands.
const CHECKSUM: usize = RECORD_BYTES - 4;

/// What the file as a whole is.
pub(super) struct Header {
    pub block_bytes: u64,
}

impl Header {
    pub(super) fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..16].copy_from_slice(&MAGIC);
        bytes[16..24].copy_from_slice(&self.block_bytes.to_le_bytes());
        seal(bytes)
    }

    /// The header of a file, if it is one of this version, and of blocks that there can be.
    pub(super) fn read(file: &File) -> Option<Self> {
        let mut bytes = [0; RECORD_BYTES];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let (words, _) = bytes.as_chunks::<8>();
        let header = Self { block_bytes: u64::from_le_bytes(words[2]) };
        (header.to_bytes() == bytes && BLOCK_BYTES.contains(&header.block_bytes)).then_some(header)
    }

    /// Whether a file begins with just this header.
    pub(super) fn begins(&self, file: &File) -> bool {
        let mut bytes = [0; RECORD_BYTES];
        file.read_exact_at(&mut bytes, 0).is_ok() && bytes == self.to_bytes()
    }
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub key: BlockKey,
    pub len: u32,
    /// Of the data.
    pub checksum: u32,
}

impl Record {
    /// Where the record of a slot stands.
    pub(super) fn offset(slot: u64) -> u64 {
        (slot + 1) * RECORD_BYTES as u64
    }

    /// Records in a file of so many bytes.
    pub(super) fn count_in(bytes: u64) -> u64 {
        (bytes / RECORD_BYTES as u64).saturating_sub(1)
    }

    pub(super) fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..16].copy_from_slice(&self.key.object);
        bytes[16..24].copy_from_slice(&self.key.number.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.checksum.to_le_bytes());
        seal(bytes)
    }

    /// Nothing for an empty, torn or altered record. One of zeros is none: the checksum of zeros is not zero.
    pub(super) fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        if seal(*bytes) != *bytes {
            return None;
        }
        let (words, _) = bytes.as_chunks::<4>();
        let mut object = [0; 16];
        object.copy_from_slice(&bytes[..16]);
        let number = u64::from(u32::from_le_bytes(words[5])) << 32 | u64::from(u32::from_le_bytes(words[4]));
        let (len, checksum) = (u32::from_le_bytes(words[6]), u32::from_le_bytes(words[7]));
        Some(Self { key: BlockKey { object, number }, len, checksum })
    }

    /// Whether slot `index` can hold such a block, in a file of `data_bytes`.
    pub(super) fn fits(&self, index: u64, block_bytes: u64, data_bytes: u64) -> bool {
        let len = u64::from(self.len);
        0 < len && len <= block_bytes && index * block_bytes + len <= data_bytes
    }
}

fn seal(mut bytes: [u8; RECORD_BYTES]) -> [u8; RECORD_BYTES] {
    let checksum = crc32c(&bytes[..CHECKSUM]);
    bytes[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_come_back_and_altered_ones_are_none(
            object: [u8; 16], number: u64, len: u32, checksum: u32, place in 0..RECORD_BYTES, bit in 0u32..8,
        ) {
            let record = Record { key: BlockKey { object, number }, len, checksum };
            let mut bytes = record.to_bytes();
            prop_assert_eq!(Record::from_bytes(&bytes), Some(record));
            bytes[place] ^= 1u8 << bit;
            prop_assert_eq!(Record::from_bytes(&bytes), None);
        }

        #[test]
        fn no_bytes_panic(bytes: [[u8; 32]; 2]) {
            let (flat, _) = bytes.as_flattened().as_chunks::<RECORD_BYTES>();
            prop_assert_eq!(Record::from_bytes(&flat[0]), None);
        }
    }

    #[test]
    fn a_wiped_record_is_none() {
        assert_eq!(Record::from_bytes(&[0; RECORD_BYTES]), None);
        assert_eq!(Record::from_bytes(&[0xff; RECORD_BYTES]), None);
    }
}
