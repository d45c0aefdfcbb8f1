//! What is on its way, in the order of positions: the walk ahead of the readers.
//!
//! The walk goes through positions one by one, each once, and accesses the blocks that it needs as it comes to them: so the
//! cache decides as it would if every block were fetched when it is read, however far ahead the walk is. What readers have
//! not taken yet waits in a window; how many bytes that may be is [`Depth`]'s to say, and the cache's, whose pages are
//! bounded.
//!
//! Among other nodes the walk accesses all blocks that have their home here, whoever reads them, and keeps them until they
//! are asked for (`others`).
//!
//! Invariant: a position is taken as often as there are readers of it here, and is in the window until then.

mod ahead;
mod known;
mod neighbours;
mod others;
mod pieces;

pub(super) use pieces::begin_in_runs;

use super::awaited::Awaited;
use super::brought::Brought;
use super::depth::Depth;
use super::nodes::Company;
use super::readers::Readers;
use super::stalls::{Cause, Stalls};
use super::unit::{Loading, Origin, Piece, Unit, Waited, What};
use crate::blocks::{Block, BlockMap};
use crate::cache::Tier0;
use crate::index::{Index, SamplePlace};
use crate::order::{Order, Uses};
use ahead::Ahead;
use known::Known;
use neighbours::Neighbours;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What is read, by whom, in which order.
pub(crate) struct Plan {
    pub index: Arc<Index>,
    pub map: Arc<BlockMap>,
    pub order: Arc<dyn Order>,
    pub readers: Readers,
    /// Where the order ends, if it does.
    pub end: Option<u64>,
}

/// A sample that a reader has claimed.
pub(super) struct Claim {
    pub unit: Arc<Unit>,
    pub place: SamplePlace,
}

/// What a reader took, and what it waited for.
#[derive(Default)]
pub(super) struct Taken {
    pub samples: u64,
    pub bytes: u64,
    pub stalls: Stalls,
}

impl Taken {
    /// Counts a sample of `bytes`.
    pub fn add(&mut self, bytes: u64, waited: &Waited) {
        self.samples += 1;
        self.bytes += bytes;
        self.stalls.add_all(waited);
    }

    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// Whether reading deeper ahead would have spared a wait.
    pub fn is_urgent(&self) -> bool {
        [Cause::Bucket, Cause::Peer].into_iter().any(|cause| self.stalls.times[cause as usize] > 0)
    }
}

/// A sample that waits to be read.
struct Entry {
    unit: Arc<Unit>,
    place: SamplePlace,
    /// Readers that have not taken it.
    left: u32,
}

pub(super) struct Walk {
    /// The first position of the window, and the next that is walked to.
    base: u64,
    next: u64,
    window: VecDeque<Option<Entry>>,
    /// Bytes that units in the window are fetched for.
    waiting_bytes: u64,
    /// Units that somebody still needs, by object and place.
    units: Known<(u32, u64, u64), Unit>,
    /// Blocks that are to be read from disk.
    loading: Known<Block, Loading>,
    /// What will be read past the cache, and the origin was not told of yet.
    expected: Vec<(u32, Range<u64>)>,
    pub uses: Uses,
    /// Of the next position: what was accessed before pages ran out.
    begun: Begun,
    neighbours: Neighbours,
    ahead: Ahead,
    /// Whom this node is among, if it is among others.
    company: Option<Arc<Company>>,
    /// Positions that the walk will come to, and how many readers have them already.
    taken: BTreeMap<u64, u32>,
    /// What was accessed for them.
    awaited: Awaited,
    /// What was asked for on behalf of others of the rack, held for the next who asks.
    relayed: VecDeque<What>,
    /// Whether positions are walked at all.
    is_begun: bool,
    /// The greatest position that was taken here; where nobody reads, that was asked for.
    seen: u64,
    /// How far beyond it the walk may go, and how far behind it others may still ask.
    reach: u64,
    slack: u64,
    pub stalls: Stalls,
    pub brought: Brought,
    pub samples: u64,
    pub bytes: u64,
    /// When a reader last got something.
    taken_at: Option<Duration>,
}

