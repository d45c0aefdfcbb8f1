//! The bytes of an index that is an object, which is read as Parquet is: first the end, then all from the start.
//!
//! An index has a row group for each object and eight columns to each: asked for one by one, they would take a bucket's
//! latency each. So the last part comes with one request, which is the whole of most; what lies before it comes as a stream,
//! with several requests under way.

use crate::blocks::ObjectInfo;
use crate::index::objects::Objects;
use gradus_error::{IoContext, Result};
use std::cell::RefCell;
use std::io::{self, Read};

/// Bytes of the end that come first.
pub(crate) const TAIL_BYTES: usize = 1 << 20;

/// Bytes that are passed over rather than asked behind: a part of a stream.
const MOST_PASSED: u64 = 8 << 20;

/// An object, read from its ends.
pub(super) struct Ends<'a> {
    objects: &'a dyn Objects,
    object: &'a ObjectInfo,
    tail: Vec<u8>,
    stream: RefCell<Option<Stream>>,
}

/// What is read in order, and how far.
struct Stream {
    reader: Box<dyn Read + Send>,
    offset: u64,
}

impl<'a> Ends<'a> {
    /// With the object's last bytes, which are asked for unless somebody has them.
    pub(super) fn new(
        objects: &'a dyn Objects,
        object: &'a ObjectInfo,
        tail: Option<Vec<u8>>,
    ) -> Result<Self> {
        let tail = match tail {
            Some(tail) => tail,
            None => {
                let mut tail = vec![0; object.bytes.min(TAIL_BYTES as u64) as usize];
                objects.read_at(object, object.bytes - tail.len() as u64, &mut tail)?;
                tail
            }
        };
        Ok(Self { objects, object, tail, stream: RefCell::default() })
    }

    /// Bytes that belong to the end.
    pub(super) fn read_end(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.in_tail(offset, len).map_or_else(|| self.ask(offset, len), Ok)
    }

    /// Bytes that are read in their order, most of them; those that lie before others that were read, or far behind them, are
    /// asked for.
    pub(super) fn read_next(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        if let Some(bytes) = self.in_tail(offset, len) {
            return Ok(bytes);
        }
        let mut stream = self.stream.borrow_mut();
        let stream = match &mut *stream {
            Some(stream) => stream,
            none => none.insert(Stream { reader: self.objects.open(self.object)?, offset: 0 }),
        };
        if !(stream.offset..=stream.offset + MOST_PASSED).contains(&offset) {
            return self.ask(offset, len);
        }
        stream.read(offset, len).context(|| format!("cannot read {} at byte {offset}", self.object.address))
    }

    fn in_tail(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let start = usize::try_from(offset.checked_sub(self.object.bytes - self.tail.len() as u64)?).ok()?;
        self.tail.get(start..start.checked_add(len)?).map(<[u8]>::to_vec)
    }

    fn ask(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.objects.read_at(self.object, offset, &mut bytes)?;
        Ok(bytes)
    }
}

impl Stream {
    fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let passed = io::copy(&mut (&mut self.reader).take(offset - self.offset), &mut io::sink())?;
        self.offset += passed;
        let mut bytes = vec![0; len];
        self.reader.read_exact(&mut bytes)?;
        self.offset += len as u64;
        Ok(bytes)
    }
}
