//! Files that are either the old one or the new one, never half of either; and files that are files.

use gradus_error::{IoContext, Result};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Opens a regular file for reading. Opening a named pipe would wait for a writer, perhaps for ever.
///
/// # Errors
/// `InvalidInput` for what is neither file nor folder, `IsADirectory` for a folder; the system's failure to open it.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let metadata = fs::metadata(path)?;
    match (metadata.is_file(), metadata.is_dir()) {
        (true, _) => File::open(path),
        (_, true) => Err(io::ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}

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
    fn only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        let kind = |path: &Path| open_regular(path).unwrap_err().kind();
        assert_eq!(kind(&path), io::ErrorKind::InvalidInput);
        assert_eq!(kind(directory.path()), io::ErrorKind::IsADirectory);
        assert_eq!(kind(&directory.path().join("nothing")), io::ErrorKind::NotFound);
        fs::write(directory.path().join("file"), "x").unwrap();
        open_regular(&directory.path().join("file")).unwrap();
    }

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
