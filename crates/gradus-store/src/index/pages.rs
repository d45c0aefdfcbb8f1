//! The pages of a Parquet column, looked over before they are decoded.
//!
//! A page's header says how large the page is when decompressed, and what decodes it believes that. Here the headers of
//! all pages of a column chunk are read first (Thrift's compact protocol, of which a few fields matter; see
//! `parquet.thrift`), and a chunk whose pages claim more than they may is refused before anything is sized by it.

use super::decode::ParquetCodec;
use flate2::read::MultiGzDecoder;
use gradus_error::{Error, Result};
use std::io::Read;

/// Deepest nesting of what is passed over.
const MOST_DEPTH: usize = 8;

/// What counts of a page's header.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Header {
    kind: i64,
    bytes: i64,
    packed_bytes: i64,
    /// Of pages of the second version: bytes of levels, which are not compressed, and whether the rest is.
    levels_bytes: i64,
    is_plain: bool,
}

/// Kind of a page of the second version.
const DATA_PAGE_V2: i64 = 3;

/// Refuses a column chunk whose pages are not within it, or would be more than `most_bytes` when decompressed.
///
/// # Errors
/// `Corrupt`.
pub(super) fn check_pages(chunk: &[u8], codec: ParquetCodec, most_bytes: u64) -> Result<()> {
    let mut left = chunk;
    let mut total = 0u64;
    while !left.is_empty() {
        let at = chunk.len() - left.len();
        let damaged = || Error::corrupt(format!("the page at byte {at} of the column is damaged"));
        let mut thrift = Thrift { bytes: left };
        let header = thrift.page_header().ok_or_else(damaged)?;
        let packed =
            usize::try_from(header.packed_bytes).ok().and_then(|bytes| thrift.bytes.split_at_checked(bytes));
        let (packed, rest) = packed.ok_or_else(damaged)?;
        let bytes = u64::try_from(header.bytes).map_err(|_| damaged())?;
        total = total.saturating_add(bytes);
        if total > most_bytes {
            return Err(Error::corrupt(format!(
                "the pages of the column would be more than {most_bytes} bytes"
            )));
        }
        let codec = if header.is_plain { ParquetCodec::Plain } else { codec };
        header.check_claim(codec, packed).ok_or_else(damaged)?;
        left = rest;
    }
    Ok(())
}

/// Most that a byte of Snappy or LZ4 becomes: copies of 64 bytes take 3, a length of 255 takes 1. Gzip's are counted, and
/// Zstandard's frames say what they hold.
const MOST_RATIO: u64 = 256;

impl Header {
    /// Whether a page may be as large as its header says: memory is taken for that.
    fn check_claim(&self, codec: ParquetCodec, packed: &[u8]) -> Option<()> {
        let levels = if self.kind == DATA_PAGE_V2 { usize::try_from(self.levels_bytes).ok()? } else { 0 };
        let (_, packed) = packed.split_at_checked(levels)?;
        let bytes = u64::try_from(self.bytes).ok()?.checked_sub(levels as u64)?;
        let fits = match codec {
            _ if bytes == 0 => true,
            ParquetCodec::Plain => bytes == packed.len() as u64,
            ParquetCodec::Snappy | ParquetCodec::Lz4 => bytes <= MOST_RATIO * packed.len() as u64,
            // Its decoder goes on for as long as there is more.
            ParquetCodec::Gzip => {
                let made =
                    std::io::copy(&mut MultiGzDecoder::new(packed).take(bytes + 1), &mut std::io::sink());
                made.is_ok_and(|made| made == bytes)
            }
            ParquetCodec::Zstd => match zstd::zstd_safe::get_frame_content_size(packed) {
                Ok(Some(said)) => said == bytes,
                Ok(None) => true,
                Err(_) => false,
            },
        };
        fits.then_some(())
    }
}

/// Thrift's compact protocol.
struct Thrift<'a> {
    bytes: &'a [u8],
}

// Types of fields.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

impl<'a> Thrift<'a> {
    fn page_header(&mut self) -> Option<Header> {
        let mut header = Header { kind: -1, bytes: -1, packed_bytes: -1, ..Header::default() };
        let mut field = 0;
        while let Some(kind) = self.field(&mut field)? {
            match (field, kind) {
                (1, 5) => header.kind = self.zigzag()?,
                (2, 5) => header.bytes = self.zigzag()?,
                (3, 5) => header.packed_bytes = self.zigzag()?,
                (8, STRUCT) => self.second_version(&mut header)?,
                _ => self.pass(kind, 0)?,
            }
        }
        Some(header)
    }

    fn second_version(&mut self, header: &mut Header) -> Option<()> {
        let mut field = 0;
        while let Some(kind) = self.field(&mut field)? {
            match (field, kind) {
                (5 | 6, 5) => header.levels_bytes = header.levels_bytes.checked_add(self.zigzag()?)?,
                (7, FALSE) => header.is_plain = true,
                _ => self.pass(kind, 0)?,
            }
        }
        Some(())
    }

    /// The type of the next field, and its number in `last`; `Some(None)` at the end of a struct.
    fn field(&mut self, last: &mut i64) -> Option<Option<u8>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Some(None);
        }
        *last = match byte >> 4 {
            0 => self.zigzag()?,
            delta => last.checked_add(i64::from(delta))?,
        };
        Some(Some(byte & 0x0f))
    }

    fn pass(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > MOST_DEPTH {
            return None;
        }
        match kind {
            TRUE | FALSE => {}
            3 => drop(self.byte()?),
            4..=6 => drop(self.varint()?),
            7 => self.bytes = self.bytes.get(8..)?,
            BINARY => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.bytes = self.bytes.get(length..)?;
            }
            LIST | SET => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                self.pass_all(count, &[head & 0x0f], depth)?;
            }
            MAP => {
                let count = self.varint()?;
                if count > 0 {
                    let kinds = self.byte()?;
                    self.pass_all(count, &[kinds >> 4, kinds & 0x0f], depth)?;
                }
            }
            STRUCT => {
                let mut field = 0;
                while let Some(kind) = self.field(&mut field)? {
                    self.pass(kind, depth + 1)?;
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Elements, each of which takes at least a byte: so their number needs no other bound.
    fn pass_all(&mut self, count: u64, kinds: &[u8], depth: usize) -> Option<()> {
        for _ in 0..count {
            for kind in kinds {
                match *kind {
                    TRUE | FALSE => drop(self.byte()?),
                    kind => self.pass(kind, depth + 1)?,
                }
            }
        }
        Some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}
