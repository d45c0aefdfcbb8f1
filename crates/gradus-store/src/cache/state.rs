//! What the cache knows: who is resident in which tier, in which page a block lies, in which slot. One lock guards it, which
//! nobody holds while anything is read, written or waited for.
//!
//! Pages that are let go of under the lock are handed to the caller, who drops them outside: whoever waits for a free page
//! is called then, and may ask the cache for one.

use super::counters::CacheCounters;
use super::directory::{Directory, Verdict};
use super::pages::{Content, Filling, Page};
use super::slots::{Slot, Slots};
use super::writer::Chore;
use crate::blocks::Block;
use gradus_memory::pages::Pages;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};

pub(super) struct State {
    pub memory: Directory,
    pub disk: Option<Disk>,
    pub counters: CacheCounters,
    /// Where blocks lie in memory; some of them no longer.
    residences: BTreeMap<Block, Residence>,
    /// Residences at which those that are none any longer are cleared.
    clear_at: usize,
}

struct Residence {
    page: Weak<Page>,
    /// Set while the memory tier has the block.
    kept: Option<Arc<Page>>,
}

/// The disk tier.
pub(super) struct Disk {
    pub directory: Directory,
    pub slots: Arc<Slots>,
    /// Where the directory's blocks are.
    pub whereabouts: BTreeMap<Block, Whereabouts>,
    /// To the thread that writes; nothing once the cache is closed.
    pub writes: Option<Sender<Chore>>,
}

/// Where a block of the disk tier is.
pub(super) enum Whereabouts {
    /// On its way to memory, to be written then.
    Awaited,
    /// In memory, waiting for the writer.
    Queued,
    /// In a slot.
    Written(Arc<Slot>),
}

/// Pages to be dropped outside the lock.
pub(super) type Released = Vec<Arc<Page>>;

/// What an access finds.
pub(super) enum Found {
    /// A page that holds the block, or will.
    Page(Arc<Page>),
    /// The block on disk, and a page for it.
    Slot(Filling, Arc<Slot>),
    /// Nothing, and a page for it.
    Nothing(Filling),
    /// No page is free, and nothing was decided.
    Full,
}

impl State {
    pub(super) fn new(memory: Directory, disk: Option<Disk>, pages: u64) -> Self {
        let clear_at = 1024.max(pages as usize * 2);
        Self { memory, disk, counters: CacheCounters::default(), residences: BTreeMap::new(), clear_at }
    }

    /// The page of a block, if it has one.
    pub(super) fn page_of(&self, block: Block) -> Option<Arc<Page>> {
        self.residences.get(&block)?.page.upgrade()
    }

    /// Whether a block has a page, or is on disk, or on its way there.
    pub(super) fn has(&self, block: Block) -> bool {
        let is_on_disk = || self.disk.as_ref().is_some_and(|disk| disk.whereabouts.contains_key(&block));
        self.page_of(block).is_some() || is_on_disk()
    }

    /// The slot of a block, if it is on disk.
    pub(super) fn slot_of(&self, block: Block) -> Option<Arc<Slot>> {
        match self.disk.as_ref()?.whereabouts.get(&block)? {
            Whereabouts::Written(slot) => Some(slot.clone()),
            Whereabouts::Awaited | Whereabouts::Queued => None,
        }
    }

    /// Finds a block, or a page for it, and has the directories decide on it.
    pub(super) fn access(
        &mut self,
        pages: &Arc<Pages>,
        (block, len): (Block, usize),
        next_use: Option<u64>,
    ) -> (Found, Released) {
        let found = self.find(pages, block, len);
        let mut released = Vec::new();
        if let Some(page) = found.page().cloned() {
            self.decide(&page, next_use, matches!(found, Found::Page(_)), &mut released);
        }
        (found, released)
    }

    /// Finds a block, or a page for it; nothing is decided.
    pub(super) fn pass(&mut self, pages: &Arc<Pages>, block: Block, len: usize) -> (Found, Released) {
        let found = self.find(pages, block, len);
        let mut released = Vec::new();
        if let Some(page) = found.page().filter(|_| !matches!(found, Found::Page(_))) {
            self.reside(page, false, &mut released);
        }
        (found, released)
    }

    fn find(&mut self, pages: &Arc<Pages>, block: Block, len: usize) -> Found {
        if let Some(page) = self.page_of(block) {
            return Found::Page(page);
        }
        match (pages.take(Content::of(block), len), self.slot_of(block)) {
            (Some(filling), Some(slot)) => Found::Slot(filling, slot),
            (Some(filling), None) => Found::Nothing(filling),
            (None, _) => {
                self.counters.full += 1;
                Found::Full
            }
        }
    }

    fn decide(&mut self, page: &Arc<Page>, next_use: Option<u64>, in_page: bool, released: &mut Released) {
        let memory = self.memory.access(page.about().block, next_use);
        let disk = match &mut self.disk {
            Some(disk) => disk.access(page, next_use, &mut self.counters),
            None => Verdict::Miss { admitted: false, evicted: None },
        };
        self.count(memory, disk, in_page);
        if let Some(residence) = memory.evicted().and_then(|evicted| self.residences.get_mut(&evicted)) {
            released.extend(residence.kept.take());
        }
        self.reside(page, memory.is_resident(), released);
    }

    /// Who is in either tier.
    pub(super) fn residents(&self) -> BTreeSet<Block> {
        let on_disk = self.disk.iter().flat_map(|disk| disk.whereabouts.keys().copied());
        let kept = self.residences.iter().filter(|(_, residence)| residence.kept.is_some());
        kept.map(|(block, _)| *block).chain(on_disk).collect()
    }

