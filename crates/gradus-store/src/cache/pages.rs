//! Memory of blocks: one segment cut into pages, each of which holds one block while somebody holds on to it.
//!
//! A [`Filling`] is the only one who may write a page; once it is finished, any number of readers share the [`Page`], and
//! the memory is reused when the last of them is gone. So whether a page may be reused is never decided: it follows from
//! who holds it. Pages are reused last in, first out: memory that was used a moment ago is in the processor's caches, and
//! fresh memory is slow at first touch.
//!
//! Invariant: bytes of a page change only while it has a `Filling`, and are read only after that.

use crate::blocks::Block;
use crc_fast::CrcAlgorithm;
use gradus_error::{Error, Result};
use gradus_memory::{Segment, red_zone};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Called once when something has come about, on the thread that brought it about and with no lock held. It must not
/// block.
pub type Waker = Box<dyn FnOnce() + Send>;

/// CRC-32C (RFC 9260, appendix A) of some bytes.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// All pages.
pub(super) struct Pages {
    segment: Segment,
    page_bytes: usize,
    count: usize,
    free: Mutex<Free>,
}

struct Free {
    /// Pages that were in use before; the last is taken first.
    used: Vec<usize>,
    /// The first page that was never in use.
    fresh: usize,
    waiting: Vec<Waker>,
}

impl Pages {
    /// Makes `count` pages of `page_bytes` each.
    ///
    /// # Errors
    /// `Exhausted` when the memory cannot be had.
    pub(super) fn new(count: u64, page_bytes: u64) -> Result<Arc<Self>> {
        let bytes = count.checked_mul(page_bytes).and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| Error::exhausted(format!("{count} pages of {page_bytes} bytes")))?;
        let segment = Segment::create("gradus-cache", bytes)
            .map_err(|error| error.within("the cache's memory (cache.memory_bytes)"))?;
        red_zone::poison(segment.at(0, bytes), bytes);
        let free = Mutex::new(Free { used: Vec::new(), fresh: 0, waiting: Vec::new() });
        Ok(Arc::new(Self { segment, page_bytes: page_bytes as usize, count: count as usize, free }))
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a page for the `len` bytes of a block; nothing when none is free.
    ///
    /// # Panics
    /// If a page is shorter than `len`.
    pub(super) fn take(self: &Arc<Self>, block: Block, len: usize) -> Option<Filling> {
        assert!(len <= self.page_bytes, "{len} bytes in pages of {}", self.page_bytes);
        let mut free = self.lock();
        let index = match free.used.pop() {
            Some(index) => index,
            None if free.fresh < self.count => {
                free.fresh += 1;
                free.fresh - 1
            }
            None => return None,
        };
        drop(free);
        red_zone::open(self.at(index, len), len);
        let page = Page {
            pages: self.clone(),
            index,
            len,
            block,
            outcome: OnceLock::new(),
            wakers: Mutex::new(Vec::new()),
            checksum: OnceLock::new(),
        };
        Some(Filling { page: Arc::new(page) })
    }

    pub(super) fn count(&self) -> u64 {
        self.count as u64
    }

    pub(super) fn free(&self) -> u64 {
        let free = self.lock();
        (self.count - free.fresh + free.used.len()) as u64
    }

    /// Calls `waker` once a page is free: at once if one is.
    pub(super) fn when_free(&self, waker: Waker) {
        let mut free = self.lock();
        if free.used.is_empty() && free.fresh == self.count {
            free.waiting.push(waker);
            return;
        }
        drop(free);
        waker();
    }

    fn at(&self, index: usize, len: usize) -> *mut u8 {
        self.segment.at(index * self.page_bytes, len)
    }

    fn give_back(&self, index: usize) {
        red_zone::poison(self.at(index, self.page_bytes), self.page_bytes);
        let mut free = self.lock();
        free.used.push(index);
        let waiting = std::mem::take(&mut free.waiting);
        drop(free);
        waiting.into_iter().for_each(|waker| waker());
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // Others may be given these addresses.
        red_zone::open(self.segment.at(0, self.segment.len()), self.segment.len());
    }
}

/// A page that holds a block, or will.
pub(super) struct Page {
    pages: Arc<Pages>,
    index: usize,
    len: usize,
    block: Block,
    outcome: OnceLock<Result<()>>,
    wakers: Mutex<Vec<Waker>>,
    checksum: OnceLock<u32>,
}

impl Page {
    pub(super) fn block(&self) -> Block {
        self.block
    }

