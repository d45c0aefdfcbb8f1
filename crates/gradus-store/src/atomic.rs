//! Folders that are either the old one or the new one, and folders that know their checksums.
//!
//! A folder is written under `<name>.partial`, synced, and put in place by one rename. Where an older folder stands
//! there, the two are exchanged in one step (`renameat2` with `RENAME_EXCHANGE`); a file system that cannot do that
//! (NFS) has the older one renamed aside to `<name>.old` first, and a writer killed between the two renames is made
//! good by [`recover_folder`]. Invariant: at any moment at which a process may be killed, the complete old or the
//! complete new folder exists, under `<name>` or `<name>.old`.

use crate::digest::digest_file;
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk::{partial_name, sync_directory, write_atomically};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// The file that [`seal`] writes.
pub const CHECKSUMS: &str = "checksums.json";

/// Largest `checksums.json` that is read: a few hundred thousand files.
const CHECKSUMS_LIMIT_BYTES: u64 = 64 << 20;

/// Writes a folder beside `path`, syncs it and puts it in place; `path` keeps its old content on any failure.
///
/// `write` is given the partial folder, new and empty. What a killed predecessor left is cleared first. Only one
/// writer of a path may be at work at a time: the caller holds a lock where more could be. Blocks until the disk has it.
///
/// # Errors
/// What `write` returns; `Invalid` when `path` is a file; the system's failure to write (`Exhausted` when the disk is
/// full). The partial folder is removed.
pub fn write_folder_atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.file_name().is_none() {
        return Err(Error::invalid(format!("`{}` names no folder that could be written", path.display())));
    }
    recover_folder(path)?;
    let partial = partial_name(path);
    remove_folder(&partial)?;
    fs::create_dir_all(&partial).context(|| format!("cannot create {}", partial.display()))?;
    let result = write(&partial).and_then(|()| publish(&partial, path));
    if result.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    result
}

/// Puts the old folder back if a writer was killed after it had renamed it aside; otherwise does nothing but clear
/// an old folder that is no longer needed. Not to be called while another process writes the folder.
///
/// # Errors
/// The system's failure to rename or remove.
pub fn recover_folder(path: &Path) -> Result<()> {
    let old = old_name(path);
    if !old.exists() {
        return Ok(());
    }
    if path.exists() {
        return remove_folder(&old);
    }
    fs::rename(&old, path).context(|| format!("cannot rename {} to {}", old.display(), path.display()))?;
    sync_directory(parent(path))
}

fn publish(partial: &Path, path: &Path) -> Result<()> {
    sync_tree(partial)?;
    let describe = || format!("cannot put {} in place", path.display());
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::rename(partial, path).context(describe)?
        }
        Err(error) => return Err(Error::io(describe(), error)),
        Ok(metadata) if !metadata.is_dir() => {
            return Err(Error::invalid(format!("{} is there already and is not a folder", path.display())));
        }
        Ok(_) => replace(partial, path)?,
    }
    sync_directory(parent(path))?;
    // After an exchange the partial name holds the old folder.
    remove_folder(partial)?;
    remove_folder(&old_name(path))
}

fn replace(partial: &Path, path: &Path) -> Result<()> {
    match renameat_with(CWD, partial, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => replace_by_rename_aside(partial, path),
        Err(error) => Err(Error::io(format!("cannot put {} in place", path.display()), error.into())),
    }
}

fn replace_by_rename_aside(partial: &Path, path: &Path) -> Result<()> {
    let describe = || format!("cannot put {} in place", path.display());
    let old = old_name(path);
    fs::rename(path, &old).context(describe)?;
    let renamed = fs::rename(partial, path).context(describe);
    if renamed.is_err() {
        fs::rename(&old, path).context(describe)?;
    }
    renamed
}

fn old_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".old");
    path.with_file_name(name)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Syncs every file below `folder`, then every folder, `folder` itself last.
