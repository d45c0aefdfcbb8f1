//! Data parallelism: every rank holds all weights; gradients are summed over the ranks, bucket by bucket, while the
//! backward pass goes on.

use gradus_collective::{Communicator, Handle};
use gradus_error::{Error, Result};
use gradus_memory::{RawRange, Span};
use gradus_model::{Seams, Unit};
use std::cell::{Cell, RefCell};

/// Cuts `len` elements into buckets of about `bucket_len`, in order; the last one may be smaller.
fn buckets(len: usize, bucket_len: usize) -> Vec<Span> {
    let bucket_len = bucket_len.max(1);
    (0..len).step_by(bucket_len).map(|start| Span::new(start, bucket_len.min(len - start))).collect()
}

/// Sums gradients over the ranks of a communicator.
pub struct DataParallel {
    communicator: RefCell<Communicator>,
    buckets: Vec<Span>,
    /// Buckets under way: room for all of them, kept from step to step.
    handles: RefCell<Vec<Handle>>,
}

impl DataParallel {
    /// Sums ranges of about `bucket_bytes` of a layout of `len` elements.
    pub fn new(communicator: Communicator, len: usize, bucket_bytes: usize) -> Self {
        let buckets = buckets(len, bucket_bytes / size_of::<f32>());
        let handles = RefCell::new(Vec::with_capacity(buckets.len()));
        Self { communicator: RefCell::new(communicator), buckets, handles }
    }

    /// The communicator, between steps.
    pub fn communicator(&mut self) -> &mut Communicator {
        self.communicator.get_mut()
    }

    /// Begins the sum of one step's gradients.
    ///
    /// # Safety
    /// `gradients` stays valid until the returned sum is finished or this object is dropped, and nobody but the
    /// observed backward pass touches it meanwhile; that pass reports as final only what it will not touch again.
    pub unsafe fn begin(&mut self, gradients: RawRange) -> GradientSum<'_> {
        // Of a sum that was given up some may be left.
        self.handles.get_mut().clear();
        GradientSum { parent: self, gradients, started: Cell::new(0), failure: RefCell::new(None) }
    }
}

/// The sum of one step's gradients, under way.
pub struct GradientSum<'a> {
    parent: &'a DataParallel,
    gradients: RawRange,
    /// Buckets handed to the communicator so far.
    started: Cell<usize>,
    failure: RefCell<Option<Error>>,
}

impl GradientSum<'_> {
    /// Buckets handed to the communicator so far.
    pub fn started(&self) -> usize {
        self.started.get()
    }

    /// Bytes that have left this rank, of all that the communicator ever sent.
    pub fn bytes_sent(&self) -> u64 {
        self.parent.communicator.borrow().counters().bytes_sent
    }

    /// Starts what is left and waits until all ranks' gradients are summed, in place.
    ///
    /// # Errors
    /// The communicator's, also one that came up during the backward pass.
    pub fn finish(self) -> Result<()> {
        self.final_up_to(self.gradients.len);
        if let Some(failure) = self.failure.into_inner() {
            return Err(failure);
        }
        let mut communicator = self.parent.communicator.borrow_mut();
        self.parent.handles.borrow_mut().drain(..).try_for_each(|handle| communicator.wait(handle))
    }

    fn start_final(&self, end: usize) -> Result<()> {
        let mut communicator = self.parent.communicator.borrow_mut();
        let waiting = &self.parent.buckets[self.started.get()..];
        for bucket in waiting.iter().take_while(|bucket| bucket.end() <= end) {
            // SAFETY: the bucket is final, so by the word given to `begin` nobody touches it until it is waited for.
            let handle =
                unsafe { communicator.start_all_reduce(self.gradients.part(bucket.start, bucket.len)) }?;
            self.parent.handles.borrow_mut().push(handle);
            self.started.set(self.started.get() + 1);
        }
        communicator.progress()
    }

    fn final_up_to(&self, end: usize) {
        if !self.failed() {
            let started = self.start_final(end);
            self.keep(started);
        }
    }

    /// Keeps the first failure; the backward pass goes on and `finish` reports it.
    fn keep(&self, result: Result<()>) {
        if let Err(error) = result {
            self.failure.borrow_mut().get_or_insert(error);
        }
    }

    fn failed(&self) -> bool {
        self.failure.borrow().is_some()
    }
}

impl Seams for GradientSum<'_> {
    fn between_operations(&self) {
        if !self.failed() {
            let progress = self.parent.communicator.borrow_mut().progress();
            self.keep(progress);
        }
    }

    fn finished(&self, _unit: Unit, range: Span) {
        self.final_up_to(range.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_the_layout_in_order() {
        assert_eq!(buckets(10, 4), [Span::new(0, 4), Span::new(4, 4), Span::new(8, 2)]);
        assert_eq!(buckets(0, 4), []);
        assert_eq!(buckets(3, 0).len(), 3);
    }
}
