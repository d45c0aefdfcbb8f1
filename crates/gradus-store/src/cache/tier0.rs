//! The cache of a node, as its users see it.

use super::access::{Access, Fill, Held, Load};
use super::counters::CacheCounters;
use super::directory::Directory;
use super::pages::Waker;
use super::settings::{CacheSettings, Room};
use super::slots::{Opened, Slots};
use super::state::{Disk, Found, Released, State, Whereabouts};
use super::writer::{self, Chore};
use crate::blocks::{Block, BlockMap};
use gradus_error::{Error, Result};
use gradus_memory::pages::Pages;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What all who deal with the cache share.
pub(super) struct Shared {
    pub map: Arc<BlockMap>,
    pages: Arc<Pages>,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Blocks of one dataset in memory and, if there is a folder, on disk. Any thread may use it.
pub struct Tier0 {
    shared: Arc<Shared>,
    foresees: bool,
    capacity_blocks: u64,
    writer: Option<JoinHandle<()>>,
}

impl Tier0 {
    /// Opens the cache, with what an earlier run left in its folder. `window_blocks` blocks can be in use or on their way
    /// at once. Where reading begins is told by [`Tier0::begin`].
    ///
    /// # Errors
    /// `Invalid`, naming the key, for settings that cannot be; `Unavailable` when another process has the folder;
    /// `Exhausted` when the memory cannot be had; the system's.
    pub fn open(map: Arc<BlockMap>, settings: &CacheSettings, window_blocks: u64) -> Result<Self> {
        if settings.block_bytes != map.block_bytes() {
            return Err(Error::invalid(format!(
                "cache.block_bytes is {}, but the blocks have {} bytes",
                settings.block_bytes,
                map.block_bytes()
            )));
        }
        let room = settings.room(map.blocks(), window_blocks)?;
        let pages = Pages::new(room.pages, map.block_bytes())
            .map_err(|error| error.within("the cache's memory (cache.memory_bytes)"))?;
        let memory = Directory::new(settings.policy, room.memory_blocks, map.blocks());
        let mut state = State::new(memory, None, room.pages);
        let mut writes = None;
        if settings.has_disk() {
            let (disk, receiver) = open_disk(&map, settings, room)?;
            state.counters.restored_blocks = disk.directory.len();
            state.disk = Some(disk);
            writes = Some(receiver);
        }
        let foresees =
            state.memory.foresees() || state.disk.as_ref().is_some_and(|disk| disk.directory.foresees());
        let shared = Arc::new(Shared { map, pages, state: Mutex::new(state) });
        let writer = writes.map(|receiver| writer::start(shared.clone(), receiver)).transpose()?;
        let capacity_blocks = room.memory_blocks.max(room.disk_blocks);
        Ok(Self { shared, foresees, capacity_blocks, writer })
    }

    /// Reading begins, or begins anew: `first_use` says at which position a block is used first from there on. It is asked
    /// about the blocks that are here, if the policy wants to know, and until then they count as never used again.
    pub fn begin(&self, first_use: &mut dyn FnMut(Block) -> Option<u64>) {
        if !self.foresees {
            return;
        }
        let residents = self.shared.lock().residents();
        let foreseen: Vec<_> = residents.into_iter().map(|block| (block, first_use(block))).collect();
        self.shared.lock().foresee(&foreseen);
    }

    /// The blocks that it is about.
    pub fn map(&self) -> &Arc<BlockMap> {
        &self.shared.map
    }

    /// Accesses a block, which is used next at `next_use` (a position, or never). Accesses are made in the order of the
    /// positions that they are for, and those of one position in the order of the blocks; who may stay in the cache is
    /// decided by that order. Does not wait. `next_use` is asked only where the answer counts.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn access(&self, block: Block, next_use: impl FnOnce() -> Option<u64>) -> Access {
        let len = self.len_of(block);
        let next_use = if self.foresees { next_use() } else { None };
        let (found, released) = self.shared.lock().access(&self.shared.pages, (block, len), next_use);
        self.hand_out(found, released)
    }

    /// Says when a block is used next, if it is here, that is not accessed although its time has come.
    pub fn pass_over(&self, block: Block, next_use: impl FnOnce() -> Option<u64>) {
        if self.foresees {
            let next_use = next_use();
            self.shared.lock().foresee(&[(block, next_use)]);
        }
    }

