//! Memory of one process that its peers may reach: ranges of a file in memory that only grows.
//!
//! The owner hands the file to its peers once, when they meet, and takes ranges out of it later, whenever it likes:
//! nothing more has to be handed over. A peer maps the file as far as it has grown when it is told of a range beyond
//! what it has mapped. Offsets are never given twice; the memory of a range that is dropped goes back to the system at
//! once, and a peer that still writes there writes into the file, not into what the owner has in its place by then. Only a range
//! in somebody's reservation leaves its mapping there, for as long as the reservation lives.

use crate::segment::{check_file_limit, reserved_file};
use gradus_error::{Error, IoContext, Result};
use rustix::fs::{self, FallocateFlags, SealFlags};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PAGE: usize = 4096;

/// The owner's side of a heap.
#[derive(Clone)]
pub struct SharedHeap {
    file: Arc<File>,
}

struct File {
    descriptor: OwnedFd,
    ranges: Mutex<Ranges>,
}

/// What has been taken out of the file.
#[derive(Default)]
struct Ranges {
    /// Where the next one begins.
    end: usize,
    /// Address, bytes and offset of those that live.
    living: Vec<(usize, usize, usize)>,
}

/// Memory of a heap, mapped by its owner; given back when dropped.
pub struct HeapRange {
    file: Arc<File>,
    start: NonNull<u8>,
    len: usize,
    offset: usize,
    /// Whose reservation the addresses are part of, if they are not the range's own.
    reservation: Option<Arc<dyn Send + Sync>>,
}

// SAFETY: the mapping lives as long as the range, on every thread; safe methods give addresses only.
unsafe impl Send for HeapRange {}
// SAFETY: as above.
unsafe impl Sync for HeapRange {}

impl SharedHeap {
    /// An empty heap; `name` shows in `/proc/PID/maps` and nowhere else.
    ///
    /// # Errors
    /// The system's failure to make a file in memory.
    pub fn create(name: &str) -> Result<Self> {
        let descriptor = reserved_file(name, 0, SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Self { file: Arc::new(File { descriptor, ranges: Mutex::default() }) })
    }

    /// The file to hand to peers.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.descriptor.as_fd()
    }

    /// Where in the heap memory of this process lies, if one of its ranges holds all of it.
    pub fn locate(&self, start: *const u8, len: usize) -> Option<usize> {
        let (first, ranges) = (start.addr(), self.file.ranges());
        let holds = |range: &&(usize, usize, usize)| first >= range.0 && first - range.0 + len <= range.1;
        ranges.living.iter().find(holds).map(|(address, _, offset)| offset + (first - address))
    }

    /// Takes a range of `len` zero bytes at least, at an address of its own.
    ///
    /// # Errors
    /// `Exhausted` when the memory cannot be reserved.
    pub fn allocate(&self, len: usize) -> Result<HeapRange> {
        // SAFETY: no address is asked for, so nothing is overlaid.
        unsafe { self.map(None, len) }
    }

    /// Takes a range of `len` zero bytes and maps it over the addresses from `start` on, in place of what is there.
    /// `reservation` is held for as long as the range lives.
    ///
    /// # Errors
    /// `Exhausted` when the memory cannot be reserved: what was at the addresses is still there.
    ///
    /// # Safety
    /// The addresses are the caller's, and nothing lives there; they stay reserved for as long as somebody holds `reservation`. The
    /// range leaves its mapping there when it is dropped.
    ///
    /// # Panics
    /// If the address or the length is not a multiple of a page.
    pub unsafe fn allocate_at(
        &self,
        start: NonNull<u8>,
        len: usize,
        reservation: Arc<dyn Send + Sync>,
    ) -> Result<HeapRange> {
        assert!(start.as_ptr().addr().is_multiple_of(PAGE) && len.is_multiple_of(PAGE), "pages are mapped");
        // SAFETY: by the caller's word.
        unsafe { self.map(Some((start, reservation)), len) }
    }

    /// # Safety
    /// As for [`SharedHeap::allocate_at`], if there is an address.
    unsafe fn map(&self, at: Option<(NonNull<u8>, Arc<dyn Send + Sync>)>, len: usize) -> Result<HeapRange> {
        let len = len.max(1).next_multiple_of(PAGE);
        let offset = self.file.grow(len)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let (address, flags) = match &at {
            Some((start, _)) => (start.as_ptr().cast(), MapFlags::SHARED | MapFlags::FIXED),
            None => (std::ptr::null_mut(), MapFlags::SHARED),
        };
        // SAFETY: a fresh mapping, or one over addresses that are the caller's to give.
        let start =
            unsafe { mm::mmap(address, len, protection, flags, &self.file.descriptor, offset as u64) }
                .context(|| format!("cannot map {len} bytes of shared memory"))
                .inspect_err(|_| self.file.give_back(offset, len))?;
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::internal("mmap returned null"))?;
        populate(start, len);
        let file = Arc::clone(&self.file);
        file.ranges().living.push((start.as_ptr().addr(), len, offset));
        Ok(HeapRange { file, start, len, offset, reservation: at.map(|(_, reservation)| reservation) })
    }
}

