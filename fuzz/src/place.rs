//! Where runs work and what they have found: under the target folder, so that a checkout stays as it is.

use std::fs::{self, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// The file by which Cargo marks a target folder.
const MARK: &str = "CACHEDIR.TAG";

/// Where everything is kept unless something else is asked for: in the target folder that this program was built into.
pub fn usual() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let target = program.ancestors().find(|folder| folder.join(MARK).is_file());
    target.map_or_else(std::env::temp_dir, Path::to_owned).join("fuzz")
}

/// A folder that is one run's for as long as it holds this.
pub struct Place {
    folder: PathBuf,
    /// The system lets go of it however the run ends.
    _lock: File,
}

impl Place {
    /// An empty folder within `root`: the first that nobody works in, so that what a killed run has left is cleared by the next.
    ///
    /// # Errors
    /// The system's.
    pub fn take(root: &Path) -> io::Result<Self> {
        let all = root.join("work");
        fs::create_dir_all(&all)?;
        for number in 0.. {
            let lock = File::create(all.join(format!("{number}.lock")))?;
            match lock.try_lock() {
                Ok(()) => return Self::clear(all.join(number.to_string()), lock),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::ErrorKind::QuotaExceeded.into())
    }

    fn clear(folder: PathBuf, lock: File) -> io::Result<Self> {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&folder)?,
        }
        Ok(Self { folder, _lock: lock })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Leaves nothing behind but the name of the lock.
    pub fn leave(self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The input that a target is working on in a place, or was when it ended.
pub fn current(place: &Path) -> PathBuf {
    place.join("current")
}

/// Keeps the current input as a finding of a target, beside those of before; `None` when there is none.
///
/// # Errors
/// The system's.
pub fn keep_finding(root: &Path, name: &str, place: &Path) -> io::Result<Option<PathBuf>> {
    let Ok(data) = fs::read(current(place)) else { return Ok(None) };
    let folder = root.join("findings").join(name);
    fs::create_dir_all(&folder)?;
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    let file = folder.join(format!("{:016x}", hasher.finish()));
    fs::write(&file, data)?;
    Ok(Some(file))
}
