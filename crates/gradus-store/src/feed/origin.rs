//! Where the bytes come from that a node does not have: files of this host, or a bucket.

use super::buffers::{Buffer, Buffers};
use super::depth::Depth;
use super::hints::Hints;
use super::several::Several;
use super::stalls::Cause;
use super::unit::Origin;
use crate::blocks::BlockMap;
use crate::bucket::{Bucket, BucketCounters, Destination, OpenFile, Read};
use crate::cache::Fill;
use gradus_error::{Error, Kind, Result};
use gradus_host::Clock;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Where a dataset's objects are.
#[derive(Debug, Clone)]
pub enum Source {
    /// In files of this host. They are read where they are: the system keeps in memory what was read.
    Files,
    /// In a bucket.
    Bucket(Bucket),
    /// One after another in several places: so many objects in each.
    Several(Vec<(usize, Source)>),
}

impl Source {
    /// Whether any object comes from a bucket.
    pub fn is_remote(&self) -> bool {
        match self {
            Self::Files => false,
            Self::Bucket(_) => true,
            Self::Several(parts) => parts.iter().any(|(_, part)| part.is_remote()),
        }
    }

    pub(super) fn origin(
        &self,
        map: Arc<BlockMap>,
        depth: Arc<Mutex<Depth>>,
        clock: Arc<dyn Clock>,
    ) -> Arc<dyn Origin> {
        let buffers = Arc::new(Buffers::default());
        match self {
            Self::Files => {
                let files = map.objects().iter().map(|_| OnceLock::new()).collect();
                Arc::new(Files { map, files, buffers, hints: Hints::default(), clock })
            }
            Self::Bucket(bucket) => Arc::new(Remote { bucket: bucket.clone(), map, buffers, depth, clock }),
            Self::Several(parts) => {
                let each = parts.iter().map(|(objects, part)| {
                    (*objects, part.origin(map.clone(), depth.clone(), clock.clone()))
                });
                Arc::new(Several::new(each, map.clone()))
            }
        }
    }
}

/// Objects that are files.
struct Files {
    map: Arc<BlockMap>,
    /// Of each object, once it is open.
    files: Vec<OnceLock<OpenFile>>,
    buffers: Arc<Buffers>,
    hints: Hints,
    clock: Arc<dyn Clock>,
}

impl Files {
    fn file(&self, object: u32) -> Result<&OpenFile> {
        let place = &self.files[object as usize];
        if let Some(file) = place.get() {
            return Ok(file);
        }
        let opened = OpenFile::open(&self.map.objects()[object as usize])?;
        // Whoever was faster has opened the same.
        Ok(place.get_or_init(|| opened))
    }
}

impl Origin for Files {
    fn begin(&self, fills: Vec<Fill>) {
        for fill in fills {
            fill.fail(Error::internal("what lies in files is read where it is"));
        }
    }

    fn read(&self, object: u32, range: Range<u64>) -> Result<Buffer> {
        let bytes = range.end - range.start;
        let mut buffer = self.buffers.take(bytes as usize);
        let file = self.file(object)?;
        let begun = self.clock.now();
        file.read_at(range.start, buffer.space())?;
        self.hints.read(bytes, self.clock.now().saturating_sub(begun));
        Ok(buffer)
    }

    fn expect(&self, object: u32, range: Range<u64>) {
        // Whoever reads it finds out what is wrong with it.
        let Some(file) = self.hints.are_wanted().then(|| self.file(object).ok()).flatten() else { return };
        let (bytes, begun) = (range.end - range.start, self.clock.now());
        file.expect(range);
        self.hints.gave(bytes, self.clock.now().saturating_sub(begun));
    }

    fn cause(&self, _: u32) -> Cause {
        Cause::Disk
    }

    fn is_near(&self, _: u32) -> bool {
        true
    }

    fn counters(&self) -> BucketCounters {
        BucketCounters::default()
    }
}

/// Objects of a bucket.
struct Remote {
    bucket: Bucket,
    map: Arc<BlockMap>,
    buffers: Arc<Buffers>,
    depth: Arc<Mutex<Depth>>,
    clock: Arc<dyn Clock>,
}

