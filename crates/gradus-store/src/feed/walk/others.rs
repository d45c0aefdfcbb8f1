//! The walk among those of other nodes: what it gives them, and how long it waits for them.

use super::neighbours::Neighbours;
use super::pieces::begin_in_runs;
use super::{Begun, Plan, Walk};
use crate::blocks::Block;
use crate::cache::Tier0;
use crate::feed::nodes::Company;
use crate::feed::readers::Readers;
use crate::feed::stalls::Cause;
use crate::feed::unit::{Origin, What};
use std::sync::Arc;

/// Batches that a node may be behind another and still ask for what it needs.
const SLACK_BATCHES: u64 = 2;

/// Part of all pages that may hold what was asked for on behalf of a rack.
const RELAYED_PART: u64 = 8;

impl Walk {
    /// From now on blocks have homes. The walk goes up to `reach` positions beyond what is taken.
    pub fn join(&mut self, company: Company, reach: u64, readers: &Readers) {
        self.company = Some(Arc::new(company));
        (self.reach, self.slack) = (reach, readers.batch().saturating_mul(SLACK_BATCHES));
        self.awaited.clear();
        self.begun = Begun::default();
        self.neighbours = Neighbours::default();
    }

    /// Whom this node is among, once it walks among them.
    pub fn company(&self) -> Option<&Arc<Company>> {
        self.company.as_ref().filter(|_| self.is_begun)
    }

    /// Lets go of what waits for others longest, for want of pages; whether there was something.
    pub fn give_up_one(&mut self) -> bool {
        self.relayed.pop_front().is_some() || self.awaited.forget_first()
    }

    /// Another node asks for a block of a position; where nobody reads, that says how far the run is.
    pub fn was_asked(&mut self, plan: &Plan, position: u64) {
        if !plan.readers.read_here() && self.reaches(plan, position) {
            self.saw(position);
        }
    }

    pub(super) fn saw(&mut self, position: u64) {
        if position > self.seen {
            self.awaited.leave_behind(self.seen..position);
            self.seen = position;
        }
        self.awaited.forget_before(self.seen.saturating_sub(self.slack));
    }

    /// A block of another rack for a node of this one; nothing where there is no page for it.
    pub fn relay(&mut self, tier: &Tier0, company: &Company, block: Block, position: u64) -> Option<What> {
        let mut asked = Vec::new();
        let what = self.what(block, tier.pass(block), Cause::Peer, &mut asked)?;
        asked.into_iter().for_each(|fill| company.ask(fill, position));
        self.relayed.push_back(what.clone());
        while self.relayed.len() as u64 > (tier.pages() / RELAYED_PART).max(1) {
            self.relayed.pop_front();
        }
        Some(what)
    }

    /// A block for another node, of a position that the walk has passed; nothing where there is no page for it.
    pub fn give(&mut self, tier: &Tier0, origin: &dyn Origin, block: Block, position: u64) -> Option<What> {
        if let Some(what) = self.awaited.take((position, block)) {
            return Some(what);
        }
        let mut missing = Vec::new();
        let what = self.what(block, tier.pass(block), Cause::Bucket, &mut missing);
        begin_in_runs(missing, origin);
        what
    }
}
