//! The file that outlives a coordinator, and the lock that keeps a second one away from it.

use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Bytes beyond which no file is a coordinator's.
const LARGEST: u64 = 1 << 30;

/// A file that only this process writes.
pub(super) struct StateFile {
    path: PathBuf,
    /// The lock is on a file beside, because the file itself is replaced; the system lifts it when the process ends.
    _lock: File,
}

impl StateFile {
    /// Takes the file for this process alone; returns what it holds, if it exists.
    ///
    /// # Errors
    /// `Denied` when another process has it, `Corrupt` when it is too large, or the system's failure.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Vec<u8>>)> {
        let lock = take_lock(path)?;
        let bytes = read(path)?;
        Ok((Self { path: path.to_owned(), _lock: lock }, bytes))
    }

    /// Replaces what it holds, whole and durable.
    ///
    /// # Errors
    /// The system's failure; the old content stays.
    pub(super) fn replace(&self, bytes: &[u8]) -> Result<()> {
        disk::write_atomically(&self.path, |file| {
            file.write_all(bytes).context(|| format!("cannot write {}", self.path.display()))
        })
    }
}

fn take_lock(path: &Path) -> Result<File> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let beside = path.with_file_name(name);
    let lock = File::options().create(true).append(true).open(&beside);
    let lock = lock.context(|| format!("cannot open {}", beside.display()))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(Error::denied(format!(
            "another coordinator runs with {}: end it first, or choose another file",
            path.display()
        ))),
        Err(error) => Err(Error::io(format!("cannot lock {}", beside.display()), error.into())),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let describe = || format!("cannot read {}", path.display());
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.context(describe)?,
    };
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).context(describe)?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::corrupt(format!("{} is larger than any coordinator's file", path.display())));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn a_file_has_one_owner_and_keeps_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let (file, nothing) = StateFile::open(&path).unwrap();
        assert_eq!(nothing, None);
        file.replace(b"first").unwrap();
        assert_eq!(*StateFile::open(&path).err().unwrap().kind(), Kind::Denied);
        drop(file);
        assert_eq!(StateFile::open(&path).unwrap().1.unwrap(), b"first");
    }
}
