//! Samples of positions that follow one another, for one reader.
//!
//! What the walk has there already is claimed together: readers on several threads meet at the walk once for many samples,
//! not twice for each. What a reader waited for is told to the walk when it claims next; at once if it was something that
//! deeper reading ahead would have spared.

use super::stalls::{Cause, Stalls};
use super::unit::{Unit, Waited, Whereabouts};
use super::walk::{Claim, Taken, Walk};
use super::{Core, Feed, Sample};
use gradus_error::{Error, Result};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Part of what may wait for readers that one of them claims at once: the others' share is as good.
const CLAIMED_PART: u64 = 4;

/// The samples at some positions, one by one. See [`Feed::samples`].
pub struct Samples<'a> {
    feed: &'a Feed,
    positions: Range<u64>,
    claimed: VecDeque<Claim>,
    taken: Taken,
    waits: Stalls,
}

impl<'a> Samples<'a> {
    pub(super) fn new(feed: &'a Feed, positions: Range<u64>) -> Self {
        let (claimed, taken, waits) = (VecDeque::new(), Taken::default(), Stalls::default());
        Self { feed, positions, claimed, taken, waits }
    }

    /// What was waited for so far.
    pub fn waits(&self) -> &Stalls {
        &self.waits
    }

    fn read(&mut self, claim: &Claim) -> Result<Sample> {
        let Claim { unit, place } = claim;
        let core = &self.feed.core;
        let object = &core.plan.map.objects()[place.object as usize];
        let mut waited = Waited::default();
        let parts = unit.resolve(core.origin.as_ref(), object, core.clock.as_ref(), &mut waited);
        self.waits.add_all(&waited);
        self.taken.add(place.len, &waited);
        if self.taken.is_urgent() {
            self.tell();
        }
        let sample = Sample::new(parts?, place.offset as usize, place.len as usize);
        sample.check(place.crc32c).map_err(|error| {
            error.within(format!("{}: the sample in bytes {:?}", object.address, place.unit))
        })?;
        Ok(sample)
    }

    /// Tells the walk what was taken, which may take it on.
    fn tell(&mut self) {
        let core = &self.feed.core;
        let mut walk = core.walk();
        core.count(&mut walk, &mut self.taken);
        core.advance(&mut walk);
        core.leave(walk);
        self.feed.nudge();
    }

    fn claim(&mut self) -> Result<()> {
        let claims = self.feed.core.claim(self.positions.clone(), &mut self.taken, &mut self.waits)?;
        self.positions.start += claims.len() as u64;
        self.claimed = claims;
        self.feed.nudge();
        Ok(())
    }
}

impl Iterator for Samples<'_> {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Result<Sample>> {
        if self.claimed.is_empty() {
            if self.positions.is_empty() {
                return None;
            }
            if let Err(error) = self.claim() {
                // No position behind it can be had either.
                self.positions.start = self.positions.end;
                return Some(Err(error));
            }
        }
        let claim = self.claimed.pop_front()?;
        Some(self.read(&claim))
    }
}

impl Drop for Samples<'_> {
    fn drop(&mut self) {
        if !self.taken.is_empty() {
            self.tell();
        }
    }
}

impl Core {
    /// Claims the first of `positions`, as soon as that is possible, and those behind it that the walk has. At least one.
    fn claim(&self, positions: Range<u64>, taken: &mut Taken, waits: &mut Stalls) -> Result<VecDeque<Claim>> {
        if self.plan.end.is_some_and(|end| positions.start >= end) {
            let position = positions.start;
            return Err(Error::invalid(format!("position {position} is behind the end of the order")));
        }
        let mut walk = self.walk();
        self.count(&mut walk, taken);
        let mut may_wait = true;
        loop {
            self.advance(&mut walk);
            self.advance_to(&mut walk, positions.start);
            let claims = walk.claim(positions.clone(), self.depth().most() / CLAIMED_PART);
            if !claims.is_empty() {
                self.advance(&mut walk);
                self.leave(walk);
                return Ok(claims);
            }
            if !may_wait || !walk.is_stuck_at(&self.plan, positions.start) {
                break;
            }
            self.leave(walk);
            let begun = self.clock.now();
            // Whatever comes of it, others may have walked on meanwhile.
            may_wait = self.wait_for_page();
            let waited = self.clock.now().saturating_sub(begun);
            [&mut taken.stalls, &mut *waits].into_iter().for_each(|stalls| stalls.add(Cause::Memory, waited));
            walk = self.walk();
        }
        let claim = self.claim_unwalked(&mut walk, positions.start);
        walk.pass_by(&self.plan, positions.start);
        Ok(VecDeque::from([claim]))
    }

    /// A sample that was not on its way by itself: read where it is, unless it is in memory.
    fn claim_unwalked(&self, walk: &mut Walk, position: u64) -> Claim {
        let place = self.plan.index.sample(self.plan.order.sample_at(position));
        let decoding = (place.decoding, place.unit_bytes);
        let pieces = self.tier.as_ref().and_then(|tier| walk.pieces_in_memory(&self.plan, tier, &place));
        let at = pieces.map_or(Whereabouts::There, Whereabouts::Pieces);
        let unit = Unit::new(place.object, place.unit.clone(), decoding, at);
        Claim { unit: Arc::new(unit), place }
    }

    fn count(&self, walk: &mut Walk, taken: &mut Taken) {
        if !taken.is_empty() {
            walk.count(&std::mem::take(taken), self.clock.now(), &mut self.depth());
        }
    }
}