    /// The block's bytes, once they are there.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        if !matches!(self.outcome.get(), Some(Ok(()))) {
            return None;
        }
        let start = self.start();
        // SAFETY: the range lies inside the segment, which the page keeps alive. An outcome means that the Filling is
        // finished, so nobody writes until the last holder of the page is gone, and the borrow is of one. Other processes
        // are never given the segment to write.
        Some(unsafe { std::slice::from_raw_parts(start, self.len) })
    }

    /// How many bytes the block has.
    pub(super) fn room(&self) -> usize {
        self.len
    }

    fn start(&self) -> *mut u8 {
        self.pages.at(self.index, self.len)
    }

    /// CRC-32C of the block's bytes, worked out once.
    pub(super) fn checksum(&self) -> Option<u32> {
        let bytes = self.bytes()?;
        Some(*self.checksum.get_or_init(|| crc32c(bytes)))
    }

    /// How it went, if it is known yet.
    pub(super) fn outcome(&self) -> Option<Result<()>> {
        self.outcome.get().map(repeat)
    }

    /// Waits until it is known how it went.
    pub(super) fn wait(&self) -> Result<()> {
        repeat(self.outcome.wait())
    }

    /// Calls `waker` once it is known how it went: at once if it is.
    pub(super) fn when_done(&self, waker: Waker) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.outcome.get().is_none() {
            wakers.push(waker);
            return;
        }
        drop(wakers);
        waker();
    }

    fn finish(&self, outcome: Result<()>) {
        // Only the Filling finishes, and it does so once.
        let _ = self.outcome.set(outcome);
        self.wake();
    }

    /// Calls those who are to be called, after [`Filling::settle`].
    pub(super) fn wake(&self) {
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(|waker| waker());
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.pages.give_back(self.index);
    }
}

/// The same outcome for one more who waits.
fn repeat(outcome: &Result<()>) -> Result<()> {
    outcome.as_ref().copied().map_err(|error| Error::new(error.kind().clone(), error.to_string()))
}

/// The right to write a page. Whoever has it finishes it, or all who share the page would wait for ever; the types around
/// it do so when they are dropped.
pub(super) struct Filling {
    page: Arc<Page>,
}

impl Filling {
    /// Where the block's bytes belong; what stands there is what the page held before.
    pub(super) fn space(&mut self) -> &mut [u8] {
        let start = self.page.start();
        // SAFETY: inside the segment, which the page keeps alive. There is one Filling for a page (take makes it, and it
        // cannot be cloned), readers wait for the outcome that only it can set, and it is borrowed mutably here. Any bits
        // are valid bytes, and the segment's were zero at first.
        unsafe { std::slice::from_raw_parts_mut(start, self.page.len) }
    }

    pub(super) fn page(&self) -> &Arc<Page> {
        &self.page
    }

    /// Ends the writing well. Wakers are called by [`Page::wake`] only, which belongs behind it; that can be where no lock
    /// is held.
    pub(super) fn settle(self) -> Arc<Page> {
        let _ = self.page.outcome.set(Ok(()));
        self.page
    }

    /// Ends the writing and wakes who waits.
    pub(super) fn finish(self, outcome: Result<()>) -> Arc<Page> {
        self.page.finish(outcome);
        self.page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn filled(pages: &Arc<Pages>, byte: u8, len: usize) -> Arc<Page> {
        let mut filling = pages.take(Block(u64::from(byte)), len).unwrap();
        filling.space().fill(byte);
        filling.finish(Ok(()))
    }

    #[test]
    fn pages_are_apart_and_the_last_one_let_go_is_taken_first() {
        let pages = Pages::new(3, 4096).unwrap();
        let held: Vec<_> = (1..4).map(|byte| filled(&pages, byte, 4096)).collect();
        assert!(pages.take(Block(9), 1).is_none());
        for (page, byte) in held.iter().zip(1..) {
            assert!(page.bytes().unwrap().iter().all(|found| *found == byte));
        }
        let [first, second, third] = held.try_into().ok().unwrap();
        let (one, two) = (first.index, second.index);
        drop((first, second));
        assert_eq!(pages.free(), 2);
        assert_eq!(pages.take(Block(9), 1).unwrap().page.index, two);
        assert_ne!(filled(&pages, 7, 10).index, one);
        assert_eq!(third.bytes().unwrap()[4095], 3);
    }

    #[test]
    fn nobody_reads_before_it_is_finished_nor_after_it_failed() {
        let pages = Pages::new(1, 4096).unwrap();
        let filling = pages.take(Block(1), 5).unwrap();
        let page = filling.page().clone();
        assert!(page.bytes().is_none() && page.outcome().is_none() && page.checksum().is_none());
        let calls = Arc::new(AtomicU64::new(0));
        let count = || -> Waker {
            let calls = calls.clone();
            Box::new(move || _ = calls.fetch_add(1, Ordering::Relaxed))
        };
        page.when_done(count());
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        drop(filling.finish(Err(Error::unavailable("no"))));
        page.when_done(count());
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        assert_eq!(*page.wait().unwrap_err().kind(), Kind::Unavailable);
        assert!(page.bytes().is_none());
        pages.when_free(count());
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        drop(page);
        assert_eq!(calls.load(Ordering::Relaxed), 3);
        assert_eq!(pages.free(), 1);
    }

    #[test]
    fn threads_hand_pages_to_one_another() {
        let pages = Pages::new(2, 4096).unwrap();
        std::thread::scope(|scope| {
            for round in 0..200u64 {
                let mut filling = pages.take(Block(round), 4096).unwrap();
                let page = filling.page().clone();
                let reader = scope.spawn(move || {
                    page.wait().unwrap();
                    page.bytes().unwrap().iter().all(|byte| *byte == round as u8)
                });
                filling.space().fill(round as u8);
                drop(filling.finish(Ok(())));
                assert!(reader.join().unwrap());
            }
        });
    }
}