fn sync_tree(folder: &Path) -> Result<()> {
    for file in files_below(folder)? {
        let path = folder.join(&file);
        let describe = || format!("cannot sync {}", path.display());
        File::open(&path).context(describe)?.sync_all().context(describe)?;
    }
    sync_folders(folder)
}

fn sync_folders(folder: &Path) -> Result<()> {
    for entry in entries(folder)? {
        if entry.is_dir() && !entry.is_symlink() {
            sync_folders(&entry)?;
        }
    }
    sync_directory(folder)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let describe = || format!("cannot list {}", folder.display());
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).context(describe)? {
        entries.push(entry.context(describe)?.path());
    }
    entries.sort();
    Ok(entries)
}

/// Regular files below `folder`, as paths relative to it, sorted.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for path in entries(&next)? {
            if path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else if let Ok(relative) = path.strip_prefix(folder) {
                files.push(relative.to_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}

#[derive(Serialize, Deserialize)]
struct Checksums {
    format: u32,
    files: BTreeMap<String, Checksum>,
}

#[derive(Serialize, Deserialize)]
struct Checksum {
    bytes: u64,
    sha256: String,
}

/// Writes `checksums.json`: size and SHA-256 of every file below `folder`. Call it last, within
/// [`write_folder_atomically`].
///
/// # Errors
/// `Invalid` for a file name that is not UTF-8; the system's failure to read or write.
pub fn seal(folder: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    for file in files_below(folder)? {
        let name = file.to_str().ok_or_else(|| Error::invalid(format!("{} is not UTF-8", file.display())))?;
        if name != CHECKSUMS {
            let path = folder.join(&file);
            let bytes = fs::metadata(&path).context(|| format!("cannot read {}", path.display()))?.len();
            files.insert(name.to_owned(), Checksum { bytes, sha256: digest_file(&path)? });
        }
    }
    let text = serde_json::to_vec_pretty(&Checksums { format: 1, files })
        .map_err(|error| Error::internal("checksums cannot be written as JSON").with_source(error))?;
    let path = folder.join(CHECKSUMS);
    write_atomically(&path, |writer| {
        writer.write_all(&text).context(|| format!("cannot write {}", path.display()))
    })
}

/// Checks a sealed folder. Files that are not in its list are no damage.
///
/// # Errors
/// `Corrupt`, naming the file that is missing, cut or altered, or `checksums.json` itself when it is missing or
/// cannot be read: do not use the folder. `Invalid` when there is no such folder.
pub fn verify_sealed(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        return Err(Error::invalid(format!("there is no folder {}", folder.display())));
    }
    for (name, checksum) in &read_checksums(folder)?.files {
        let relative = Path::new(name);
        if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::corrupt(format!("{} names `{name}`", folder.join(CHECKSUMS).display())));
        }
        verify_file(&folder.join(relative), checksum)?;
    }
    Ok(())
}

fn read_checksums(folder: &Path) -> Result<Checksums> {
    let path = folder.join(CHECKSUMS);
    let damaged = |why: String| Error::corrupt(format!("{}: {why}", path.display()));
    let mut text = Vec::new();
    match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(damaged("it is missing: the folder was never finished".to_owned()));
        }
        opened => {
            let file = opened.context(|| format!("cannot read {}", path.display()))?;
            file.take(CHECKSUMS_LIMIT_BYTES)
                .read_to_end(&mut text)
                .context(|| format!("cannot read {}", path.display()))?;
        }
    }
    let checksums: Checksums = serde_json::from_slice(&text)
        .map_err(|error| damaged("it is damaged".to_owned()).with_source(error))?;
    if checksums.format != 1 {
        return Err(damaged(format!("it has the unknown format {}", checksums.format)));
    }
    Ok(checksums)
}

