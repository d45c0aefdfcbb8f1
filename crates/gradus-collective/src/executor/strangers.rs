//! Ranks that do not do the same thing and whose words do not meet: one over streams and the other among neighbours, or at
//! different levels of priority. Neither hears the other's header where it waits for one.
//!
//! What tells them is the place of an operation among all of a pair, over streams and among neighbours and at all levels:
//! there is one operation at each place, so another one at the same place is a stranger.

use super::{Executor, expected};
use crate::header::{HEADER_BYTES, Header};
use gradus_error::{Kind, Result};
use gradus_fabric::{Interest, Lane};
use std::time::Duration;

/// How long nothing has moved before streams are looked at on which nothing is awaited, where each look is a system call.
const STRANGE: Duration = Duration::from_millis(20);

/// Where a header was seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Stream(Lane),
    Signal(Lane),
}

impl Executor {
    /// A peer whose next word shows that it is at another operation than we are, though not where we would hear it.
    ///
    /// # Errors
    /// `Invalid` naming both sides; those of the transport.
    pub(crate) fn look_for_strangers(&mut self, interests: &[Interest], still: Duration) -> Result<()> {
        let (near, own) = (self.transport.neighbours(0).is_some(), self.transport.rank());
        if !near && (self.levels == 1 || still < STRANGE) {
            return Ok(());
        }
        for level in 0..self.levels {
            for peer in (0..self.world_size).filter(|peer| *peer != own) {
                let lane = Lane { peer, level };
                if near || interests.iter().any(|interest| interest.lane.peer == peer) {
                    self.look_at_stream(lane)?;
                }
                self.look_at_signal(lane)?;
            }
        }
        Ok(())
    }

    /// What a peer has begun on a stream on which we await nothing.
    fn look_at_stream(&mut self, lane: Lane) -> Result<()> {
        if !self.incoming[lane.index(self.world_size)].queue.is_empty() {
            return Ok(());
        }
        let mut begun = [0; HEADER_BYTES];
        let mut found = false;
        let looked = self.transport.try_receive(lane, &mut |from, len| {
            if len >= HEADER_BYTES {
                // SAFETY: the transport hands out `len` readable bytes; as many are copied as there is room for.
                unsafe { std::ptr::copy_nonoverlapping(from, begun.as_mut_ptr(), HEADER_BYTES) };
                found = true;
            }
            0
        });
        match looked {
            // It has left, and what it has sent on other lanes may still be on its way.
            Err(error) if matches!(error.kind(), Kind::PeerLost { .. }) => return Ok(()),
            looked => looked?,
        };
        if found { self.compare(Found::Stream(lane), &begun) } else { Ok(()) }
    }

    /// What a peer signals.
    fn look_at_signal(&mut self, lane: Lane) -> Result<()> {
        let Some(neighbours) = self.transport.neighbours(lane.level) else { return Ok(()) };
        if !neighbours.has_news(lane.peer) {
            return Ok(());
        }
        let words = neighbours.header(lane.peer, neighbours.heard(lane.peer) + 1);
        self.compare(Found::Signal(lane), &Header::bytes(&words))
    }

    /// Holds a header against what we do with its sender at the same place, unless the two will meet by themselves.
    fn compare(&mut self, found: Found, bytes: &[u8; HEADER_BYTES]) -> Result<()> {
        let (Found::Stream(lane) | Found::Signal(lane)) = found;
        let Lane { peer, .. } = lane;
        let other_way = |meeting: &&_| found != Found::Signal(Lane { peer, level: level_of(meeting) });
        let stranger = self.flights.meetings().filter(other_way).find_map(|one| one.stranger(peer, bytes));
        if let Some(error) = stranger {
            return Err(error);
        }
        let theirs = Header::decode(bytes).map_err(|error| error.within(format!("from rank {peer}")))?;
        let lanes = (0..self.levels).map(|level| Lane { peer, level });
        let others =
            lanes.filter(|lane| found != Found::Stream(*lane)).map(|lane| lane.index(self.world_size));
        let jobs = others.flat_map(|lane| self.incoming[lane].queue.iter().chain(&self.outgoing[lane].queue));
        let Some(job) = jobs.copied().find(|job| job.order == theirs.order) else { return Ok(()) };
        theirs.expect(&expected(self.flights.get(job.ticket), job), self.transport.rank(), peer)
    }
}

fn level_of(meeting: &crate::one_sided::Meeting) -> usize {
    meeting.identity.level()
}
