//! An object written as it comes.
//!
//! To a bucket: one request where it is small, else parts, several at a time, of which the object is made at the end. To
//! a folder: a file beside it, put in its place when the disk has it. Invariant: the object is the old one, or the whole
//! new one; a writer that is dropped leaves nothing.

use super::remote::Remote;
use super::stream::as_io;
use super::{Address, Bucket, Place, below, files, runtime};
use crate::blocks::ObjectInfo;
use gradus_error::{Error, IoContext, Result};
use object_store::multipart::PartId;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use tokio::task::JoinHandle;

/// Parts that are under way at a time.
const PARTS: usize = 4;

/// Parts of one size; thereafter they double, so that the 10,000 that an upload may have hold an object of any size that
/// stores take.
const PARTS_OF_A_SIZE: usize = 1000;

/// Writes an object.
pub struct ObjectWriter {
    bucket: Bucket,
    key: String,
    bytes: u64,
    way: Way,
    /// What went wrong before; nothing can be written then.
    failed: bool,
}

enum Way {
    File { file: File, unfinished: PathBuf, path: PathBuf },
    Upload(Upload),
    Finished,
}

#[derive(Default)]
struct Upload {
    buffer: Vec<u8>,
    /// Named by the store when the first part is sent.
    id: Option<String>,
    under_way: VecDeque<JoinHandle<Result<PartId>>>,
    parts: Vec<PartId>,
    sent: usize,
}

impl ObjectWriter {
    pub(super) fn new(bucket: Bucket, key: &str) -> Result<Self> {
        let (way, key) = match &bucket.inner.place {
            Place::Remote(_) => {
                let full = bucket.full_key(key);
                super::address::check_key(&full)?;
                if full.is_empty() {
                    return Err(Error::invalid(format!(
                        "{} names a bucket and no object in it",
                        bucket.inner.address
                    )));
                }
                (Way::Upload(Upload::default()), full)
            }
            Place::Files(root) => (create(below(root, key)?)?, key.to_owned()),
        };
        Ok(Self { bucket, key, bytes: 0, way, failed: false })
    }

    /// Puts the object in its place; blocks until the store has it.
    ///
    /// # Errors
    /// As [`Bucket::head`]; `Exhausted` when a disk is full. The object is then the old one.
    pub fn finish(mut self) -> Result<ObjectInfo> {
        if self.failed {
            return Err(Error::closed(format!("writing {} failed before", self.address())));
        }
        match std::mem::replace(&mut self.way, Way::Finished) {
            Way::File { file, unfinished, path } => {
                let published = files::publish(&file, &unfinished, &path);
                if published.is_err() {
                    let _ = std::fs::remove_file(&unfinished);
                }
                published
            }
            Way::Upload(mut upload) => {
                let finished = self.finish_upload(&mut upload);
                if finished.is_err() {
                    self.abort(upload);
                }
                finished
            }
            Way::Finished => Err(Error::internal("a writer was finished twice")),
        }
    }

    fn address(&self) -> Address {
        match &self.bucket.inner.address {
            Address::S3 { bucket, .. } => Address::S3 { bucket: bucket.clone(), key: self.key.clone() },
            folder => folder.join(&self.key),
        }
    }

    fn finish_upload(&self, upload: &mut Upload) -> Result<ObjectInfo> {
        let remote = remote(&self.bucket)?;
        let runtime = runtime::get()?;
        let Some(id) = upload.id.clone() else {
            let bytes = std::mem::take(&mut upload.buffer);
            return runtime.block_on(remote.put(&self.key, bytes.into()));
        };
        if !upload.buffer.is_empty() {
            self.send(upload)?;
        }
        while let Some(part) = upload.under_way.pop_front() {
            upload.parts.push(taken(part)?);
        }
        let parts = upload.parts.clone();
        runtime.block_on(remote.finish_upload(&self.key, &id, parts, self.bytes))
    }

