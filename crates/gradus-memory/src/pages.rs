//! Memory for pieces of one size that come and go: a region cut into pages, each of which belongs to whoever holds it.
//!
//! A [`Filling`] is the only one who may write a page; once it is finished, any number of readers share the [`Page`], and
//! the memory is reused when the last of them is gone. So whether a page may be reused is never decided: it follows from
//! who holds it. Pages are reused last in, first out: memory that was used a moment ago is in the processor's caches, and
//! fresh memory is slow at first touch. It is the system's until then: pages that are never in use take no memory, and
//! however many there are, they are there at once.
//!
//! Invariant: bytes of a page change only while it has a `Filling`, and are read only after that.

use crate::red_zone;
use crate::region::Region;
use gradus_error::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Called once when something has come about, on the thread that brought it about and with no lock held. It must not
/// block.
pub type Waker = Box<dyn FnOnce() + Send>;

/// All pages.
pub struct Pages {
    region: Region,
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
    /// Makes `count` pages of `page_bytes` each. Memory is taken when a page is first written; a host that has too little is
    /// told so here only where the system sees it at once.
    ///
    /// # Errors
    /// `Exhausted` when the system refuses as much: ask for less.
    pub fn new(count: u64, page_bytes: u64) -> Result<Arc<Self>> {
        let bytes = count.checked_mul(page_bytes).and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| Error::exhausted(format!("{count} pages of {page_bytes} bytes")))?;
        let region = Region::of(bytes)?;
        red_zone::poison(region.start(), bytes);
        let free = Mutex::new(Free { used: Vec::new(), fresh: 0, waiting: Vec::new() });
        Ok(Arc::new(Self { region, page_bytes: page_bytes as usize, count: count as usize, free }))
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a page for `len` bytes, which are about `about`; nothing when none is free. Does not wait.
    ///
    /// # Panics
    /// If a page is shorter than `len`.
    pub fn take<T>(self: &Arc<Self>, about: T, len: usize) -> Option<Filling<T>> {
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
        red_zone::open(self.at(index), len);
        let page = Page {
            pages: self.clone(),
            index,
            len,
            about,
            outcome: OnceLock::new(),
            wakers: Mutex::new(Vec::new()),
        };
        Some(Filling { page: Arc::new(page) })
    }

    /// How many pages there are.
    pub fn count(&self) -> u64 {
        self.count as u64
    }

    /// How many of them nobody holds.
    pub fn free(&self) -> u64 {
        let free = self.lock();
        (self.count - free.fresh + free.used.len()) as u64
    }

    /// Calls `waker` once a page is free: at once if one is.
    pub fn when_free(&self, waker: Waker) {
        let mut free = self.lock();
        if free.used.is_empty() && free.fresh == self.count {
            free.waiting.push(waker);
            return;
        }
        drop(free);
        waker();
    }

    /// Where a page begins.
    fn at(&self, index: usize) -> *mut u8 {
        assert!(index < self.count, "page {index} of {}", self.count);
        // SAFETY: the assertion keeps it inside the region, which has room for all pages.
        unsafe { self.region.start().add(index * self.page_bytes) }
    }

    fn give_back(&self, index: usize) {
        red_zone::poison(self.at(index), self.page_bytes);
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
        red_zone::open(self.region.start(), self.count * self.page_bytes);
    }
}

/// A page that holds bytes, or will: they stay while anybody holds it.
pub struct Page<T> {
    pages: Arc<Pages>,
    index: usize,
    len: usize,
    about: T,
    outcome: OnceLock<Result<()>>,
    wakers: Mutex<Vec<Waker>>,
}

impl<T> Page<T> {
    /// What it is about: what [`Pages::take`] was told.
    pub fn about(&self) -> &T {
        &self.about
    }

    /// Its bytes, once they are there.
    pub fn bytes(&self) -> Option<&[u8]> {
        if !matches!(self.outcome.get(), Some(Ok(()))) {
            return None;
        }
        let start = self.start();
        // SAFETY: the range lies inside the region, which the page keeps alive. An outcome means that the Filling is
        // finished, so nobody writes until the last holder of the page is gone, and the borrow is of one.
        Some(unsafe { std::slice::from_raw_parts(start, self.len) })
    }

    /// How many bytes it holds, or will.
    pub fn room(&self) -> usize {
        self.len
    }

    fn start(&self) -> *mut u8 {
        self.pages.at(self.index)
    }

    /// How it went, if it is known yet.
    pub fn outcome(&self) -> Option<Result<()>> {
        self.outcome.get().map(repeat)
    }

    /// Blocks until it is known how it went.
    ///
    /// # Errors
    /// What whoever filled it says in the end.
    pub fn wait(&self) -> Result<()> {
        repeat(self.outcome.wait())
    }

