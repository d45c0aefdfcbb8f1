//! What an access to a block comes to.

use super::pages::{Filling, Page, Waker};
use super::slots::Slot;
use super::tier0::Shared;
use crate::blocks::Block;
use gradus_error::{Error, Result};
use std::sync::Arc;

/// What an access to a block comes to. Whoever gets a [`Fill`] or a [`Load`] sees to the block's coming, for all who access
/// it meanwhile.
pub enum Access {
    /// The block is in memory, or another sees to its coming.
    Held(Held),
    /// It is on disk: read it.
    OnDisk(Load),
    /// It is nowhere: fetch it.
    Missing(Fill),
    /// No page is free, and nothing was decided: let go of blocks, and access it again.
    Full,
}

/// A block in memory, now or soon. It stays there while anybody holds it.
#[derive(Clone)]
pub struct Held {
    page: Arc<Page>,
}

impl Held {
    pub(super) fn new(page: Arc<Page>) -> Self {
        Self { page }
    }

    /// Which block it is.
    pub fn block(&self) -> Block {
        self.page.about().block
    }

    /// Waits until the block is there.
    ///
    /// # Errors
    /// What kept it from coming; an access afterwards tries anew.
    pub fn wait(&self) -> Result<()> {
        self.page.wait()
    }

    /// Whether the block is there; nothing while it is not known.
    ///
    /// # Errors
    /// As [`Held::wait`].
    pub fn try_ready(&self) -> Option<Result<()>> {
        self.page.outcome()
    }

    /// Calls `waker` once it is known whether the block is there: at once if it is known.
    pub fn when_ready(&self, waker: Waker) {
        self.page.when_done(waker);
    }

    /// The block's bytes.
    ///
    /// # Panics
    /// If the block is not there: [`Held::wait`] first.
    pub fn bytes(&self) -> &[u8] {
        self.page.bytes().expect("a block is waited for before it is read")
    }

    /// CRC-32C of the bytes, worked out once.
    ///
    /// # Panics
    /// As [`Held::bytes`].
    pub fn checksum(&self) -> u32 {
        self.page.about().checksum(self.bytes())
    }
}

/// The duty to fetch a block. Dropped without a word, it counts as failed.
pub struct Fill {
    /// Taken when it is over.
    filling: Option<Filling>,
    shared: Arc<Shared>,
}

impl Fill {
    pub(super) fn new(filling: Filling, shared: Arc<Shared>) -> Self {
        Self { filling: Some(filling), shared }
    }

    fn filling(&self) -> &Filling {
        self.filling.as_ref().expect("it is taken only when the fill is over")
    }

    /// Which block it is.
    pub fn block(&self) -> Block {
        self.filling().page().about().block
    }

    /// The block, to wait for.
    pub fn held(&self) -> Held {
        Held::new(self.filling().page().clone())
    }

    /// How many bytes the block has.
    pub fn room(&self) -> usize {
        self.filling().page().room()
    }

    /// Where the block's bytes belong: exactly as many as it has. What stands there before is of no meaning.
    pub fn space(&mut self) -> &mut [u8] {
        self.filling.as_mut().expect("it is taken only when the fill is over").space()
    }

    /// All bytes are there.
    pub fn complete(mut self) {
        let Some(filling) = self.filling.take() else { return };
        // Whoever waits may close the cache at once: by then the block is on its way to disk.
        let mut state = self.shared.lock();
        let page = filling.settle();
        state.counters.fetched_blocks += 1;
        state.counters.fetched_bytes += page.bytes().map_or(0, |bytes| bytes.len() as u64);
        state.arrived(&page);
        drop(state);
        page.wake();
    }

    /// The bytes will not come. Whoever waits is told so, and the next access tries anew.
    pub fn fail(mut self, error: Error) {
        self.give_up(error);
    }

    fn give_up(&mut self, error: Error) {
        let Some(filling) = self.filling.take() else { return };
        let mut state = self.shared.lock();
        state.counters.failed_fetches += 1;
        let released = state.failed(filling.page());
        drop(state);
        drop(released);
        filling.finish(Err(error));
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        if self.filling.is_some() {
            self.give_up(Error::unavailable(format!("nobody fetched {:?} after all", self.block())));
        }
    }
}

/// The duty to read a block from disk.
pub struct Load {
    fill: Fill,
    slot: Arc<Slot>,
}

/// What reading a block from disk comes to.
pub enum Loaded {
    /// It is in memory.
    Ready(Held),
    /// It was damaged, or could not be read: fetch it.
    Damaged(Fill),
}

impl Load {
    pub(super) fn new(fill: Fill, slot: Arc<Slot>) -> Self {
        Self { fill, slot }
    }

    /// Which block it is.
    pub fn block(&self) -> Block {
        self.fill.block()
    }

    /// The block, to wait for.
    pub fn held(&self) -> Held {
        self.fill.held()
    }

    /// Reads and checks it; blocks until the disk has answered.
    pub fn load(self) -> Loaded {
        let Self { mut fill, slot } = self;
        if let Err(error) = slot.read(fill.space()) {
            tracing::warn!("{error}: it is fetched again");
            fill.shared.lock().damaged(fill.block(), &slot);
            return Loaded::Damaged(fill);
        }
        // The slot may be another's from here on: nothing of it is looked at any more.
        drop(slot);
        let held = fill.held();
        if let Some(filling) = fill.filling.take() {
            let mut state = fill.shared.lock();
            let page = filling.settle();
            state.counters.disk_reads += 1;
            state.counters.disk_read_bytes += held.bytes().len() as u64;
            // An eviction while it was read, and an admission after that, may have it written anew.
            state.arrived(&page);
            drop(state);
            page.wake();
        }
        Loaded::Ready(held)
    }
}
