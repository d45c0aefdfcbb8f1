//! What ranks of one host can do without a stream between them: signal, stage bytes, and reach each other's memory.
//!
//! Memory of a peer is reached in two ways. What it has *registered* (ranges of its [`SharedHeap`]) is mapped here: it is
//! read and written in place. What is *private* to it can be read through the system (`process_vm_readv`) where that is
//! allowed; whether every rank may read every other, and does so fast, is found out when they meet, so that all know the same. Nobody
//! writes into a peer's private memory.

use crate::bell::Bell;
use crate::board::{Board, HEADER_WORDS, Note, STAGING_BYTES};
use crate::settings::PeerMemory;
use gradus_error::{Error, Result};
use gradus_host::{Clock, RealClock};
use gradus_memory::{HeapRange, PeerHeap, SharedHeap};
use std::time::Duration;

/// Memory of a rank, as its peers name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// At an offset of its heap.
    Registered(usize),
    /// At an address of its process.
    Private(usize),
}

impl Location {
    /// In one word, for a note. Addresses and offsets use 63 bits at most.
    pub fn to_word(self) -> u64 {
        match self {
            Self::Registered(offset) => (offset as u64) << 1 | 1,
            Self::Private(address) => (address as u64) << 1,
        }
    }

    /// From the word of a note.
    pub fn from_word(word: u64) -> Self {
        let place = (word >> 1) as usize;
        if word & 1 == 1 { Self::Registered(place) } else { Self::Private(place) }
    }
}

/// One of them.
pub(crate) struct Neighbour {
    /// As a person knows it.
    pub(crate) name: String,
    pub(crate) board: Board,
    pub(crate) bell: Bell,
    pub(crate) heap: PeerHeap,
    /// Its number among processes, as this process sees it.
    pub(crate) process: Option<i32>,
    /// Signals shown to it and heard of it.
    pub(crate) signalled: u64,
    pub(crate) heard: u64,
}

/// The ranks of a world that is one host, as each of them sees the others: at one level of priority, with boards of its own.
pub struct Neighbours {
    rank: usize,
    board: Board,
    heap: SharedHeap,
    peers: Vec<Option<Neighbour>>,
    reads_private: bool,
    spins: bool,
}

impl Neighbours {
    pub(crate) fn new(rank: usize, board: Board, heap: SharedHeap, world_size: usize, spins: bool) -> Self {
        let peers = (0..world_size).map(|_| None).collect();
        Self { rank, board, heap, peers, reads_private: false, spins }
    }

    /// One of them has come.
    pub(crate) fn meet(&mut self, peer: usize, neighbour: Neighbour) {
        self.peers[peer] = Some(neighbour);
    }

    /// Whether every rank has a processor, so that it is worth looking again for a while.
    pub fn spins(&self) -> bool {
        self.spins
    }

    /// From now on all ranks read each other's private memory.
    pub(crate) fn allow_private(&mut self) {
        self.reads_private = true;
    }

    /// Whether the system lets us read what a peer has at an address: its inbox, of which we know what it holds. If that is
    /// wanted only where it is fast, that is looked at too.
    pub(crate) fn can_read(&self, peer: usize, inbox: Location, wanted: PeerMemory) -> bool {
        let (board, mut word) = (&self.peer(peer).board, [0u8; 8]);
        let (Location::Private(inbox), Some(process)) = (inbox, self.peer(peer).process) else {
            return false;
        };
        let number = inbox.wrapping_add(board.offset_of(self.rank, 1));
        // SAFETY: `word` holds 8 bytes.
        let read = unsafe { read_process(process, number, word.as_mut_ptr(), 8) };
        let allowed = read == Some(8) && u64::from_ne_bytes(word) == 1;
        allowed
            && (wanted == PeerMemory::Always
                || reads_fast(process, inbox.wrapping_add(board.slot_offset()), board))
    }

    #[inline]
    fn peer(&self, peer: usize) -> &Neighbour {
        self.peers[peer].as_ref().expect("a rank is no neighbour of its own")
    }

    /// Whether every rank may read the private memory of every other: the same on all of them.
    pub fn reads_private(&self) -> bool {
        self.reads_private
    }

    /// Memory that peers reach in place: `bytes` zeros, at least.
    ///
    /// # Errors
    /// `Exhausted` when they cannot be reserved.
    pub fn allocate(&self, bytes: usize) -> Result<HeapRange> {
        self.heap.allocate(bytes)
    }

    /// The heap of which that memory is part.
    pub fn heap(&self) -> &SharedHeap {
        &self.heap
    }

    /// How peers name memory of this rank.
    pub fn locate(&self, start: *const u8, bytes: usize) -> Location {
        self.heap.locate(start, bytes).map_or(Location::Private(start.addr()), Location::Registered)
    }

    /// Shows `peer` a signal; its number, which counts those to this peer. Signals between two ranks go in turns: before
    /// the next one to this peer, one of the peer's must have been heard.
    #[inline]
    pub fn signal(&mut self, peer: usize, note: &Note, header: &[u64; HEADER_WORDS]) -> u64 {
        let neighbour = self.peers[peer].as_mut().expect("a rank is no neighbour of its own");
        neighbour.signalled += 1;
        self.board.show(peer, neighbour.signalled, note, header);
        neighbour.bell.ring_after_exchange();
        neighbour.signalled
    }

    /// Whether a signal of a peer is there that was not heard yet.
    #[inline]
    pub fn has_news(&self, peer: usize) -> bool {
        self.next_of(peer).is_some()
    }

    #[inline]
    fn next_of(&self, peer: usize) -> Option<Note> {
        let neighbour = self.peer(peer);
        neighbour.board.heard(self.rank, neighbour.heard + 1)
    }