impl File {
    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the file longer by `len` bytes, with their memory reserved; where they begin.
    fn grow(&self, len: usize) -> Result<usize> {
        let mut ranges = self.ranges();
        let offset = ranges.end;
        let describe = || format!("cannot reserve {len} bytes of shared memory");
        check_file_limit(offset.saturating_add(len)).map_err(|error| error.within(describe()))?;
        fs::fallocate(&self.descriptor, FallocateFlags::empty(), offset as u64, len as u64)
            .context(describe)?;
        ranges.end = offset + len;
        Ok(offset)
    }

    /// Lets the system have the memory of a part; a refusal leaves it to the end of the file's life.
    fn give_back(&self, offset: usize, len: usize) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = fs::fallocate(&self.descriptor, hole, offset as u64, len as u64);
    }
}

impl HeapRange {
    /// Where it begins in this process.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no byte: never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it begins in the heap.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl Drop for HeapRange {
    fn drop(&mut self) {
        self.file.ranges().living.retain(|(_, _, offset)| *offset != self.offset);
        if self.reservation.is_none() {
            // SAFETY: mapped with this size; whoever holds a raw address answers for not outliving the range.
            let _ = unsafe { mm::munmap(self.start.as_ptr().cast::<c_void>(), self.len) };
        }
        self.file.give_back(self.offset, self.len);
    }
}

/// A heap of a peer.
pub struct PeerHeap {
    file: Arc<OwnedFd>,
    mapped: Option<(NonNull<u8>, usize)>,
}

// SAFETY: the mapping lives as long as the heap, on every thread; safe methods give addresses only.
unsafe impl Send for PeerHeap {}

impl PeerHeap {
    /// The heap whose file a peer has handed over.
    ///
    /// # Errors
    /// `Invalid` when the file could shrink while it is mapped.
    pub fn open(file: OwnedFd) -> Result<Self> {
        let seals = fs::fcntl_get_seals(&file).context(|| "cannot inspect a shared heap".to_owned())?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Error::invalid("a shared heap is not sealed against shrinking"));
        }
        Ok(Self { file: Arc::new(file), mapped: None })
    }

    /// The same heap, mapped for itself: what one's calls move does not move the other's addresses.
    #[must_use]
    pub fn again(&self) -> Self {
        Self { file: Arc::clone(&self.file), mapped: None }
    }

    /// The address of `len` bytes from `offset` on, here; valid until the next call.
    ///
    /// # Errors
    /// `Corrupt` when the heap has no such bytes; the system's failure to map them.
    pub fn at(&mut self, offset: usize, len: usize) -> Result<*mut u8> {
        let end = offset.checked_add(len).ok_or_else(|| beyond(offset, len))?;
        let (start, mapped) = match self.mapped {
            Some(mapping) if end <= mapping.1 => mapping,
            _ => self.remap(offset, end).map_err(|error| error.within(beyond(offset, len).to_string()))?,
        };
        debug_assert!(end <= mapped, "remap has seen to it");
        // SAFETY: inside the mapping.
        Ok(unsafe { start.as_ptr().add(offset) })
    }

    /// Maps the whole file as it is now, which must reach `end`, and has what begins at `offset` there at once.
    fn remap(&mut self, offset: usize, end: usize) -> Result<(NonNull<u8>, usize)> {
        let size = fs::fstat(&*self.file).context(|| "cannot inspect a shared heap".to_owned())?.st_size;
        let size = usize::try_from(size).unwrap_or(0);
        if end > size || end == 0 {
            return Err(Error::corrupt(format!("the heap holds {size} bytes")));
        }
        self.unmap();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping overlays nothing.
        let start =
            unsafe { mm::mmap(std::ptr::null_mut(), size, protection, MapFlags::SHARED, &*self.file, 0) }
                .context(|| format!("cannot map {size} bytes of a peer's memory"))?;
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::internal("mmap returned null"))?;
        // What is asked for only: of the rest, some may have been given back, and would be taken again.
        let first = offset - offset % PAGE;
        // SAFETY: `first` is before `end`, which is inside the mapping.
        populate(unsafe { start.add(first) }, end - first);
        self.mapped = Some((start, size));
        Ok((start, size))
    }

    fn unmap(&mut self) {
        if let Some((start, len)) = self.mapped.take() {
            // SAFETY: mapped with this size; addresses are valid until the next call only.
            let _ = unsafe { mm::munmap(start.as_ptr().cast::<c_void>(), len) };
        }
    }
}

impl Drop for PeerHeap {
    fn drop(&mut self) {
        self.unmap();
    }
}

fn beyond(offset: usize, len: usize) -> Error {
    Error::corrupt(format!("a peer names {len} bytes at {offset} of its shared heap, which it does not have"))
}

