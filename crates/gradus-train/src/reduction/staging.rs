//! Gradients that travel in bf16: rounded into rooms of their own, summed there, and brought back to where they are kept in f32.
//!
//! There are as many rooms as collectives can be under way; the oldest has to end before there are more.

use super::kept::Kept;
use crate::settings::GradientFormat;
use gradus_collective::{Buffer, Communicator, Memory};
use gradus_compute::{Device, Format, Matrix};
use gradus_error::Result;
use gradus_memory::{Layout, Span};
use gradus_model::Unit;
use std::cell::RefCell;

/// Rooms for units: one is being summed over replicas while the next one is being scattered.
const UNIT_ROOMS: usize = 2;

/// How many rooms there are, and for how many gradients each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StagingSize {
    rooms: usize,
    largest: usize,
}

impl StagingSize {
    /// What is needed for gradients of these units that are summed over so many ranks of `dp` and of `fsdp`; without shards
    /// in buckets. None where nothing is sent, or it is sent as it is.
    pub fn new(
        format: GradientFormat,
        [dp, fsdp]: [usize; 2],
        units: &[(Unit, Span)],
        bucket_bytes: usize,
    ) -> Option<Self> {
        if format == GradientFormat::F32 || dp * fsdp == 1 {
            return None;
        }
        let longest = |lens: &mut dyn Iterator<Item = usize>| lens.max().unwrap_or(0);
        if fsdp > 1 {
            let largest = longest(&mut units.iter().map(|(_, span)| span.len));
            return Some(Self { rooms: UNIT_ROOMS.min(units.len()), largest });
        }
        // All buckets of a block are final at once, and the next one is final soon.
        let bucket = super::bucket_len(bucket_bytes);
        let blocks = units.iter().filter(|(unit, _)| matches!(unit, Unit::Block(_)));
        let block = longest(&mut blocks.map(|(_, span)| span.len));
        let len = units.last().map_or(0, |(_, span)| span.end());
        Some(Self { rooms: block.div_ceil(bucket) + 1, largest: bucket.min(len) })
    }

    /// Elements of f32 in whose place one room lies.
    fn room_len(self) -> usize {
        Format::Bf16.places(self.largest).next_multiple_of(Layout::ALIGNMENT)
    }

    /// Elements of f32 in whose place all of them lie.
    pub fn len(self) -> usize {
        self.rooms * self.room_len()
    }
}

/// The rooms.
pub(crate) struct Staging {
    memory: Kept,
    size: StagingSize,
    free: RefCell<Vec<usize>>,
}

impl Staging {
    /// Takes memory for the rooms, which other ranks reach if all of them can have it so.
    ///
    /// # Errors
    /// `Exhausted` where memory does not suffice; those of the communicator.
    pub fn new(device: &dyn Device, size: StagingSize, ranks: &mut Communicator) -> Result<Self> {
        let memory = Kept::new(device, size.len(), ranks)?;
        let staging = Self { memory, size, free: RefCell::new(Vec::with_capacity(size.rooms)) };
        staging.clear();
        Ok(staging)
    }

    /// All rooms are free.
    pub fn clear(&self) {
        let mut free = self.free.borrow_mut();
        free.clear();
        free.extend(0..self.size.rooms);
    }

    /// Whether other ranks reach it where it lies.
    pub fn is_shared(&self) -> bool {
        self.memory.are_shared()
    }

    /// Takes a room, if one is free.
    pub fn take(&self) -> Option<usize> {
        self.free.borrow_mut().pop()
    }

    /// Gives one back.
    pub fn leave(&self, room: usize) {
        self.free.borrow_mut().push(room);
    }

    fn part(&self, room: usize, part: Span) -> Matrix {
        let len = self.size.room_len();
        let room = self.memory.span().part(room * len, len);
        Matrix { span: room, format: Format::Bf16 }.part(part.start, part.len)
    }

    /// Rounds gradients into a room, and names them there.
    pub fn send(&self, device: &dyn Device, gradients: Span, room: usize) -> Memory {
        let there = self.part(room, Span::new(0, gradients.len));
        device.convert(gradients.into(), there);
        Memory::InPlace(Buffer::of_bf16(device.raw(there.span), gradients.len))
    }

    /// Brings back what lies in this part of a room.
    pub fn bring(&self, device: &dyn Device, room: usize, part: Span, gradients: Span) {
        if !part.is_empty() {
            device.convert(self.part(room, part), gradients.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_are_few_and_as_large_as_what_travels() {
        let units = [(Unit::Head, Span::new(0, 48)), (Unit::Block(0), Span::new(48, 1000))];
        let size = |format, ranks| StagingSize::new(format, ranks, &units, 400);
        let of = |ranks| size(GradientFormat::Bf16, ranks).map_or(0, StagingSize::len);
        assert_eq!([of([1, 1]), of([2, 1]), of([1, 2]), of([2, 2])], [0, 11 * 64, 2 * 512, 2 * 512]);
        assert_eq!(size(GradientFormat::F32, [2, 2]), None);
    }
}
