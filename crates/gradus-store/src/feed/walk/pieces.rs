//! What one position comes to: its unit, and the accesses to the unit's blocks.

use super::{Begun, Plan, Walk};
use crate::blocks::Block;
use crate::cache::{Access, Fill, Tier0};
use crate::feed::stalls::Cause;
use crate::feed::unit::{Loading, Origin, Piece, Unit, What, Whereabouts};
use crate::index::SamplePlace;
use std::ops::Range;
use std::sync::Arc;

impl Walk {
    /// The unit of a sample, if it is read here; nothing while there is no page for a block of it.
    pub(super) fn unit(
        &mut self,
        plan: &Plan,
        tier: Option<&Tier0>,
        origin: &dyn Origin,
        place: &SamplePlace,
        is_read: bool,
    ) -> Option<Option<Arc<Unit>>> {
        let key = (place.object, place.unit.start, place.unit.end);
        let is_near = origin.is_near(place.object);
        // What lies in a file, and is one sample's alone, is read for each reader as it comes.
        let is_looked_for = !is_near || place.len < place.unit_bytes;
        let known = if is_read && is_looked_for { self.units.get(&key) } else { None };
        let is_wanted = is_read && known.is_none();
        let blocks = plan.map.covering(place.object as usize, place.unit.clone()).len() as u64;
        // A unit that would take most of the memory goes past the cache.
        let tier = tier.filter(|tier| blocks <= tier.pages() / 2 && !is_near);
        let at = match tier.filter(|_| is_wanted || self.company.is_some()) {
            Some(tier) => Whereabouts::Pieces(self.pieces(plan, tier, origin, place, is_wanted)?),
            None => Whereabouts::There,
        };
        if !is_wanted {
            if known.is_some() {
                self.brought.memory += place.len;
                self.pass_over(plan, tier, place);
            }
            return Some(known);
        }
        if matches!(at, Whereabouts::There) {
            self.expected.push((place.object, place.unit.clone()));
            self.brings(origin.cause(place.object), place.unit.end - place.unit.start);
        }
        let unit =
            Arc::new(Unit::new(place.object, place.unit.clone(), (place.decoding, place.unit_bytes), at));
        if is_looked_for {
            self.units.insert(key, &unit);
        }
        Some(Some(unit))
    }

    /// Tells the cache when the blocks of a unit are used next that is held already: this position was to be their next use, and
    /// does not touch them.
    fn pass_over(&mut self, plan: &Plan, tier: Option<&Tier0>, place: &SamplePlace) {
        let Some(tier) = tier.filter(|_| self.company.is_none()) else { return };
        for block in plan.map.covering(place.object as usize, place.unit.clone()) {
            tier.pass_over(block, || {
                let samples = plan.index.samples_in(place.object, plan.map.range_of(block));
                self.uses.next(block, samples, self.next)
            });
        }
    }

