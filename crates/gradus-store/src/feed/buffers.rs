//! Memory for samples that are read from files: taken again while it is still in the processor's caches.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that are kept for the next reader; more are given back to the system.
const KEPT: usize = 64;

/// Buffers that nobody uses.
#[derive(Default)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

/// Bytes in a buffer that goes back to where it came from.
pub(crate) struct Buffer {
    /// At least `len` long: what is behind is from an earlier use.
    bytes: Vec<u8>,
    len: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    /// A buffer of `len` bytes, of whatever value: the last that was given back.
    pub fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let mut bytes = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        Buffer { bytes, len, home: self.clone() }
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
        let mut free = self.home.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_buffer_is_taken_again_whatever_the_length() {
        let buffers = Arc::new(Buffers::default());
        let (mut first, second) = (buffers.take(100), buffers.take(50));
        first.space().fill(7);
        let place = first.as_ptr();
        drop(second);
        drop(first);
        let again = buffers.take(30);
        assert_eq!((again.as_ptr(), again.len()), (place, 30));
        assert_eq!(buffers.take(200).len(), 200);
    }
}