/// What was accessed of a position's blocks.
#[derive(Default)]
struct Begun {
    /// How many were seen to.
    blocks: usize,
    /// Those that are read here.
    pieces: Vec<Piece>,
    /// Whether any is.
    is_read: bool,
}

/// Most positions that the walk remembers to be read already.
const MOST_TAKEN: usize = 4096;

impl Walk {
    pub fn new(uses: Uses) -> Self {
        Self {
            base: 0,
            next: 0,
            window: VecDeque::new(),
            waiting_bytes: 0,
            units: Known::new(),
            loading: Known::new(),
            expected: Vec::new(),
            uses,
            begun: Begun::default(),
            neighbours: Neighbours::default(),
            ahead: Ahead::default(),
            company: None,
            taken: BTreeMap::new(),
            awaited: Awaited::default(),
            relayed: VecDeque::new(),
            is_begun: false,
            seen: 0,
            reach: u64::MAX,
            slack: 0,
            stalls: Stalls::default(),
            brought: Brought::default(),
            samples: 0,
            bytes: 0,
            taken_at: None,
        }
    }

    /// Begins anew at a position.
    pub fn begin(&mut self, position: u64) {
        self.window.clear();
        self.begun = Begun::default();
        self.neighbours = Neighbours::default();
        self.awaited.clear();
        self.relayed.clear();
        self.taken.clear();
        (self.base, self.next, self.waiting_bytes) = (position, position, 0);
        (self.seen, self.is_begun) = (position, true);
    }

    /// What the origin is to be told of, by somebody who does not keep others from the walk meanwhile.
    pub fn take_expected(&mut self) -> Vec<(u32, Range<u64>)> {
        std::mem::take(&mut self.expected)
    }

    /// Bytes that wait for readers, or are on their way to them.
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Walks on until as much waits as `depth` asks for, or as the cache has pages for.
    pub fn advance(&mut self, plan: &Plan, tier: Option<&Tier0>, origin: &dyn Origin, depth: &Depth) {
        let most = depth.bytes();
        while self.waiting_bytes < most && self.awaited.bytes() < most && self.reaches(plan, self.next) {
            if !self.step(plan, tier, origin) {
                return;
            }
        }
    }

    /// Walks on behind a position, whatever waits. Whether the cache had pages for it.
    pub fn advance_to(
        &mut self,
        plan: &Plan,
        tier: Option<&Tier0>,
        origin: &dyn Origin,
        position: u64,
    ) -> bool {
        while !self.has_passed(position) && self.reaches(plan, self.next) {
            if !self.step(plan, tier, origin) {
                return false;
            }
        }
        true
    }

    /// Whether the walk may go to a position.
    pub fn reaches(&self, plan: &Plan, position: u64) -> bool {
        let is_near = self.company.is_none() || position <= self.seen.saturating_add(self.reach);
        is_near && plan.end.is_none_or(|end| position < end)
    }

    /// Whether the walk is behind a position.
    pub fn has_passed(&self, position: u64) -> bool {
        position < self.next
    }

    /// A position on the way to another, at most so many ahead.
    pub fn stride_to(&self, position: u64, most: u64) -> u64 {
        position.min(self.next.saturating_add(most))
    }

    /// Walks over one position; not while there is no page for a block of it.
    fn step(&mut self, plan: &Plan, tier: Option<&Tier0>, origin: &dyn Origin) -> bool {
        let taken = self.taken.get(&self.next).copied().unwrap_or(0);
        let readers = plan.readers.here(self.next).saturating_sub(taken);
        let mut entry = None;
        if readers > 0 || self.company.is_some() {
            let place = self.ahead.place(plan, self.next, self.company.is_some());
            let Some(unit) = self.unit(plan, tier, origin, &place, readers > 0) else { return false };
            entry = unit.map(|unit| Entry { unit, place, left: readers });
            self.waiting_bytes += entry.as_ref().map_or(0, |entry| entry.place.len);
        }
        self.window.push_back(entry);
        self.taken.remove(&self.next);
        // Whoever took it otherwise meanwhile may have left something here, which is not the next one's.
        self.begun = Begun::default();
        self.next += 1;
        self.neighbours.leave_behind(self.next);
        self.clear_front();
        true
    }

