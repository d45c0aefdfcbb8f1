//! What a keeper counts.

use super::patience::End;
use super::protocol::Kind;
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// What was asked of others and served to them so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// By node. Who was served and is no member stands under the empty name.
    pub by_node: BTreeMap<String, PeerCounters>,
    /// With members of the same rack.
    pub in_rack: PeerCounters,
    /// With all others.
    pub across: PeerCounters,
}

/// What was exchanged with some.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Blocks that were wanted of them.
    pub asked_blocks: u64,
    /// Blocks that came, and their bytes.
    pub received_blocks: u64,
    /// See `received_blocks`.
    pub received_bytes: u64,
    /// Blocks that were sent to them, and their bytes.
    pub served_blocks: u64,
    /// See `served_blocks`.
    pub served_bytes: u64,
    /// Asks that were answered without a block, for it was not there.
    pub not_here: u64,
    /// ... for there was too much to do, or the asker was not to be served.
    pub busy: u64,
    /// Asks whose time was up.
    pub late: u64,
    /// Asks whose connection ended, or could not be made.
    pub lost: u64,
    /// Asks that were not sent: to a peer that is set aside, or has as many as it may.
    pub not_asked: u64,
    /// Blocks that came with another CRC than they had.
    pub corrupt: u64,
    /// Times that they were set aside.
    pub set_aside: u64,
}

impl PeerCounters {
    /// Blocks that were wanted and did not come: for each of these somebody had to go further, to the bucket in the end.
    pub fn failed(&self) -> u64 {
        self.not_here + self.busy + self.late + self.lost + self.not_asked + self.corrupt
    }

    pub(super) fn received(bytes: u64) -> Self {
        Self { received_blocks: 1, received_bytes: bytes, ..Self::default() }
    }

    pub(super) fn served(bytes: u64) -> Self {
        Self { served_blocks: 1, served_bytes: bytes, ..Self::default() }
    }

    /// One reply without a block.
    pub(super) fn without_block(kind: Kind) -> Self {
        let here = kind == Kind::NotHere;
        Self { not_here: u64::from(here), busy: u64::from(!here), ..Self::default() }
    }

    /// One ask that ended without a reply.
    pub(super) fn without_reply(end: End) -> Self {
        let is = |other| u64::from(end == other);
        Self { late: is(End::Late), lost: is(End::Lost), not_asked: is(End::NotAsked), ..Self::default() }
    }
}

impl AddAssign for PeerCounters {
    fn add_assign(&mut self, more: Self) {
        self.asked_blocks += more.asked_blocks;
        self.received_blocks += more.received_blocks;
        self.received_bytes += more.received_bytes;
        self.served_blocks += more.served_blocks;
        self.served_bytes += more.served_bytes;
        self.not_here += more.not_here;
        self.busy += more.busy;
        self.late += more.late;
        self.lost += more.lost;
        self.not_asked += more.not_asked;
        self.corrupt += more.corrupt;
        self.set_aside += more.set_aside;
    }
}
