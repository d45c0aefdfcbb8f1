//! Describing a dataset's objects, several at a time.
//!
//! Threads take objects in their order and put what they find into its place, so their number changes nothing. Where
//! objects fail, the first of them in order is named: all before it have been taken by then, and are finished.

use super::detect::{Found, detect};
use super::objects::Objects;
use super::table::Table;
use super::{Format, Index, IndexProgress, IndexSettings, json_lines, mosaic, parquet, tokens, web_dataset};
use crate::blocks::ObjectInfo;
use gradus_error::{Error, Result};
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Most threads.
const MOST_THREADS: usize = 64;

/// Objects that are read at a time where it is a few bytes of each: a bucket's latency is waited for, nothing is computed.
const HEADS_AT_ONCE: usize = 32;

/// What one object came to.
pub(super) struct Described {
    pub(super) table: Table,
    /// Names of its samples, where the format has them.
    pub(super) keys: Vec<String>,
}

impl From<Table> for Described {
    fn from(table: Table) -> Self {
        Self { table, keys: Vec::new() }
    }
}

/// The way to one object while it is described.
pub(super) struct Work<'a> {
    pub(super) objects: &'a dyn Objects,
    pub(super) object: &'a ObjectInfo,
    state: &'a State<'a>,
}

impl Work<'_> {
    /// The object's bytes from its start; their passing is progress.
    pub(super) fn open(&self) -> Result<Counted<'_>> {
        Ok(Counted {
            reader: self.objects.open(self.object)?,
            state: self.state,
            read: 0,
            bytes: self.object.bytes,
        })
    }

    /// Bytes from `offset` on.
    pub(super) fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.objects.read_at(self.object, offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Says that so many of the object's bytes need no reading any more.
    pub(super) fn pass(&self, bytes: u64) {
        self.state.tell(bytes);
    }

    /// Damage at a byte of the object.
    pub(super) fn corrupt(&self, at: u64, why: impl std::fmt::Display) -> Error {
        Error::corrupt(format!("{} at byte {at}: {why}", self.object.address))
    }

    /// What is wrong with the object.
    pub(super) fn invalid(&self, why: impl std::fmt::Display) -> Error {
        Error::invalid(format!("{}: {why}", self.object.address))
    }
}

/// Counts what is read.
pub(super) struct Counted<'a> {
    reader: Box<dyn Read + Send>,
    state: &'a State<'a>,
    read: u64,
    bytes: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(into)?;
        // An object that ends early would look like one that is finished.
        if read == 0 && !into.is_empty() && self.read < self.bytes {
            let why = format!("it ended after {} of {} bytes", self.read, self.bytes);
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, why));
        }
        self.read += read as u64;
        self.state.tell(read as u64);
        Ok(read)
    }
}

struct State<'a> {
    progress: &'a (dyn Fn(IndexProgress) + Sync),
    objects: u64,
    bytes: u64,
    objects_done: AtomicU64,
    bytes_done: AtomicU64,
}

impl State<'_> {
    fn tell(&self, bytes: u64) {
        let bytes_done = self.bytes_done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(IndexProgress {
            objects_done: self.objects_done.load(Ordering::Relaxed),
            objects: self.objects,
            bytes_done: bytes_done.min(self.bytes),
            bytes: self.bytes,
        });
    }
}

/// As [`Index::build_listed`].
pub(super) fn build(
    objects: &dyn Objects,
    prefix: &str,
    listed: &[ObjectInfo],
    settings: &IndexSettings,
    progress: &(dyn Fn(IndexProgress) + Sync),
) -> Result<Index> {
    let run_on = |threads, infos: Vec<ObjectInfo>, format, each: &Each| {
        each_object(objects, infos, format, threads, progress, each)
    };
    let run = |infos, format, each: &Each| run_on(settings.threads, infos, format, each);
    match detect(prefix, listed)? {
        Found::Tokens(manifest) => tokens::index(objects, &manifest, listed, settings),
        Found::Mosaic(index) => {
            let heads_at_once = if settings.checksums { 0 } else { settings.threads.max(HEADS_AT_ONCE) };
            let (shards, heads) = mosaic::Shards::read(objects, &index, listed, heads_at_once)?;
            let format = Format::Mosaic { columns: shards.columns.clone() };
            let threads =
                if shards.are_plain() { heads_at_once.max(settings.threads) } else { settings.threads };
            run_on(threads, shards.objects(), format, &|at, work| {
                shards.describe(at, work, &heads, settings.checksums)
            })
        }
        Found::JsonLines(files) => {
            let infos = files.iter().map(|(object, _)| object.clone()).collect();
            run(infos, Format::JsonLines, &|at, work| json_lines::describe(files[at].1, work))
        }
        Found::Parquet(files) => {
            let column = &settings.text_column;
            let format = Format::Parquet { column: column.clone() };
            run(files, format, &|_, work| parquet::describe(column, work))
        }
        Found::WebDataset(files) => run(files, Format::WebDataset, &|_, work| web_dataset::describe(work)),
    }
}

/// Describes one object, given its place among all.
type Each<'a> = dyn Fn(usize, &Work<'_>) -> Result<Described> + Sync + 'a;

fn each_object(
    objects: &dyn Objects,
    infos: Vec<ObjectInfo>,
    format: Format,
    threads: usize,
    progress: &(dyn Fn(IndexProgress) + Sync),
    each: &Each,
) -> Result<Index> {
    let state = State {
        progress,
        objects: infos.len() as u64,
        bytes: infos.iter().map(|object| object.bytes).sum(),
        objects_done: AtomicU64::new(0),
        bytes_done: AtomicU64::new(0),
    };
    let slots: Vec<Mutex<Option<Result<Described>>>> = infos.iter().map(|_| Mutex::new(None)).collect();
    each_of(infos.len(), threads.max(1), &|at| {
        let described = each(at, &Work { objects, object: &infos[at], state: &state });
        let goes_on = described.is_ok();
        *slots[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(described);
        state.objects_done.fetch_add(1, Ordering::Relaxed);
        state.tell(0);
        goes_on
    });
    let (mut tables, mut keys) = (Vec::new(), Vec::new());
    for slot in slots {
        let described = slot.into_inner().unwrap_or_else(PoisonError::into_inner);
        let described = described.unwrap_or_else(|| Err(Error::internal("an object was passed over")))?;
        tables.push(described.table);
        keys.push(described.keys);
    }
    Ok(Index::new(format, infos, tables, keys))
}

/// Calls `each` with every number below `count`, in order, on so many threads (none: not at all), until it says that it does not
/// go on.
pub(super) fn each_of(count: usize, threads: usize, each: &(dyn Fn(usize) -> bool + Sync)) {
    let (next, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        while !ended.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                break;
            }
            ended.fetch_or(!each(at), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let threads = threads.min(MOST_THREADS).min(count);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
}
