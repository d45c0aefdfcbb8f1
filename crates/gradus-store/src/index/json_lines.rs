//! JSON lines: a sample is a line without its end; blank lines are none.
//!
//! A plain file is read once to find its lines. A packed one consists of parts that decode on their own: gzip members
//! (bgzip makes many), Zstandard frames. They are units; a line that two parts share has both as its unit.

use super::MOST_SAMPLE_BYTES;
use super::build::{Counted, Described, Work};
use super::decode::{Decoding, MOST_UNIT_BYTES};
use super::detect::Packing;
use super::table::Table;
use crate::crc32c::crc32c;
use flate2::bufread::GzDecoder;
use gradus_error::{Error, IoContext, Result};
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;

/// Longest line: it is held in memory as a whole.
const LINE_BYTES: u64 = 256 << 20;
const _: () = assert!(LINE_BYTES <= MOST_SAMPLE_BYTES);

/// Bytes decoded at once.
const BUFFER_BYTES: usize = 1 << 18;

/// Describes a file of lines.
pub(super) fn describe(packing: Packing, work: &Work<'_>) -> Result<Described> {
    let mut reader = Positioned { reader: BufReader::with_capacity(BUFFER_BYTES, work.open()?), taken: 0 };
    let mut lines = Lines::new(work, packing);
    match packing {
        Packing::Plain => plain(&mut reader, &mut lines)?,
        Packing::Gzip => gzip(&mut reader, &mut lines)?,
        Packing::Zstd => zstd(&mut reader, &mut lines)?,
    }
    lines.finish()
}

/// Knows how many bytes were taken out of the buffer, which is where a part ends.
struct Positioned<'a> {
    reader: BufReader<Counted<'a>>,
    taken: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(into)?;
        self.taken += read as u64;
        Ok(read)
    }
}

impl BufRead for Positioned<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.taken += amount as u64;
        self.reader.consume(amount);
    }
}

fn plain(reader: &mut Positioned<'_>, lines: &mut Lines<'_>) -> Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read =
            reader.read(&mut buffer).context(|| format!("cannot read {}", lines.work.object.address))?;
        if read == 0 {
            return Ok(());
        }
        lines.push(&buffer[..read])?;
    }
}

fn gzip(reader: &mut Positioned<'_>, lines: &mut Lines<'_>) -> Result<()> {
    loop {
        let end = reader.taken;
        skip_zeros(reader, lines.work)?;
        let start = reader.taken;
        if at_end(reader, lines.work)? {
            return Ok(());
        }
        if start > end {
            return Err(lines.work.corrupt(end, "zeros between two members of gzip"));
        }
        let mut decoder = GzDecoder::new(&mut *reader);
        let result = lines.read_part(&mut decoder);
        lines.part_is(result, start)?;
        lines.end_part(start..reader.taken)?;
    }
}

fn zstd(reader: &mut Positioned<'_>, lines: &mut Lines<'_>) -> Result<()> {
    while !at_end(reader, lines.work)? {
        let start = reader.taken;
        let made = zstd::stream::read::Decoder::with_buffer(&mut *reader);
        let mut decoder =
            made.map_err(|error| Error::internal("no Zstandard decoder").with_source(error))?.single_frame();
        let result = lines.read_part(&mut decoder);
        lines.part_is(result, start)?;
        lines.end_part(start..reader.taken)?;
    }
    Ok(())
}

/// Some programs fill a gzip file up with zeros.
fn skip_zeros(reader: &mut Positioned<'_>, work: &Work<'_>) -> Result<()> {
    loop {
        let buffer = reader.fill_buf().context(|| format!("cannot read {}", work.object.address))?;
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        let more = zeros == buffer.len() && zeros > 0;
        reader.consume(zeros);
        if !more {
            return Ok(());
        }
    }
}

fn at_end(reader: &mut Positioned<'_>, work: &Work<'_>) -> Result<bool> {
    Ok(reader.fill_buf().context(|| format!("cannot read {}", work.object.address))?.is_empty())
}

/// A part of the file that decodes on its own, whose bytes are not all accounted for.
struct Part {
    raw: Range<u64>,
    /// Where its bytes begin in the whole of what was decoded.
    start: u64,
    bytes: u64,
}

/// Cuts what is decoded into lines.
struct Lines<'a> {
    work: &'a Work<'a>,
    packing: Packing,
    table: Table,
    /// Where the line that is being read begins in the whole of what is decoded.
    line_start: u64,
    /// Its bytes so far.
    line: Vec<u8>,
    /// Bytes decoded so far.
    decoded: u64,
    /// Where the part that is being read begins.
    part_start: u64,
    /// Parts that hold the start of the line that is being read, or may.
    open: Vec<Part>,
    /// Lines that ended in the part that is being read: where they begin, their size and checksum.
    ended: Vec<(u64, u32, u32)>,
}

impl<'a> Lines<'a> {
    fn new(work: &'a Work<'a>, packing: Packing) -> Self {
        let table = if packing == Packing::Plain { Table::ranges() } else { Table::packed() };
        Self {
            work,
            packing,
            table,
            line_start: 0,
            line: Vec::new(),
            decoded: 0,
            part_start: 0,
            open: Vec::new(),
            ended: Vec::new(),
        }
    }

