//! Memory of one process: zero at first, and taken from the system where it is touched, not before.

use gradus_error::{Error, IoContext, Result};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::ptr::NonNull;

/// A mapped range that lives as long as this.
pub(crate) struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping lives as long as the region, on every thread; it gives out addresses only.
unsafe impl Send for Region {}
// SAFETY: as above; it does not change.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves addresses, however much memory there is to go with them.
    ///
    /// # Errors
    /// `Exhausted` or `Unavailable` when the system refuses.
    pub fn reserve(bytes: usize) -> Result<Self> {
        Self::map(bytes, MapFlags::NORESERVE)
    }

    /// Maps memory of which much will be used: the system may refuse at once what it could never give.
    ///
    /// # Errors
    /// As [`Region::reserve`].
    pub fn of(bytes: usize) -> Result<Self> {
        Self::map(bytes, MapFlags::empty())
    }

    fn map(bytes: usize, flags: MapFlags) -> Result<Self> {
        let (bytes, protection) = (bytes.max(1), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a fresh anonymous private mapping overlays nothing.
        let start =
            unsafe { mm::mmap_anonymous(std::ptr::null_mut(), bytes, protection, MapFlags::PRIVATE | flags) }
                .context(|| format!("cannot reserve {bytes} bytes of memory"))?;
        // SAFETY: the range was mapped just above. Huge pages only make it faster: a refusal is no failure.
        let _ = unsafe { mm::madvise(start, bytes, Advice::LinuxHugepage) };
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::internal("mmap returned null"))?;
        Ok(Self { start, bytes })
    }

    /// Where it begins: on a page.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped with this size; whoever holds an address answers for not outliving it.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast::<c_void>(), self.bytes) };
    }
}
