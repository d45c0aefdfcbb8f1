//! The end of an object that may not be there, asked for while something else is waited for.
//!
//! One request (RFC 9110, 14.1.2: a suffix range), which is not sent again and has little time: what comes of it saves a
//! bucket's latency, and whoever needs the bytes asks for them in the ordinary way where nothing did.

use super::attempts::Attempts;
use super::failure::{Failure, Then};
use super::remote::Remote;
use super::throttle::Ended;
use super::{Bucket, Place, runtime};
use crate::blocks::ObjectInfo;
use futures_util::TryStreamExt;
use gradus_error::{Error, Result};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// An object as it was, and its last bytes: all of it, if they are as many.
type End = (ObjectInfo, Vec<u8>);

/// In what time it has to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// The end of an object, on its way. Nobody waits for it when this is dropped; its connection is used again.
pub(crate) struct Tail(Option<JoinHandle<Option<End>>>);

impl Bucket {
    /// Asks for the last bytes of an object, at most so many, and returns. Of files of this machine, for which nobody waits,
    /// nothing is asked.
    pub(crate) fn begin_tail(&self, key: &str, most: usize) -> Tail {
        let (inner, key) = (self.inner.clone(), self.full_key(key));
        let runtime = runtime::get().ok().filter(|_| matches!(inner.place, Place::Remote(_)));
        Tail(runtime.map(|runtime| {
            runtime.spawn(async move {
                let Place::Remote(remote) = &inner.place else { return None };
                timeout(PATIENCE, remote.tail(&key, most)).await.ok()?.ok()
            })
        }))
    }
}

impl Tail {
    /// What came. `None` where there is no such object, or the request failed. Blocks; not to be called from a completion.
    pub(crate) fn take(self) -> Option<End> {
        runtime::get().ok()?.block_on(self.0?).ok()?
    }
}

impl Remote {
    async fn tail(&self, key: &str, most: usize) -> Result<End> {
        let (path, address) = (self.path(key)?, self.address(key));
        let mut attempts = self.attempts("read", &address);
        let permit = attempts.begin().await?;
        let read = self.tail_once(&attempts, &path, most).await;
        permit.end(match &read {
            Ok(_) => Ended::Good,
            Err(failure) if failure.then == Then::Fewer => {
                self.tally.was_throttled();
                Ended::Throttled
            }
            Err(_) => Ended::Neither,
        });
        read.map_err(Failure::into_error)
    }

    async fn tail_once(&self, attempts: &Attempts<'_>, path: &Path, most: usize) -> Result<End, Failure> {
        let options = GetOptions { range: Some(GetRange::Suffix(most as u64)), ..GetOptions::default() };
        let answer = self.store.get_opts(path, options).await.map_err(|error| attempts.failed(error))?;
        let object = self.described(answer.meta.clone())?;
        let wanted = object.bytes.min(most as u64) as usize;
        let (mut bytes, mut body) = (Vec::with_capacity(wanted), answer.into_stream());
        while let Some(chunk) = body.try_next().await.map_err(|error| attempts.failed(error))? {
            self.tally.read(chunk.len() as u64);
            if chunk.len() > wanted - bytes.len() {
                break;
            }
            bytes.extend_from_slice(&chunk);
        }
        let other = || Failure::end(Error::unavailable(format!("another end of {} came", object.address)));
        if bytes.len() == wanted { Ok((object, bytes)) } else { Err(other()) }
    }
}
