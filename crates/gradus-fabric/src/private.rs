//! Files that only their owner may read: secrets and private keys.

use gradus_error::{Error, IoContext, Result};
use rustix::fs::OFlags;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Permissions that let others than the owner read or write.
const OTHERS: u32 = 0o066;

/// Reads a file of `limit` bytes at most; of a longer one, one byte more.
///
/// The permissions are those of the file that is read, whatever its name points to by then.
///
/// # Errors
/// `Invalid` when it is not there or no file, `Denied` when it belongs to another user, or others can read or write it.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let describe = || format!("cannot read {}", path.display());
    // Opening a pipe would otherwise wait for somebody to write.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).context(describe)?;
    let metadata = file.metadata().context(describe)?;
    if !metadata.is_file() {
        return Err(Error::invalid(format!("{} is no file", path.display())));
    }
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
    if !ours {
        return Err(Error::denied(format!(
            "{} belongs to another user (number {}), who can read it: make it this user's (chown) and private \
             (chmod 600)",
            path.display(),
            metadata.uid()
        )));
    }
    if metadata.mode() & OTHERS != 0 {
        return Err(Error::denied(format!(
            "others than its owner can read or write {0}: chmod 600 {0}",
            path.display()
        )));
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).context(describe)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_the_owner_may_read_and_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "abc").unwrap();
        for (mode, allowed) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)]
        {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let kind = read(&path, 10).map_err(|error| error.kind().clone());
            assert_eq!(kind, if allowed { Ok(b"abc".to_vec()) } else { Err(Kind::Denied) }, "{mode:o}");
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path, 1).unwrap(), b"ab");
        assert_eq!(*read(folder.path(), 1).unwrap_err().kind(), Kind::Invalid);
    }
}
