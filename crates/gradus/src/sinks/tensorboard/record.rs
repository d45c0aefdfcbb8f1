//! TensorBoard's record framing, which is TFRecord's: for each record its length (u64), a masked checksum of the length,
//! the bytes, a masked checksum of the bytes; all little-endian (tensorflow/core/lib/io/record_writer.h).
//!
//! The checksum is CRC-32C (Castagnoli; RFC 3720, appendix B.4), not the CRC-32 of zip. Masking, a rotation and an added
//! constant (tensorflow/core/lib/hash/crc32c.h), keeps checksums of data that hold checksums from degenerating.

use std::io::{Result, Write};

/// The polynomial 0x1EDC6F41 with its bits reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// Added to a rotated checksum.
const MASK_DELTA: u32 = 0xA282_EAD8;

/// The remainder of each byte.
const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = if remainder & 1 == 1 { remainder >> 1 ^ POLYNOMIAL } else { remainder >> 1 };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
}

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| TABLE[((crc ^ u32::from(*byte)) & 0xFF) as usize] ^ crc >> 8)
}

/// The checksum of `bytes` as records carry it.
pub fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(MASK_DELTA)
}

/// Writes one record, in a single call so that a kill leaves at most one cut record behind.
///
/// # Errors
/// What `out` returns.
pub fn write_record(out: &mut dyn Write, data: &[u8]) -> Result<()> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_crc32c(data).to_le_bytes());
    out.write_all(&record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_rfc() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46DD_794E);
        // The check value that catalogues of CRCs give.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn a_record_is_framed() {
        let mut out = Vec::new();
        write_record(&mut out, b"abc").unwrap();
        assert_eq!(out.len(), 8 + 4 + 3 + 4);
        assert_eq!(out[..8], 3u64.to_le_bytes());
        assert_eq!(out[8..12], masked_crc32c(&out[..8]).to_le_bytes());
        assert_eq!(out[15..], masked_crc32c(b"abc").to_le_bytes());
    }
}