fn verify_file(path: &Path, checksum: &Checksum) -> Result<()> {
    let bytes = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::corrupt(format!("{} is missing", path.display())));
        }
        Err(error) => return Err(Error::io(format!("cannot read {}", path.display()), error)),
    };
    if bytes != checksum.bytes {
        let expected = checksum.bytes;
        return Err(Error::corrupt(format!("{} has {bytes} bytes instead of {expected}", path.display())));
    }
    if digest_file(path)? != checksum.sha256 {
        return Err(Error::corrupt(format!(
            "{} was altered: its SHA-256 is not the recorded one",
            path.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    fn write(folder: &Path, text: &str) -> Result<()> {
        write_folder_atomically(folder, |partial| {
            fs::create_dir(partial.join("sub")).context(String::new)?;
            fs::write(partial.join("sub/a"), text).context(String::new)?;
            seal(partial)
        })
    }

    #[test]
    fn a_folder_is_replaced_as_a_whole_and_nothing_else_stays() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("f");
        write(&folder, "one").unwrap();
        fs::write(folder.join("stray"), "x").unwrap();
        write(&folder, "two").unwrap();
        assert_eq!(fs::read_to_string(folder.join("sub/a")).unwrap(), "two");
        assert!(!folder.join("stray").exists());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
        verify_sealed(&folder).unwrap();
    }

    #[test]
    fn a_failure_keeps_the_old_folder() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("f");
        write(&folder, "one").unwrap();
        let error = write_folder_atomically(&folder, |_| Err(Error::exhausted("full"))).unwrap_err();
        assert_eq!(*error.kind(), Kind::Exhausted);
        verify_sealed(&folder).unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_writer_left_is_cleared() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("f");
        fs::create_dir(home.path().join("f.partial")).unwrap();
        fs::write(home.path().join("f.partial/half"), "x").unwrap();
        write(&folder, "one").unwrap();
        assert!(!folder.join("half").exists());
    }

    #[test]
    fn a_writer_killed_between_two_renames_leaves_the_old_folder_to_recover() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("f");
        write(&folder, "one").unwrap();
        fs::rename(&folder, home.path().join("f.old")).unwrap();
        recover_folder(&folder).unwrap();
        verify_sealed(&folder).unwrap();
    }

    #[test]
    fn without_exchange_the_old_folder_is_renamed_aside() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("f");
        write(&folder, "one").unwrap();
        let partial = home.path().join("f.partial");
        fs::create_dir(&partial).unwrap();
        replace_by_rename_aside(&partial, &folder).unwrap();
        assert!(!folder.join("sub").exists() && home.path().join("f.old/sub/a").exists());
        recover_folder(&folder).unwrap();
        assert!(!home.path().join("f.old").exists());
    }

    #[test]
    fn damage_is_named() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("f");
        let assert_corrupt = |culprit: &str| {
            let error = verify_sealed(&folder).unwrap_err();
            assert_eq!(*error.kind(), Kind::Corrupt);
            assert!(error.to_string().contains(culprit), "{error}");
        };
        write(&folder, "one").unwrap();
        fs::write(folder.join("sub/a"), "onE").unwrap();
        assert_corrupt("sub/a");
        fs::write(folder.join("sub/a"), "on").unwrap();
        assert_corrupt("sub/a");
        fs::remove_file(folder.join("sub/a")).unwrap();
        assert_corrupt("sub/a");
        fs::write(folder.join(CHECKSUMS), r#"{"format":1,"files":{"../x":{"bytes":1,"sha256":""}}}"#)
            .unwrap();
        assert_corrupt(CHECKSUMS);
        fs::remove_file(folder.join(CHECKSUMS)).unwrap();
        assert_corrupt(CHECKSUMS);
        assert_eq!(*verify_sealed(&home.path().join("none")).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("f");
        fs::write(&path, "x").unwrap();
        assert_eq!(*write(&path, "one").unwrap_err().kind(), Kind::Invalid);
        assert_eq!(fs::read_to_string(&path).unwrap(), "x");
    }
}
