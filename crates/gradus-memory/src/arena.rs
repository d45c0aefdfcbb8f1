//! The memory of a host device: one reserved region, handed out from its start.

use crate::region::Region;
use crate::{HeapRange, RawRange, SharedHeap, Span, red_zone};
use gradus_error::{Error, Result};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Every span begins on a multiple of this many elements: a cache line of 64 bytes.
const ALIGNMENT: usize = 16;

/// Elements of a page.
const PAGE: usize = 4096 / size_of::<f32>();

/// A region of zeroed f32 elements. Address space is reserved at once, memory is taken when first touched.
pub struct Arena {
    elements: Arc<Elements>,
    used: AtomicUsize,
}

/// What was reserved: given back once neither the arena nor a range of a heap that lies in it is left.
struct Elements {
    region: Region,
    capacity: usize,
}

impl Elements {
    fn start(&self) -> *mut f32 {
        self.region.start().cast()
    }
}

impl Arena {
    /// Reserves room for `capacity` elements.
    ///
    /// # Errors
    /// `Exhausted` or `Unavailable` when the system refuses the reservation: ask for less.
    pub fn reserve(capacity: usize) -> Result<Self> {
        let elements = Elements { region: Region::reserve(capacity * size_of::<f32>())?, capacity };
        red_zone::poison(elements.start(), capacity);
        Ok(Self { elements: Arc::new(elements), used: AtomicUsize::new(0) })
    }

    /// Hands out `len` elements, zero, on a cache line of their own. They are never taken back.
    ///
    /// # Errors
    /// `Exhausted` when the reservation is used up.
    pub fn allocate(&self, len: usize) -> Result<Span> {
        let rounded = len.next_multiple_of(ALIGNMENT);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(rounded).filter(|end| *end <= self.elements.capacity)
        });
        match taken {
            Ok(start) => {
                red_zone::open(self.elements.start().wrapping_add(start), len);
                Ok(Span::new(start, len))
            }
            Err(used) => Err(Error::exhausted(format!(
                "no room for {len} more elements: {used} of the {} reserved are in use; choose a smaller model or batch",
                self.elements.capacity
            ))),
        }
    }

    /// Hands out `len` elements, zero, that lie in a heap, so that peers reach them; and what keeps them there: when it is
    /// dropped, their contents are gone.
    ///
    /// # Errors
    /// `Exhausted` when the reservation is used up, or the heap cannot reserve memory.
    pub fn allocate_shared(&self, len: usize, heap: &SharedHeap) -> Result<(Span, HeapRange)> {
        // Somewhere in these elements whole pages begin that hold as many.
        let pages = len.max(1).next_multiple_of(PAGE);
        let around = self.allocate(pages + PAGE)?;
        let address = self.raw(around).start;
        let skipped = address.addr().next_multiple_of(PAGE * size_of::<f32>()) - address.addr();
        let span = around.part(skipped / size_of::<f32>(), pages);
        let start = NonNull::new(self.raw(span).start.cast::<u8>()).expect("an arena does not begin at zero");
        // SAFETY: whole pages of the arena that were handed out just now, to nobody else; the region stays while it is held.
        let range =
            unsafe { heap.allocate_at(start, pages * size_of::<f32>(), Arc::clone(&self.elements) as _) }?;
        Ok((span.part(0, len), range))
    }

    /// Elements handed out so far.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The address of a range.
    ///
    /// # Panics
    /// If the range was not handed out by this arena.
    pub fn raw(&self, span: Span) -> RawRange {
        assert!(span.end() <= self.used(), "a span must come from this arena");
        // SAFETY: the assertion keeps start inside the mapping.
        RawRange { start: unsafe { self.elements.start().add(span.start) }, len: span.len }
    }

    /// The elements of a range, to read.
    ///
    /// # Safety
    /// Nobody writes the range while the slice lives.
    pub unsafe fn slice(&self, span: Span) -> &[f32] {
        let raw = self.raw(span);
        // SAFETY: inside the mapping, initialised to zero by the kernel, not written meanwhile by the caller's word.
        unsafe { std::slice::from_raw_parts(raw.start, raw.len) }
    }

    /// The elements of a range, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes the range while the slice lives.
    #[allow(clippy::mut_from_ref, reason = "exclusive access is the caller's word")]
    pub unsafe fn slice_mut(&self, span: Span) -> &mut [f32] {
        let raw = self.raw(span);
        // SAFETY: inside the mapping, initialised to zero by the kernel, exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(raw.start, raw.len) }
    }
}

impl Drop for Elements {
    fn drop(&mut self) {
        // Whoever is given these addresses next knows nothing of us.
        red_zone::open(self.start(), self.capacity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn spans_are_zero_aligned_and_apart() {
        let arena = Arena::reserve(1000).unwrap();
        let (a, b) = (arena.allocate(3).unwrap(), arena.allocate(5).unwrap());
        assert!(!a.overlaps(&b) && b.start % ALIGNMENT == 0);
        // SAFETY: one thread, two disjoint spans.
        let (x, y) = unsafe { (arena.slice_mut(a), arena.slice(b)) };
        x.fill(7.0);
        assert_eq!(y, [0.0; 5]);
    }

    #[test]
    fn shared_spans_are_part_of_the_arena_and_of_the_heap() {
        let (arena, heap) = (Arena::reserve(10_000).unwrap(), SharedHeap::create("test").unwrap());
        let before = arena.allocate(5).unwrap();
        let (span, range) = arena.allocate_shared(3000, &heap).unwrap();
        let after = arena.allocate(5).unwrap();
        assert!(!span.overlaps(&before) && !span.overlaps(&after) && span.len == 3000);
        let raw = arena.raw(span);
        assert_eq!(heap.locate(raw.start.cast(), 12_000), Some(range.offset()));
        // SAFETY: one thread, three disjoint spans.
        unsafe {
            arena.slice_mut(before).fill(1.0);
            arena.slice_mut(after).fill(2.0);
            assert!(arena.slice(span).iter().all(|x| *x == 0.0));
            arena.slice_mut(span).fill(3.0);
            assert!(arena.slice(before).iter().all(|x| *x == 1.0));
        }
        assert_eq!(*arena.allocate_shared(9000, &heap).err().unwrap().kind(), Kind::Exhausted);
        drop(arena);
        // SAFETY: the range keeps its addresses, arena or not.
        assert_eq!(unsafe { range.start().cast::<f32>().read() }, 3.0);
    }

    /// The sanitizer sees what is not handed out; the process that shows it ends by that.
    #[cfg(gradus_asan)]
    #[test]
    fn one_element_too_far_is_found() {
        if std::env::var_os("GRADUS_ONE_TOO_FAR").is_some() {
            let arena = Arena::reserve(64).unwrap();
            let raw = arena.raw(arena.allocate(5).unwrap());
            // SAFETY: it is not safe: that is what is shown.
            std::hint::black_box(unsafe { raw.start.add(5).read_volatile() });
            return;
        }
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "arena::tests::one_element_too_far_is_found"]).env("GRADUS_ONE_TOO_FAR", "1");
        let output = again.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("use-after-poison"), "{said}");
    }

    #[test]
    fn a_full_arena_says_so() {
        let arena = Arena::reserve(32).unwrap();
        arena.allocate(20).unwrap();
        assert_eq!(*arena.allocate(1).unwrap_err().kind(), Kind::Exhausted);
    }
}