    /// Sends what is held as a part.
    fn send(&self, upload: &mut Upload) -> Result<()> {
        let runtime = runtime::get()?;
        let id = match &upload.id {
            Some(id) => id.clone(),
            None => {
                let id = runtime.block_on(remote(&self.bucket)?.begin_upload(&self.key))?;
                upload.id.insert(id).clone()
            }
        };
        while upload.under_way.len() >= PARTS {
            if let Some(part) = upload.under_way.pop_front() {
                upload.parts.push(taken(part)?);
            }
        }
        let (bucket, key, number) = (self.bucket.clone(), self.key.clone(), upload.sent);
        let bytes = bytes::Bytes::from(std::mem::take(&mut upload.buffer));
        upload.sent += 1;
        upload.under_way.push_back(
            runtime.spawn(async move { remote(&bucket)?.upload_part(&key, &id, number, bytes).await }),
        );
        Ok(())
    }

    /// Bytes of the next part.
    fn part_bytes(&self, sent: usize) -> usize {
        let first = usize::try_from(self.bucket.inner.settings.part_bytes).unwrap_or(usize::MAX);
        first << (sent / PARTS_OF_A_SIZE).min(9)
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        let Way::Upload(mut upload) = std::mem::replace(&mut self.way, Way::Finished) else {
            return Err(Error::internal("a file was to be uploaded"));
        };
        let mut result = Ok(());
        while !bytes.is_empty() && result.is_ok() {
            let part_bytes = self.part_bytes(upload.sent);
            // A full part is sent when more comes, so that an object of one part is one request.
            if upload.buffer.len() == part_bytes {
                result = self.send(&mut upload);
                continue;
            }
            let count = bytes.len().min(part_bytes - upload.buffer.len());
            upload.buffer.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
        }
        self.way = Way::Upload(upload);
        result
    }

    /// Throws away what was uploaded. Where that fails too, the store keeps parts that its rules may remove.
    fn abort(&self, upload: Upload) {
        upload.under_way.iter().for_each(JoinHandle::abort);
        let (Some(id), Ok(runtime)) = (upload.id, runtime::get()) else { return };
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        runtime.spawn(async move {
            for part in upload.under_way {
                let _ = part.await;
            }
            if let Ok(remote) = remote(&bucket)
                && let Err(error) = remote.abort_upload(&key, &id).await
            {
                tracing::warn!("parts of an unfinished upload stay in the bucket: {error}");
            }
        });
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other(format!("writing {} failed before", self.address())));
        }
        let written = match &mut self.way {
            Way::File { file, .. } => file.write(bytes),
            Way::Upload(_) => self.take(bytes).map(|()| bytes.len()).map_err(as_io),
            Way::Finished => Err(io::Error::other("the writer was finished")),
        };
        match &written {
            Ok(count) => self.bytes += *count as u64,
            Err(error) => self.failed = error.kind() != io::ErrorKind::Interrupted,
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.way, Way::Finished) {
            Way::File { unfinished, .. } => drop(std::fs::remove_file(unfinished)),
            Way::Upload(upload) => self.abort(upload),
            Way::Finished => {}
        }
    }
}

fn create(path: PathBuf) -> Result<Way> {
    let failure = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).context(failure)?;
    }
    if path.is_dir() {
        return Err(Error::invalid(format!(
            "{} is a folder: an object cannot be written there",
            path.display()
        )));
    }
    let unfinished = files::unfinished(&path)?;
    let file = File::create_new(&unfinished).context(failure)?;
    Ok(Way::File { file, unfinished, path })
}

fn remote(bucket: &Bucket) -> Result<&Remote> {
    match &bucket.inner.place {
        Place::Remote(remote) => Ok(remote),
        Place::Files(_) => Err(Error::internal("a folder was taken for a bucket")),
    }
}

fn taken(part: JoinHandle<Result<PartId>>) -> Result<PartId> {
    let joined = runtime::get()?.block_on(part);
    joined.map_err(|error| Error::internal("an upload was lost").with_source(error))?
}
