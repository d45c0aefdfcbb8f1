//! A cache's folder, looked at without a dataset.

use super::format::Header;
use super::{DATA, MOST_SLOTS, RECORDS, cannot, read_records, take_lock};
use crate::crc32c::crc32c;
use gradus_error::{Error, IoContext, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What a cache's folder holds, by its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderContent {
    /// Size of a block.
    pub block_bytes: u64,
    /// Slots that were ever used.
    pub slots: u64,
    /// Blocks that there are.
    pub blocks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Objects that they are of.
    pub objects: u64,
}

/// What a cache's blocks proved to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verified {
    /// Blocks that were read.
    pub blocks: u64,
    /// Those whose bytes are not those that were written, or that could not be read.
    pub damaged: u64,
}

impl FolderContent {
    /// Reads the records of a folder, which may be in use.
    ///
    /// # Errors
    /// `Invalid` when it is no cache's; the system's.
    pub fn read(folder: &Path) -> Result<Self> {
        let (records, data, header) = open(folder)?;
        let (found, empty, _) = read_records(&records, &data, header.block_bytes, MOST_SLOTS);
        let objects: BTreeSet<_> = found.iter().map(|(_, record)| record.key.object).collect();
        Ok(Self {
            block_bytes: header.block_bytes,
            slots: (found.len() + empty.len()) as u64,
            blocks: found.len() as u64,
            bytes: found.iter().map(|(_, record)| u64::from(record.len)).sum(),
            objects: objects.len() as u64,
        })
    }
}

/// Size of the blocks that a folder holds, or held, if it is a cache's; it may be in use.
pub fn folder_block_bytes(folder: &Path) -> Option<u64> {
    let records = gradus_host::disk::open_regular(&folder.join(RECORDS)).ok()?;
    Header::read(&records).map(|header| header.block_bytes).filter(|bytes| bytes.is_power_of_two())
}

/// Reads every block of a folder and compares it with its checksum; changes nothing. `progress` hears of the bytes read, and
/// of all that will be.
///
/// # Errors
/// As [`FolderContent::read`]; `Unavailable` while a process uses the folder.
pub fn verify_folder(folder: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified> {
    // What is no cache's folder gets no lock either.
    open(folder)?;
    let _lock = take_lock(folder)?;
    let (records, data, header) = open(folder)?;
    let (found, _, _) = read_records(&records, &data, header.block_bytes, MOST_SLOTS);
    let all_bytes = found.iter().map(|(_, record)| u64::from(record.len)).sum();
    let mut verified = Verified::default();
    let mut buffer = Vec::new();
    let mut done_bytes = 0;
    for (index, record) in &found {
        buffer.resize(record.len as usize, 0);
        let is_read = data.read_exact_at(&mut buffer, index * header.block_bytes).is_ok();
        verified.blocks += 1;
        verified.damaged += u64::from(!is_read || crc32c(&buffer) != record.checksum);
        done_bytes += buffer.len() as u64;
        progress(done_bytes, all_bytes);
    }
    Ok(verified)
}

/// Gives up every block of a folder; the folder itself stays.
///
/// # Errors
/// As [`verify_folder`].
pub fn clear_folder(folder: &Path) -> Result<FolderContent> {
    let content = FolderContent::read(folder)?;
    let _lock = take_lock(folder)?;
    for name in [RECORDS, DATA] {
        let path = folder.join(name);
        std::fs::remove_file(&path).context(|| cannot("remove", &path))?;
    }
    Ok(content)
}

fn open(folder: &Path) -> Result<(File, File, Header)> {
    let open = |name: &str| {
        let path = folder.join(name);
        gradus_host::disk::open_regular(&path)
            .context(|| format!("{} is no cache's folder: cannot open {name}", folder.display()))
    };
    let records = open(RECORDS)?;
    let header = Header::read(&records).ok_or_else(|| {
        Error::invalid(format!("{} holds no cache of this version ({RECORDS})", folder.display()))
    })?;
    Ok((records, open(DATA)?, header))
}

#[cfg(test)]
mod tests {
    use super::super::Slots;
    use super::super::format::Record;
    use super::super::tests::{BLOCK, filled};
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn a_folder_is_looked_at_checked_and_cleared() {
        let folder = filled();
        let expected =
            FolderContent { block_bytes: BLOCK, slots: 5, blocks: 5, bytes: 5 * BLOCK, objects: 1 };
        assert_eq!(FolderContent::read(folder.path()).unwrap(), expected);
        assert_eq!(folder_block_bytes(folder.path()), Some(BLOCK));
        let verify = || verify_folder(folder.path(), &mut |done, all| assert!(done <= all));
        assert_eq!(verify().unwrap(), Verified { blocks: 5, damaged: 0 });
        let data = File::options().write(true).open(folder.path().join(DATA)).unwrap();
        data.write_all_at(b"oh", 2 * BLOCK).unwrap();
        let used = Slots::open(folder.path(), BLOCK, 5).unwrap();
        assert_eq!(FolderContent::read(folder.path()).unwrap(), expected);
        assert_eq!(*verify().unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(*clear_folder(folder.path()).unwrap_err().kind(), Kind::Unavailable);
        drop(used);
        // Looking alters nothing, whatever else lies there.
        data.set_len(7 * BLOCK).unwrap();
        assert_eq!(verify().unwrap(), Verified { blocks: 5, damaged: 1 });
        assert_eq!(data.metadata().unwrap().len(), 7 * BLOCK);
        assert_eq!(clear_folder(folder.path()).unwrap(), expected);
        assert_eq!(*FolderContent::read(folder.path()).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn a_folder_that_is_none_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        for outcome in [verify_folder(folder.path(), &mut |_, _| ()).err(), clear_folder(folder.path()).err()]
        {
            assert_eq!(*outcome.unwrap().kind(), Kind::Invalid);
        }
        assert_eq!(folder_block_bytes(folder.path()), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        std::fs::write(folder.path().join(RECORDS), vec![7; Record::offset(2) as usize]).unwrap();
        assert_eq!(*FolderContent::read(folder.path()).unwrap_err().kind(), Kind::Invalid);
    }
}