/// Maps pages now instead of at first touch; a refusal only costs time later.
fn populate(start: NonNull<u8>, len: usize) {
    // SAFETY: the range was mapped just now; populating changes no byte.
    let _ = unsafe { mm::madvise(start.as_ptr().cast::<c_void>(), len, Advice::LinuxPopulateWrite) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    fn pair() -> (SharedHeap, PeerHeap) {
        let ours = SharedHeap::create("test").unwrap();
        let theirs = PeerHeap::open(ours.file().try_clone_to_owned().unwrap()).unwrap();
        (ours, theirs)
    }

    #[test]
    fn a_peer_sees_every_range_however_late_it_came() {
        let (ours, mut theirs) = pair();
        let mut ranges = Vec::new();
        for len in [1, 5000, 1 << 20] {
            let range = ours.allocate(len).unwrap();
            assert!(range.len() >= len);
            // SAFETY: inside the range; nobody else touches it now.
            unsafe { range.start().as_ptr().add(len - 1).write(len as u8 | 1) };
            let there = theirs.at(range.offset() + len - 1, 1).unwrap();
            // SAFETY: an address of the heap, valid until the next call.
            assert_eq!(unsafe { there.read() }, len as u8 | 1);
            // SAFETY: as above.
            unsafe { there.write(99) };
            // SAFETY: inside the range.
            assert_eq!(unsafe { range.start().as_ptr().add(len - 1).read() }, 99);
            ranges.push(range);
        }
        let second = &ranges[1];
        // SAFETY: inside the range.
        let inside = unsafe { second.start().as_ptr().add(100) };
        assert_eq!(ours.locate(inside, second.len() - 100), Some(second.offset() + 100));
        assert_eq!(ours.locate(inside, second.len()), None);
        assert_eq!(ours.locate((&raw const ranges).cast(), 1), None);
        assert!(ranges.windows(2).all(|pair| pair[0].offset() + pair[0].len() == pair[1].offset()));
    }

    #[test]
    fn a_heap_that_is_mapped_again_keeps_its_addresses() {
        let (ours, mut theirs) = pair();
        let mut again = theirs.again();
        let range = ours.allocate(100).unwrap();
        let there = again.at(range.offset(), 100).unwrap();
        let more = ours.allocate(1 << 20).unwrap();
        // The first one maps anew, which is no business of the second's.
        theirs.at(more.offset(), 1 << 20).unwrap();
        // SAFETY: inside the range; nobody else touches it now.
        unsafe { range.start().as_ptr().write(7) };
        // SAFETY: an address of the second heap, for which nothing was called since.
        assert_eq!(unsafe { there.read() }, 7);
    }

    #[test]
    fn what_a_heap_does_not_have_is_refused() {
        let (ours, mut theirs) = pair();
        for (offset, len) in [(0, 1), (0, 0), (usize::MAX, 1), (1 << 40, 4)] {
            assert_eq!(*theirs.at(offset, len).unwrap_err().kind(), Kind::Corrupt);
        }
        let range = ours.allocate(4096).unwrap();
        theirs.at(range.offset(), 4096).unwrap();
        assert_eq!(*theirs.at(range.offset() + 1, 4096).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn a_dropped_range_gives_its_memory_back_and_its_offset_to_nobody() {
        let (ours, mut theirs) = pair();
        let range = ours.allocate(4096).unwrap();
        let offset = range.offset();
        let there = theirs.at(offset, 1).unwrap();
        // SAFETY: an address of the heap, valid until the next call.
        unsafe { there.write(7) };
        drop(range);
        // SAFETY: still mapped here; the page is a new one.
        assert_eq!(unsafe { there.read() }, 0);
        assert_ne!(ours.allocate(4096).unwrap().offset(), offset);
    }

    #[test]
    fn to_map_a_heap_late_takes_no_memory_of_what_was_given_back() {
        let (ours, mut theirs) = pair();
        drop(ours.allocate(64 * PAGE).unwrap());
        let range = ours.allocate(PAGE).unwrap();
        theirs.at(range.offset(), PAGE).unwrap();
        // In units of 512 bytes.
        let held = fs::fstat(ours.file()).unwrap().st_blocks as usize * 512;
        assert_eq!(held, PAGE);
    }

    #[test]
    fn a_range_takes_the_place_of_a_reservation() {
        let arena = Arc::new(crate::Arena::reserve(4 * PAGE).unwrap());
        let span = arena.allocate(4 * PAGE).unwrap();
        let start = NonNull::new(arena.raw(span).start.cast::<u8>()).unwrap();
        let aligned =
            start.map_addr(|address| address.checked_add(address.get().wrapping_neg() % PAGE).unwrap());
        let (ours, mut theirs) = pair();
        // SAFETY: inside the arena, of which nobody uses anything.
        let range = unsafe { ours.allocate_at(aligned, PAGE, Arc::clone(&arena) as _) }.unwrap();
        // SAFETY: inside the range.
        unsafe { aligned.as_ptr().write(5) };
        // SAFETY: an address of the heap.
        assert_eq!(unsafe { theirs.at(range.offset(), 1).unwrap().read() }, 5);
        drop(range);
    }
}