impl Origin for Remote {
    fn begin(&self, fills: Vec<Fill>) {
        let Some((first, last)) = fills.first().map(Fill::block).zip(fills.last().map(Fill::block)) else {
            return;
        };
        let object = &self.map.objects()[self.map.object_of(first)];
        let range = self.map.range_of(first).start..self.map.range_of(last).end;
        let (depth, clock, begun) = (self.depth.clone(), self.clock.clone(), self.clock.now());
        let done = move |fills: Fills, outcome: Result<()>| match outcome {
            Ok(()) => {
                let latency = clock.now().saturating_sub(begun);
                fetched(&depth, latency);
                fills.0.into_iter().for_each(Fill::complete);
            }
            Err(error) => fail(fills, &error),
        };
        self.bucket.begin_read(Read { object, range, into: Fills(fills), done });
    }

    fn read(&self, object: u32, range: Range<u64>) -> Result<Buffer> {
        let mut buffer = self.buffers.take((range.end - range.start) as usize);
        self.bucket.read_at(&self.map.objects()[object as usize], range.start, buffer.space())?;
        Ok(buffer)
    }

    fn expect(&self, _: u32, _: Range<u64>) {}

    fn cause(&self, _: u32) -> Cause {
        Cause::Bucket
    }

    fn is_near(&self, _: u32) -> bool {
        false
    }

    fn counters(&self) -> BucketCounters {
        self.bucket.counters()
    }
}

fn fetched(depth: &Mutex<Depth>, latency: Duration) {
    depth.lock().unwrap_or_else(PoisonError::into_inner).fetched(latency);
}

/// Blocks that follow one another.
struct Fills(Vec<Fill>);

impl Destination for Fills {
    fn room(&self) -> usize {
        self.0.iter().map(Fill::room).sum()
    }

    fn put(&mut self, mut offset: usize, mut bytes: &[u8]) {
        for fill in &mut self.0 {
            let space = fill.space();
            let Some(place) = space.get_mut(offset..) else {
                offset -= space.len();
                continue;
            };
            let (now, later) = bytes.split_at(place.len().min(bytes.len()));
            place[..now.len()].copy_from_slice(now);
            (offset, bytes) = (0, later);
        }
    }
}

/// Each block's readers are told what kept it from coming.
fn fail(fills: Fills, error: &Error) {
    let (kind, text): (Kind, String) = (error.kind().clone(), error.to_string());
    for fill in fills.0 {
        fill.fail(Error::new(kind.clone(), text.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{Address, BucketSettings};
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A clock that goes on by so many microseconds whenever it is looked at.
    #[derive(Default)]
    struct Steps {
        step: AtomicU64,
        now: AtomicU64,
    }

    impl Clock for Steps {
        fn now(&self) -> Duration {
            let step = self.step.load(Ordering::Relaxed);
            Duration::from_micros(self.now.fetch_add(step, Ordering::Relaxed))
        }

        fn calendar(&self) -> Duration {
            self.now()
        }

        fn sleep(&self, _: Duration) {}
    }

    #[test]
    fn files_in_memory_get_no_hints_until_a_read_is_slow() {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::File(folder.path().to_owned());
        let bucket = Bucket::open(&address, &BucketSettings::default(), &|_| None).unwrap();
        let object = bucket.write("file", &[1; 9000]).unwrap();
        let map = Arc::new(BlockMap::new(vec![object], 4096).unwrap());
        let clock = Arc::new(Steps::default());
        let (buffers, hints) = (Arc::default(), Hints::default());
        let files = Files { map, files: vec![OnceLock::new()], buffers, hints, clock: clock.clone() };
        let step = |micros: u64| clock.step.store(micros, Ordering::Relaxed);
        // A hint that is given is timed.
        let is_given = || {
            let before = clock.now.load(Ordering::Relaxed);
            files.expect(0, 0..9000);
            clock.now.load(Ordering::Relaxed) > before
        };
        step(1);
        let given = (0..1000).take_while(|_| is_given()).count();
        assert!((1..1000).contains(&given), "{given}");
        files.read(0, 0..9000).unwrap();
        assert!(!is_given(), "it was as fast as memory");
        step(100_000);
        files.read(0, 0..9000).unwrap();
        assert!(is_given() && is_given());
    }
}
