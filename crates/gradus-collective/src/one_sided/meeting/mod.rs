//! A collective among neighbours in flight.

mod agenda;
mod companion;
mod memory;
mod mismatch;

pub(crate) use agenda::Agenda;
pub(crate) use companion::{Companion, Past};

use super::act::{Act, Place, Store};
use super::slots::Slots;
use crate::element;
use crate::flight::PeerState;
use crate::header::{Header, Identity};
use crate::memory::{Regions, Scratch};
use crate::operation::Ready;
use crate::plan::Region;
use companion::Shown;
use gradus_error::{Error, Result};
use gradus_fabric::{HEADER_WORDS, Location, NOTE_WORDS, Neighbours, Note, STAGING_BYTES, STAGING_SLOTS};
use mismatch::digest;
use std::sync::Arc;

/// What a signal counts as: the line with its note.
const SIGNAL_BYTES: u64 = 64;

/// Bytes that one turn moves, before others have theirs.
const TURN_BYTES: usize = 1 << 20;

/// One rank's side of a collective.
pub(crate) struct Meeting {
    pub(crate) identity: Identity,
    agenda: Arc<Agenda>,
    /// Who takes part.
    companions: Vec<Companion>,
    /// This rank's place among them.
    rank: usize,
    regions: Regions,
    header: [u64; HEADER_WORDS],
    digest: u64,
    slot: Option<usize>,
    next: usize,
    moved: (u64, u64),
    ready: Option<Ready>,
}

/// What goes with every act.
pub(crate) struct Surroundings<'a> {
    pub(crate) neighbours: &'a mut Neighbours,
    pub(crate) slots: &'a mut Slots,
    /// For bytes on their way out of a peer's private memory.
    pub(crate) bounce: &'a mut Vec<u64>,
    /// Bytes that a turn may move at most.
    pub(crate) most: usize,
}

/// Why a meeting does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaits {
    /// Its turn is over, or it is.
    Nothing,
    /// Its memory, or a slot.
    Memory,
    /// A signal of this rank of the transport.
    Signal(usize),
}

