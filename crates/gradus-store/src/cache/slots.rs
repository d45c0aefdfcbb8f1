//! Blocks on disk: one file of slots of one size, and beside it one of records that say what each slot holds.
//!
//! A slot is written in three steps: its record is wiped, its data are written, its record is written. So whoever is killed
//! leaves no record of data that are not whole. Nothing is synced: a record has checksums of itself and of the data, and
//! what a power failure tore is told by them when it is read, as is what a disk has altered. A cache can afford it, for
//! everything here can be fetched again.
//!
//! The folder belongs to one process at a time: it holds a lock that ends with it, however it ends.

mod folder;
mod format;

pub use folder::{FolderContent, Verified, clear_folder, folder_block_bytes, verify_folder};

use crate::blocks::BlockKey;
use crate::crc32c::crc32c;
use format::{Header, RECORD_BYTES, Record};
use gradus_error::{Error, IoContext, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Its content is the process that has the folder.
const LOCK: &str = "gradus-cache.lock";
const RECORDS: &str = "gradus-cache.records";
const DATA: &str = "gradus-cache.blocks";

/// No folder has more: 256 TiB in blocks of 1 MiB.
const MOST_SLOTS: u64 = 1 << 28;

/// Records that are read at once.
const BATCH: u64 = 1024;

/// All slots of a folder.
pub(super) struct Slots {
    folder: PathBuf,
    records: File,
    data: File,
    block_bytes: u64,
    count: u64,
    free: Mutex<Free>,
    freed: Condvar,
    /// The system lifts the lock when the process ends.
    _lock: Lock,
}

/// Slots that nobody has: what one held may be of use to a later run, so that those that hold nothing are taken first.
struct Free {
    /// Slots with no record.
    empty: Vec<u64>,
    /// The first of those beyond the file's end.
    fresh: u64,
    /// Slots that held a block; the last is taken first.
    used: Vec<u64>,
    closing: bool,
}

impl Free {
    fn next(&mut self, count: u64) -> Option<u64> {
        let fresh = (self.fresh < count).then_some(self.fresh);
        match (self.empty.pop(), fresh) {
            (Some(index), _) => Some(index),
            (None, Some(index)) => {
                self.fresh += 1;
                Some(index)
            }
            (None, None) => self.used.pop(),
        }
    }
}

/// What [`Slots::open`] finds.
pub(super) struct Opened {
    pub slots: Arc<Slots>,
    /// What an earlier process left, by name.
    pub found: Vec<(BlockKey, Slot)>,
}

impl Slots {
    /// Takes a folder for this process, makes it if there is none, and reads which blocks it holds. A folder with blocks of
    /// another size, or of another version, begins anew.
    ///
    /// # Errors
    /// `Unavailable` when another process has the folder, `Invalid` or `Denied` when it cannot be made or written.
    pub(super) fn open(folder: &Path, block_bytes: u64, count: u64) -> Result<Opened> {
        fs::create_dir_all(folder)
            .context(|| format!("cannot make the cache's folder {} (cache.folder)", folder.display()))?;
        let lock = take_lock(folder)?;
        let (records, data) = (open_file(&folder.join(RECORDS))?, open_file(&folder.join(DATA))?);
        let count = count.min(most_slots(block_bytes));
        let header = Header { block_bytes };
        if !header.begins(&records) {
            begin_anew(folder, &records, &data, &header)?;
        }
        let (found, empty, fresh) = read_records(&records, &data, block_bytes, count);
        cut(&records, Record::offset(count)).context(|| cannot("cut", &folder.join(RECORDS)))?;
        cut(&data, count * block_bytes).context(|| cannot("cut", &folder.join(DATA)))?;
        let slots = Arc::new(Self {
            folder: folder.to_owned(),
            records,
            data,
            block_bytes,
            count,
            free: Mutex::new(Free { empty, fresh, used: Vec::new(), closing: false }),
            freed: Condvar::new(),
            _lock: Lock(lock),
        });
        let claim = |(index, record): (u64, Record)| {
            let place = Place { slots: slots.clone(), index };
            (record.key, Slot { place, record })
        };
        Ok(Opened { found: found.into_iter().map(claim).collect(), slots })
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a slot; waits while all are in use. Nothing once [`Slots::close`] was called and none is free.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        let mut free = self.lock();
        loop {
            if let Some(index) = free.next(self.count) {
                return Some(Place { slots: self.clone(), index });
            }
            if free.closing {
                return None;
            }
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nobody waits for a slot any longer.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.freed.notify_all();
    }

    fn give_back(&self, index: u64) {
        self.lock().used.push(index);
        self.freed.notify_one();
    }

    fn write(&self, index: u64, record: &Record, bytes: &[u8]) -> Result<()> {
        let (records, data) = (self.folder.join(RECORDS), self.folder.join(DATA));
        let write_record = |bytes: &[u8; RECORD_BYTES]| {
            self.records.write_all_at(bytes, Record::offset(index)).context(|| cannot("write", &records))
        };
        write_record(&[0; RECORD_BYTES])?;
        self.data.write_all_at(bytes, index * self.block_bytes).context(|| cannot("write", &data))?;
        write_record(&record.to_bytes())
    }
}

/// A slot that is in use: it is free again when this is dropped.
pub(super) struct Place {
    slots: Arc<Slots>,
    index: u64,
}

impl Place {
    /// Writes a block into the slot.
    ///
    /// # Errors
    /// The system's, `Exhausted` when the disk is full. The slot then holds nothing.
    pub(super) fn write(self, key: BlockKey, bytes: &[u8], checksum: u32) -> Result<Slot> {
        // Blocks are no longer than 64 MiB.
        let record = Record { key, len: bytes.len() as u32, checksum };
        self.slots.write(self.index, &record, bytes)?;
        Ok(Slot { place: self, record })
    }
}

/// The folder's lock, lifted when this goes. Closing the file is not enough: a program that another thread starts has the
/// file, too, until it runs.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.slots.give_back(self.index);
    }
}

