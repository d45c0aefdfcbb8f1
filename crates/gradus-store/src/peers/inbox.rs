//! What other threads leave for a keeper's thread, and how they wake it.

use super::counters::Counters;
use super::guest::Bytes;
use super::protocol::Kind;
use super::{Ask, Place};
use gradus_error::{Error, Result};
use gradus_fabric::service::Connection;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

/// Asks that wait for the keeper to look at them: those that it has taken in are bounded by peer.
const MOST_ASKS: usize = 4096;

/// What is to be done.
pub(super) enum Command {
    Ask(Ask),
    Answered { guest: u64, id: u64, kind: Kind, crc32c: u32, bytes: Option<Bytes> },
    Dialled { peer: u64, outcome: Result<Connection> },
    Update(Vec<Place>),
    End,
}

/// See the module.
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    counts: Mutex<Counters>,
    rope: UnixStream,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    asks: usize,
    ended: bool,
}

/// Readable when something is in the inbox.
pub(super) struct Bell(UnixStream);

impl Inbox {
    /// An empty one.
    ///
    /// # Errors
    /// The system's failure.
    pub(super) fn new() -> std::io::Result<(Arc<Self>, Bell)> {
        let (rope, bell) = UnixStream::pair()?;
        rope.set_nonblocking(true)?;
        bell.set_nonblocking(true)?;
        let inbox = Self { queue: Mutex::default(), counts: Mutex::default(), rope };
        Ok((Arc::new(inbox), Bell(bell)))
    }

    pub(super) fn counts(&self) -> MutexGuard<'_, Counters> {
        // Who panics while counting leaves numbers that are as good as any.
        self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Leaves a command. After the end nobody takes it, and what it holds is let go.
    pub(super) fn push(&self, command: Command) {
        let mut queue = self.queue();
        if !queue.ended {
            queue.commands.push_back(command);
            drop(queue);
            self.ring();
        }
    }

    /// Leaves an ask, or ends it at once.
    pub(super) fn ask(&self, ask: Ask) {
        let mut queue = self.queue();
        let refusal = match (queue.ended, queue.asks < MOST_ASKS) {
            (true, _) => ended(),
            (false, true) => {
                queue.asks += 1;
                queue.commands.push_back(Command::Ask(ask));
                drop(queue);
                return self.ring();
            }
            (false, false) => Error::unavailable("too many asks of other nodes wait already"),
        };
        drop(queue);
        ask.wanted.done(Err(refusal));
    }

    fn ring(&self) {
        // A bell that is full rings already.
        let _ = (&self.rope).write(&[1]);
    }

    /// All that there is.
    pub(super) fn take(&self, bell: &mut Bell) -> VecDeque<Command> {
        let mut rings = [0; 256];
        while matches!(bell.0.read(&mut rings), Ok(count) if count > 0) {}
        let mut queue = self.queue();
        queue.asks = 0;
        std::mem::take(&mut queue.commands)
    }

    /// Takes nothing any more; what was still there.
    pub(super) fn end(&self) -> VecDeque<Command> {
        let mut queue = self.queue();
        queue.ended = true;
        std::mem::take(&mut queue.commands)
    }
}

/// Why an ask ends that nobody works on any more.
pub(super) fn ended() -> Error {
    Error::closed("blocks are not exchanged with other nodes any more")
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
