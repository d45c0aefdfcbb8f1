//! A bucket of an S3-compatible store.
//!
//! Every operation goes through the gate, is sent again as its budget allows, and reports in our words. A read names the
//! ETag that it wants (`If-Match`) and checks the one it gets, so a body that is taken up again after a cut is the same
//! object's; what has arrived is kept, and only the rest is asked for again.

use super::attempts::Attempts;
use super::counters::Tally;
use super::credentials::{Credentials, is_sendable};
use super::failure::{Failure, Then};
use super::gate::Gate;
use super::read::Destination;
use super::retry::{Budget, Retry};
use super::throttle::Ended;
use super::trouble::Trouble;
use crate::blocks::ObjectInfo;
use futures_util::TryStreamExt;
use gradus_error::{Error, Result};
use gradus_host::clock::{Clock, RealClock};
use gradus_host::random::Stream;
use object_store::aws::AmazonS3;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Most keys of one listing: what a dataset could name, in about a gigabyte.
const MOST_KEYS: usize = 10_000_000;

/// Bytes that a failed read has to have brought at least for what is left to have a budget of its own; an eighth of what was
/// asked for does as well.
const LEAST_PROGRESS: usize = 64 << 10;

/// A bucket, and how to behave towards it.
pub(super) struct Remote {
    pub(super) store: AmazonS3,
    pub(super) bucket: String,
    pub(super) endpoint: String,
    pub(super) credentials: Arc<Credentials>,
    pub(super) gate: Gate,
    pub(super) budget: Budget,
    pub(super) tally: Arc<Tally>,
    pub(super) clock: RealClock,
    pub(super) draws: Mutex<Stream>,
    pub(super) trouble: Mutex<Trouble>,
}

impl Remote {
    pub(super) fn path(&self, key: &str) -> Result<Path> {
        super::address::check_key(key)?;
        if key.is_empty() {
            return Err(Error::invalid(format!("s3://{} names a bucket and no object in it", self.bucket)));
        }
        Path::parse(key).map_err(|error| {
            Error::invalid(format!("s3://{}/{key} cannot be asked for: rename the object", self.bucket))
                .with_source(error)
        })
    }

