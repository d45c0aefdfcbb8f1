//! What a rank shows the other ranks of its host: a signal to each of them, and staged bytes for all.
//!
//! A board has one writer, its owner; the others read. For each reader it holds two *lines*, used in turns: a number,
//! and with it a [`Note`] of 56 bytes, in one cache line, so that a reader who finds the number has the note with it; beside it
//! a line for a header, which readers look at when notes do not agree. Then comes the number up to which the owner is
//! done with what the reader shows, and at the board's end the slots for staged bytes.
//!
//! # Rules
//!
//! Signals between two ranks go in turns: whoever signals for the second time has heard the other's first signal. So a
//! line is written again only after its reader has signalled once more, that is, has read it: two lines suffice. All
//! words are atomic; a peer that breaks the rules is read as nonsense and does no other harm.
//!
//! Ordering: a note is stored, then the number with Release; the number is loaded with Acquire, then the note.

use gradus_memory::Segment;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

/// Words that a signal carries.
pub const NOTE_WORDS: usize = 7;

/// What a signal says.
pub type Note = [u64; NOTE_WORDS];

/// Words of a header.
pub const HEADER_WORDS: usize = 8;

/// Bytes of one slot: three blocks of 256 KiB, of which one is filled while others are still being read.
pub const STAGING_BYTES: usize = 768 << 10;

/// Slots: one is filled while the other is still being read.
pub const STAGING_SLOTS: usize = 2;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Two lines with their headers.
const PAIR: usize = 4 * LINE;

/// Offset of the number of what is done, among what belongs to one reader.
const FINISHED: usize = PAIR;

/// Bytes for one reader: processors fetch lines in pairs.
const READER: usize = 6 * LINE;

const PAGE: usize = 4096;

/// Somebody's board, in a segment.
pub(crate) struct Board {
    segment: Arc<Segment>,
    at: usize,
    slots: usize,
}

impl Board {
    /// Bytes of a board among `world_size` ranks: whole pages.
    pub(crate) const fn len(world_size: usize) -> usize {
        (world_size * READER).next_multiple_of(PAGE) + STAGING_SLOTS * STAGING_BYTES
    }

    /// The board at a page of a segment, which holds it.
    pub(crate) fn new(segment: Arc<Segment>, at: usize, world_size: usize) -> Self {
        Self { segment, at, slots: at + (world_size * READER).next_multiple_of(PAGE) }
    }

    fn line(&self, reader: usize, number: u64) -> usize {
        self.at + reader * READER + (number % 2) as usize * 2 * LINE
    }

    /// Where in its segment the number of a signal to `reader` stands.
    pub(crate) fn offset_of(&self, reader: usize, number: u64) -> usize {
        self.line(reader, number)
    }

    /// Shows `reader` a signal.
    #[inline]
    pub(crate) fn show(&self, reader: usize, number: u64, note: &Note, header: &[u64; HEADER_WORDS]) {
        let line = self.line(reader, number);
        for (word, value) in header.iter().enumerate() {
            self.segment.atomic_u64(line + LINE + word * 8).store(*value, Relaxed);
        }
        for (word, value) in note.iter().enumerate() {
            self.segment.atomic_u64(line + (1 + word) * 8).store(*value, Relaxed);
        }
        // Release for the reader; and a fence towards the look at whether it sleeps.
        self.segment.atomic_u64(line).swap(number, SeqCst);
    }

    /// The note of a signal to `reader`, once it is there.
    #[inline]
    pub(crate) fn heard(&self, reader: usize, number: u64) -> Option<Note> {
        let line = self.line(reader, number);
        if self.segment.atomic_u64(line).load(Acquire) != number {
            return None;
        }
        Some(std::array::from_fn(|word| self.segment.atomic_u64(line + (1 + word) * 8).load(Relaxed)))
    }

    /// The header that came with a signal.
    pub(crate) fn header(&self, reader: usize, number: u64) -> [u64; HEADER_WORDS] {
        let line = self.line(reader, number) + LINE;
        std::array::from_fn(|word| self.segment.atomic_u64(line + word * 8).load(Relaxed))
    }

    /// Shows `reader` that what it signalled up to `number` is done with.
    #[inline]
    pub(crate) fn finish(&self, reader: usize, number: u64) {
        self.segment.atomic_u64(self.at + reader * READER + FINISHED).store(number, Release);
    }

    /// What [`Board::finish`] showed last.
    pub(crate) fn finished(&self, reader: usize) -> u64 {
        self.segment.atomic_u64(self.at + reader * READER + FINISHED).load(Acquire)
    }

    /// Where in its segment the first slot begins.
    pub(crate) fn slot_offset(&self) -> usize {
        self.slots
    }

    /// Where a slot begins.
    #[inline]
    pub(crate) fn slot(&self, slot: usize) -> *mut u8 {
        self.segment.at(self.slots + slot * STAGING_BYTES, STAGING_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boards(world_size: usize) -> (Board, Board) {
        let segment = Arc::new(Segment::create("test", PAGE + Board::len(world_size)).unwrap());
        let other = Segment::open(segment.file().try_clone_to_owned().unwrap(), segment.len()).unwrap();
        (Board::new(segment, PAGE, world_size), Board::new(Arc::new(other), PAGE, world_size))
    }

    #[test]
    fn each_reader_hears_its_own_signals_in_turn() {
        let (ours, theirs) = boards(64);
        for number in 1..20u64 {
            for reader in [0, 1, 63] {
                assert_eq!(theirs.heard(reader, number), None);
                let note = std::array::from_fn(|word| number * 100 + (reader + word) as u64);
                let header = [number + reader as u64; HEADER_WORDS];
                ours.show(reader, number, &note, &header);
                assert_eq!(theirs.heard(reader, number), Some(note));
                assert_eq!(theirs.header(reader, number), header);
                // The one before is still there.
                assert!(number < 2 || theirs.heard(reader, number - 1).is_some());
            }
        }
    }

    #[test]
    fn what_is_done_and_what_is_staged_lie_apart() {
        let (ours, theirs) = boards(3);
        (0..3).for_each(|reader| ours.finish(reader, 7 + reader as u64));
        assert_eq!([0, 1, 2].map(|reader| theirs.finished(reader)), [7, 8, 9]);
        for slot in 0..STAGING_SLOTS {
            // SAFETY: the first and the last byte of a slot.
            unsafe {
                ours.slot(slot).write(1 + slot as u8);
                ours.slot(slot).add(STAGING_BYTES - 1).write(3);
            }
        }
        // SAFETY: as above.
        assert_eq!([0, 1].map(|slot| unsafe { theirs.slot(slot).read() }), [1, 2]);
        assert_eq!([0, 1, 2].map(|reader| theirs.finished(reader)), [7, 8, 9]);
    }
}