    /// A block that another node keeps, or whose turn has not come: it has a page while it is held, and nothing is decided.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn pass(&self, block: Block) -> Access {
        let len = self.len_of(block);
        let (found, released) = self.shared.lock().pass(&self.shared.pages, block, len);
        self.hand_out(found, released)
    }

    /// The block, if it is in memory or on its way there.
    pub fn peek(&self, block: Block) -> Option<Held> {
        self.shared.lock().page_of(block).map(Held::new)
    }

    /// Whether the block is in memory, for whatever reason, or on disk, or on its way to either.
    pub fn has(&self, block: Block) -> bool {
        self.shared.lock().has(block)
    }

    /// How many blocks it keeps: those of its largest tier.
    pub fn capacity_blocks(&self) -> u64 {
        self.capacity_blocks
    }

    /// The blocks that lie on disk.
    pub fn on_disk(&self) -> Vec<Block> {
        let state = self.shared.lock();
        let Some(disk) = &state.disk else { return Vec::new() };
        let is_there =
            |(block, at): (&Block, &Whereabouts)| matches!(at, Whereabouts::Written(_)).then_some(*block);
        disk.whereabouts.iter().filter_map(is_there).collect()
    }

    /// Gives up what lies on disk and is another node's: who is accessed no more would stay for what it was once said to
    /// be of use.
    pub fn leave_to_others(&self, is_ours: impl Fn(Block) -> bool) {
        let others: Vec<Block> = self.on_disk().into_iter().filter(|block| !is_ours(*block)).collect();
        let mut state = self.shared.lock();
        if let Some(disk) = &mut state.disk {
            others.into_iter().for_each(|block| disk.forget(block));
        }
    }

    /// How many blocks can be in memory at once.
    pub fn pages(&self) -> u64 {
        self.shared.pages.count()
    }

    /// How many more can be in memory now, unless others of those are let go of.
    pub fn free_pages(&self) -> u64 {
        self.shared.pages.free()
    }

    /// Calls `waker` once a page is free: at once if one is. For whoever was told [`Access::Full`].
    pub fn when_free(&self, waker: Waker) {
        self.shared.pages.when_free(waker);
    }

    /// Waits until a page is free, but not longer than `at_most`: whether one is.
    pub fn wait_until_free(&self, at_most: Duration) -> bool {
        let (sender, freed) = sync_channel(1);
        self.when_free(Box::new(move || _ = sender.try_send(())));
        freed.recv_timeout(at_most).is_ok()
    }

    /// Waits until every block that has come so far is on disk, if it is to be there.
    pub fn flush(&self) {
        let writes = self.shared.lock().disk.as_ref().and_then(|disk| disk.writes.clone());
        let (sender, done) = sync_channel(1);
        let tell = Chore::Tell(Box::new(move || _ = sender.send(())));
        if writes.is_some_and(|writes| writes.send(tell).is_ok()) {
            // A writer that ends without a word has nothing more to write.
            let _ = done.recv();
        }
    }

    /// What it has done, and what it holds now.
    pub fn counters(&self) -> CacheCounters {
        let (pages, free_pages) = (self.shared.pages.count(), self.shared.pages.free());
        let state = self.shared.lock();
        CacheCounters {
            memory_blocks: state.memory.len(),
            disk_blocks: state.disk.as_ref().map_or(0, |disk| disk.directory.len()),
            pages,
            free_pages,
            transit_pages: (pages - free_pages).saturating_sub(state.memory.len()),
            ..state.counters
        }
    }

    fn len_of(&self, block: Block) -> usize {
        let range = self.shared.map.range_of(block);
        (range.end - range.start) as usize
    }

    fn hand_out(&self, found: Found, released: Released) -> Access {
        drop(released);
        let fill = |filling| Fill::new(filling, self.shared.clone());
        match found {
            Found::Page(page) => Access::Held(Held::new(page)),
            Found::Slot(filling, slot) => Access::OnDisk(Load::new(fill(filling), slot)),
            Found::Nothing(filling) => Access::Missing(fill(filling)),
            Found::Full => Access::Full,
        }
    }
}

impl Drop for Tier0 {
    /// What waits for the disk is written before this returns.
    fn drop(&mut self) {
        if let Some(disk) = &mut self.shared.lock().disk {
            disk.writes = None;
            disk.slots.close();
        }
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn open_disk(map: &BlockMap, settings: &CacheSettings, room: Room) -> Result<(Disk, Receiver<Chore>)> {
    let Opened { slots, found } =
        Slots::open(Path::new(&settings.folder), map.block_bytes(), room.disk_blocks)?;
    let directory = Directory::new(settings.policy, slots.count(), map.blocks());
    // Each block that waits has its page, so there are never more of them than pages.
    let (sender, receiver) = channel();
    let mut disk = Disk::new(directory, slots, sender);
    // Slots with blocks of other datasets are dropped here, and taken when no empty ones are left.
    let ours = found.into_iter().filter_map(|(key, slot)| Some((map.find(key)?, Arc::new(slot))));
    disk.whereabouts = ours.map(|(block, slot)| (block, Whereabouts::Written(slot))).collect();
    let blocks: Vec<Block> = disk.whereabouts.keys().copied().collect();
    for left_out in disk.directory.restore(blocks) {
        disk.whereabouts.remove(&left_out);
    }
    Ok((disk, receiver))
}
