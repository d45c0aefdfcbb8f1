//! Bytes that are only to be stored go straight from the transport to where they belong.

use super::intake::Intake;
use gradus_error::Result;
use gradus_fabric::Transport;

/// From so many bytes on, storing what arrives straight where it belongs is worth a system call of its own.
const STRAIGHT_BYTES: usize = 16 << 10;

impl Intake<'_> {
    /// Has bytes that are only to be stored put there by the transport, header and all, where there are enough of them;
    /// `None` where it has to be the other way.
    pub(super) fn straight_from(&mut self, transport: &mut dyn Transport) -> Result<Option<usize>> {
        let Some(job) = self.incoming.queue.front().copied() else { return Ok(None) };
        let place = self.flights.get(job.ticket).place(job.step, self.turn);
        if place.len() < STRAIGHT_BYTES {
            return Ok(None);
        }
        let rest = &mut self.incoming.header[self.incoming.header_filled..];
        let of_header = rest.len();
        let received = transport.try_receive_into(self.lane, rest, place)?;
        if let Some(count) = received.filter(|count| *count > 0) {
            self.more_header(job, count.min(of_header));
            self.flights.get(job.ticket).stored(job.step, count.saturating_sub(of_header));
            self.finish(job);
        }
        Ok(received)
    }
}
