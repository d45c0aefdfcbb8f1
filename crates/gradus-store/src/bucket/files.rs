//! Objects as files of this machine, with the same promises as a bucket's.
//!
//! A file's ETag is made of its inode, the time of its last change and its size, as `object_store` makes it. It is
//! compared before and after a read, so bytes of a file that is changed in between are not taken for those of the old one.

use super::remote::changed;
use crate::blocks::ObjectInfo;
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk::{open_regular, sync_directory};
use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What files that are being written end in; no listing shows them.
pub(super) const UNFINISHED: &str = ".unfinished";

/// What is at `path`; `None` where nothing is.
pub(super) fn find(path: &Path) -> Result<Option<ObjectInfo>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(describe(path, &metadata)?)),
        Ok(_) => Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::io(format!("cannot find {}", path.display()), error)),
    }
}

fn describe(path: &Path, metadata: &Metadata) -> Result<ObjectInfo> {
    let text = path.to_str().ok_or_else(|| {
        Error::invalid(format!("the name of {} is no UTF-8: rename the file", path.display()))
    })?;
    Ok(ObjectInfo { address: format!("file://{text}"), bytes: metadata.len(), etag: etag(metadata) })
}

fn etag(metadata: &Metadata) -> String {
    let micros = i128::from(metadata.mtime()) * 1_000_000 + i128::from(metadata.mtime_nsec() / 1000);
    format!("{:x}-{micros:x}-{:x}", metadata.ino(), metadata.len())
}

/// The path of an object's address.
pub(super) fn path_of(address: &str) -> Result<&Path> {
    let path = address.strip_prefix("file://").filter(|path| path.starts_with('/'));
    path.map(Path::new)
        .ok_or_else(|| Error::invalid(format!("{address} is not a file's address: file:///PATH")))
}

/// Fills `space` with a range of an object.
pub(super) fn fill(object: &ObjectInfo, offset: u64, space: &mut [u8]) -> Result<()> {
    if space.is_empty() {
        return Ok(());
    }
    let path = path_of(&object.address)?;
    let file = open_regular(path).context(|| format!("cannot read {}", object.address))?;
    let same = |file: &File| -> Result<bool> {
        Ok(etag(&file.metadata().context(|| format!("cannot read {}", object.address))?) == object.etag)
    };
    if !same(&file)? {
        return Err(changed(&object.address));
    }
    match file.read_exact_at(space, offset) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(changed(&object.address)),
        read => read.context(|| format!("cannot read {} at {offset}", object.address))?,
    }
    if same(&file)? { Ok(()) } else { Err(changed(&object.address)) }
}

/// All files below `root` whose paths from there begin with `prefix`, in order.
pub(super) fn list(root: &Path, prefix: &str) -> Result<Vec<ObjectInfo>> {
    let metadata = fs::metadata(root).context(|| format!("cannot list {}", root.display()))?;
    if !metadata.is_dir() {
        return Err(Error::invalid(format!("{} is a file, not a folder of objects", root.display())));
    }
    let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut walk = Walk { root, prefix, entered: BTreeSet::new(), objects: Vec::new() };
    match walk.enter(&root.join(folder)) {
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        walked => walked.context(|| format!("cannot list {}", root.join(folder).display()))?,
    }
    let mut objects =
        walk.objects.iter().map(|(path, metadata)| describe(path, metadata)).collect::<Result<Vec<_>>>()?;
    objects.sort_by(|a, b| a.address.cmp(&b.address));
    Ok(objects)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    /// Folders that were entered, by device and inode: a link may lead back.
    entered: BTreeSet<(u64, u64)>,
    objects: Vec<(PathBuf, Metadata)>,
}

