//! Ranks that signal each other and do not do the same thing: who does what.

use super::Meeting;
use crate::header::{HEADER_BYTES, Header};
use gradus_error::{Error, Kind};
use gradus_fabric::{HEADER_WORDS, Neighbours};

/// What tells one header from another at a glance: a chain of products that no single field leaves as it was.
pub(super) fn digest(header: &[u64; HEADER_WORDS]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: &u64| (hash ^ word).wrapping_mul(ODD).rotate_left(29);
    let (first, second) = header.split_at(HEADER_WORDS / 2);
    // Two chains side by side take half as long as one.
    first.iter().fold(ODD, mix) ^ second.iter().fold(!ODD, mix).rotate_left(17)
}

impl Meeting {
    /// A signal says something else than ours does: who does what.
    pub(super) fn mismatch(&self, peer: usize, past: u64, neighbours: &Neighbours) -> Error {
        let (rank, ours) = (self.companions[peer].rank, self.companions[peer].past);
        let theirs = neighbours.header(rank, neighbours.heard(rank));
        let error = self.disagreement(peer, &Header::bytes(&theirs));
        if past == ours.mirrored() || *error.kind() != Kind::Corrupt {
            return error;
        }
        Error::invalid(format!(
            "before {} rank {rank} had {} messages for rank {} and awaited {}, which awaited {} and had {}: they did not do \
             the same before, such as name one root",
            self.identity,
            past >> 32,
            self.companions[self.rank].rank,
            past as u32,
            ours.receives,
            ours.sends
        ))
    }

    /// What a peer is at, if that is not this: its header stands at the place among our operations with it at which this
    /// collective stands.
    pub(crate) fn stranger(&self, rank: usize, theirs: &[u8; HEADER_BYTES]) -> Option<Error> {
        let place = self.companions.iter().position(|one| one.rank == rank)?;
        let order = Header::decode(theirs).ok()?.order;
        (order == self.companions[place].past.order).then(|| self.disagreement(place, theirs))
    }

    fn disagreement(&self, peer: usize, theirs: &[u8; HEADER_BYTES]) -> Error {
        let (rank, own) = (self.companions[peer].rank, self.companions[self.rank].rank);
        let ours =
            Header { identity: self.identity, message: 0, bytes: 0, order: self.companions[peer].past.order };
        let found = Header::decode(theirs).map_err(|error| error.within(format!("from rank {rank}")));
        match found.and_then(|theirs| theirs.expect(&ours, own, rank)) {
            Err(error) => error,
            Ok(()) => Error::corrupt(format!("rank {rank} signals something else than its header says")),
        }
    }
}
