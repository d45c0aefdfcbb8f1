//! Where the memory is that acts name, and how it is moved.

use super::companion::Shown;
use super::{Meeting, Surroundings};
use crate::element::{self, Reduction};
use crate::header::Identity;
use crate::one_sided::act::{Place, Store};
use crate::plan::Region;
use gradus_error::{Error, Result};
use gradus_fabric::{Location, Neighbours, STAGING_BYTES};

impl Meeting {
    /// What a rank must know of this one's memory, said with its signals.
    pub(super) fn locate(&mut self, neighbours: &Neighbours) {
        let at = |region| neighbours.locate(self.regions.start(region), self.regions.bytes(region));
        let shown = if self.agenda.shows_memory() {
            let output = at(Region::Output);
            // In place what is brought is the output.
            let input = if self.regions.bytes(Region::Input) > 0 { at(Region::Input) } else { output };
            Shown { input, output, slot: 0 }
        } else {
            Shown::NOTHING
        };
        self.companions[self.rank].shown = Shown { slot: self.slot.unwrap_or(0), ..shown };
    }

    pub(super) fn bytes(&self, place: Place) -> usize {
        place.span.len * self.identity.element.bytes()
    }

    pub(super) fn offset(&self, place: Place) -> usize {
        place.span.start * self.identity.element.bytes()
    }

    /// Where a place of this rank's is, but for staged ones.
    pub(super) fn own(&self, place: Place) -> *mut u8 {
        let region = match place.store {
            Store::Input => Region::Input,
            Store::Output => Region::Output,
            Store::Scratch | Store::Staging => Region::Scratch,
        };
        // SAFETY: inside the region: checked in `new`.
        unsafe { self.regions.start(region).add(self.offset(place)) }
    }

    /// Where a place is mapped in this process; `None` if it is a peer's alone.
    pub(super) fn mapped(&self, place: Place, neighbours: &mut Neighbours) -> Result<Option<*mut u8>> {
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

    pub(super) fn misplaced(&self, rank: usize) -> Error {
        Error::corrupt(format!("rank {rank} names memory beyond its end in {}", self.identity))
    }

    /// Copies or combines; the bytes moved.
    pub(super) fn move_bytes(
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
    pub(super) fn read(&self, from: Place, to: *mut u8, bytes: usize, neighbours: &Neighbours) -> Result<()> {
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
