//! The ranks of one axis of the mesh, and how long this rank's compute has waited for them.

use gradus_collective::{Collective, Communicator, Handle, Memory, Number};
use gradus_error::{Error, Result};
use std::cell::{Cell, RefCell};

/// Turns of progress between two operations: as many as move 16 MiB, at 128 KiB in each.
const MOST_TURNS: usize = 128;

/// A communicator along one axis, for the several places of a step that use it.
pub(crate) struct AxisRanks {
    communicator: RefCell<Communicator>,
    rank: usize,
    size: usize,
    /// Time spent in calls that wait.
    waited_ns: Cell<u64>,
}

impl AxisRanks {
    pub fn new(communicator: Communicator) -> Self {
        let (rank, size) = (communicator.rank(), communicator.world_size());
        Self { communicator: RefCell::new(communicator), rank, size, waited_ns: Cell::new(0) }
    }

    /// This rank, along the axis.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks along the axis.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Time that compute has waited for this axis so far: its exposed communication.
    pub fn waited_ns(&self) -> u64 {
        self.waited_ns.get()
    }

    /// As [`Communicator::start`].
    ///
    /// # Safety
    /// As [`Communicator::start`].
    ///
    /// # Errors
    /// As [`Communicator::start`].
    pub unsafe fn start(&self, what: &Collective, memory: Memory) -> Result<Handle> {
        // SAFETY: passed on to our caller.
        unsafe { self.communicator.borrow_mut().start(what, memory) }
    }

    /// As [`Communicator::wait`], on this axis' account.
    ///
    /// # Errors
    /// As [`Communicator::wait`].
    pub fn wait(&self, handle: Handle) -> Result<()> {
        self.waiting(|communicator| communicator.wait(handle))
    }

    /// As [`Communicator::run_in_place`], on this axis' account.
    ///
    /// # Errors
    /// As [`Communicator::run_in_place`].
    pub fn run_in_place<T: Number>(&self, what: &Collective, data: &mut [T]) -> Result<()> {
        self.waiting(|communicator| communicator.run_in_place(what, data))
    }

    /// Does what may wait, and counts how long it did.
    pub fn waiting<T>(&self, call: impl FnOnce(&mut Communicator) -> T) -> T {
        let mut communicator = self.communicator.borrow_mut();
        let before = communicator.counters().waited_ns;
        let result = call(&mut communicator);
        // Counted in ticks whose length is measured ever better: it may seem to shrink.
        let more = communicator.counters().waited_ns.saturating_sub(before);
        self.waited_ns.set(self.waited_ns.get() + more);
        result
    }

    /// As [`Communicator::is_done`].
    pub fn is_done(&self, handle: &Handle) -> bool {
        self.communicator.borrow().is_done(handle)
    }

    /// As [`Communicator::progress`], again and again until nothing moves any more: between operations of a pass there may be
    /// milliseconds, in which a turn that moves a part of what is there would be the only one.
    ///
    /// # Errors
    /// As [`Communicator::progress`].
    pub fn progress(&self) -> Result<()> {
        let mut communicator = self.communicator.borrow_mut();
        let moved = |communicator: &Communicator| {
            let counters = communicator.counters();
            counters.bytes_sent + counters.bytes_received
        };
        for _ in 0..MOST_TURNS {
            let before = moved(&communicator);
            communicator.progress()?;
            if moved(&communicator) == before {
                break;
            }
        }
        Ok(())
    }
}

/// One more communicator of the same ranks.
///
/// # Errors
/// As [`Communicator::group`].
pub(crate) fn again(ranks: &mut Communicator) -> Result<Communicator> {
    ranks.group(&(0..ranks.world_size()).collect::<Vec<_>>())
}

/// The first failure of a pass whose seams cannot fail: the pass runs out, and its end reports it.
#[derive(Default)]
pub(crate) struct Failure(RefCell<Option<Error>>);

impl Failure {
    /// Does something, unless something has failed before.
    pub fn guard<T>(&self, act: impl FnOnce() -> Result<T>) -> Option<T> {
        if self.0.borrow().is_some() {
            return None;
        }
        match act() {
            Ok(value) => Some(value),
            Err(error) => {
                *self.0.borrow_mut() = Some(error);
                None
            }
        }
    }

    /// What has failed, if anything.
    ///
    /// # Errors
    /// That.
    pub fn take(&self) -> Result<()> {
        self.0.borrow_mut().take().map_or(Ok(()), Err)
    }
}