    /// Hears the next signal of a peer, if it is there.
    #[inline]
    pub fn hear(&mut self, peer: usize) -> Option<Note> {
        let note = self.next_of(peer)?;
        self.peers[peer].as_mut().expect("it was there a moment ago").heard += 1;
        Some(note)
    }

    /// How many signals a peer was shown.
    pub fn signalled(&self, peer: usize) -> u64 {
        self.peer(peer).signalled
    }

    /// How many signals of a peer were heard.
    #[inline]
    pub fn heard(&self, peer: usize) -> u64 {
        self.peer(peer).heard
    }

    /// The header that came with a signal of a peer, one of the last two.
    pub fn header(&self, peer: usize, number: u64) -> [u64; HEADER_WORDS] {
        self.peer(peer).board.header(self.rank, number)
    }

    /// Shows `peer` that we are done with what its signals up to `number` were about.
    #[inline]
    pub fn finish(&self, peer: usize, number: u64) {
        self.board.finish(peer, number);
    }

    /// Up to which of our signals `peer` is done.
    pub fn finished(&self, peer: usize) -> u64 {
        self.peer(peer).board.finished(self.rank)
    }

    /// Our own slot: [`STAGING_BYTES`](crate::STAGING_BYTES) that peers may read.
    #[inline]
    pub fn staging(&self, slot: usize) -> *mut u8 {
        self.board.slot(slot)
    }

    /// A peer's slot, to read.
    #[inline]
    pub fn staging_of(&self, peer: usize, slot: usize) -> *const u8 {
        self.peer(peer).board.slot(slot)
    }

    /// Where memory that a peer has registered is mapped here; valid until the next call for that peer.
    ///
    /// # Errors
    /// `Corrupt` when it has not registered that much.
    pub fn reach(&mut self, peer: usize, offset: usize, bytes: usize) -> Result<*mut u8> {
        let neighbour = self.peers[peer].as_mut().expect("a rank is no neighbour of its own");
        neighbour.heap.at(offset, bytes).map_err(|error| error.within(format!("memory of rank {peer}")))
    }

    /// Copies private memory of a peer.
    ///
    /// # Safety
    /// `to` is valid for writing `bytes` bytes.
    ///
    /// # Errors
    /// `PeerLost` when the system does not give all of it: the peer is gone, or has taken its memory back.
    pub unsafe fn read_private(&self, peer: usize, address: usize, to: *mut u8, bytes: usize) -> Result<()> {
        let Neighbour { name, process, .. } = self.peer(peer);
        // SAFETY: by the caller's word.
        let read = unsafe { read_process(process.unwrap_or(0), address, to, bytes) };
        if read == Some(bytes) {
            return Ok(());
        }
        let why = std::io::Error::last_os_error();
        Err(Error::peer_lost(
            peer,
            format!("{name} is gone, or has let go of memory that rank {} was reading ({why})", self.rank),
        ))
    }
}

/// Times that a probe is repeated: the best counts.
const PROBES: usize = 8;

/// A stream through shared memory writes and reads every byte there: reading it through the system is worth it if that takes
/// at most as long as two copies.
const COPIES: f64 = 2.0;

/// Whether a slot of a peer's board is read through the system at least half as fast as it is copied where it is mapped.
fn reads_fast(process: i32, address: usize, board: &Board) -> bool {
    let mut copy = vec![0u8; STAGING_BYTES];
    let (clock, mut read, mut copied) = (RealClock::new(), Duration::MAX, Duration::MAX);
    for _ in 0..PROBES {
        let begin = clock.now();
        // SAFETY: `copy` holds as many bytes as a slot.
        if unsafe { read_process(process, address, copy.as_mut_ptr(), STAGING_BYTES) } != Some(STAGING_BYTES)
        {
            return false;
        }
        let middle = clock.now();
        // SAFETY: a slot and `copy` hold as many bytes, and are apart; what a peer writes meanwhile does not matter.
        unsafe { std::ptr::copy_nonoverlapping(board.slot(0), copy.as_mut_ptr(), STAGING_BYTES) };
        std::hint::black_box(&copy);
        read = read.min(middle - begin);
        copied = copied.min(clock.now() - middle);
    }
    tracing::debug!(?read, ?copied, "a slot of a peer's memory, through the system and where it is mapped");
    read <= copied.mul_f64(COPIES)
}

/// Copies memory of a process; how many bytes it was, `None` for a refusal.
///
/// # Safety
/// `to` is valid for writing `bytes` bytes.
pub(crate) unsafe fn read_process(process: i32, address: usize, to: *mut u8, bytes: usize) -> Option<usize> {
    if bytes == 0 {
        return Some(0);
    }
    let local = libc::iovec { iov_base: to.cast(), iov_len: bytes };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: bytes };
    // SAFETY: one range on each side; the local one is valid by the caller's word, the other one is the system's to check.
    let read = unsafe { libc::process_vm_readv(process, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_survive_a_word() {
        for place in [0, 1, 4096, usize::MAX >> 1] {
            for location in [Location::Registered(place), Location::Private(place)] {
                assert_eq!(Location::from_word(location.to_word()), location);
            }
        }
    }

    #[test]
    fn memory_that_is_not_there_is_not_read() {
        let ours = [7u8; 16];
        let mut copy = [0u8; 16];
        let this = std::process::id() as i32;
        // SAFETY: `copy` holds 16 bytes.
        let read = unsafe { read_process(this, ours.as_ptr().addr(), copy.as_mut_ptr(), 16) };
        assert_eq!((read, copy), (Some(16), ours));
        // SAFETY: as above.
        assert_eq!(unsafe { read_process(this, 8, copy.as_mut_ptr(), 16) }, None);
    }
}
