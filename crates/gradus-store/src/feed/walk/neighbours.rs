//! What lies beside a sample is fetched along with it, if there is memory for it until it is used.
//!
//! What: the request for a sample also brings the samples beside it whose turn comes soon. How: all blocks that positions up
//! to a *horizon* touch have free pages together; what is used before it has a page anyway when its turn comes, and is held
//! in that page from now on. Why: it comes from the bucket once either way, and one request brings it instead of two.
//!
//! The cache decides on a block when its turn comes, as it would without: so the bucket gives the same bytes, but for what a run
//! that is ended early does not come to. Where blocks are large, or memory is full, or nodes share what they keep and
//! neighbours have other homes, nothing is brought along.
//!
//! Invariants: blocks of positions between the walk and the horizon are at most as many as there are free pages, and pages of
//! what waits there for its turn; nothing waits for a position that the walk has passed.

use super::{Plan, Walk};
use crate::blocks::Block;
use crate::cache::{Access, Fill, Held, Tier0};
use crate::index::SamplePlace;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes of a request to which no more is added: its own cost is small beside them.
const ENOUGH_BYTES: u64 = 256 << 10;

/// Positions that the horizon moves with each that is walked over: it is to be far off soon, and to hold nobody up.
const STRIDE: usize = 64;

/// Positions up to which the horizon may be off.
const MOST_POSITIONS: usize = 1 << 20;

/// What is fetched before its turn.
#[derive(Default)]
pub(super) struct Neighbours {
    /// The first position of those that are counted.
    from: u64,
    /// Of each position up to the horizon, the blocks that it touches here; and all of them.
    counts: VecDeque<u32>,
    sum: u64,
    /// Blocks whose turn has not come, and by when it has.
    waiting: BTreeMap<Block, (u64, Held)>,
    turns: BTreeSet<(u64, Block)>,
}

impl Neighbours {
    /// Whether a block was fetched before its turn, which has come now.
    pub fn arrives(&mut self, block: Block) -> bool {
        let found = self.waiting.remove(&block);
        found.is_some_and(|(position, _)| self.turns.remove(&(position, block)))
    }

    /// Positions before `next` have had their turn.
    pub fn leave_behind(&mut self, next: u64) {
        while self.from < next
            && let Some(count) = self.counts.pop_front()
        {
            self.sum -= u64::from(count);
            self.from += 1;
        }
        self.from = self.from.max(next);
        // A reader had it before the walk came there.
        while let Some((_, block)) = self.turns.first().copied().filter(|(position, _)| *position < next) {
            self.arrives(block);
        }
    }

    fn wait(&mut self, block: Block, position: u64, held: Held) {
        self.waiting.insert(block, (position, held));
        self.turns.insert((position, block));
    }

    /// Moves the horizon to where there is room for what lies before it: back if pages have gone to others.
    fn look_around(&mut self, plan: &Plan, free_pages: u64) {
        let room = free_pages + self.waiting.len() as u64;
        while self.sum > room
            && let Some(count) = self.counts.pop_back()
        {
            self.sum -= u64::from(count);
        }
        for _ in 0..STRIDE {
            let position = self.horizon();
            let is_end = plan.end.is_some_and(|end| position >= end);
            if is_end || self.sum >= room || self.counts.len() >= MOST_POSITIONS {
                return;
            }
            let is_read = plan.readers.here(position) > 0;
            let count = if is_read { plan.blocks_at(position) } else { 0 };
            let Some(count) = u32::try_from(count).ok().filter(|count| self.sum + u64::from(*count) <= room)
            else {
                return;
            };
            self.counts.push_back(count);
            self.sum += u64::from(count);
        }
    }

    fn horizon(&self) -> u64 {
        self.from + self.counts.len() as u64
    }
}

impl Plan {
    /// In how many blocks the sample at a position lies.
    fn blocks_at(&self, position: u64) -> u64 {
        let place = self.index.sample(self.order.sample_at(position));
        self.map.covering(place.object as usize, place.unit).len() as u64
    }
}

/// On which side of a sample another lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Behind,
    Before,
}

impl Walk {
    /// What is missing of the next position's sample, and with it what is missing of those beside it.
    pub(super) fn with_neighbours(
        &mut self,
        plan: &Plan,
        tier: &Tier0,
        object: u32,
        missing: Vec<Fill>,
    ) -> Vec<Fill> {
        if missing.is_empty() || plan.map.block_bytes() >= ENOUGH_BYTES || self.company.is_some() {
            return missing;
        }
        let mut missing = VecDeque::from(missing);
        self.neighbours.leave_behind(self.next + 1);
        self.neighbours.look_around(plan, tier.free_pages());
        for side in [Side::Behind, Side::Before] {
            let mut sample = plan.order.sample_at(self.next);
            while (missing.len() as u64) * plan.map.block_bytes() < ENOUGH_BYTES {
                let beside = match side {
                    Side::Behind => sample.checked_add(1),
                    Side::Before => sample.checked_sub(1),
                };
                let Some(beside) = beside else { break };
                if !self.bring(plan, tier, (beside, object), side, &mut missing) {
                    break;
                }
                sample = beside;
            }
        }
        missing.into()
    }

    /// Adds what is missing of a sample of that object, if it is used before the horizon and touches what is missing already:
    /// whether it does.
    fn bring(
        &mut self,
        plan: &Plan,
        tier: &Tier0,
        (sample, object): (u64, u32),
        side: Side,
        missing: &mut VecDeque<Fill>,
    ) -> bool {
        let Some((position, place)) = self.neighbour(plan, sample, object) else { return false };
        let blocks = plan.map.covering(object as usize, place.unit);
        if blocks.len() as u64 > tier.pages() / 2 {
            return false;
        }
        let mut blocks: Vec<Block> = blocks.filter(|block| !tier.has(*block)).collect();
        if side == Side::Before {
            blocks.reverse();
        }
        let mut is_brought = false;
        for block in blocks {
            let touches = match side {
                Side::Behind => missing.back().is_some_and(|last| last.block().0 + 1 == block.0),
                Side::Before => missing.front().is_some_and(|first| first.block().0 == block.0 + 1),
            };
            // Without a page it waits for its turn.
            let Some(Access::Missing(fill)) = touches.then(|| tier.pass(block)) else { break };
            self.neighbours.wait(block, position, fill.held());
            match side {
                Side::Behind => missing.push_back(fill),
                Side::Before => missing.push_front(fill),
            }
            is_brought = true;
        }
        is_brought
    }

    /// When a sample is used, and where it is, if that is before the horizon and in that object, and it would be fetched.
    fn neighbour(&self, plan: &Plan, sample: u64, object: u32) -> Option<(u64, SamplePlace)> {
        let place = (sample < plan.index.samples()).then(|| plan.index.sample(sample))?;
        let position = plan.order.next_position(sample, self.next + 1)?;
        let taken = self.taken.get(&position).copied().unwrap_or(0);
        let is_used = position < self.neighbours.horizon() && plan.readers.here(position) > taken;
        let is_held = || self.units.get(&(place.object, place.unit.start, place.unit.end)).is_some();
        let is_small = place.unit.end - place.unit.start <= ENOUGH_BYTES;
        (place.object == object && is_used && is_small && !is_held()).then_some((position, place))
    }
}
