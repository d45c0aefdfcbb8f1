//! Where a dataset's objects are: what an index is made from.
//!
//! The trait is what indexing needs of a store and no more: a listing, a stream of one object, and a range of one. A
//! [`Bucket`] is such a store.

use crate::blocks::ObjectInfo;
use crate::bucket::{Address, Bucket};
use gradus_error::{Error, Kind, Result};
use std::io::Read;

/// A store of objects. Calls may block; any number of threads may call at once.
pub trait Objects: Send + Sync {
    /// The objects whose addresses begin with `prefix`, at a `/` or as a whole, sorted by address. Hidden ones are passed
    /// over: those below `prefix` in whose names a part begins with a dot.
    ///
    /// # Errors
    /// The store's; no object at all is an empty list.
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>>;

    /// The bytes of an object from its start.
    ///
    /// # Errors
    /// The store's, also where the object is no longer what `object` says.
    fn open(&self, object: &ObjectInfo) -> Result<Box<dyn Read + Send>>;

    /// Fills `into` with the bytes of an object from `offset` on.
    ///
    /// # Errors
    /// As of [`Objects::open`]; `Corrupt` where the object ends before.
    fn read_at(&self, object: &ObjectInfo, offset: u64, into: &mut [u8]) -> Result<()>;
}

impl Objects for Bucket {
    /// What is at `prefix`, the bucket's own address or one below it.
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let own = self.address().to_string();
        let below = prefix
            .strip_prefix(&own)
            .filter(|rest| rest.is_empty() || rest.starts_with('/') || own.ends_with('/'));
        let Some(key) = below.map(|rest| rest.trim_matches('/')) else {
            return Err(Error::invalid(format!("{prefix} is not below {own}")));
        };
        let folder = if key.is_empty() { String::new() } else { format!("{key}/") };
        let below = || {
            let mut listed = self.list(&folder)?;
            listed.retain(|object| !is_hidden(object, prefix));
            Ok(listed)
        };
        match self.address() {
            Address::S3 { key: own, .. } if own.is_empty() && key.is_empty() => below(),
            // Most datasets are several objects, and each question costs a bucket's latency. Who may not list may be allowed
            // to read the one object that is named.
            Address::S3 { .. } => match below() {
                Ok(listed) if listed.is_empty() => Ok(self.find(key)?.into_iter().collect()),
                Err(error) if *error.kind() == Kind::Denied => match self.find(key) {
                    Ok(Some(object)) => Ok(vec![object]),
                    _ => Err(error),
                },
                listed => listed,
            },
            // A file has nothing below it that could be listed.
            Address::File(_) => self.find(key)?.map_or_else(below, |object| Ok(vec![object])),
        }
    }

    fn open(&self, object: &ObjectInfo) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.open_stream(object)?))
    }

    fn read_at(&self, object: &ObjectInfo, offset: u64, into: &mut [u8]) -> Result<()> {
        self.read_at(object, offset, into)
    }
}

/// Whether an object is in a hidden folder below `prefix`, or hidden itself: what programs keep beside the data.
pub(super) fn is_hidden(object: &ObjectInfo, prefix: &str) -> bool {
    let below = object.address.strip_prefix(prefix).unwrap_or_default();
    below.split('/').any(|part| part.starts_with('.'))
}

/// All bytes of a small object, at most `limit`.
pub(crate) fn read_whole(objects: &dyn Objects, object: &ObjectInfo, limit: u64) -> Result<Vec<u8>> {
    if object.bytes > limit {
        let ObjectInfo { address, bytes, .. } = object;
        return Err(Error::invalid(format!("{address} has {bytes} bytes; at most {limit} are read")));
    }
    let mut bytes = vec![0; object.bytes as usize];
    objects.read_at(object, 0, &mut bytes)?;
    Ok(bytes)
}
