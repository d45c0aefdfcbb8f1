//! Tar archives, as far as they matter here: which regular files stand where.
//!
//! Headers of POSIX ustar and pax (IEEE Std 1003.1, pax, "ustar Interchange Format"), of GNU (long names, sizes in base
//! 256) and of V7. Names and sizes of the next entry may come before it in entries of their own. Written for archives
//! that come from anywhere: nothing is sized by what a header says, but for names, which are bounded.

use crate::crc32c::Crc32c;
use gradus_error::{Error, Result};
use std::io::Read;

/// Everything in an archive begins at a multiple.
pub(super) const BLOCK_BYTES: u64 = 512;

/// Longest list of attributes, or name, that comes before an entry.
const EXTENSION_BYTES: u64 = 1 << 20;

/// A regular file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Where what belongs to it begins: its header, or what comes before that on its behalf.
    pub(super) start: u64,
    /// Where its bytes begin.
    pub(super) data: u64,
    pub(super) bytes: u64,
}

/// What a header says of an entry.
struct Header {
    name: Vec<u8>,
    bytes: u64,
    kind: u8,
}

/// What entries say of the next one.
#[derive(Default)]
struct Ahead {
    start: Option<u64>,
    name: Option<Vec<u8>>,
    bytes: Option<u64>,
}

/// Most entries that speak of the next one; no program writes more than three.
const MOST_AHEAD: usize = 16;

/// Reads an archive from its start, or from where an entry begins.
pub(super) struct Tar<R> {
    reader: R,
    position: u64,
    /// Where the next header is.
    next: u64,
    /// Whether the archive ends with its bytes, as a part of one does, and not with a mark.
    is_part: bool,
    /// The header of the entry found last, with what comes before it on its behalf.
    head: Vec<u8>,
    is_head: bool,
    /// Over all that was read since it was begun anew.
    crc: Option<Crc32c>,
}

impl<R: Read> Tar<R> {
    pub(super) fn new(reader: R, is_part: bool) -> Self {
        let crc = (!is_part).then(Crc32c::new);
        Self { reader, position: 0, next: 0, is_part, head: Vec::new(), is_head: false, crc }
    }

    /// Begins a checksum at the start of the entry found last.
    pub(super) fn begin_checksum(&mut self) {
        if let Some(crc) = &mut self.crc {
            crc.reset();
            crc.update(&self.head);
        }
    }

    /// The CRC-32C of all that was read since it was begun. A part of an archive has none.
    pub(super) fn checksum(&self) -> u32 {
        self.crc.as_ref().map_or(0, Crc32c::value)
    }

    /// Reads the bytes of the entry found last.
    pub(super) fn pass(&mut self, entry: &Entry) -> Result<()> {
        self.pass_to(entry.data + entry.bytes)
    }