    /// Calls `waker` once it is known how it went: at once if it is.
    pub fn when_done(&self, waker: Waker) {
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
    pub fn wake(&self) {
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(|waker| waker());
    }
}

impl<T> Drop for Page<T> {
    fn drop(&mut self) {
        self.pages.give_back(self.index);
    }
}

/// The same outcome for one more who waits.
fn repeat(outcome: &Result<()>) -> Result<()> {
    outcome.as_ref().copied().map_err(|error| Error::new(error.kind().clone(), error.to_string()))
}

/// The right to write a page. Dropped without a word, it counts as failed.
pub struct Filling<T> {
    page: Arc<Page<T>>,
}

impl<T> Filling<T> {
    /// Where the bytes belong; what stands there is what the page held before.
    pub fn space(&mut self) -> &mut [u8] {
        let start = self.page.start();
        // SAFETY: inside the region, which the page keeps alive. There is one Filling for a page (take makes it, and it
        // cannot be cloned), readers wait for the outcome that only it can set, and it is borrowed mutably here. Any bits
        // are valid bytes, and the region's were zero at first.
        unsafe { std::slice::from_raw_parts_mut(start, self.page.len) }
    }

    /// The page, to wait for.
    pub fn page(&self) -> &Arc<Page<T>> {
        &self.page
    }

    /// Ends the writing well. Wakers are called by [`Page::wake`] only, which belongs behind it; that can be where no lock
    /// is held.
    pub fn settle(self) -> Arc<Page<T>> {
        let _ = self.page.outcome.set(Ok(()));
        self.page.clone()
    }

    /// Ends the writing and wakes who waits.
    pub fn finish(self, outcome: Result<()>) -> Arc<Page<T>> {
        self.page.finish(outcome);
        self.page.clone()
    }
}

impl<T> Drop for Filling<T> {
    fn drop(&mut self) {
        if self.page.outcome.get().is_none() {
            self.page.finish(Err(Error::unavailable("what was to come to a page was given up")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn filled(pages: &Arc<Pages>, byte: u8, len: usize) -> Arc<Page<u8>> {
        let mut filling = pages.take(byte, len).unwrap();
        filling.space().fill(byte);
        filling.finish(Ok(()))
    }

    #[test]
    fn pages_are_apart_and_the_last_one_let_go_is_taken_first() {
        let pages = Pages::new(3, 4096).unwrap();
        let held: Vec<_> = (1..4).map(|byte| filled(&pages, byte, 4096)).collect();
        assert!(pages.take((), 1).is_none());
        for (page, byte) in held.iter().zip(1..) {
            assert_eq!((*page.about(), page.room()), (byte, 4096));
            assert!(page.bytes().unwrap().iter().all(|found| *found == byte));
        }
        let [first, second, third] = held.try_into().ok().unwrap();
        let (one, two) = (first.index, second.index);
        drop((first, second));
        assert_eq!(pages.free(), 2);
        assert_eq!(pages.take((), 1).unwrap().page.index, two);
        assert_ne!(filled(&pages, 7, 10).index, one);
        assert_eq!(third.bytes().unwrap()[4095], 3);
    }

    #[test]
    fn nobody_reads_before_it_is_finished_nor_after_it_failed() {
        let pages = Pages::new(1, 4096).unwrap();
        let filling = pages.take((), 5).unwrap();
        let page = filling.page().clone();
        assert!(page.bytes().is_none() && page.outcome().is_none());
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
                let mut filling = pages.take(round, 4096).unwrap();
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

    #[test]
    fn a_filling_that_is_dropped_has_failed() {
        let pages = Pages::new(1, 4096).unwrap();
        let filling = pages.take((), 1).unwrap();
        let page = filling.page().clone();
        drop(filling);
        assert_eq!(*page.wait().unwrap_err().kind(), Kind::Unavailable);
    }

    /// Bytes of the mapping at `address` that the system gave memory for.
    fn resident_bytes(address: usize) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let covers = |line: &&str| {
            let ends = line.split(' ').next().and_then(|range| range.split_once('-'));
            let [start, end] =
                ends.map(|(start, end)| [start, end].map(|end| usize::from_str_radix(end, 16)))?;
            Some((start.ok()?..end.ok()?).contains(&address)).filter(|covers| *covers)
        };
        let mut lines = maps.lines().skip_while(|line| covers(line).is_none());
        let resident = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        resident.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    #[test]
    fn pages_take_no_memory_before_they_are_used() {
        let pages = Pages::new(256, 1 << 20).unwrap();
        let page = filled(&pages, 7, 10);
        // The system gives more than was touched, and neighbours may count.
        assert!(resident_bytes(page.bytes().unwrap().as_ptr().addr()) < 64 << 20);
        assert_eq!(*Pages::new(u64::MAX / 2, 4).err().unwrap().kind(), Kind::Exhausted);
    }

    /// The sanitizer sees a page that was given back; the process that shows it ends by that.
    #[cfg(gradus_asan)]
    #[test]
    fn a_page_that_was_given_back_is_touched_by_nobody() {
        if std::env::var_os("GRADUS_GIVEN_BACK").is_some() {
            let pages = Pages::new(1, 4096).unwrap();
            let page = filled(&pages, 7, 4096);
            let start = page.bytes().unwrap().as_ptr();
            drop(page);
            // SAFETY: it is not safe: that is what is shown.
            std::hint::black_box(unsafe { start.read_volatile() });
            return;
        }
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "pages::tests::a_page_that_was_given_back_is_touched_by_nobody"]);
        let output = again.env("GRADUS_GIVEN_BACK", "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("use-after-poison"), "{said}");
    }
}
