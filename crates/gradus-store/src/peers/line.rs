//! The connection over which this node asks one peer: asks go out, replies come in.
//!
//! Bytes of a block go straight to the page that waits for it; those of one for which nobody waits any more are read past.

use super::protocol::{Ask, REPLY_BYTES, Reply};
use gradus_error::{Error, Result};
use gradus_fabric::service::{Connection, Moved};
use rustix::event::PollFlags;
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes that one peer may bring before others have their turn, and that are read past at once.
const AT_ONCE: usize = 4 << 20;
const SCRATCH_BYTES: usize = 64 << 10;

/// See the module.
pub(super) struct Line {
    connection: Connection,
    /// Asks that have found no room yet: at most as many as may be waited for, and those that were given up.
    unsent: Vec<u8>,
    head: [u8; REPLY_BYTES],
    have: usize,
    body: Option<Body>,
    /// More than one turn takes had come.
    is_unfinished: bool,
}

/// A block that is coming.
struct Body {
    reply: Reply,
    received: usize,
}

/// Whom a line gives what comes.
pub(super) trait Takes {
    /// The page that waits for the block of an ask, if somebody waits for it still.
    fn page(&mut self, id: u64) -> Option<&mut [u8]>;
    /// A reply has come, with all that belongs to it.
    ///
    /// # Errors
    /// `Corrupt` when the peer is not to be listened to any more.
    fn replied(&mut self, reply: &Reply) -> Result<()>;
}

impl Line {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            unsent: Vec::new(),
            head: [0; REPLY_BYTES],
            have: 0,
            body: None,
            is_unfinished: false,
        }
    }

    pub(super) fn ask(&mut self, ask: &Ask) {
        self.unsent.extend_from_slice(&ask.encode());
    }

    pub(super) fn interest(&self) -> PollFlags {
        let out = if self.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        self.connection.news(PollFlags::IN | out)
    }

    /// Sends what finds room.
    ///
    /// # Errors
    /// `Closed` when the other side is gone; what TLS finds wrong.
    pub(super) fn send(&mut self) -> Result<()> {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match self.connection.send(&self.unsent[sent..], &[])? {
                Moved::Bytes(count) => sent += count,
                Moved::Nothing => break,
                Moved::Ended => return Err(gone()),
            }
        }
        self.unsent.drain(..sent);
        self.connection.flush()
    }

    /// Whether some of what came may still lie here, decrypted: the socket says nothing of it.
    pub(super) fn is_unfinished(&self) -> bool {
        self.is_unfinished
    }

    /// Takes what has come, as much as others can wait for.
    ///
    /// # Errors
    /// `Closed` when the other side is gone; `Corrupt` when what it says is no reply; what TLS finds wrong; what `to` says.
    pub(super) fn receive(&mut self, to: &mut dyn Takes) -> Result<()> {
        let mut left = AT_ONCE;
        self.is_unfinished = false;
        while left > 0 {
            let moved = match self.body.take() {
                Some(body) => self.receive_body(body, to)?,
                None => self.receive_head(to)?,
            };
            match moved {
                Moved::Bytes(count) => left = left.saturating_sub(count),
                Moved::Nothing => return Ok(()),
                Moved::Ended => return Err(gone()),
            }
        }
        self.is_unfinished = true;
        Ok(())
    }

    fn receive_head(&mut self, to: &mut dyn Takes) -> Result<Moved> {
        let moved = self.connection.receive(&mut self.head[self.have..])?;
        let Moved::Bytes(count) = moved else { return Ok(moved) };
        self.have += count;
        if self.have == REPLY_BYTES {
            self.have = 0;
            let reply = Reply::decode(&self.head)?;
            if reply.length == 0 {
                to.replied(&reply)?;
            } else {
                self.body = Some(Body { reply, received: 0 });
            }
        }
        Ok(moved)
    }

    fn receive_body(&mut self, mut body: Body, to: &mut dyn Takes) -> Result<Moved> {
        let mut scratch = [0; SCRATCH_BYTES];
        let length = body.reply.length as usize;
        let place = match to.page(body.reply.id) {
            Some(page) if page.len() != length => {
                return Err(Error::corrupt(format!("{length} bytes answer an ask for {}", page.len())));
            }
            Some(page) => &mut page[body.received..],
            None => &mut scratch[..SCRATCH_BYTES.min(length - body.received)],
        };
        let moved = self.connection.receive(place)?;
        if let Moved::Bytes(count) = moved {
            body.received += count;
        }
        if body.received == length {
            to.replied(&body.reply)?;
        } else {
            self.body = Some(body);
        }
        Ok(moved)
    }
}

fn gone() -> Error {
    Error::closed("it has gone")
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