    /// The next regular file.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut ahead = Ahead::default();
        let mut count = 0;
        loop {
            self.pass_to(self.next)?;
            let at = self.position;
            if ahead.start.is_none() {
                self.head.clear();
                count = 0;
            }
            count += 1;
            if count > MOST_AHEAD {
                return Err(corrupt(at, "too many attributes of one entry".to_owned()));
            }
            self.is_head = true;
            let Some(header) = self.header(at, ahead.start.is_some())? else { return Ok(None) };
            let extension = matches!(header.kind, b'L' | b'K' | b'x' | b'g' | b'X');
            let bytes = if extension { header.bytes } else { ahead.bytes.unwrap_or(header.bytes) };
            let data = self.position;
            let end = data.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(BLOCK_BYTES));
            self.next = end.ok_or_else(|| corrupt(at, format!("an entry of {bytes} bytes")))?;
            if extension {
                ahead.start.get_or_insert(at);
                self.extension(at, &header, &mut ahead)?;
                continue;
            }
            self.is_head = false;
            let name = ahead.name.take().unwrap_or(header.name);
            let start = ahead.start.unwrap_or(at);
            ahead = Ahead::default();
            match header.kind {
                // V7 marks folders by their names alone.
                0 if name.ends_with(b"/") => {}
                0 | b'0' | b'7' => {
                    let name = String::from_utf8(name);
                    let name =
                        name.map_err(|_| corrupt(at, "the name of an entry is not UTF-8".to_owned()))?;
                    return Ok(Some(Entry { name, start, data, bytes }));
                }
                b'S' => {
                    return Err(invalid(
                        at,
                        "sparse files cannot be read: write the archive without --sparse",
                    ));
                }
                _ => {}
            }
        }
    }

    fn extension(&mut self, at: u64, header: &Header, ahead: &mut Ahead) -> Result<()> {
        if header.bytes > EXTENSION_BYTES {
            return Err(corrupt(at, format!("{} bytes of attributes", header.bytes)));
        }
        let mut bytes = Vec::new();
        self.read_to(self.position + header.bytes, &mut |piece| bytes.extend_from_slice(piece))?;
        match header.kind {
            b'L' => ahead.name = Some(until_zero(&bytes).to_vec()),
            b'x' | b'X' => {
                attributes(&bytes, ahead).ok_or_else(|| corrupt(at, "damaged attributes".to_owned()))?
            }
            // Targets of links, and attributes of all entries, which name none.
            _ => {}
        }
        Ok(())
    }

    /// The header at the position of the reader; none at the end of the archive.
    fn header(&mut self, at: u64, owed: bool) -> Result<Option<Header>> {
        let mut block = [0; BLOCK_BYTES as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.read(&mut block[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 && self.is_part && !owed {
            return Ok(None);
        }
        if filled < block.len() {
            return Err(corrupt(at, "the archive is cut off: copy or write it again".to_owned()));
        }
        if block.iter().all(|byte| *byte == 0) && !owed {
            return Ok(None);
        }
        parse(&block).map(Some).ok_or_else(|| corrupt(at, "this is no header of a tar entry".to_owned()))
    }

    fn pass_to(&mut self, end: u64) -> Result<()> {
        self.read_to(end, &mut |_| ())
    }

    fn read_to(&mut self, end: u64, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        while self.position < end {
            let wanted = (end - self.position).min(buffer.len() as u64) as usize;
            match self.read(&mut buffer[..wanted])? {
                // What fills the last block is nobody's loss within a part.
                0 if self.is_part && end - self.position < BLOCK_BYTES && end == self.next => break,
                0 => {
                    return Err(corrupt(
                        self.position,
                        "the archive is cut off: copy or write it again".to_owned(),
                    ));
                }
                read => take(&buffer[..read]),
            }
        }
        Ok(())
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let read = loop {
            match self.reader.read(into) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let read = read.map_err(|error| Error::io(format!("at byte {}", self.position), error))?;
        self.position += read as u64;
        if let Some(crc) = &mut self.crc {
            crc.update(&into[..read]);
            // A part's head is never asked for.
            if self.is_head {
                self.head.extend_from_slice(&into[..read]);
            }
        }
        Ok(read)
    }
}

fn corrupt(at: u64, why: String) -> Error {
    Error::corrupt(format!("at byte {at}: {why}"))
}

fn invalid(at: u64, why: &str) -> Error {
    Error::invalid(format!("at byte {at}: {why}"))
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A header whose checksum is right.
fn parse(block: &[u8; BLOCK_BYTES as usize]) -> Option<Header> {
    let (before, after) = (&block[..148], &block[156..]);
    let sum = |one: fn(u8) -> i64| before.iter().chain(after).map(|byte| one(*byte)).sum::<i64>() + 8 * 32;
    let said = number(&block[148..156])? as i64;
    // Some old programs summed signed bytes.
    if said != sum(i64::from) && said != sum(|byte| i64::from(byte as i8)) {
        return None;
    }
    let mut name = until_zero(&block[..100]).to_vec();
    let prefix = until_zero(&block[345..500]);
    // GNU keeps other things where POSIX has the first part of a long name.
    if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
        name = [prefix, b"/", &name].concat();
    }
    Some(Header { name, bytes: number(&block[124..136])?, kind: block[156] })
}

/// A number in octal digits, or, with the first bit set, in base 256.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7f);
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(u64::from(*byte))?;
        }
        return Some(value);
    }
    let digits = until_zero(field).trim_ascii();
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = matches!(digit, b'0'..=b'7').then(|| u64::from(digit - b'0'))?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

/// Takes name and size out of `LENGTH KEY=VALUE\n` records.
fn attributes(mut bytes: &[u8], ahead: &mut Ahead) -> Option<()> {
    while !bytes.is_empty() && bytes[0] != 0 {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => ahead.name = Some(value.to_vec()),
            b"size" => ahead.bytes = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
            // Where pax keeps the parts of a sparse file that another name has.
            b"GNU.sparse.major" | b"GNU.sparse.map" => return None,
            _ => {}
        }
        bytes = &bytes[length..];
    }
    Some(())
}