    /// What a reader asks for, if it is in the window.
    fn entry(&self, position: u64) -> Option<&Entry> {
        let index = usize::try_from(position.checked_sub(self.base)?).ok()?;
        self.window.get(index)?.as_ref()
    }

    /// Whether nothing but want of pages keeps the walk from a position.
    pub fn is_stuck_at(&self, plan: &Plan, position: u64) -> bool {
        // Positions on the way there are others', and want pages for their sake.
        let is_next = position == self.next || self.company.is_some() && position > self.next;
        is_next && self.window.is_empty() && self.reaches(plan, position)
    }

    /// A reader asks for a position that the walk cannot come to for want of pages: it gets it otherwise, and the walk goes
    /// on behind it if nothing else is in its way.
    pub fn pass_by(&mut self, plan: &Plan, position: u64) {
        if self.is_stuck_at(plan, position) {
            self.begun = Begun::default();
            // They have pages that are wanted now.
            self.neighbours = Neighbours::default();
            (self.base, self.next) = (position + 1, position + 1);
            self.taken = self.taken.split_off(&self.next);
            self.saw(position);
        } else if position >= self.next && self.taken.len() < MOST_TAKEN {
            *self.taken.entry(position).or_default() += 1;
        }
    }

    /// A reader has what it asked for.
    fn took(&mut self, position: u64) {
        let Some(index) = position.checked_sub(self.base).and_then(|index| usize::try_from(index).ok())
        else {
            return;
        };
        let Some(place) = self.window.get_mut(index) else { return };
        let was_there = place.is_some();
        if let Some(entry) = place {
            entry.left -= 1;
            if entry.left == 0 {
                self.waiting_bytes -= entry.place.len;
                *place = None;
            }
        }
        if was_there {
            self.saw(position);
        }
        self.clear_front();
    }

    /// Gives a reader the samples of `positions`, the first one on, as far as they are in the window and have few more than
    /// `most` bytes.
    pub fn claim(&mut self, positions: Range<u64>, most: u64) -> VecDeque<Claim> {
        let (mut claims, mut bytes) = (VecDeque::new(), 0);
        for position in positions {
            let Some(entry) = self.entry(position).filter(|_| bytes <= most) else { break };
            bytes += entry.place.len;
            claims.push_back(Claim { unit: entry.unit.clone(), place: entry.place.clone() });
            self.took(position);
        }
        claims
    }

    /// Counts what a reader took, and what it waited for.
    pub fn count(&mut self, taken: &Taken, now: Duration, depth: &mut Depth) {
        self.samples += taken.samples;
        self.bytes += taken.bytes;
        self.stalls.add_stalls(&taken.stalls);
        if taken.is_urgent() {
            depth.stalled();
        }
        if let Some(before) = self.taken_at.replace(now) {
            let all = Duration::from_secs_f64(taken.stalls.total_s());
            depth.taken(taken.bytes, now.saturating_sub(before).saturating_sub(all));
        }
    }

    /// Counts bytes that are not in memory.
    fn brings(&mut self, from: Cause, bytes: u64) {
        match from {
            Cause::Disk => self.brought.disk += bytes,
            Cause::Peer => self.brought.peer += bytes,
            Cause::Bucket | Cause::Decode | Cause::Memory | Cause::Keeper => self.brought.bucket += bytes,
        }
    }

    fn clear_front(&mut self) {
        while let Some(None) = self.window.front() {
            self.window.pop_front();
            self.base += 1;
        }
    }
}
