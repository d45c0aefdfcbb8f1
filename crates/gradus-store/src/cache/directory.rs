//! Who is in one tier of the cache, by number only: a policy, a capacity, and what is damaged or found again.
//!
//! Invariant: a directory that has room for every block asks for no next use and evicts nothing.

use super::policy::{Admission, Policy, PolicyKind};
use crate::blocks::Block;

/// What a directory says to an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The block is resident.
    Hit,
    /// It was not; it is now if it was admitted.
    Miss {
        admitted: bool,
        /// Who went for it.
        evicted: Option<Block>,
    },
}

impl Verdict {
    pub(super) fn evicted(self) -> Option<Block> {
        match self {
            Self::Miss { evicted, .. } => evicted,
            Self::Hit => None,
        }
    }

    pub(super) fn is_resident(self) -> bool {
        !matches!(self, Self::Miss { admitted: false, .. })
    }
}

/// The residents of one tier.
pub(super) struct Directory {
    policy: Box<dyn Policy>,
    foresees: bool,
    closed: bool,
}

impl Directory {
    /// An empty directory for `capacity` blocks of `blocks` that there are.
    pub(super) fn new(kind: PolicyKind, capacity: u64, blocks: u64) -> Self {
        let foresees = kind == PolicyKind::Clairvoyant && 0 < capacity && capacity < blocks;
        Self { policy: kind.of_capacity(capacity), foresees, closed: false }
    }

    /// Whether it looks at next uses: if not, whoever calls need not work them out.
    pub(super) fn foresees(&self) -> bool {
        self.foresees && !self.closed
    }

    /// Number of residents.
    pub(super) fn len(&self) -> u64 {
        self.policy.len()
    }

    /// A block is used, and next after this at `next_use`.
    pub(super) fn access(&mut self, block: Block, next_use: Option<u64>) -> Verdict {
        if self.policy.contains(block) {
            self.policy.hit(block, next_use);
            return Verdict::Hit;
        }
        if self.closed {
            return Verdict::Miss { admitted: false, evicted: None };
        }
        let Admission { admitted, evicted } = self.policy.miss(block, next_use);
        Verdict::Miss { admitted, evicted }
    }

    /// A block is resident no longer: it is damaged, or never came.
    pub(super) fn forget(&mut self, block: Block) {
        self.policy.remove(block);
    }

    /// From now on nobody is admitted, and nobody goes.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// A resident, if it is one, is used next at `next_use`: for a policy that looks ahead.
    pub(super) fn foresee(&mut self, block: Block, next_use: Option<u64>) {
        if self.foresees() && self.policy.contains(block) {
            self.policy.hit(block, next_use);
        }
    }

    /// Blocks that an earlier run left become residents; returns those for whom there is no room, as the policy has it.
    pub(super) fn restore(&mut self, found: impl IntoIterator<Item = Block>) -> Vec<Block> {
        let mut left_out = Vec::new();
        for block in found {
            match self.access(block, None) {
                Verdict::Miss { admitted: false, .. } => left_out.push(block),
                verdict => left_out.extend(verdict.evicted()),
            }
        }
        left_out
    }
}
