//! A ring of bytes in shared memory, from one producer to one consumer.
//!
//! Two counters of all bytes ever written (`tail`) and ever taken (`head`) stand on cache lines of their own; the
//! producer stores `tail`, the consumer `head`. Each side trusts its own counter, kept in private memory, and holds what
//! it reads of the other's against it: a ring is never believed to hold less than nothing or more than its capacity, so
//! whatever stands in shared memory, no access leaves the ring.
//!
//! Ordering: the producer writes bytes, then stores `tail` with Release; the consumer loads `tail` with Acquire, then
//! reads these bytes. The consumer reads bytes, then stores `head` with Release; the producer loads `head` with Acquire,
//! then overwrites them. So bytes are read after they were written and overwritten after they were read.

use gradus_error::{Error, Result};
use gradus_memory::Segment;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};

/// Bytes that the two counters take, each on a line (and its neighbour, which processors fetch along) of its own.
pub(crate) const COUNTER_BYTES: usize = 256;
const HEAD: usize = 128;

/// How many bytes are written before the consumer is told: it works on them while the next are written.
const PUBLISH_BYTES: usize = 32 * 1024;

/// Where a ring lies.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) segment: Arc<Segment>,
    /// Offset of the counters.
    pub(crate) counters: usize,
    /// Offset of the bytes.
    pub(crate) data: usize,
    /// Their number, a power of two.
    pub(crate) capacity: usize,
}

impl Place {
    /// The other side's counter; `distance` makes of it the bytes in the ring.
    fn load(&self, counter: usize, distance: impl Fn(u64) -> u64) -> Result<usize> {
        let used = distance(self.segment.atomic_u64(self.counters + counter).load(Acquire));
        match usize::try_from(used) {
            Ok(used) if used <= self.capacity => Ok(used),
            _ => Err(Error::corrupt(format!(
                "a ring of {} bytes in shared memory claims to hold {used}: another process has overwritten it",
                self.capacity
            ))),
        }
    }

    fn index(&self, position: u64) -> usize {
        (position as usize) & (self.capacity - 1)
    }
}

/// The writing end.
pub(crate) struct Producer {
    place: Place,
    tail: u64,
    /// Room known from the last look at `head`; there may be more.
    room: usize,
}

impl Producer {
    pub(crate) fn new(place: Place) -> Self {
        let room = place.capacity;
        Self { place, tail: 0, room }
    }

    /// Whether a byte could be written.
    pub(crate) fn has_room(&self) -> Result<bool> {
        Ok(self.room > 0 || self.free()? > 0)
    }

    fn free(&self) -> Result<usize> {
        Ok(self.place.capacity - self.place.load(HEAD, |head| self.tail.wrapping_sub(head))?)
    }

    /// Writes what there is room for, telling the consumer now and then through `published`; returns how much.
    pub(crate) fn write(&mut self, bytes: &[u8], mut published: impl FnMut()) -> Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            if self.room == 0 {
                self.room = self.free()?;
            }
            let start = self.place.index(self.tail);
            let until_end = self.place.capacity - start;
            let count = (bytes.len() - written).min(self.room).min(until_end).min(PUBLISH_BYTES);
            if count == 0 {
                break;
            }
            let to = self.place.segment.at(self.place.data + start, count);
            // SAFETY: `to` is inside the mapping; the consumer has taken these bytes (Acquire in `free`) and looks at
            // them again only after the store of tail below; the source is private memory and cannot overlap.
            unsafe { std::ptr::copy_nonoverlapping(bytes[written..].as_ptr(), to, count) };
            self.tail = self.tail.wrapping_add(count as u64);
            self.place.segment.atomic_u64(self.place.counters).store(self.tail, Release);
            (self.room, written) = (self.room - count, written + count);
            published();
        }
        Ok(written)
    }
}

/// The reading end.
pub(crate) struct Consumer {
    place: Place,
    head: u64,
}

impl Consumer {
    pub(crate) fn new(place: Place) -> Self {
        Self { place, head: 0 }
    }

    /// Bytes that can be taken.
    pub(crate) fn available(&self) -> Result<usize> {
        self.place.load(0, |tail| tail.wrapping_sub(self.head))
    }

    /// Hands out what can be taken, in at most two ranges; returns how much was.
    pub(crate) fn take(&mut self, consume: &mut dyn FnMut(*const u8, usize) -> usize) -> Result<usize> {
        let mut left = self.available()?;
        let mut taken = 0;
        while left > 0 {
            let start = self.place.index(self.head);
            let offered = left.min(self.place.capacity - start);
            // The producer leaves these bytes alone until head passes them.
            let count = consume(self.place.segment.at(self.place.data + start, offered), offered);
            assert!(count <= offered, "a consumer takes no more than it is given");
            self.head = self.head.wrapping_add(count as u64);
            (left, taken) = (left - count, taken + count);
            if count < offered {
                break;
            }
        }
        if taken > 0 {
            self.place.segment.atomic_u64(self.place.counters + HEAD).store(self.head, Release);
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    const CAPACITY: usize = 64;

    fn place() -> Place {
        let segment = Arc::new(Segment::create("test", 8192).unwrap());
        Place { segment, counters: 0, data: 4096, capacity: CAPACITY }
    }

    fn read(consumer: &mut Consumer, most: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let take = &mut |from: *const u8, len: usize| {
            let count = len.min(most - out.len());
            // SAFETY: the ring hands out `len` valid bytes.
            out.extend((0..count).map(|i| unsafe { from.add(i).read() }));
            count
        };
        consumer.take(take).unwrap();
        out
    }

    #[test]
    fn bytes_come_out_in_order_over_many_laps() {
        let place = place();
        let (mut producer, mut consumer) = (Producer::new(place.clone()), Consumer::new(place));
        let (mut sent, mut got) = (0u32, 0u32);
        for round in 0..1000usize {
            let bytes: Vec<u8> = (0..round % 70).map(|i| (sent as usize + i) as u8).collect();
            sent += producer.write(&bytes, || {}).unwrap() as u32;
            for byte in read(&mut consumer, round * 7 % 67) {
                assert_eq!(byte, got as u8);
                got += 1;
            }
        }
        assert!(sent > 10_000 && sent - got <= CAPACITY as u32);
    }

    #[test]
    fn a_full_ring_takes_nothing_and_an_empty_one_gives_nothing() {
        let place = place();
        let (mut producer, mut consumer) = (Producer::new(place.clone()), Consumer::new(place));
        assert!(read(&mut consumer, 9).is_empty());
        assert_eq!(producer.write(&[1; 100], || {}).unwrap(), CAPACITY);
        assert!(!producer.has_room().unwrap());
        assert_eq!(producer.write(&[1], || {}).unwrap(), 0);
        assert_eq!(read(&mut consumer, 1), [1]);
        assert!(producer.has_room().unwrap());
    }

    #[test]
    fn overwritten_counters_are_corruption_and_nothing_worse() {
        for garbage in [65, 1 << 40, 1 << 63] {
            let place = place();
            place.segment.atomic_u64(0).store(garbage, Release);
            let mut consumer = Consumer::new(place.clone());
            assert_eq!(*consumer.take(&mut |_, len| len).unwrap_err().kind(), Kind::Corrupt);
            place.segment.atomic_u64(HEAD).store(garbage, Release);
            let mut producer = Producer::new(place);
            producer.room = 0;
            assert_eq!(*producer.write(&[1], || {}).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