impl Meeting {
    /// # Panics
    /// If the program names elements outside the memory: programs come from our own generators.
    pub(crate) fn new(
        identity: Identity,
        regions: Regions,
        agenda: Arc<Agenda>,
        (companions, rank): (Vec<Companion>, usize),
        ready: Option<Ready>,
    ) -> Self {
        let width = identity.element.bytes();
        let fits = |store, bytes| agenda.extent(store) * width <= bytes;
        assert!(fits(Store::Input, regions.bytes(Region::Input)), "a program must fit its memory");
        assert!(fits(Store::Output, regions.bytes(Region::Output)), "a program must fit its memory");
        assert!(fits(Store::Scratch, regions.bytes(Region::Scratch)), "a program must fit its memory");
        assert!(fits(Store::Staging, STAGING_BYTES), "a program must fit its slot");
        let header = Header { identity, message: 0, bytes: 0, order: 0 }.words();
        let digest = digest(&header);
        Self {
            identity,
            agenda,
            companions,
            rank,
            regions,
            header,
            digest,
            slot: None,
            next: 0,
            moved: (0, 0),
            ready,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.next == self.agenda.acts.len()
    }

    pub(crate) fn has_moved(&self) -> bool {
        self.next > 0
    }

    /// Bytes shown to peers and read of them.
    pub(crate) fn exchanged(&self) -> (u64, u64) {
        self.moved
    }

    /// What can serve the next one.
    pub(crate) fn into_parts(self) -> (Scratch, Vec<Companion>) {
        (self.regions.into_scratch(), self.companions)
    }

    /// The others that take part, by their number in the transport.
    pub(crate) fn peers(&self) -> impl Iterator<Item = usize> {
        let rank = self.rank;
        self.companions.iter().enumerate().filter(move |(place, _)| *place != rank).map(|(_, one)| one.rank)
    }

    /// Asks whether its memory is ready; whether that was news.
    pub(crate) fn ask(&mut self) -> bool {
        let news = self.ready.as_mut().is_some_and(|ready| ready());
        if news {
            self.ready = None;
        }
        news
    }

    /// What it waits for before its next act.
    pub(crate) fn awaits(&self) -> Awaits {
        match self.agenda.acts.get(self.next) {
            _ if self.ready.is_some() => Awaits::Memory,
            Some(Act::Hear { peer, .. }) => Awaits::Signal(self.companions[*peer].rank),
            None => Awaits::Nothing,
            Some(_) if self.slot.is_none() && self.agenda.stages() => Awaits::Memory,
            Some(_) => Awaits::Nothing,
        }
    }

    /// What is still owed to and by each peer, in signals.
    pub(crate) fn peer_states(&self) -> Vec<PeerState> {
        let mut states: Vec<PeerState> = self.companions.iter().map(|one| PeerState::new(one.rank)).collect();
        for act in &self.agenda.acts[self.next..] {
            match act {
                Act::Signal { peer, .. } => states[*peer].add(true, 0, 0),
                Act::Hear { peer, .. } => states[*peer].add(false, 0, 0),
                _ => {}
            }
        }
        states.into_iter().filter(PeerState::is_open).collect()
    }

    /// Goes on, for a turn; whether it came any further.
    ///
    /// # Errors
    /// `Invalid` when a peer is at another collective, `Corrupt` when it breaks the rules, `PeerLost` when its memory is
    /// gone.
    pub(crate) fn advance(&mut self, around: &mut Surroundings) -> Result<bool> {
        let begin = self.next;
        if self.ready.is_some() || !self.claim(around) {
            return Ok(false);
        }
        let mut turn = TURN_BYTES.min(around.most);
        while turn > 0
            && let Some(act) = self.agenda.acts.get(self.next).copied()
        {
            let Some(bytes) = self.carry_out(act, around)? else { break };
            turn = turn.saturating_sub(bytes);
            self.next += 1;
        }
        if self.is_over() && self.next > begin {
            self.part(around);
        }
        Ok(self.next > begin)
    }

    /// Takes a slot before the first act, if the program wants one.
    fn claim(&mut self, around: &mut Surroundings) -> bool {
        if self.next > 0 {
            return true;
        }
        if self.slot.is_none() && self.agenda.stages() {
            self.slot = around.slots.take(around.neighbours);
        }
        let ready = self.slot.is_some() || !self.agenda.stages();
        if ready && !self.agenda.carries {
            self.locate(around.neighbours);
        }
        ready
    }

    /// Tells peers that nothing of theirs is read any more.
    fn part(&mut self, around: &mut Surroundings) {
        for peer in self.peers() {
            around.neighbours.finish(peer, around.neighbours.heard(peer));
        }
        if let Some(slot) = self.slot {
            around.slots.leave(slot, self.peers(), around.neighbours);
        }
    }

    /// Bytes that an act has moved; `None` when it must wait.
    fn carry_out(&mut self, act: Act, around: &mut Surroundings) -> Result<Option<usize>> {
        match act {
            Act::Signal { peer, carries } => {
                let note = self.note(peer, carries);
                self.header[HEADER_WORDS - 1] = self.companions[peer].past.order;
                around.neighbours.signal(self.companions[peer].rank, &note, &self.header);
                self.moved.0 += SIGNAL_BYTES;
                Ok(Some(0))
            }
            Act::Hear { peer, to } => {
                let Some(note) = around.neighbours.hear(self.companions[peer].rank) else { return Ok(None) };
                if note[0] != self.digest || note[1] != self.companions[peer].past.mirrored() {
                    return Err(self.mismatch(peer, note[1], around.neighbours));
                }
                self.moved.1 += SIGNAL_BYTES;
                self.take_note(peer, &note, to)?;
                Ok(Some(0))
            }
            Act::Copy { from, to } => self.move_bytes(from, to, false, around).map(Some),
            Act::Combine { from, to } => self.move_bytes(from, to, true, around).map(Some),
            Act::Divide { place, by } => {
                let element = self.identity.element;
                // SAFETY: inside this rank's memory (checked in `new`), which is the collective's for now, and aligned.
                unsafe { element::divide(element, self.own(place), place.span.len, by) };
                Ok(Some(place.span.len * element.bytes()))
            }
        }
    }

    fn note(&mut self, peer: usize, carries: Option<Place>) -> Note {
        let mut note = [0; NOTE_WORDS];
        (note[0], note[1]) = (self.digest, self.companions[peer].past.word());
        let Some(place) = carries else {
            note[2..5].copy_from_slice(&self.companions[self.rank].shown.words());
            return note;
        };
        let bytes = self.bytes(place);
        assert!(bytes <= size_of_val(&note[2..]), "a note must hold what goes along");
        // SAFETY: inside this rank's memory, and as many bytes of the note.
        unsafe { std::ptr::copy_nonoverlapping(self.own(place), note[2..].as_mut_ptr().cast(), bytes) };
        note
    }

    fn take_note(&mut self, peer: usize, note: &Note, to: Option<Place>) -> Result<()> {
        if let Some(place) = to {
            let bytes = self.bytes(place);
            assert!(bytes <= size_of_val(&note[2..]), "a note must hold what came along");
            // SAFETY: inside this rank's memory, and as many bytes of the note.
            unsafe { std::ptr::copy_nonoverlapping(note[2..].as_ptr().cast(), self.own(place), bytes) };
            return Ok(());
        }
        let slot = usize::try_from(note[4]).unwrap_or(STAGING_SLOTS);
        if slot >= STAGING_SLOTS {
            return Err(Error::corrupt(format!(
                "rank {} names a slot that it does not have",
                self.companions[peer].rank
            )));
        }
        let location = Location::from_word;
        self.companions[peer].shown = Shown { input: location(note[2]), output: location(note[3]), slot };
        Ok(())
    }
}
