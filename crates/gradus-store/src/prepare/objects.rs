//! Input that lies in a bucket: found by address, folder or glob, and read like files.
//!
//! An object is known again by its address, size and ETag, and read by that ETag: one that changes in between is an error.
//! What is read from its beginning on is read ahead in large parts; what is read from elsewhere is asked for piece by
//! piece, since only a little of it is wanted. Nothing is copied to a disk, and no object is held in memory.

use super::inputs::{Format, InputFile, Packing, TEXT_PROBE_BYTES, is_squeezed, kind_of};
use super::token_files::split_by_name;
use crate::blocks::ObjectInfo;
use crate::bucket::{Address, Bucket, as_io};
use crate::index::INDEX_FILE;
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Opens the bucket at an address.
pub type OpenBucket<'a> = &'a dyn Fn(&Address) -> Result<Bucket>;

/// Letters that make a name a glob.
pub(crate) const GLOB: [char; 3] = ['*', '?', '['];

/// Bytes asked for at once where an object is not read from its beginning.
const PIECE_BYTES: u64 = 256 << 10;

/// An object of a corpus, as it was found.
#[derive(Debug)]
pub(crate) struct InBucket {
    bucket: Bucket,
    pub(crate) info: ObjectInfo,
}

impl InBucket {
    fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.bucket.read_at(&self.info, offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// A file or an object of which any part can be read.
pub(crate) enum Opened {
    File(File, PathBuf),
    Object(Arc<InBucket>),
}

impl Opened {
    /// `len` bytes from `offset` on.
    ///
    /// # Errors
    /// The system's or the bucket's; `Corrupt` where there are fewer.
    pub(crate) fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        match self {
            Self::Object(object) => object.read_at(offset, len).map_err(|error| error.within("data.input")),
            Self::File(file, path) => {
                let mut bytes = vec![0; len];
                let describe = || format!("cannot read {} (data.input)", path.display());
                file.read_exact_at(&mut bytes, offset).context(describe)?;
                Ok(bytes)
            }
        }
    }
}

impl InputFile {
    /// Opens it for reading here and there.
    pub(crate) fn open(&self) -> Result<Opened> {
        if let Some(object) = &self.object {
            return Ok(Opened::Object(Arc::clone(object)));
        }
        Ok(Opened::File(self.open_file()?, self.path.clone()))
    }

    /// Its bytes, packed as they are, from `start` on.
    pub(crate) fn open_from(&self, start: u64) -> Result<Box<dyn Read + Send>> {
        match &self.object {
            None => {
                let mut file = self.open_file()?;
                let describe = || format!("cannot read {} (data.input)", self.path.display());
                file.seek(SeekFrom::Start(start)).context(describe)?;
                Ok(Box::new(file))
            }
            Some(object) if start == 0 => Ok(Box::new(object.bucket.open_stream(&object.info)?)),
            Some(object) => Ok(Box::new(Pieces { object: Arc::clone(object), next: start })),
        }
    }

    fn open_file(&self) -> Result<File> {
        disk::open_regular(&self.path).context(|| format!("cannot read {} (data.input)", self.path.display()))
    }
}

/// An object from somewhere within it on.
struct Pieces {
    object: Arc<InBucket>,
    next: u64,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.object.info.bytes.saturating_sub(self.next).min(PIECE_BYTES);
        let count = into.len().min(left as usize);
        let read = self.object.bucket.read_at(&self.object.info, self.next, &mut into[..count]);
        read.map_err(as_io)?;
        self.next += count as u64;
        Ok(count)
    }
}

/// The buckets that inputs name, each opened once.
pub(crate) struct Buckets<'a> {
    open: OpenBucket<'a>,
    opened: HashMap<String, Bucket>,
}

impl<'a> Buckets<'a> {
    pub(crate) fn new(open: OpenBucket<'a>) -> Self {
        Self { open, opened: HashMap::new() }
    }

    /// What is at `key` of a bucket: an object, all text below a folder, or what matches a glob.
    ///
    /// # Errors
    /// `Invalid` where there is nothing, or something that cannot be read; the bucket's.
    pub(crate) fn files(&mut self, name: &str, key: &str) -> Result<Vec<InputFile>> {
        let bucket = self.bucket(name)?;
        let files = match Pattern::of(key) {
            None if key.is_empty() => in_folder(&bucket, key),
            _ => match (bucket.find(key)?, Pattern::of(key)) {
                (Some(object), _) => Ok(vec![described(&bucket, object)?]),
                (None, Some(pattern)) => matching(&bucket, &pattern),
                (None, None) => in_folder(&bucket, key),
            },
        };
        files.map_err(|error| error.within("data.input"))
    }

