//! An object read from its beginning to its end, ahead of who reads it.
//!
//! The object is asked for in parts, several at a time; memory is bounded by their number. A part that failed ends the
//! stream with its error, and every later read returns an error too: a stream that ends with `Ok(0)` was whole.

use super::Bucket;
use super::read::Read as Ranged;
use crate::blocks::ObjectInfo;
use gradus_error::{Error, Kind, Result};
use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, sync_channel};

/// Parts that are asked for or held at a time.
const PARTS: usize = 4;

/// A stream of an object's bytes.
pub struct ObjectReader {
    bucket: Bucket,
    object: ObjectInfo,
    part_bytes: u64,
    /// The first byte that was not asked for.
    asked: u64,
    coming: VecDeque<Receiver<Result<Vec<u8>>>>,
    part: Vec<u8>,
    taken: usize,
    failed: bool,
}

impl ObjectReader {
    pub(super) fn new(bucket: Bucket, object: ObjectInfo, part_bytes: u64) -> Result<Self> {
        let coming = VecDeque::with_capacity(PARTS);
        Ok(Self { bucket, object, part_bytes, asked: 0, coming, part: Vec::new(), taken: 0, failed: false })
    }

    fn ask(&mut self) {
        let end = (self.asked + self.part_bytes).min(self.object.bytes);
        // The part that was read is memory for the next.
        let mut into = std::mem::take(&mut self.part);
        into.resize((end - self.asked) as usize, 0);
        let (sender, receiver) = sync_channel(1);
        self.bucket.begin_read(Ranged {
            object: &self.object,
            range: self.asked..end,
            into,
            // Who no longer reads has dropped the receiver.
            done: move |part, result: Result<()>| drop(sender.send(result.map(|()| part))),
        });
        self.asked = end;
        self.coming.push_back(receiver);
    }

    /// Takes the next part; `false` at the end.
    fn next_part(&mut self) -> Result<bool> {
        while self.coming.len() < PARTS && self.asked < self.object.bytes {
            self.ask();
        }
        let Some(part) = self.coming.pop_front() else { return Ok(false) };
        let lost = || Error::internal(format!("a read of {} was lost", self.object.address));
        self.part = part.recv().map_err(|_| lost())??;
        self.taken = 0;
        Ok(true)
    }
}

impl io::Read for ObjectReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other(format!("{} failed before", self.object.address)));
        }
        while self.taken == self.part.len() && !into.is_empty() {
            match self.next_part() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    self.failed = true;
                    return Err(as_io(error));
                }
            }
        }
        let count = into.len().min(self.part.len() - self.taken);
        into[..count].copy_from_slice(&self.part[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

/// The failure as the system would report it, so that its kind is the same again where it is read from there.
pub(crate) fn as_io(error: Error) -> io::Error {
    let kind = match error.kind() {
        Kind::Invalid => io::ErrorKind::InvalidInput,
        Kind::Denied => io::ErrorKind::PermissionDenied,
        Kind::Exhausted => io::ErrorKind::StorageFull,
        Kind::Corrupt => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
