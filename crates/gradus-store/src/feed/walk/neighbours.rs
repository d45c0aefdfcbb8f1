//! What lies beside a sample is fetched along with it, if there is memory for it until it is used.
//!
//! What: the request for a sample also brings the samples beside it whose turn comes soon. How: all blocks that positions up
//! to a *horizon* touch have free pages together; what is used before it has a page anyway when its turn comes, and is held
//! in that page from now on. Why: it comes from the bucket once either way, and one request brings it instead of two.
//!
//! The cache decides on a block when its turn comes, as it would without: so the bucket gives the same bytes. Where blocks
//! are large, or memory is full, or nodes share what they keep and neighbours have other homes, nothing is brought along.
//!
//! Invariant: blocks of positions between the walk and the horizon are at most as many as there are free pages, and pages of
//! what waits there for its turn.

use super::{Plan, Walk};
use crate::blocks::Block;
use crate::cache::{Access, Fill, Held, Tier0};
use crate::index::SamplePlace;
use std::collections::{BTreeMap, VecDeque};

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
    /// Blocks whose turn has not come.
    waiting: BTreeMap<Block, Held>,
}

impl Neighbours {
    /// Whether a block was fetched before its turn, which has come now.
    pub fn arrives(&mut self, block: Block) -> bool {
        self.waiting.remove(&block).is_some()
    }

    /// Positions before `next` do not count any more.
    fn leave_behind(&mut self, next: u64) {
        while self.from < next
            && let Some(count) = self.counts.pop_front()
        {
            self.sum -= u64::from(count);
            self.from += 1;
        }
        self.from = self.from.max(next);
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
            let count =
                if plan.readers.here(position) > 0 { plan.blocks_of(&plan.sample_at(position)) } else { 0 };
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
    fn sample_at(&self, position: u64) -> SamplePlace {
        self.index.sample(self.order.sample_at(position))
    }

    /// How many blocks a sample lies in.
    fn blocks_of(&self, place: &SamplePlace) -> u64 {
        self.map.covering(place.object as usize, place.unit.clone()).len() as u64
    }
}

impl Walk {
    /// Adds to what is missing of the next position's sample what is missing of those beside it.
    pub(super) fn bring_neighbours(
        &mut self,
        plan: &Plan,
        tier: &Tier0,
        place: &SamplePlace,
        missing: &mut Vec<Fill>,
    ) {
        if missing.is_empty() || plan.map.block_bytes() >= ENOUGH_BYTES || self.company.is_some() {
            return;
        }
        self.neighbours.leave_behind(self.next + 1);
        self.neighbours.look_around(plan, tier.free_pages());
        let sample = plan.order.sample_at(self.next);
        for is_behind in [true, false] {
            let mut sample = Some(sample);
            while (missing.len() as u64) * plan.map.block_bytes() < ENOUGH_BYTES {
                sample = sample
                    .and_then(|sample| if is_behind { sample.checked_add(1) } else { sample.checked_sub(1) });
                let Some(more) = sample.and_then(|sample| self.neighbour(plan, tier, sample, place.object))
                else {
                    break;
                };
                missing.extend(more);
            }
        }
        missing.sort_unstable_by_key(Fill::block);
    }

    /// What is missing of a sample, if it is of that object, and used before the horizon; nothing where nothing is missing.
    fn neighbour(&mut self, plan: &Plan, tier: &Tier0, sample: u64, object: u32) -> Option<Vec<Fill>> {
        let place = (sample < plan.index.samples()).then(|| plan.index.sample(sample))?;
        let position = plan.order.next_position(sample, self.next + 1)?;
        let is_used = position < self.neighbours.horizon() && plan.readers.here(position) > 0;
        if place.object != object || !is_used || place.unit.end - place.unit.start > ENOUGH_BYTES {
            return None;
        }
        let mut more = Vec::new();
        let blocks = plan.map.covering(object as usize, place.unit);
        for block in blocks.filter(|block| !tier.has(*block)) {
            // Without a page it waits for its turn.
            if let Access::Missing(fill) = tier.pass(block) {
                self.neighbours.waiting.insert(block, fill.held());
                more.push(fill);
            }
        }
        (!more.is_empty()).then_some(more)
    }
}