    fn read_part(&mut self, decoder: &mut dyn Read) -> Result<(), Error> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = decoder.read(&mut buffer).map_err(not_decoded)?;
            if read == 0 {
                return Ok(());
            }
            if self.decoded + read as u64 - self.part_start > MOST_UNIT_BYTES {
                return Err(Error::invalid(format!(
                    "it decodes to more than {MOST_UNIT_BYTES} bytes, which would all be decoded for each sample: pack the file \
                     in smaller parts (bgzip, or Zstandard in frames), or store it plain"
                )));
            }
            self.push(&buffer[..read])?;
        }
    }

    /// Names the part that begins at `start` in what went wrong with it.
    fn part_is(&self, result: Result<()>, start: u64) -> Result<()> {
        result.map_err(|error| error.within(format!("{} from byte {start}", self.work.object.address)))
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.extend(&bytes[..end])?;
            self.end_line()?;
            self.decoded += 1;
            self.line_start = self.decoded;
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes)
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<()> {
        if (self.line.len() + bytes.len()) as u64 > LINE_BYTES {
            let number = self.table.samples() + self.ended.len() as u64 + 1;
            return Err(self.work.invalid(format!("line {number} has more than {LINE_BYTES} bytes")));
        }
        self.line.extend_from_slice(bytes);
        self.decoded += bytes.len() as u64;
        Ok(())
    }

    /// Takes the line that is complete, unless it is blank.
    fn end_line(&mut self) -> Result<()> {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        let text = line.trim_ascii();
        if !text.is_empty() {
            if !matches!((text[0], text[text.len() - 1]), (b'{', b'}') | (b'[', b']')) {
                let number = self.table.samples() + self.ended.len() as u64 + 1;
                return Err(self.work.invalid(format!(
                    "the line of sample {number} (byte {} when decoded) is no JSON object or list: a line is a sample",
                    self.line_start
                )));
            }
            let (bytes, crc32c) = (line.len() as u32, crc32c(line));
            if self.packing == Packing::Plain {
                self.table.push_range(self.line_start, bytes);
                self.table.crc32c.push(crc32c);
            } else {
                self.ended.push((self.line_start, bytes, crc32c));
            }
        }
        self.line.clear();
        Ok(())
    }

    /// Gives the lines that ended in a part to the parts in which they are.
    fn end_part(&mut self, raw: Range<u64>) -> Result<()> {
        self.open.push(Part { raw, start: self.part_start, bytes: self.decoded - self.part_start });
        self.part_start = self.decoded;
        for (start, bytes, crc32c) in std::mem::take(&mut self.ended) {
            let end = start + u64::from(bytes);
            let first = self.open.partition_point(|part| part.start + part.bytes <= start);
            let last = self.open.partition_point(|part| part.start < end).wrapping_sub(1);
            let (Some(first), Some(last)) = (self.open.get(first), self.open.get(last)) else {
                return Err(Error::internal("a line is in no part of its file"));
            };
            let unit_bytes = last.start + last.bytes - first.start;
            if unit_bytes > MOST_UNIT_BYTES {
                return Err(self
                    .work
                    .invalid(format!("a line spans parts of {unit_bytes} bytes when decoded")));
            }
            let decoding = if self.packing == Packing::Gzip { Decoding::Gzip } else { Decoding::Zstd };
            let offset = (start - first.start) as u32;
            self.table.begin_unit(first.raw.start..last.raw.end, unit_bytes, decoding);
            self.table.push_packed(offset, bytes);
            self.table.crc32c.push(crc32c);
        }
        // What begins later is in none of the parts that end before the line that is being read begins.
        let line_start = self.line_start;
        self.open.retain(|part| part.start + part.bytes > line_start);
        Ok(())
    }

    fn finish(mut self) -> Result<Described> {
        if !self.line.is_empty() {
            self.end_line()?;
        }
        if self.packing != Packing::Plain && !self.ended.is_empty() {
            // The last line has no end of its own: its parts are all there.
            let raw_end = self.open.last().map_or(0, |part| part.raw.end);
            self.end_part(raw_end..raw_end)?;
        }
        Ok(self.table.into())
    }
}
/// What failed may be the store, whose word keeps its kind, or what was packed.
fn not_decoded(error: std::io::Error) -> Error {
    let of_the_store =
        error.raw_os_error().is_some() || error.get_ref().is_some_and(|inner| inner.is::<Error>());
    if of_the_store {
        return Error::io("it cannot be read", error);
    }
    Error::corrupt("it does not decode").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use std::io::ErrorKind;

    #[test]
    fn what_the_store_says_is_no_damage() {
        let store =
            std::io::Error::new(ErrorKind::TimedOut, Error::unavailable("the bucket does not answer"));
        assert_eq!(not_decoded(store).kind(), &Kind::Unavailable);
        let packed = std::io::Error::new(ErrorKind::InvalidInput, "corrupt deflate stream");
        assert_eq!(not_decoded(packed).kind(), &Kind::Corrupt);
    }
}
