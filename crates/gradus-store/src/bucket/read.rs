//! Reads that do not block: a range of an object into memory that the caller gives, and a call when it is there.

use super::{Bucket, Place, runtime};
use crate::blocks::ObjectInfo;
use gradus_error::{Error, Result};
use std::ops::Range;

/// Memory that a read fills and nobody else touches meanwhile.
pub trait Destination: Send {
    /// How many bytes it has room for.
    fn room(&self) -> usize;

    /// Takes bytes that belong at `offset`; there is room for them. Those of a read come in order, without gaps.
    fn put(&mut self, offset: usize, bytes: &[u8]);
}

impl Destination for Vec<u8> {
    fn room(&self) -> usize {
        self.len()
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// Memory that is lent for the time of a read.
pub(super) struct Lent<'a>(pub &'a mut [u8]);

impl Destination for Lent<'_> {
    fn room(&self) -> usize {
        self.0.len()
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// What [`Bucket::begin_read`] is to do.
pub struct Read<'a, D, F> {
    /// Of which object.
    pub object: &'a ObjectInfo,
    /// Which bytes of it.
    pub range: Range<u64>,
    /// Where they go: memory of exactly as many bytes as the range.
    pub into: D,
    /// Is called once, on a thread of the bucket's, with the memory and how it went. After a failure the memory holds
    /// nothing of worth. It must not block, and must not call the blocking functions of a bucket.
    pub done: F,
}

impl Bucket {
    /// Begins a read and returns. As many go on at a time as the store allows; the others wait in order.
    pub fn begin_read<D, F>(&self, read: Read<'_, D, F>)
    where
        D: Destination + 'static,
        F: FnOnce(D, Result<()>) + Send + 'static,
    {
        let Read { object, range, mut into, done } = read;
        let (runtime, inner, object) =
            match self.check(object, &range, into.room()).and_then(|()| runtime::get()) {
                Ok(runtime) => (runtime, self.inner.clone(), object.clone()),
                Err(error) => return done(into, Err(error)),
            };
        match &self.inner.place {
            Place::Files(_) => drop(runtime.spawn_blocking(move || {
                let result = inner.fill_from_file(&object, range.start, &mut into);
                done(into, result);
            })),
            Place::Remote(_) => drop(runtime.spawn(async move {
                let result = match &inner.place {
                    Place::Remote(remote) => remote.fill(&object, range, &mut into).await,
                    Place::Files(_) => Err(Error::internal("a bucket has become a folder")),
                };
                done(into, result);
            })),
        }
    }

    fn check(&self, object: &ObjectInfo, wanted: &Range<u64>, space: usize) -> Result<()> {
        if range(object, wanted.start, space)? == *wanted {
            return Ok(());
        }
        Err(Error::internal(format!("{wanted:?} of {} was to be read into {space} bytes", object.address)))
    }
}

/// The range of `bytes` from `offset` on.
///
/// # Errors
/// `Invalid` when the object has no such range.
pub(super) fn range(object: &ObjectInfo, offset: u64, bytes: usize) -> Result<Range<u64>> {
    match offset.checked_add(bytes as u64) {
        Some(end) if end <= object.bytes => Ok(offset..end),
        _ => Err(Error::invalid(format!(
            "{} has {} bytes: there are no {bytes} from {offset} on",
            object.address, object.bytes
        ))),
    }
}