/// A slot that holds a block.
pub(super) struct Slot {
    place: Place,
    record: Record,
}

impl Slot {
    /// Reads the block.
    ///
    /// # Errors
    /// `Corrupt` for another length or checksum than was written; the system's.
    pub(super) fn read(&self, into: &mut [u8]) -> Result<()> {
        let slots = &self.place.slots;
        let describe = || cannot("read", &slots.folder.join(DATA));
        if into.len() != self.record.len as usize {
            let len = self.record.len;
            return Err(Error::corrupt(format!("{}: {len} bytes in slot {}", describe(), self.place.index)));
        }
        slots.data.read_exact_at(into, self.place.index * slots.block_bytes).context(describe)?;
        if crc32c(into) != self.record.checksum {
            return Err(Error::corrupt(format!("{}: slot {} was altered", describe(), self.place.index)));
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn index(&self) -> u64 {
        self.place.index
    }
}

fn cannot(verb: &str, path: &Path) -> String {
    format!("cannot {verb} {}", path.display())
}

fn take_lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let lock = File::options().read(true).append(true).create(true).open(&path);
    let mut lock = lock.context(|| cannot("open", &path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(Error::unavailable(format!(
                "{} is in use by {}: end it, or choose another folder (cache.folder)",
                folder.display(),
                holder(&lock)
            )));
        }
        Err(error) => return Err(Error::io(cannot("lock", &path), error.into())),
    }
    // Only a courtesy to whoever comes second: a full disk must not keep the cache from opening.
    let _ = lock.set_len(0).and_then(|()| lock.write_all(std::process::id().to_string().as_bytes()));
    Ok(lock)
}

/// Who says that it has the lock.
fn holder(lock: &File) -> String {
    let mut text = String::new();
    let read = lock.take(20).read_to_string(&mut text);
    match read.ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(process) => format!("process {process}"),
        None => "another process".to_owned(),
    }
}

fn open_file(path: &Path) -> Result<File> {
    let describe = || cannot("open", path);
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.context(describe)?;
    if !file.metadata().context(describe)?.is_file() {
        return Err(Error::invalid(format!(
            "{} is no regular file: choose another cache.folder",
            path.display()
        )));
    }
    Ok(file)
}

/// Slots that a file may have: growing one beyond the limit on files raises a signal that ends the process without a word.
fn most_slots(block_bytes: u64) -> u64 {
    let limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
    let slots = limit / block_bytes.max(RECORD_BYTES as u64);
    if limit < u64::MAX {
        tracing::warn!("files may have {limit} bytes (ulimit -f): at most {slots} blocks are kept on disk");
    }
    slots.min(MOST_SLOTS)
}

fn begin_anew(folder: &Path, records: &File, data: &File, header: &Header) -> Result<()> {
    let describe = || cannot("begin anew in", folder);
    if records.metadata().context(describe)?.len() > 0 {
        tracing::warn!(
            "{} holds blocks of another size or version: they are given up, and the cache begins anew",
            folder.display()
        );
    }
    records.set_len(0).context(describe)?;
    data.set_len(0).context(describe)?;
    records.write_all_at(&header.to_bytes(), 0).context(describe)
}

fn cut(file: &File, bytes: u64) -> std::io::Result<()> {
    if file.metadata()?.len() > bytes { file.set_len(bytes) } else { Ok(()) }
}

/// The records of the first `count` slots that hold something, the slots among them that hold nothing, and the first slot
/// that has no record.
fn read_records(
    records: &File,
    data: &File,
    block_bytes: u64,
    count: u64,
) -> (Vec<(u64, Record)>, Vec<u64>, u64) {
    let bytes = |file: &File| file.metadata().map_or(0, |metadata| metadata.len());
    let written = Record::count_in(bytes(records)).min(count);
    let data_bytes = bytes(data);
    let (mut found, mut empty) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; BATCH as usize * RECORD_BYTES];
    for first in (0..written).step_by(BATCH as usize) {
        let batch = BATCH.min(written - first);
        let buffer = &mut buffer[..batch as usize * RECORD_BYTES];
        if records.read_exact_at(buffer, Record::offset(first)).is_err() {
            buffer.fill(0);
        }
        for (index, bytes) in (first..).zip(buffer.as_chunks::<RECORD_BYTES>().0) {
            match Record::from_bytes(bytes).filter(|record| record.fits(index, block_bytes, data_bytes)) {
                Some(record) => found.push((index, record)),
                None => empty.push(index),
            }
        }
    }
    (found, empty, written)
}

#[cfg(test)]
mod tests;
