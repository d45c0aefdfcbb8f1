//! Where things lie in an inbox: a bell in its first page, then the counters of one ring for each lane, then the rings'
//! bytes, then its owner's boards, one for each level of priority, where all ranks of the world share memory.
//!
//! An inbox knows the ranks that share it by their places in their [`Circle`].

use crate::board::Board;
use crate::circle::Circle;
use crate::neighbours::Neighbours;
use crate::ring::{COUNTER_BYTES, Place};
use crate::settings::NetworkSettings;
use crate::transport::Lane;
use gradus_memory::{Segment, SharedHeap};
use std::sync::Arc;

const PAGE: usize = 4096;

/// All rings of an inbox together, by default, and the bounds of one: beyond a megabyte a ring falls out of the cache
/// that both sides should find it in.
const INBOX_BYTES: usize = 16 << 20;
const SMALLEST_RING: usize = 64 << 10;
const LARGEST_RING: usize = 1 << 20;

/// Bytes of a ring when none were asked for: a power of two.
fn ring_bytes(asked: usize, ranks: usize) -> usize {
    if asked == 0 {
        let share = INBOX_BYTES / ranks.saturating_sub(1).max(1);
        return (1 << share.ilog2()).clamp(SMALLEST_RING, LARGEST_RING);
    }
    asked
}

/// The plan of all inboxes of a circle.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    ranks: usize,
    pub(crate) levels: usize,
    ring_bytes: usize,
    /// Whether there are boards.
    boards: bool,
}

impl Plan {
    pub(crate) fn new(circle: &Circle, settings: &NetworkSettings) -> Self {
        let (ranks, levels) = (circle.len(), settings.priority_levels);
        Self { ranks, levels, ring_bytes: ring_bytes(settings.ring_bytes, ranks), boards: circle.is_whole() }
    }

    fn rings(&self) -> usize {
        self.ranks.saturating_sub(1) * self.levels
    }

    fn data(&self) -> usize {
        PAGE + (self.rings() * COUNTER_BYTES).next_multiple_of(PAGE)
    }

    fn board(&self, level: usize) -> usize {
        let first = self.data() + (self.rings() * self.ring_bytes).next_multiple_of(PAGE);
        first + level * if self.boards { Board::len(self.ranks) } else { 0 }
    }

    /// Bytes of an inbox.
    pub(crate) fn len(&self) -> usize {
        self.board(self.levels)
    }

    /// The board of a level in an inbox.
    pub(crate) fn board_in(&self, inbox: &Arc<Segment>, level: usize) -> Board {
        Board::new(Arc::clone(inbox), self.board(level), self.ranks)
    }

    /// What this rank does with its neighbours, at each level, before it has met any: all ranks of the world.
    pub(crate) fn neighbours(
        &self,
        rank: usize,
        inbox: &Arc<Segment>,
        heap: &SharedHeap,
        spin: bool,
    ) -> Vec<Neighbours> {
        let level =
            |level| Neighbours::new(rank, self.board_in(inbox, level), heap.clone(), self.ranks, spin);
        (0..self.levels).map(level).collect()
    }

    /// Maps what the rank at one place touches of the inbox of that at another, all at once.
    pub(crate) fn populate(&self, inbox: &Arc<Segment>, own: usize, owner: usize) {
        inbox.populate(0, self.data());
        for level in 0..self.levels {
            let ring = self.place(inbox, owner, own, level);
            inbox.populate(ring.data, ring.capacity);
        }
        if self.boards {
            inbox.populate(self.board(0), self.len() - self.board(0));
        }
    }

    /// The ring from the rank at `sender` in the inbox of that at `owner`.
    pub(crate) fn place(&self, segment: &Arc<Segment>, owner: usize, sender: usize, level: usize) -> Place {
        let peer = if sender < owner { sender } else { sender - 1 };
        let slot = Lane { peer, level }.index(self.ranks - 1);
        Place {
            segment: Arc::clone(segment),
            counters: PAGE + slot * COUNTER_BYTES,
            data: self.data() + slot * self.ring_bytes,
            capacity: self.ring_bytes,
        }
    }
}
