//! Memory that nobody may touch, where AddressSanitizer watches (`cargo x sanitize`); elsewhere these do nothing.
//!
//! The sanitizer knows nothing of what is handed out of one large region. So whoever hands out says it: all that is not
//! handed out, up to the next cache line behind each range of an arena too, is poison.

#[cfg(gradus_asan)]
unsafe extern "C" {
    fn __asan_poison_memory_region(start: *const std::ffi::c_void, bytes: usize);
    fn __asan_unpoison_memory_region(start: *const std::ffi::c_void, bytes: usize);
}

/// Nobody may touch these elements.
pub fn poison<T>(start: *const T, len: usize) {
    #[cfg(gradus_asan)]
    // SAFETY: the sanitizer only takes note of it.
    unsafe {
        __asan_poison_memory_region(start.cast(), len * size_of::<T>());
    }
    let _ = (start, len);
}

/// These may be touched from now on.
pub fn open<T>(start: *const T, len: usize) {
    #[cfg(gradus_asan)]
    // SAFETY: as above.
    unsafe {
        __asan_unpoison_memory_region(start.cast(), len * size_of::<T>());
    }
    let _ = (start, len);
}
