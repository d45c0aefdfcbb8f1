//! Memory for samples that are read from files: taken again while it is still in the processor's caches.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shelves, which threads have in turn: as many threads in a row as there are shelves have one by themselves.
const SHELVES: usize = 8;

/// Buffers that a shelf keeps for its next reader, and bytes of all of them; more are given back to the system.
const KEPT: usize = 32;
const KEPT_BYTES: usize = 64 << 20;

/// Buffers that nobody uses. A thread takes again what it has taken before: from another's caches it would come as slowly as
/// from memory.
#[derive(Default)]
pub(crate) struct Buffers {
    shelves: [Arc<Shelf>; SHELVES],
}

/// On cache lines of its own: threads that share nothing else are not to wait for these either.
#[derive(Default)]
#[repr(align(128))]
struct Shelf {
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// Bytes in a buffer that goes back to where it came from.
pub(crate) struct Buffer {
    /// At least `len` long: what is behind is from an earlier use.
    bytes: Vec<u8>,
    len: usize,
    home: Arc<Shelf>,
}

impl Buffers {
    /// A buffer of `len` bytes, of whatever value: the last that this thread's shelf was given back.
    pub fn take(&self, len: usize) -> Buffer {
        thread_local!(static NUMBER: usize = {
            static THREADS: AtomicUsize = AtomicUsize::new(0);
            THREADS.fetch_add(1, Ordering::Relaxed)
        });
        let home = &self.shelves[NUMBER.with(|number| number % SHELVES)];
        let mut bytes = home.free().pop();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        Buffer { bytes, len, home: home.clone() }
    }
}

impl Shelf {
    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    /// The last that was given back, or an empty one.
    fn pop(&mut self) -> Vec<u8> {
        let buffer = self.buffers.pop().unwrap_or_default();
        self.bytes -= buffer.len();
        buffer
    }

    /// Keeps a buffer, or hands it back.
    fn push(&mut self, buffer: Vec<u8>) -> Option<Vec<u8>> {
        if self.buffers.len() == KEPT || self.bytes + buffer.len() > KEPT_BYTES {
            return Some(buffer);
        }
        self.bytes += buffer.len();
        self.buffers.push(buffer);
        None
    }
}

impl Buffer {
    /// Its bytes, to be written.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // What is too much is given back to the system once others may have theirs.
        let _too_much = self.home.free().push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_buffer_is_taken_again_whatever_the_length() {
        let buffers = Buffers::default();
        let (mut first, second) = (buffers.take(100), buffers.take(50));
        first.space().fill(7);
        let place = first.as_ptr();
        drop(second);
        drop(first);
        let again = buffers.take(30);
        assert_eq!((again.as_ptr(), again.len()), (place, 30));
        assert_eq!(buffers.take(200).len(), 200);
    }

    #[test]
    fn no_more_is_kept_than_a_shelf_holds() {
        let buffers = Buffers::default();
        let held = [KEPT_BYTES / 2, KEPT_BYTES / 2, 1, 1].map(|len| buffers.take(len));
        let home = held[0].home.clone();
        drop(held);
        let (count, bytes) = {
            let free = home.free();
            (free.buffers.len(), free.bytes)
        };
        assert_eq!((count, bytes), (2, KEPT_BYTES));
        let others = Buffers::default();
        let held: Vec<Buffer> = (0..2 * KEPT).map(|_| others.take(1)).collect();
        let home = held[0].home.clone();
        drop(held);
        assert_eq!(home.free().buffers.len(), KEPT);
    }

    #[test]
    fn threads_take_their_own_again_whoever_gave_them_back() {
        let buffers = Buffers::default();
        let own = buffers.take(10);
        let taken = || std::thread::scope(|scope| scope.spawn(|| buffers.take(10)).join().unwrap());
        let other = std::iter::repeat_with(taken).find(|other| !Arc::ptr_eq(&other.home, &own.home)).unwrap();
        let place = other.as_ptr();
        drop(own);
        drop(other);
        assert_ne!(buffers.take(10).as_ptr(), place);
    }
}
