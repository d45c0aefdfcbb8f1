//! A collective among neighbours in flight.

use super::act::{Act, Place, Program, Store};
use super::slots::Slots;
use crate::element::{self, Reduction};
use crate::flight::PeerState;
use crate::header::{HEADER_BYTES, Header, Identity};
use crate::memory::{Regions, Scratch};
use crate::operation::Ready;
use crate::plan::Region;
use gradus_error::{Error, Kind, Result};
use gradus_fabric::{HEADER_WORDS, Location, NOTE_WORDS, Neighbours, Note, STAGING_BYTES, STAGING_SLOTS};
use std::sync::Arc;

/// What a signal counts as: the line with its note.
const SIGNAL_BYTES: u64 = 64;

/// Bytes that one turn moves, before others have theirs.
const TURN_BYTES: usize = 1 << 20;

/// Where a peer's memory is, as it said when it came.
#[derive(Clone, Copy)]
struct Shown {
    input: Location,
    output: Location,
    slot: usize,
}

impl Shown {
    const NOTHING: Self = Self { input: Location::Private(0), output: Location::Private(0), slot: 0 };

    fn words(self) -> [u64; 3] {
        [self.input.to_word(), self.output.to_word(), self.slot as u64]
    }
}

/// A program, and what it needs: made once for a shape, used for many collectives.
pub(crate) struct Agenda {
    acts: Vec<Act>,
    /// Elements of each of this rank's stores.
    extents: [usize; 4],
    /// Whether all that others see of this rank goes along with its signals.
    carries: bool,
}

impl Agenda {
    pub(crate) fn new(program: Program) -> Self {
        let stores = [Store::Input, Store::Output, Store::Scratch, Store::Staging];
        let carries = program.acts.iter().any(|act| matches!(act, Act::Signal { carries: Some(_), .. }));
        Self { extents: stores.map(|store| program.extent(store)), carries, acts: program.acts }
    }

    fn extent(&self, store: Store) -> usize {
        self.extents[store as usize]
    }

    /// Bytes of scratch that it needs.
    pub(crate) fn scratch_bytes(&self, element_bytes: usize) -> usize {
        self.extent(Store::Scratch) * element_bytes
    }

    fn stages(&self) -> bool {
        self.extent(Store::Staging) > 0
    }
}

/// What two ranks have begun with each other, as one of them counts it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Past {
    /// Operations.
    pub(crate) order: u64,
    /// Messages that this rank sends the other.
    pub(crate) sends: u32,
    /// Messages that it receives from the other.
    pub(crate) receives: u32,
}

impl Past {
    fn word(self) -> u64 {
        u64::from(self.sends) << 32 | u64::from(self.receives)
    }

    /// What the other one must have counted.
    fn mirrored(self) -> u64 {
        self.word().rotate_left(32)
    }
}

/// A rank that takes part.
pub(crate) struct Companion {
    /// Its number in the transport.
    rank: usize,
    /// What there was before between it and this rank.
    past: Past,
    shown: Shown,
}