    /// Accesses the blocks of a unit that have their home here, and those that are read here, and begins to fetch what is
    /// missing, neighbours together. Nothing when pages run out: what was accessed until then is held, and the walk goes on
    /// from there when there are pages again.
    fn pieces(
        &mut self,
        plan: &Plan,
        tier: &Tier0,
        origin: &dyn Origin,
        place: &SamplePlace,
        is_read: bool,
    ) -> Option<Vec<Piece>> {
        let (object, range) = (place.object, &place.unit);
        if self.begun.is_read != is_read {
            self.begun = Begun { is_read, ..Begun::default() };
        }
        let company = self.company.clone();
        let others = plan.readers.elsewhere(self.next);
        let mut missing: Vec<Fill> = Vec::new();
        let mut is_full = false;
        for block in plan.map.covering(object as usize, range.clone()).skip(self.begun.blocks) {
            let is_home = company.as_ref().is_none_or(|company| company.is_home(block));
            let from;
            let what = if is_home {
                let access = tier.access(block, || {
                    let samples = plan.index.samples_in(object, plan.map.range_of(block));
                    self.uses.next(block, samples, self.next)
                });
                let is_early = self.neighbours.arrives(block);
                from = brought_from(&access, Cause::Bucket).or(is_early.then_some(Cause::Bucket));
                self.what(block, access, Cause::Bucket, &mut missing)
            } else if is_read {
                let mut asked: Vec<Fill> = Vec::new();
                let access = tier.pass(block);
                from = brought_from(&access, Cause::Peer);
                let what = self.what(block, access, Cause::Peer, &mut asked);
                if let Some((fill, company)) = asked.pop().zip(company.as_ref()) {
                    company.ask(fill, self.next);
                }
                what
            } else {
                self.begun.blocks += 1;
                continue;
            };
            let Some(what) = what else {
                is_full = true;
                break;
            };
            let part = part_of(range, &plan.map.range_of(block));
            self.begun.blocks += 1;
            if is_home && others > 0 && company.is_some() {
                self.awaited.add((self.next, block), what.clone(), others, part.len() as u64);
            }
            if is_read {
                match from {
                    Some(cause) => self.brings(cause, part.len() as u64),
                    None => self.brought.memory += part.len() as u64,
                }
                self.begun.pieces.push(Piece { what, range: part });
            }
        }
        let missing = if is_full { missing } else { self.with_neighbours(plan, tier, object, missing) };
        begin_in_runs(missing, origin);
        (!is_full).then(|| std::mem::take(&mut self.begun).pieces)
    }

    /// The pieces of a sample's unit, if all of them are in memory or on their way there; nothing is accessed.
    pub fn pieces_in_memory(&mut self, plan: &Plan, tier: &Tier0, place: &SamplePlace) -> Option<Vec<Piece>> {
        let piece = |block| {
            let access = Access::Held(tier.peek(block)?);
            let what = self.what(block, access, Cause::Bucket, &mut Vec::new())?;
            Some(Piece { what, range: part_of(&place.unit, &plan.map.range_of(block)) })
        };
        plan.map.covering(place.object as usize, place.unit.clone()).map(piece).collect()
    }

    /// What an access comes to; nothing where there is no page.
    pub(super) fn what(
        &mut self,
        block: Block,
        access: Access,
        cause: Cause,
        missing: &mut Vec<Fill>,
    ) -> Option<What> {
        Some(match access {
            Access::Held(held) => match self.loading.get(&block) {
                Some(loading) => What::OnDisk(loading),
                None => What::Coming(held, cause),
            },
            Access::OnDisk(load) => {
                let loading = Arc::new(Loading::new(load));
                self.loading.insert(block, &loading);
                What::OnDisk(loading)
            }
            Access::Missing(fill) => {
                let held = fill.held();
                missing.push(fill);
                What::Coming(held, cause)
            }
            Access::Full => return None,
        })
    }
}

/// Where a block has to come from that is not in memory; `missing` is where those come from that are nowhere here.
fn brought_from(access: &Access, missing: Cause) -> Option<Cause> {
    match access {
        Access::Held(_) | Access::Full => None,
        Access::OnDisk(_) => Some(Cause::Disk),
        Access::Missing(_) => Some(missing),
    }
}

/// Which bytes of a block lie in a range that meets it.
fn part_of(range: &Range<u64>, block: &Range<u64>) -> Range<usize> {
    let within = |at: u64| (at.clamp(block.start, block.end) - block.start) as usize;
    within(range.start)..within(range.end)
}

/// Fetches blocks of one object, those that follow one another by one request.
pub(in crate::feed) fn begin_in_runs(missing: Vec<Fill>, origin: &dyn Origin) {
    let mut run: Vec<Fill> = Vec::new();
    for fill in missing {
        if run.last().is_some_and(|last| last.block().0 + 1 != fill.block().0) {
            origin.begin(std::mem::take(&mut run));
        }
        run.push(fill);
    }
    if !run.is_empty() {
        origin.begin(run);
    }
}
