//! CRC-32C (Castagnoli; RFC 9260, appendix A): of blocks on disk and on the way, and of samples.

use crc_fast::{CrcAlgorithm, Digest};

/// That of some bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    // One of 32 bits, in the low half.
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// That of bytes which come bit by bit.
pub(crate) struct Crc32c(Digest);

impl Crc32c {
    /// Of none so far.
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// More bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all that came since it was made or begun anew.
    pub fn value(&self) -> u32 {
        self.0.finalize() as u32
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_values_come_out_whole_and_bit_by_bit() {
        // RFC 3720, appendix B.4, and the usual check string.
        for (bytes, published) in [(&b"123456789"[..], 0xE306_9283), (&[0; 32], 0x8A91_36AA)] {
            assert_eq!(crc32c(bytes), published);
            let mut crc = Crc32c::new();
            crc.update(b"something else");
            crc.reset();
            bytes.chunks(5).for_each(|part| crc.update(part));
            assert_eq!(crc.value(), published);
        }
    }
}
