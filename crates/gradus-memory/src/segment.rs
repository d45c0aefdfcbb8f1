//! Memory that processes of one host share.
//!
//! A segment is a memfd: it has no name in any file system, so nothing is left behind however its users end. Its space
//! is reserved when it is made, so a full memory is an error there and no SIGBUS later; it is sealed against shrinking,
//! so a peer that maps it can rely on its size. What lies in it may be written by another process at any time: it is
//! reached by raw addresses and atomics, never by slices.

use gradus_error::{Error, IoContext, Result};
use rustix::fs::{self, FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A mapped range of memory that other processes may map too.
pub struct Segment {
    start: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

// SAFETY: the mapping lives as long as the segment, on every thread; safe methods give addresses and atomics only.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Makes a segment of `len` zero bytes; `name` shows in `/proc/PID/maps` and nowhere else.
    ///
    /// # Errors
    /// `Exhausted` when the memory cannot be reserved; the system's failure otherwise.
    pub fn create(name: &str, len: usize) -> Result<Self> {
        let file = reserved_file(name, len, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::map(file, len)
    }

    /// Maps a segment that another process made; `len` is what was agreed on.
    ///
    /// # Errors
    /// `Invalid` when the file has another size or could shrink while it is mapped.
    pub fn open(file: OwnedFd, len: usize) -> Result<Self> {
        let describe = || "cannot inspect a shared segment".to_owned();
        let seals = fs::fcntl_get_seals(&file).context(describe)?;
        let size = fs::fstat(&file).context(describe)?.st_size;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Error::invalid("a shared segment is not sealed against shrinking"));
        }
        if u64::try_from(size) != Ok(len as u64) {
            return Err(Error::invalid(format!(
                "a shared segment holds {size} bytes where {len} were agreed on"
            )));
        }
        Self::map(file, len)
    }

    fn map(file: OwnedFd, len: usize) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping overlays nothing.
        let start =
            unsafe { mm::mmap(std::ptr::null_mut(), len.max(1), protection, MapFlags::SHARED, &file, 0) }
                .context(|| format!("cannot map {len} bytes of shared memory"))?;
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::internal("mmap returned null"))?;
        Ok(Self { start, len, file })
    }

    /// The file to hand to another process.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of `len` bytes that begin at `offset`.
    ///
    /// # Panics
    /// If they are not inside the segment.
    #[inline]
    pub fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "a range must lie inside its segment"
        );
        // SAFETY: the assertion keeps the offset inside the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// The 32-bit word at `offset`, which every process reaches atomically only.
    ///
    /// # Panics
    /// If it is not inside the segment or not aligned.
    #[inline]
    pub fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(align_of::<AtomicU32>()), "an atomic must be aligned");
        // SAFETY: inside the mapping, aligned (mappings begin on a page), valid for any bits, alive as long as self.
        unsafe { AtomicU32::from_ptr(self.at(offset, size_of::<AtomicU32>()).cast()) }
    }

    /// The 64-bit word at `offset`, which every process reaches atomically only.
    ///
    /// # Panics
    /// If it is not inside the segment or not aligned.
    #[inline]
    pub fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(align_of::<AtomicU64>()), "an atomic must be aligned");
        // SAFETY: inside the mapping, aligned (mappings begin on a page), valid for any bits, alive as long as self.
        unsafe { AtomicU64::from_ptr(self.at(offset, size_of::<AtomicU64>()).cast()) }
    }

    /// Asks the system to map the pages of a range now instead of at first touch; a refusal only costs time later.
    ///
    /// # Panics
    /// If the range is not inside the segment or does not begin on a page.
    pub fn populate(&self, offset: usize, len: usize) {
        let start = self.at(offset, len);
        // SAFETY: the range lies inside the mapping; populating changes no byte.
        let _ = unsafe { mm::madvise(start.cast::<c_void>(), len, Advice::LinuxPopulateWrite) };
    }
}

/// A file in memory of `len` zero bytes, which are reserved, with seals.
pub(crate) fn reserved_file(name: &str, len: usize, seals: SealFlags) -> Result<OwnedFd> {
    let describe = || format!("cannot reserve {len} bytes of shared memory for {name}");
    check_file_limit(len).map_err(|error| error.within(describe()))?;
    let file = fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).context(describe)?;
    fs::ftruncate(&file, len as u64).context(describe)?;
    if len > 0 {
        fs::fallocate(&file, FallocateFlags::empty(), 0, len as u64).context(describe)?;
    }
    fs::fcntl_add_seals(&file, seals).context(describe)?;
    Ok(file)
}

/// Whether this process may have a file of `len` bytes: growing one beyond the limit raises a signal that ends the process
/// without a word.
///
/// # Errors
/// `Exhausted`, naming the limit.
pub(crate) fn check_file_limit(len: usize) -> Result<()> {
    match getrlimit(Resource::Fsize).current.filter(|limit| (len as u64) > *limit) {
        Some(limit) => {
            Err(Error::exhausted(format!("files may have {limit} bytes: raise the limit (ulimit -f)")))
        }
        None => Ok(()),
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: mapped with this size; atomics borrow the segment and are gone, and whoever holds a raw address
        // answers for not outliving it.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast::<c_void>(), self.len.max(1)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use std::sync::atomic::Ordering;

    #[test]
    fn two_mappings_see_the_same_words() {
        let ours = Segment::create("test", 8192).unwrap();
        ours.populate(4096, 4096);
        let theirs = Segment::open(ours.file().try_clone_to_owned().unwrap(), 8192).unwrap();
        ours.atomic_u32(4096).store(7, Ordering::Relaxed);
        ours.atomic_u64(8).store(u64::MAX, Ordering::Relaxed);
        // SAFETY: inside the mapping, written by this thread only.
        unsafe { ours.at(100, 1).write(9) };
        assert_eq!(theirs.atomic_u32(4096).load(Ordering::Relaxed), 7);
        assert_eq!(theirs.atomic_u64(8).load(Ordering::Relaxed), u64::MAX);
        // SAFETY: inside the mapping, nobody writes now.
        assert_eq!(unsafe { theirs.at(100, 1).read() }, 9);
    }

    #[test]
    fn other_sizes_and_unsealed_files_are_refused() {
        let ours = Segment::create("test", 4096).unwrap();
        let wrong = Segment::open(ours.file().try_clone_to_owned().unwrap(), 8192);
        assert_eq!(*wrong.err().unwrap().kind(), Kind::Invalid);
        let loose = fs::memfd_create("loose", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        fs::ftruncate(&loose, 4096).unwrap();
        assert_eq!(*Segment::open(loose, 4096).err().unwrap().kind(), Kind::Invalid);
        assert!(fs::ftruncate(ours.file(), 0).is_err());
    }

    #[test]
    #[should_panic(expected = "inside its segment")]
    fn a_range_beyond_the_end_panics() {
        Segment::create("test", 4096).unwrap().at(4095, 2);
    }
}