    pub(super) fn address(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    /// The key of an object of this bucket.
    fn key<'a>(&self, address: &'a str) -> Result<&'a str> {
        let key = address.strip_prefix("s3://").and_then(|rest| rest.strip_prefix(self.bucket.as_str()));
        key.and_then(|key| key.strip_prefix('/')).ok_or_else(|| {
            Error::invalid(format!("{address} is not in the bucket s3://{}, which was opened", self.bucket))
        })
    }

    pub(super) fn described(&self, meta: ObjectMeta) -> Result<ObjectInfo, Failure> {
        let address = self.address(meta.location.as_ref());
        let Some(etag) = meta.e_tag else {
            let text = format!("{} gives {address} no ETag, by which a change is noticed", self.endpoint);
            return Err(Failure::end(Error::invalid(text)));
        };
        Ok(ObjectInfo { address, bytes: meta.size, etag: bare(&etag).to_owned() })
    }

    /// What is at `key`; `None` where nothing is.
    pub(super) async fn find(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let (path, address) = (self.path(key)?, self.address(key));
        let mut attempts = self.attempts("find", &address);
        loop {
            let permit = attempts.begin().await?;
            let answer = self.store.head(&path).await.map_err(|error| attempts.failed(error));
            match answer.and_then(|meta| self.described(meta)) {
                Ok(info) => {
                    permit.end(Ended::Good);
                    return Ok(Some(info));
                }
                Err(failure) => match attempts.again(failure, permit).await {
                    Ok(()) => {}
                    // A HEAD is answered without a word: whether there is a bucket is asked by a listing.
                    Err(failure) if failure.then == Then::Missing => {
                        self.page(key, None, Some(1), &address).await?;
                        return Ok(None);
                    }
                    Err(failure) => return Err(failure.error),
                },
            }
        }
    }

    /// A page of the keys that begin with `prefix`, and where the next one begins.
    async fn page(
        &self,
        prefix: &str,
        token: Option<String>,
        most: Option<usize>,
        address: &str,
    ) -> Result<(Vec<ObjectMeta>, Option<String>)> {
        let options = PaginatedListOptions { page_token: token, max_keys: most, ..Default::default() };
        let prefix = (!prefix.is_empty()).then_some(prefix);
        let list = || self.store.list_paginated(prefix, options.clone());
        let page = self.attempts("list", address).sent(list).await.map_err(Failure::into_error)?;
        Ok((page.result.objects, page.page_token))
    }

    /// All objects whose keys begin with `prefix`, in order of their keys.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let address = self.address(prefix);
        let (mut objects, mut token) = (Vec::new(), None);
        loop {
            let (page, next) = self.page(prefix, token, None, &address).await?;
            // The mark of the folder itself, `a/`, is `a` here, and lies outside of it.
            for meta in page.into_iter().filter(|meta| meta.location.as_ref().starts_with(prefix)) {
                objects.push(match meta.e_tag {
                    Some(_) => self.described(meta).map_err(|failure| failure.error)?,
                    // Some stores tell ETags one by one only.
                    None => self.head(meta.location.as_ref()).await?,
                });
            }
            if objects.len() > MOST_KEYS {
                return Err(Error::invalid(format!(
                    "{address} holds more than {MOST_KEYS} objects: name a part of it"
                )));
            }
            match next {
                Some(next) => token = Some(next),
                None => break,
            }
        }
        objects.sort_by(|a, b| a.address.cmp(&b.address));
        without_folder_marks(&mut objects);
        Ok(objects)
    }

    /// What is at `key`.
    pub(super) async fn head(&self, key: &str) -> Result<ObjectInfo> {
        let missing = || Error::invalid(format!("there is no object {}", self.address(key)));
        self.find(key).await?.ok_or_else(missing)
    }

    /// Fills `into` with a range of an object.
    pub(super) async fn fill(
        &self,
        object: &ObjectInfo,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let path = self.path(self.key(&object.address)?)?;
        let mut attempts = self.attempts("read", &object.address);
        let mut filled = 0;
        loop {
            let permit = attempts.begin().await?;
            let before = filled;
            match self.fill_once(&attempts, object, &path, &range, into, &mut filled).await {
                Ok(()) => {
                    permit.end(Ended::Good);
                    return Ok(());
                }
                Err(failure) => attempts.again(failure, permit).await.map_err(|failure| failure.error)?,
            }
            if filled > 0 && filled == into.room() {
                // It came whole before the connection failed; whose it was, the answer's head had said.
                return Ok(());
            }
            if filled - before >= LEAST_PROGRESS.min(into.room() / 8).max(1) {
                // It came further: what is left is another request, with a budget of its own.
                attempts.retry = Retry::new(self.budget, self.clock.now());
            }
        }
    }

    async fn fill_once(
        &self,
        attempts: &Attempts<'_>,
        object: &ObjectInfo,
        path: &Path,
        range: &Range<u64>,
        into: &mut dyn Destination,
        filled: &mut usize,
    ) -> Result<(), Failure> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.start + *filled as u64..range.end)),
            if_match: condition(&object.etag),
            ..GetOptions::default()
        };
        let answer = self.store.get_opts(path, options).await.map_err(|error| attempts.failed(error))?;
        // Not every store obeys If-Match.
        let same = answer.meta.e_tag.as_deref().map(bare) == Some(object.etag.as_str());
        if !same || answer.meta.size != object.bytes {
            return Err(Failure::end(changed(&object.address)));
        }
        let mut body = answer.into_stream();
        while let Some(chunk) = body.try_next().await.map_err(|error| attempts.failed(error))? {
            self.tally.read(chunk.len() as u64);
            let end = *filled + chunk.len();
            if end > into.room() {
                let text = format!("{} sent more of {} than its range has", self.endpoint, object.address);
                return Err(Failure::again(Error::corrupt(text)));
            }
            into.put(*filled, &chunk);
            *filled = end;
        }
        if *filled < into.room() {
            let text =
                format!("{} ended {} after {filled} of {} bytes", self.endpoint, object.address, into.room());
            return Err(Failure::again(Error::unavailable(text)));
        }
        Ok(())
    }
}

/// The failure of a read that met another object than was described.
pub(super) fn changed(address: &str) -> Error {
    Error::corrupt(format!("{address} is not what it was when it was indexed: index the dataset again"))
}

/// An ETag without its quotes.
pub(super) fn bare(etag: &str) -> &str {
    etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')).unwrap_or(etag)
}

/// `If-Match` for an ETag. A weak one matches nothing by RFC 9110, 13.1.1, and one with other characters than a head may have
/// cannot be sent; the answer's own is compared then.
fn condition(etag: &str) -> Option<String> {
    (!etag.starts_with("W/") && is_sendable(etag)).then(|| format!("\"{etag}\""))
}

/// Drops the empty objects that stand for folders: consoles make `a/` for a folder, which is listed as `a` here.
fn without_folder_marks(objects: &mut Vec<ObjectInfo>) {
    let inside = |objects: &[ObjectInfo], mark: &str| {
        let folder = format!("{mark}/");
        let place = objects.partition_point(|object| object.address < folder);
        objects.get(place).is_some_and(|object| object.address.starts_with(&folder))
    };
    let marks: Vec<bool> =
        objects.iter().map(|object| object.bytes == 0 && inside(objects, &object.address)).collect();
    let mut marks = marks.into_iter();
    objects.retain(|_| !marks.next().unwrap_or(false));
}
