//! Ranks that do not do the same thing, one over streams and the other among neighbours: neither hears the other's header
//! where it waits for one.

use super::{Executor, expected};
use crate::header::{HEADER_BYTES, Header};
use crate::one_sided::Meeting;
use gradus_error::Result;

impl Executor {
    /// A peer whose next word shows that it is at another operation, over streams where we meet or the other way round.
    ///
    /// # Errors
    /// `Invalid` naming both sides; those of the transport.
    pub(crate) fn look_for_strangers(&mut self) -> Result<()> {
        if self.transport.neighbours().is_none() {
            return Ok(());
        }
        for peer in 0..self.pasts.len() {
            if peer == self.transport.rank() {
                continue;
            }
            self.look_for_stream_of(peer)?;
            self.look_for_signal_of(peer)?;
        }
        Ok(())
    }

    /// We meet, and the peer has begun a stream.
    fn look_for_stream_of(&mut self, peer: usize) -> Result<()> {
        if self.meetings.open == 0 || self.incoming[peer].header_filled > 0 {
            return Ok(());
        }
        let mut begun = [0; HEADER_BYTES];
        let mut found = false;
        self.transport.try_receive(peer, &mut |from, len| {
            if len >= HEADER_BYTES {
                // SAFETY: the transport hands out `len` readable bytes; as many are copied as there is room for.
                unsafe { std::ptr::copy_nonoverlapping(from, begun.as_mut_ptr(), HEADER_BYTES) };
                found = true;
            }
            0
        })?;
        let stranger = |meeting: &Meeting| meeting.stranger(peer, &begun);
        let error = if found { self.flights.meetings().find_map(stranger) } else { None };
        error.map_or(Ok(()), Err)
    }

    /// We wait for a stream, and the peer meets.
    fn look_for_signal_of(&mut self, peer: usize) -> Result<()> {
        let Some(job) = self.incoming[peer].queue.front().copied() else { return Ok(()) };
        let rank = self.transport.rank();
        let Some(neighbours) = self.transport.neighbours().filter(|neighbours| neighbours.has_news(peer))
        else {
            return Ok(());
        };
        let header = Header::bytes(&neighbours.header(peer, neighbours.heard(peer) + 1));
        let theirs = Header::decode(&header).map_err(|error| error.within(format!("from rank {peer}")))?;
        if theirs.order != job.order {
            return Ok(());
        }
        theirs.expect(&expected(self.flights.get(job.ticket), job), rank, peer)
    }
}