impl Walk<'_> {
    fn enter(&mut self, folder: &Path) -> io::Result<()> {
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let metadata = fs::metadata(&folder)?;
            if !self.entered.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let inside = path.strip_prefix(self.root).unwrap_or(&path).as_os_str().as_encoded_bytes();
                let prefix = self.prefix.as_bytes();
                if !inside.starts_with(prefix) && !prefix.starts_with(inside) {
                    continue;
                }
                let metadata = match fs::metadata(&path) {
                    // Removed since it was read, or a link to nothing: neither is an object.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    metadata => metadata?,
                };
                if metadata.is_dir() {
                    folders.push(path);
                } else if metadata.is_file() && inside.starts_with(prefix) && !is_unfinished(&path) {
                    self.objects.push((path, metadata));
                }
            }
        }
        Ok(())
    }
}

fn is_unfinished(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.starts_with(b".") && name.ends_with(UNFINISHED.as_bytes())
}

/// Removes a file; one that is not there is none to remove.
pub(super) fn delete(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if is_missing(&error) => Ok(()),
        removed => removed.context(|| format!("cannot delete {}", path.display())),
    }
}

/// A name beside `path` for what is being written.
pub(super) fn unfinished(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Error::invalid(format!("{} names no file", path.display())))?;
    let seed = gradus_host::random::seed_from_system();
    // A name may have 255 bytes, and this one is longer than the file's.
    let short = &name[..name.floor_char_boundary(200)];
    Ok(path.with_file_name(format!(".{short}.{seed:016x}{UNFINISHED}")))
}

/// Puts a written file in its place, when the disk has it.
pub(super) fn publish(file: &File, unfinished: &Path, path: &Path) -> Result<ObjectInfo> {
    let describe_failure = || format!("cannot write {}", path.display());
    file.sync_all().context(describe_failure)?;
    fs::rename(unfinished, path).context(describe_failure)?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))?;
    describe(path, &file.metadata().context(describe_failure)?)
}

/// A file that is open for many reads, as it was when it was described.
pub(crate) struct OpenFile {
    file: File,
    object: ObjectInfo,
    /// What its ETag is made of.
    state: State,
}

/// What tells a file from what it becomes when it is written to or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl State {
    fn of(file: &File, object: &ObjectInfo) -> Result<(Self, Metadata)> {
        let metadata = file.metadata().context(|| format!("cannot read {}", object.address))?;
        let changed = (metadata.mtime(), metadata.mtime_nsec());
        Ok((Self { inode: metadata.ino(), bytes: metadata.len(), changed }, metadata))
    }
}

impl OpenFile {
    /// Opens an object's file.
    ///
    /// # Errors
    /// `Corrupt` when it is not the one that was described; the system's failure to open it.
    pub(crate) fn open(object: &ObjectInfo) -> Result<Self> {
        let path = path_of(&object.address)?;
        let file = open_regular(path).context(|| format!("cannot read {}", object.address))?;
        let (state, metadata) = State::of(&file, object)?;
        let opened = Self { file, object: object.clone(), state };
        if etag(&metadata) == object.etag { Ok(opened) } else { Err(changed(&object.address)) }
    }

    /// Fills `space` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `Corrupt` when the file was changed since it was described; the system's failure to read it.
    pub(crate) fn read_at(&self, offset: u64, space: &mut [u8]) -> Result<()> {
        match self.file.read_exact_at(space, offset) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(changed(&self.object.address));
            }
            read => read.context(|| format!("cannot read {} at {offset}", self.object.address))?,
        }
        self.check()
    }

    /// Says that a range will be read soon.
    pub(crate) fn expect(&self, range: Range<u64>) {
        // None would stand for all up to the end.
        if let Some(len) = std::num::NonZeroU64::new(range.end - range.start) {
            // A hint: where the system does not take it, it reads when it is asked to.
            let _ = rustix::fs::fadvise(&self.file, range.start, Some(len), rustix::fs::Advice::WillNeed);
        }
    }

    fn check(&self) -> Result<()> {
        let (state, _) = State::of(&self.file, &self.object)?;
        if state == self.state { Ok(()) } else { Err(changed(&self.object.address)) }
    }
}
