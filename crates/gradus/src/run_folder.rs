//! Where a run's files go: a new folder for every run, the newest one to resume.

use gradus_error::{Error, IoContext, Result};
use gradus_train::checkpoint;
use std::fs;
use std::path::{Path, PathBuf};

/// Runs that may share a base name.
const MOST_RUNS: usize = 100_000;

/// The folder of run number `number` (from 1) of a base: `base`, `base-2`, `base-3`, ...
fn numbered(base: &Path, number: usize) -> PathBuf {
    if number == 1 {
        return base.to_owned();
    }
    let mut name = base.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{number}"));
    base.with_file_name(name)
}

/// Makes the folder of a new run: `base`, or with the first number that is free.
///
/// # Errors
/// The system's failure to make it.
pub fn create(base: &Path) -> Result<PathBuf> {
    for number in 1..MOST_RUNS {
        let folder = numbered(base, number);
        let describe = || format!("cannot make the run's folder {}", folder.display());
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).context(describe)?;
        }
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                if folder.is_dir() && fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_none())
                {
                    return Ok(folder);
                }
            }
            Err(error) => return Err(error).context(describe),
        }
    }
    Err(Error::invalid(format!("{} has {MOST_RUNS} runs: choose another --run.dir", base.display())))
}

/// The newest run of a base that has a checkpoint, and that checkpoint.
///
/// # Errors
/// `Invalid` where there is none.
pub fn latest(base: &Path) -> Result<(PathBuf, PathBuf)> {
    let folders = (1..MOST_RUNS).map(|number| numbered(base, number)).take_while(|folder| folder.exists());
    let newest = folders.filter_map(|folder| Some((checkpoint::list(&folder).pop()?.1, folder))).last();
    let (checkpoint, folder) = newest.ok_or_else(|| {
        Error::invalid(format!(
            "no checkpoint to resume from under {}: start without --resume",
            base.display()
        ))
    })?;
    Ok((folder, checkpoint))
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

    #[test]
    fn every_run_has_a_folder_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("runs/a");
        let first = create(&base).unwrap();
        assert_eq!(create(&base).unwrap(), first, "an empty folder holds no run");
        fs::write(first.join("x"), "").unwrap();
        assert_eq!(create(&base).unwrap(), directory.path().join("runs/a-2"));
    }

    #[test]
    fn the_newest_run_with_a_checkpoint_is_resumed() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("a");
        assert!(latest(&base).is_err());
        for (run, step) in [("a", 10), ("a-2", 5), ("a-2", 7)] {
            fs::create_dir_all(checkpoint::folder_of(&directory.path().join(run), step)).unwrap();
        }
        fs::create_dir_all(directory.path().join("a-3")).unwrap();
        let (folder, checkpoint) = latest(&base).unwrap();
        assert_eq!(folder, directory.path().join("a-2"));
        assert!(checkpoint.ends_with("checkpoints/step-00000007"));
    }
}
