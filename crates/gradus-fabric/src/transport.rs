//! What every transport offers: ordered streams of bytes from each rank to each other, moved without blocking.

use crate::neighbours::Neighbours;
use gradus_error::{Error, Result};
use std::net::SocketAddr;
use std::time::Duration;

/// The most levels of priority that a transport has: each takes streams of its own between every two ranks.
pub const MOST_LEVELS: usize = 4;

/// One of the streams between this rank and another. Lanes share no memory that could be full, so none holds up another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// The other rank.
    pub peer: usize,
    /// Which of those to that rank, from 0 on, below [`Transport::levels`].
    pub level: usize,
}

impl Lane {
    /// The one that there always is.
    pub const fn lowest(peer: usize) -> Self {
        Self { peer, level: 0 }
    }

    /// Its place among the lanes to all ranks of a world, level by level: that of the lowest is its peer.
    pub const fn index(self, world_size: usize) -> usize {
        self.level * world_size + self.peer
    }
}

/// The way of bytes that someone waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Room for bytes to the peer.
    Send,
    /// Bytes from the peer.
    Receive,
    /// A signal from the peer, where ranks are [`Neighbours`].
    Signal,
}

/// Progress that someone waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// Where.
    pub lane: Lane,
    /// Which way.
    pub direction: Direction,
}

/// A rank's connections to all others of its world.
///
/// Streams are reliable and ordered and hold a bounded number of bytes; they keep no borders between messages. Between two
/// ranks there are as many as there are levels ([`Lane`]), each with bounds and an order of its own. A peer
/// that dies turns up as `PeerLost` from [`Transport::wait`], within a bounded time, whether or not anything is awaited
/// from it; a peer that gives up ([`Transport::abort`]) turns up with its reason. One that leaves in good order
/// (dropping its transport) is lost only to those who still need something from it. A process must therefore drop its
/// transport before it exits, or it counts as dead. After an error a transport is of no more use.
pub trait Transport: Send {
    /// This rank.
    fn rank(&self) -> usize;

    /// Ranks of the world.
    fn world_size(&self) -> usize;

    /// The kind, as shown to a person.
    fn name(&self) -> &'static str;

    /// Streams to each peer, the same number on every rank: one for each level of priority.
    fn levels(&self) -> usize {
        1
    }

    /// Where peers reach this rank; `None` where there are none.
    fn address(&self) -> Option<SocketAddr> {
        None
    }

    /// Moves bytes towards a peer; returns how many it took, 0 when it would block (or was given none).
    ///
    /// # Errors
    /// `PeerLost`, or what the peer gave up with.
    ///
    /// # Panics
    /// If there is no such lane: its peer is this rank or none of the world, or its level none of this transport.
    fn try_send(&mut self, lane: Lane, bytes: &[u8]) -> Result<usize>;

    /// Bytes that are best moved on a lane in one call, where there are so many: what is worked on then stays in a cache.
    fn turn_bytes(&self, _lane: Lane) -> usize {
        128 << 10
    }

    /// As [`Transport::try_send`], for bytes that lie in two places, one after the other.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    fn try_send_two(&mut self, lane: Lane, first: &[u8], second: &[u8]) -> Result<usize> {
        let sent = self.try_send(lane, first)?;
        Ok(if sent == first.len() { sent + self.try_send(lane, second)? } else { sent })
    }

    /// Moves what has arrived on a lane into `first` and then into `second`, so that nobody needs to copy it there;
    /// returns how many bytes came, 0 when it would block. `None` where there is no way around the transport's own memory,
    /// or something lies there already: [`Transport::try_receive`] hands that out.
    ///
    /// # Errors
    /// As [`Transport::try_receive`].
    ///
    /// # Panics
    /// As [`Transport::try_send`].
    fn try_receive_into(
        &mut self,
        _lane: Lane,
        _first: &mut [u8],
        _second: &mut [u8],
    ) -> Result<Option<usize>> {
        Ok(None)
    }

    /// Hands what has arrived on a lane to `consume`, as address and length, in order, perhaps in several ranges;
    /// `consume` returns how many bytes it took from the front and is called no more once it leaves some. The bytes
    /// are valid during the call only, at any alignment, and may lie in memory that the peer shares: read them by
    /// address, never through a slice. Returns how many bytes were taken in all, 0 when nothing has arrived.
    ///
    /// # Errors
    /// `PeerLost` when the peer is gone and everything it sent was taken, `Corrupt` when it broke the stream's rules,
    /// or what it gave up with.
    ///
    /// # Panics
    /// If there is no such lane, or `consume` claims more than it was given.
    fn try_receive(
        &mut self,
        lane: Lane,
        consume: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize>;

    /// Blocks until one of the interests may make progress, or for `limit`, or less: callers try again and judge time
    /// by themselves. It spins for some microseconds if every rank of the host has a processor, then yields its
    /// processor a few times, then sleeps.
    ///
    /// # Errors
    /// `PeerLost` naming any rank of the world that died, or that its group has lost; what a peer gave up with.
    fn wait(&mut self, interests: &[Interest], limit: Duration) -> Result<()>;

    /// Keeps ranks that the group has lost from memory that this transport shares with them: returns once each of their
    /// processes has let go of it by itself, or has ended, and ends it if need be. To be called before anything is made
    /// of memory that such a rank could still write, for no message and no epoch stops a store of a process that was
    /// stopped and wakes. Ranks that live have let go once they have acknowledged a later epoch. Blocks for a quarter of
    /// `failure_detection` at most. Where peers write no memory of ours there is nothing to do.
    ///
    /// # Errors
    /// `Unavailable` naming a rank that lives and could not be ended: the memory must not be used again.
    fn fence(&mut self, _lost: &[usize]) -> Result<()> {
        Ok(())
    }

    /// What ranks do without streams, if all of the world share memory: at each level by itself.
    ///
    /// # Panics
    /// If `level` is none of this transport, where ranks share memory.
    fn neighbours(&mut self, _level: usize) -> Option<&mut Neighbours> {
        None
    }

    /// Why memory of a peer cannot be read any more, after [`Neighbours::read_private`] has found that: who has died, or what
    /// a peer gave up with, in whose course the memory was let go of. Waits a while for such a word; without one it is `error`.
    fn explain_loss(&mut self, error: Error) -> Error {
        error
    }

    /// Tells every peer that this rank gives up, and why. Never blocks and cannot fail: whom it does not reach finds
    /// this rank gone.
    fn abort(&mut self, reason: &Error);
}

/// The transport of a world of one, which has as many levels as there can be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Transport for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn name(&self) -> &'static str {
        "alone"
    }

    fn levels(&self) -> usize {
        MOST_LEVELS
    }

    fn try_send(&mut self, Lane { peer, .. }: Lane, _: &[u8]) -> Result<usize> {
        panic!("rank {peer} is none of a world of one")
    }

    fn try_receive(
        &mut self,
        Lane { peer, .. }: Lane,
        _: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize> {
        panic!("rank {peer} is none of a world of one")
    }

    fn wait(&mut self, _: &[Interest], _: Duration) -> Result<()> {
        Ok(())
    }

    fn abort(&mut self, _: &Error) {}
}