impl Companion {
    pub(crate) fn new(rank: usize, past: Past) -> Self {
        Self { rank, past, shown: Shown::NOTHING }
    }
}

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
        let mut turn = TURN_BYTES;
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

    /// What a rank must know of this one's memory, said with its signals.
    fn locate(&mut self, neighbours: &Neighbours) {
        let at = |region| neighbours.locate(self.regions.start(region), self.regions.bytes(region));
        self.companions[self.rank].shown =
            Shown { input: at(Region::Input), output: at(Region::Output), slot: self.slot.unwrap_or(0) };
    }

    fn bytes(&self, place: Place) -> usize {
        place.span.len * self.identity.element.bytes()
    }

    fn offset(&self, place: Place) -> usize {
        place.span.start * self.identity.element.bytes()
    }

    /// Where a place of this rank's is, but for staged ones.
    fn own(&self, place: Place) -> *mut u8 {
        let region = match place.store {
            Store::Input => Region::Input,
            Store::Output => Region::Output,
            Store::Scratch | Store::Staging => Region::Scratch,
        };
        // SAFETY: inside the region: checked in `new`.
        unsafe { self.regions.start(region).add(self.offset(place)) }
    }

    /// Where a place is mapped in this process; `None` if it is a peer's alone.
    fn mapped(&self, place: Place, neighbours: &mut Neighbours) -> Result<Option<*mut u8>> {
        let (offset, bytes) = (self.offset(place), self.bytes(place));
        let staged = |start: *mut u8| {
            assert!(offset + bytes <= STAGING_BYTES, "a program must fit its slot");
            // SAFETY: inside the slot.
            unsafe { start.add(offset) }
        };
        let Some(peer) = place.peer else {
            let slot = || neighbours.staging(self.slot.expect("it was taken before the first act"));
            let own = if place.store == Store::Staging { staged(slot()) } else { self.own(place) };
            return Ok(Some(own));
        };
        let (rank, shown) = (self.companions[peer].rank, self.companions[peer].shown);
        let location = match place.store {
            Store::Staging => return Ok(Some(staged(neighbours.staging_of(rank, shown.slot).cast_mut()))),
            Store::Input => shown.input,
            Store::Output => shown.output,
            Store::Scratch => unreachable!("scratch memory is nobody else's: the checker holds that"),
        };
        match location {
            Location::Registered(start) => {
                let start = start.checked_add(offset).ok_or_else(|| self.misplaced(rank))?;
                neighbours.reach(rank, start, bytes).map(Some)
            }
            Location::Private(_) => Ok(None),
        }
    }

    fn misplaced(&self, rank: usize) -> Error {
        Error::corrupt(format!("rank {rank} names memory beyond its end in {}", self.identity))
    }

    /// Copies or combines; the bytes moved.
    fn move_bytes(
        &mut self,
        from: Place,
        to: Place,
        combines: bool,
        around: &mut Surroundings,
    ) -> Result<usize> {
        let bytes = self.bytes(to);
        let Some(target) = self.mapped(to, around.neighbours)? else {
            return Err(Error::invalid(format!(
                "rank {} has not registered the memory that it works on in {}: register it on all ranks, or on none",
                self.companions[to.peer.unwrap_or(self.rank)].rank,
                self.identity
            )));
        };
        let Self { identity: Identity { element, reduction, .. }, .. } = *self;
        let reduction = reduction.unwrap_or(Reduction::Sum);
        match self.mapped(from, around.neighbours)? {
            // SAFETY: both inside their memory; whoever else touches it waits for a signal of ours, which the checker holds
            // for all generators, and they are apart. What a peer breaks, it breaks in bytes, not in addresses.
            Some(source) if combines => unsafe {
                element::combine(element, reduction, target, source, to.span.len);
            },
            // SAFETY: as above.
            Some(source) => unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) },
            None if combines => {
                let source = around.bounced(bytes);
                self.read(from, source, bytes, around.neighbours)?;
                // SAFETY: as above; the bounce buffer is nobody else's.
                unsafe { element::combine(element, reduction, target, source, to.span.len) };
            }
            None => self.read(from, target, bytes, around.neighbours)?,
        }
        let readers = match to {
            Place { store: Store::Staging, .. } => self.companions.len() - 1,
            Place { peer, .. } => usize::from(peer.is_some()),
        };
        self.moved.0 += (bytes * readers) as u64;
        self.moved.1 += if from.peer.is_some() { bytes as u64 } else { 0 };
        Ok(bytes)
    }

    /// Reads a peer's private memory.
    fn read(&self, from: Place, to: *mut u8, bytes: usize, neighbours: &Neighbours) -> Result<()> {
        let peer = from.peer.expect("own memory is mapped");
        let shown = self.companions[peer].shown;
        let (Location::Private(address) | Location::Registered(address)) =
            if from.store == Store::Input { shown.input } else { shown.output };
        // SAFETY: `to` is valid for as many bytes, by the caller: a target inside its memory, or the bounce buffer.
        unsafe {
            neighbours.read_private(
                self.companions[peer].rank,
                address.wrapping_add(self.offset(from)),
                to,
                bytes,
            )
        }
    }

    /// A signal says something else than ours does: who does what.
    fn mismatch(&self, peer: usize, past: u64, neighbours: &Neighbours) -> Error {
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

impl Surroundings<'_> {
    /// Room for bytes of a peer.
    fn bounced(&mut self, bytes: usize) -> *mut u8 {
        let words = bytes.div_ceil(size_of::<u64>());
        if self.bounce.len() < words {
            self.bounce.resize(words, 0);
        }
        self.bounce.as_mut_ptr().cast()
    }
}

/// What tells one header from another at a glance: a chain of products that no single field leaves as it was.
fn digest(header: &[u64; HEADER_WORDS]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: &u64| (hash ^ word).wrapping_mul(ODD).rotate_left(29);
    let (first, second) = header.split_at(HEADER_WORDS / 2);
    // Two chains side by side take half as long as one.
    first.iter().fold(ODD, mix) ^ second.iter().fold(!ODD, mix).rotate_left(17)
}
