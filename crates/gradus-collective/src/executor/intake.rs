//! What arrives on a stream.

use super::{Incoming, Job, expected};
use crate::flights::Flights;
use crate::header::{HEADER_BYTES, Header};
use gradus_error::Error;
use gradus_fabric::Lane;

/// Takes bytes of one stream apart into headers and what follows them.
pub(super) struct Intake<'a> {
    pub(super) incoming: &'a mut Incoming,
    pub(super) flights: &'a mut Flights,
    pub(super) rank: usize,
    pub(super) lane: Lane,
    pub(super) turn: usize,
    pub(super) fault: Option<Error>,
}

impl Intake<'_> {
    /// Takes bytes from the front of a range; returns how many.
    ///
    /// # Safety
    /// `len` bytes are readable at `from` and lie in no collective's buffer.
    pub(super) unsafe fn take(&mut self, from: *const u8, len: usize) -> usize {
        let mut taken = 0;
        while taken < len && self.turn > 0 && self.fault.is_none() {
            let Some(job) = self.incoming.queue.front().copied() else { break };
            // SAFETY: taken < len.
            let rest = unsafe { from.add(taken) };
            let count = if self.incoming.header_filled < HEADER_BYTES {
                // SAFETY: len - taken bytes are readable.
                unsafe { self.take_header(job, rest, len - taken) }
            } else {
                let count = self.flights.get(job.ticket).allowed(job.step).min(len - taken).min(self.turn);
                // SAFETY: count bytes are readable, outside all buffers, and allowed; jobs of this queue receive.
                unsafe {
                    self.flights.get(job.ticket).take_in(job.step, rest, count, &mut self.incoming.carry)
                };
                self.turn -= count;
                count
            };
            self.finish(job);
            if count == 0 {
                break;
            }
            taken += count;
        }
        taken
    }

    /// # Safety
    /// `len` bytes are readable at `from`.
    unsafe fn take_header(&mut self, job: Job, from: *const u8, len: usize) -> usize {
        let Incoming { header, header_filled, .. } = &mut *self.incoming;
        let count = len.min(HEADER_BYTES - *header_filled);
        // SAFETY: count bytes are readable and fit what is left of the header.
        unsafe { std::ptr::copy_nonoverlapping(from, header.as_mut_ptr().add(*header_filled), count) };
        self.more_header(job, count);
        count
    }

    /// Counts bytes of a header, and looks at it when it is whole.
    pub(super) fn more_header(&mut self, job: Job, count: usize) {
        let Incoming { header, header_filled, .. } = &mut *self.incoming;
        *header_filled += count;
        if count > 0 && *header_filled == HEADER_BYTES {
            let flight = self.flights.get(job.ticket);
            let expected = expected(flight, job);
            let peer = self.lane.peer;
            let arrived = Header::decode(header).map_err(|error| error.within(format!("from rank {peer}")));
            self.fault = arrived.and_then(|header| header.expect(&expected, self.rank, peer)).err();
        }
    }

    /// Ends the first job if it is over.
    pub(super) fn finish(&mut self, job: Job) {
        let flight = self.flights.get(job.ticket);
        if self.fault.is_none() && self.incoming.header_filled == HEADER_BYTES && flight.is_whole(job.step) {
            self.incoming.queue.pop_front();
            self.incoming.header_filled = 0;
            flight.pending -= 1;
        }
    }
}
