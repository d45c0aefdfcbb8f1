//! Which of this rank's slots for staged bytes is free.

use gradus_fabric::{Neighbours, STAGING_SLOTS};

/// A peer that was shown a slot: how many of its signals had been heard, and of ours shown to it, when the collective was
/// over here.
struct Shown {
    peer: usize,
    heard: u64,
    signalled: u64,
}

/// The slots of one rank, at one level of priority.
#[derive(Default)]
pub(crate) struct Slots {
    shown: [Vec<Shown>; STAGING_SLOTS],
    taken: [bool; STAGING_SLOTS],
    next: usize,
}

impl Slots {
    /// Takes the slot whose turn it is, if all peers are done with it: one that has signalled again is, and one that says
    /// so.
    pub(crate) fn take(&mut self, neighbours: &Neighbours) -> Option<usize> {
        let slot = self.next;
        let is_done = |shown: &Shown| {
            neighbours.heard(shown.peer) > shown.heard || neighbours.finished(shown.peer) >= shown.signalled
        };
        if self.taken[slot] || !self.shown[slot].iter().all(is_done) {
            return None;
        }
        self.taken[slot] = true;
        self.next = (slot + 1) % STAGING_SLOTS;
        Some(slot)
    }

    /// A collective that staged there is over on this rank.
    pub(crate) fn leave(&mut self, slot: usize, peers: impl Iterator<Item = usize>, neighbours: &Neighbours) {
        self.taken[slot] = false;
        self.shown[slot].clear();
        self.shown[slot].extend(peers.map(|peer| Shown {
            peer,
            heard: neighbours.heard(peer),
            signalled: neighbours.signalled(peer),
        }));
    }
}
