//! Where a run's files go: a new folder for every run, the newest one to resume; each with one run at a time.

use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use gradus_store::recover_folder;
use gradus_train::checkpoint;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Held by rank 0 of the run that writes into a folder.
const LOCK: &str = "run.lock";

/// No file system has longer names.
const LONGEST_NAME_BYTES: u64 = 4096;

/// A run's folder, held against other processes for as long as this lives.
#[derive(Debug)]
pub struct RunFolder {
    /// Where it is.
    pub path: PathBuf,
    lock: File,
}

/// The folder of run number `number` (from 1) of a base: `base`, `base-2`, `base-3`, ...
fn numbered(base: &Path, number: u64) -> PathBuf {
    if number == 1 {
        return base.to_owned();
    }
    let mut name = base.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{number}"));
    base.with_file_name(name)
}

/// The numbers of a base's runs, growing; runs in between may have been removed. A folder that has such a name by chance,
/// because it is another base's, does not count: who made a folder is written in its lock.
fn numbers(base: &Path) -> Vec<u64> {
    let parent = base.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let own = base.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let number_of = |name: &str| match name.strip_prefix(&own)? {
        "" => Some(1),
        rest => rest.strip_prefix('-')?.parse().ok().filter(|number| *number > 1),
    };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| number_of(entry.file_name().to_str()?));
    let mut found: Vec<u64> = found.filter(|number| *number == 1 || is_of(base, *number)).collect();
    found.sort_unstable();
    found
}

/// Whether run number `number` was made as one of this base's.
fn is_of(base: &Path, number: u64) -> bool {
    let lock = numbered(base, number).join(LOCK);
    let maker = disk::open_regular(&lock).and_then(|file| {
        let mut name = Vec::new();
        file.take(LONGEST_NAME_BYTES).read_to_end(&mut name)?;
        Ok(name)
    });
    maker.is_ok_and(|name| name == base.file_name().unwrap_or_default().as_bytes())
}

/// Makes the folder of a new run: `base`, or with the number after the largest of its runs that is free.
///
/// # Errors
/// `Invalid` where `base` is no folder; the system's failure to make it.
pub fn create(base: &Path) -> Result<RunFolder> {
    if base.exists() && !base.is_dir() {
        return Err(Error::invalid(format!("{} is no folder: choose another run.dir", base.display())));
    }
    let first = numbers(base).last().map_or(1, |last| last + 1);
    for number in first.. {
        let path = numbered(base, number);
        let describe = || format!("cannot make the run's folder {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).context(describe)?;
        }
        match fs::create_dir(&path) {
            Ok(()) => return hold_as(path, base),
            // Another run took it in this moment, or it is another base's.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).context(describe),
        }
    }
    unreachable!("a number is free")
}

/// Holds a folder that was just made, and writes down of which base it is a run.
fn hold_as(path: PathBuf, base: &Path) -> Result<RunFolder> {
    let mut held = hold(path)?;
    let name = base.file_name().unwrap_or_default().as_bytes();
    held.lock.write_all(name).context(|| format!("cannot write {}", held.path.join(LOCK).display()))?;
    Ok(held)
}

/// The newest run of a base that has a checkpoint, and that checkpoint.
///
/// # Errors
/// `Invalid` where there is none.
pub fn latest(base: &Path) -> Result<(PathBuf, PathBuf)> {
    let folders = numbers(base).into_iter().rev().map(|number| numbered(base, number));
    let newest = folders.filter_map(|folder| Some((checkpoint::list(&folder).pop()?.1, folder))).next();
    let (checkpoint, folder) = newest.ok_or_else(|| {
        Error::invalid(format!(
            "no checkpoint to resume from under {}: start without --resume",
            base.display()
        ))
    })?;
    Ok((folder, checkpoint))
}

/// Holds a run's folder against other processes, and tidies what a killed one left half-written.
///
/// # Errors
/// `Invalid` where another process holds it; the system's.
pub fn hold(path: PathBuf) -> Result<RunFolder> {
    let name = path.join(LOCK);
    let describe = || format!("cannot lock {}", name.display());
    let lock = File::options().create(true).append(true).open(&name).context(describe)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::invalid(format!(
                "another process trains in {}: let it end, or choose another --run.dir",
                path.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(error).context(describe),
    }
    tidy(&path.join("checkpoints"))?;
    Ok(RunFolder { path, lock })
}

/// Completes or removes checkpoints that were being written when their writer was killed.
fn tidy(checkpoints: &Path) -> Result<()> {
    for entry in fs::read_dir(checkpoints).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.extension().and_then(|suffix| suffix.to_str()) {
            Some("partial") => {
                fs::remove_dir_all(&path).context(|| format!("cannot remove {}", path.display()))?
            }
            Some("old") => recover_folder(&path.with_extension(""))?,
            _ => {}
        }
    }
    Ok(())
}

/// The Hugging Face folder in what a person names as a model: a run (its model, else its newest checkpoint), or the
/// folder itself.
pub fn model_folder(named: &Path) -> PathBuf {
    let model = named.join("model");
    if model.join("config.json").exists() {
        return model;
    }
    match checkpoint::list(named).pop() {
        Some((_, folder)) if !named.join("config.json").exists() => folder,
        _ => named.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn every_run_has_a_folder_of_its_own_also_where_one_was_removed() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("runs/a");
        let runs: Vec<RunFolder> = (0..3).map(|_| create(&base).unwrap()).collect();
        assert_eq!(runs[0].path, base);
        assert_eq!(runs[2].path, directory.path().join("runs/a-3"));
        fs::remove_dir_all(&runs[1].path).unwrap();
        assert_eq!(create(&base).unwrap().path, directory.path().join("runs/a-4"));
        fs::write(directory.path().join("file"), "").unwrap();
        assert_eq!(*create(&directory.path().join("file")).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn the_newest_run_with_a_checkpoint_is_resumed() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("a");
        assert!(latest(&base).is_err());
        // A run of its own, whose name looks like the third of the other's.
        drop(create(&directory.path().join("a-3")).unwrap());
        let made: Vec<PathBuf> = (0..4).map(|_| create(&base).unwrap().path).collect();
        assert_eq!(made[2], directory.path().join("a-4"), "a-3 is another's");
        for (run, step) in [("a-2", 10), ("a-3", 90), ("a-4", 5), ("a-4", 7)] {
            fs::create_dir_all(checkpoint::folder_of(&directory.path().join(run), step)).unwrap();
        }
        let (folder, checkpoint) = latest(&base).unwrap();
        assert_eq!(folder, directory.path().join("a-4"));
        assert!(checkpoint.ends_with("checkpoints/step-00000007"));
    }

    #[test]
    fn a_folder_is_held_by_one_run_and_tidied() {
        let directory = tempfile::tempdir().unwrap();
        let half = directory.path().join("checkpoints/step-00000003.partial");
        fs::create_dir_all(&half).unwrap();
        let held = hold(directory.path().to_owned()).unwrap();
        assert!(!half.exists());
        assert_eq!(*hold(directory.path().to_owned()).unwrap_err().kind(), Kind::Invalid);
        drop(held);
        hold(directory.path().to_owned()).unwrap();
    }
}