    fn bucket(&mut self, name: &str) -> Result<Bucket> {
        if let Some(bucket) = self.opened.get(name) {
            return Ok(bucket.clone());
        }
        let bucket = (self.open)(&Address::S3 { bucket: name.to_owned(), key: String::new() })?;
        self.opened.insert(name.to_owned(), bucket.clone());
        Ok(bucket)
    }
}

/// A key with letters of a glob, and what all keys that match it begin with.
struct Pattern<'a> {
    key: &'a str,
    start: &'a str,
}

impl<'a> Pattern<'a> {
    fn of(key: &'a str) -> Option<Self> {
        key.find(GLOB).map(|at| Self { key, start: &key[..at] })
    }
}

/// An object as an input.
fn described(bucket: &Bucket, info: ObjectInfo) -> Result<InputFile> {
    let path = PathBuf::from(&info.address);
    let (format, packing) = kind_of(&path)?;
    if format == Format::Tokens {
        return Err(Error::invalid(format!(
            "{} holds tokens as they are, which are read from a file of this machine only: copy it to one",
            info.address
        )));
    }
    let bytes = info.bytes;
    let object = Some(Arc::new(InBucket { bucket: bucket.clone(), info }));
    Ok(InputFile { path, bytes, modified_ns: 0, format, packing, object })
}

/// The objects that match a glob; as of files, a `*` does not reach over a `/`, and `**` does.
fn matching(bucket: &Bucket, pattern: &Pattern) -> Result<Vec<InputFile>> {
    let address = bucket.address().join(pattern.key);
    let glob = glob::Pattern::new(pattern.key)
        .map_err(|error| Error::invalid(format!("`{address}` is not a glob")).with_source(error))?;
    let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
    let mut objects = bucket.list(pattern.start)?;
    objects.retain(|object| glob.matches_with(key_of(bucket, object), options));
    if objects.is_empty() {
        return Err(Error::invalid(format!("no object matches `{address}`")));
    }
    in_order(&mut objects);
    objects.into_iter().map(|object| described(bucket, object)).collect()
}

/// Text below a folder, in the order in which files of a folder are read.
fn in_folder(bucket: &Bucket, key: &str) -> Result<Vec<InputFile>> {
    let address = bucket.address().join(key);
    let start = if key.is_empty() { String::new() } else { format!("{key}/") };
    let mut objects = bucket.list(&start)?;
    if objects.is_empty() {
        return Err(Error::invalid(format!("there is nothing at {address}")));
    }
    in_order(&mut objects);
    let mut files = Vec::new();
    for object in objects {
        let name = key_of(bucket, &object)[start.len()..].to_owned();
        let is_bin = Path::new(&name).extension().is_some_and(|extension| extension == "bin");
        if is_bin && !name.contains('/') && split_by_name(Path::new(&name)).is_some() {
            described(bucket, object)?;
            continue;
        }
        let hidden = name.split('/').any(|part| part.starts_with('.'));
        if !hidden && !is_bin && is_text(bucket, &object)? {
            files.push(described(bucket, object)?);
        }
    }
    if files.is_empty() {
        return Err(Error::invalid(format!("{address} holds no text")));
    }
    Ok(files)
}

/// Whether an object found in a folder is part of a corpus. Names that say what is in them are believed; the beginning of
/// others is looked at, as of files.
fn is_text(bucket: &Bucket, object: &ObjectInfo) -> Result<bool> {
    let path = Path::new(&object.address);
    if path.file_name().is_some_and(|name| name == INDEX_FILE) || object.bytes == 0 {
        return Ok(false);
    }
    let says = path.extension().is_some_and(|extension| extension == "txt" || extension == "jsonl");
    match kind_of(path) {
        Ok((format, packing)) if says || format == Format::Parquet || packing != Packing::None => {
            return Ok(true);
        }
        Err(error) if is_squeezed(path) => return Err(error),
        _ => {}
    }
    let mut start = vec![0; object.bytes.min(TEXT_PROBE_BYTES) as usize];
    bucket.read_at(object, 0, &mut start)?;
    Ok(!start.contains(&0))
}

/// Folder by folder, as files are found: a `/` comes before any letter.
fn in_order(objects: &mut [ObjectInfo]) {
    objects.sort_by(|a, b| a.address.split('/').cmp(b.address.split('/')));
}

/// The key of an object of a bucket that was opened as a whole.
fn key_of<'a>(bucket: &Bucket, object: &'a ObjectInfo) -> &'a str {
    let own = bucket.address().to_string().len() + 1;
    object.address.get(own..).unwrap_or_default()
}
