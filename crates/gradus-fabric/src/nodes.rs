//! Several nodes with several ranks each: shared memory inside a node, TCP across.
//!
//! Each peer is reached in one of the two ways, whole: streams, line of life, goodbye. Each way finds the deaths of its own
//! peers, and who gives up says so on both. What is between is waiting: a rank looks at its rings, and returns to its caller
//! to try its sockets again, in turns; it sleeps in `poll`, where a cord that its neighbours pull is one descriptor more
//! ([`crate::bell`]).

use crate::bell::NAP;
use crate::gate::timespec;
use crate::holders::Holder;
use crate::shm::SharedMemory;
use crate::tcp::Tcp;
use crate::transport::{Interest, Lane, Transport};
use gradus_error::{Error, Kind, Result};
use std::net::SocketAddr;
use std::time::Duration;

/// The transport; see the module.
pub(crate) struct Nodes {
    /// To the ranks of our node, if there are others.
    inside: Option<SharedMemory>,
    across: Tcp,
}

impl Nodes {
    /// Of two transports between which each peer is reached by one.
    pub(crate) fn new(inside: Option<SharedMemory>, across: Tcp) -> Self {
        Self { inside, across }
    }

    /// The processes with which memory is shared, by rank; none where it is with nobody.
    ///
    /// # Errors
    /// The system's failure to copy a descriptor.
    pub(crate) fn holders(&self) -> Result<Vec<Option<Holder>>> {
        self.inside.as_ref().map_or(Ok(Vec::new()), SharedMemory::holders)
    }

    fn way(&mut self, lane: Lane) -> &mut dyn Transport {
        match &mut self.inside {
            Some(inside) if inside.reaches(lane.peer) => inside,
            _ => &mut self.across,
        }
    }

    /// What came of moving bytes one way: that some have moved is known to both, by which it is known when to sleep.
    fn moved(&mut self, outcome: Result<usize>) -> Result<usize> {
        let count = outcome.map_err(|error| self.explain(error))?;
        if count > 0 {
            self.across.stir();
        }
        Ok(count)
    }

    /// A peer that is missed one way may have left because of what is told the other way: that counts before.
    fn explain(&mut self, error: Error) -> Error {
        if error.is_told() || !matches!(error.kind(), Kind::PeerLost { .. }) {
            return error;
        }
        let inside = self.inside.as_mut().map_or(Ok(()), SharedMemory::check);
        match (inside, self.across.check()) {
            (Err(told), _) | (_, Err(told)) if told.is_told() => told,
            (Err(found), _) | (_, Err(found)) => found,
            _ => error,
        }
    }

    fn wait_both_ways(&mut self, interests: &[Interest], limit: Duration) -> Result<()> {
        let Self { inside: Some(inside), across } = self else { return self.across.wait(interests, limit) };
        across.prepare()?;
        let is_near = |interest: &Interest| inside.reaches(interest.lane.peer);
        let (near, far): (Vec<Interest>, Vec<Interest>) = interests.iter().partition(|one| is_near(one));
        let early = match far.is_empty() {
            true => inside.is_ready_early(&near)?,
            false => inside.any_ready(&near)? || across.is_early(&far)?,
        };
        if early {
            return Ok(());
        }
        let nap = timespec(limit.min(NAP));
        inside.sleep_beside(&near, |watched| across.look(&far, watched, &nap).map(|_| ()))?;
        across.check()?;
        inside.look_around(&near)
    }
}

impl Transport for Nodes {
    fn rank(&self) -> usize {
        self.across.rank()
    }

    fn world_size(&self) -> usize {
        self.across.world_size()
    }

    fn name(&self) -> &'static str {
        "shared memory and TCP"
    }

    fn levels(&self) -> usize {
        self.across.levels()
    }

    fn address(&self) -> Option<SocketAddr> {
        self.across.address()
    }

    fn try_send(&mut self, lane: Lane, bytes: &[u8]) -> Result<usize> {
        let sent = self.way(lane).try_send(lane, bytes);
        self.moved(sent)
    }

    fn turn_bytes(&self, lane: Lane) -> usize {
        match &self.inside {
            Some(inside) if inside.reaches(lane.peer) => inside.turn_bytes(lane),
            _ => self.across.turn_bytes(lane),
        }
    }

    fn try_send_two(&mut self, lane: Lane, first: &[u8], second: &[u8]) -> Result<usize> {
        let sent = self.way(lane).try_send_two(lane, first, second);
        self.moved(sent)
    }

    fn try_receive_into(&mut self, lane: Lane, first: &mut [u8], second: &mut [u8]) -> Result<Option<usize>> {
        let received = self.way(lane).try_receive_into(lane, first, second).transpose();
        received.map(|received| self.moved(received)).transpose()
    }

    fn try_receive(
        &mut self,
        lane: Lane,
        consume: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize> {
        let received = self.way(lane).try_receive(lane, consume);
        self.moved(received)
    }

    fn wait(&mut self, interests: &[Interest], limit: Duration) -> Result<()> {
        self.wait_both_ways(interests, limit).map_err(|error| self.explain(error))
    }

    fn fence(&mut self, lost: &[usize]) -> Result<()> {
        self.inside.as_mut().map_or(Ok(()), |inside| inside.fence(lost))
    }

    fn abort(&mut self, reason: &Error) {
        if let Some(inside) = &mut self.inside {
            inside.abort(reason);
        }
        self.across.abort(reason);
    }
}