    /// Blocks are used next at other positions than was said.
    pub(super) fn foresee(&mut self, foreseen: &[(Block, Option<u64>)]) {
        for (block, next_use) in foreseen {
            self.memory.foresee(*block, *next_use);
            if let Some(disk) = &mut self.disk {
                disk.directory.foresee(*block, *next_use);
            }
        }
    }

    fn count(&mut self, memory: Verdict, disk: Verdict, in_page: bool) {
        let counters = &mut self.counters;
        counters.accesses += 1;
        match (memory, disk) {
            (Verdict::Hit, _) => counters.memory_hits += 1,
            (_, Verdict::Hit) => counters.disk_hits += 1,
            _ => counters.misses += 1,
        }
        counters.shared += u64::from(memory != Verdict::Hit && in_page);
        counters.bypassed += u64::from(!memory.is_resident() && !disk.is_resident());
        counters.memory_evictions += u64::from(memory.evicted().is_some());
        counters.disk_evictions += u64::from(disk.evicted().is_some());
    }

    /// Notes where a block lies.
    fn reside(&mut self, page: &Arc<Page>, is_kept: bool, released: &mut Released) {
        let kept = is_kept.then(|| page.clone());
        let before =
            self.residences.insert(page.about().block, Residence { page: Arc::downgrade(page), kept });
        released.extend(before.and_then(|before| before.kept));
        if self.residences.len() > self.clear_at {
            self.residences.retain(|_, residence| residence.page.strong_count() > 0);
        }
    }

    /// A block's bytes are there: they go to disk if it is to be there.
    pub(super) fn arrived(&mut self, page: &Arc<Page>) {
        if let Some(disk) = &mut self.disk
            && matches!(disk.whereabouts.get(&page.about().block), Some(Whereabouts::Awaited))
        {
            disk.queue(page, &mut self.counters);
        }
    }

    /// A block's bytes will not come: whoever wants it next asks anew.
    pub(super) fn failed(&mut self, page: &Arc<Page>) -> Released {
        let block = page.about().block;
        let is_here = |residence: &Residence| std::ptr::eq(residence.page.as_ptr(), Arc::as_ptr(page));
        if !self.residences.get(&block).is_some_and(is_here) {
            return Vec::new();
        }
        self.memory.forget(block);
        if let Some(disk) = &mut self.disk
            && matches!(disk.whereabouts.get(&block), Some(Whereabouts::Awaited))
        {
            disk.forget(block);
        }
        self.residences.remove(&block).and_then(|residence| residence.kept).into_iter().collect()
    }

    /// What a slot holds is not what was written: the block is awaited anew, if the disk is still to have it.
    pub(super) fn damaged(&mut self, block: Block, slot: &Arc<Slot>) {
        self.counters.damaged_blocks += 1;
        let Some(disk) = &mut self.disk else { return };
        if let Some(Whereabouts::Written(written)) = disk.whereabouts.get(&block)
            && Arc::ptr_eq(written, slot)
        {
            disk.whereabouts.insert(block, Whereabouts::Awaited);
        }
    }
}

impl Found {
    fn page(&self) -> Option<&Arc<Page>> {
        match self {
            Self::Page(page) => Some(page),
            Self::Slot(filling, _) | Self::Nothing(filling) => Some(filling.page()),
            Self::Full => None,
        }
    }
}

impl Disk {
    pub(super) fn new(directory: Directory, slots: Arc<Slots>, writes: Sender<Chore>) -> Self {
        Self { directory, slots, whereabouts: BTreeMap::new(), writes: Some(writes) }
    }

    fn access(&mut self, page: &Arc<Page>, next_use: Option<u64>, counters: &mut CacheCounters) -> Verdict {
        let verdict = self.directory.access(page.about().block, next_use);
        if let Some(evicted) = verdict.evicted() {
            self.whereabouts.remove(&evicted);
        }
        if matches!(verdict, Verdict::Miss { admitted: true, .. }) {
            self.whereabouts.insert(page.about().block, Whereabouts::Awaited);
            if page.bytes().is_some() {
                self.queue(page, counters);
            }
        }
        verdict
    }

    /// Hands a block to the writer. Until it is written it has its page, so a disk that is slow leaves fewer of them free.
    fn queue(&mut self, page: &Arc<Page>, counters: &mut CacheCounters) {
        match self.writes.as_ref().map(|writes| writes.send(Chore::Write(page.clone()))) {
            Some(Ok(())) => {
                self.whereabouts.insert(page.about().block, Whereabouts::Queued);
            }
            _ => {
                counters.skipped_writes += 1;
                self.forget(page.about().block);
            }
        }
    }

    /// The disk does not have a block, nor will it.
    pub(super) fn forget(&mut self, block: Block) {
        self.directory.forget(block);
        self.whereabouts.remove(&block);
    }

    /// The disk takes in no more, but what it has stays.
    pub(super) fn give_up_writing(&mut self) {
        self.directory.close();
        self.writes = None;
        let directory = &mut self.directory;
        self.whereabouts.retain(|block, whereabouts| {
            let is_there = matches!(whereabouts, Whereabouts::Written(_));
            if !is_there {
                directory.forget(*block);
            }
            is_there
        });
    }

    pub(super) fn is_queued(&self, block: Block) -> bool {
        matches!(self.whereabouts.get(&block), Some(Whereabouts::Queued))
    }
}
