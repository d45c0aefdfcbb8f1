//! Files that are either the old one or the new one, never half of either.

use gradus_error::{IoContext, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The name beside `path` under which it is written before it is renamed into place.
///
/// It is fixed, so that what a killed process left behind is overwritten by the next writer.
pub fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

/// Writes a file beside `path`, syncs it and renames it into place; `path` keeps its old content on any failure.
///
/// # Errors
/// What `write` returns, or the system's failure to create, sync or rename (`Exhausted` when the disk is full); the
/// partial file is removed.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let partial = partial_name(path);
    let result = write_and_rename(&partial, path, write);
    if result.is_err() {
        let _ = fs::remove_file(&partial);
    }
    result
}

fn write_and_rename(
    partial: &Path,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let describe = || format!("cannot write {}", path.display());
    let mut writer = BufWriter::with_capacity(1 << 18, File::create(partial).context(describe)?);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(std::io::IntoInnerError::into_error).context(describe)?;
    file.sync_all().context(describe)?;
    fs::rename(partial, path).context(describe)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Makes a rename in `directory` durable.
///
/// # Errors
/// The system's failure to open or sync the directory.
pub fn sync_directory(directory: &Path) -> Result<()> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let describe = || format!("cannot sync {}", directory.display());
    File::open(directory).context(describe)?.sync_all().context(describe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Error;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write_atomically(&path, |w| w.write_all(b"old").context(|| "x".into())).unwrap();
        write_atomically(&path, |w| {
            w.write_all(b"new").context(|| "x".into())?;
            Err(Error::exhausted("full"))
        })
        .unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
