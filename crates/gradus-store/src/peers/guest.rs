//! The connection over which one peer asks this node: asks come in, replies go out.
//!
//! Blocks are written from where they lie, and held until they are sent. What a guest may have asked for and not taken is
//! bounded; one that takes nothing for long is sent away.

use super::protocol::{ASK_BYTES, Ask, Kind, Reply};
use gradus_error::{Error, Result};
use gradus_fabric::service::{Connection, Moved};
use rustix::event::PollFlags;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Replies that wait to be sent, without or with a block, before no more asks are read.
const MOST_REPLIES: usize = 1024;

/// Asks that are read before others have their turn.
const AT_ONCE: usize = 256;

/// Bytes of a block that wait to be sent, and whatever keeps them where they are.
pub type Bytes = Box<dyn AsRef<[u8]> + Send>;

/// See the module.
pub(super) struct Guest {
    pub(super) node: String,
    connection: Connection,
    head: [u8; ASK_BYTES],
    have: usize,
    /// What is asked and not yet answered: its length, and when nobody waits for it any more.
    open: BTreeMap<u64, (u32, Duration)>,
    unsent: VecDeque<Unsent>,
    /// Bytes that the first of these has sent already.
    sent: usize,
    /// Bytes of blocks that were asked for and are not sent.
    reserved: u64,
    /// Since when it has taken nothing of what waits for it.
    waiting_since: Duration,
}

struct Unsent {
    reply: Reply,
    bytes: Option<Bytes>,
    reserved: u64,
    deadline: Duration,
}

impl Guest {
    pub(super) fn new(node: String, connection: Connection, now: Duration) -> Self {
        Self {
            node,
            connection,
            head: [0; ASK_BYTES],
            have: 0,
            open: BTreeMap::new(),
            unsent: VecDeque::new(),
            sent: 0,
            reserved: 0,
            waiting_since: now,
        }
    }

    pub(super) fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::empty();
        if self.takes_asks() {
            interest |= PollFlags::IN;
        }
        if !self.unsent.is_empty() {
            interest |= PollFlags::OUT;
        }
        self.connection.news(interest)
    }

    fn takes_asks(&self) -> bool {
        self.unsent.len() + self.open.len() < MOST_REPLIES
    }

    /// When it is to be sent away if it takes nothing until then.
    pub(super) fn deadline(&self, limit: Duration) -> Option<Duration> {
        (!self.unsent.is_empty()).then(|| self.waiting_since + limit)
    }

    /// Asks that have come and are to be served; others are answered already. No guest has more than `most` bytes reserved,
    /// but for one block.
    ///
    /// # Errors
    /// `Closed` when the other side is gone; `Corrupt` when what it says is no ask; what TLS finds wrong.
    pub(super) fn receive(&mut self, most: u64, now: Duration) -> Result<Vec<Ask>> {
        let mut asks = Vec::new();
        for _ in 0..AT_ONCE {
            if !self.takes_asks() {
                break;
            }
            match self.connection.receive(&mut self.head[self.have..])? {
                Moved::Bytes(count) => self.have += count,
                Moved::Nothing => break,
                Moved::Ended => return Err(Error::closed("it has gone")),
            }
            if self.have == ASK_BYTES {
                self.have = 0;
                let ask = Ask::decode(&self.head)?;
                asks.extend(self.admit(ask, most, now)?);
            }
        }
        Ok(asks)
    }

    fn admit(&mut self, ask: Ask, most: u64, now: Duration) -> Result<Option<Ask>> {
        if self.open.contains_key(&ask.id) {
            return Err(Error::corrupt("an ask has the number of another"));
        }
        let bytes = u64::from(ask.length);
        if self.reserved > 0 && self.reserved + bytes > most {
            self.push(Reply::without_block(ask.id, Kind::Busy), None, 0, now, now);
            return Ok(None);
        }
        self.reserved += bytes;
        self.open.insert(ask.id, (ask.length, now + ask.patience()));
        Ok(Some(ask))
    }

    /// What was asked is answered.
    pub(super) fn answer(&mut self, id: u64, kind: Kind, crc32c: u32, bytes: Option<Bytes>, now: Duration) {
        let Some((length, deadline)) = self.open.remove(&id) else { return };
        let reserved = u64::from(length);
        match bytes {
            Some(bytes) if now < deadline => {
                self.push(Reply { id, kind, length, crc32c }, Some(bytes), reserved, deadline, now);
            }
            // Nobody waits for the bytes; that the answer came is worth knowing all the same.
            _ => {
                self.reserved -= reserved;
                let kind = if kind == Kind::Block { Kind::Busy } else { kind };
                self.push(Reply::without_block(id, kind), None, 0, deadline, now);
            }
        }
    }

    fn push(&mut self, reply: Reply, bytes: Option<Bytes>, reserved: u64, deadline: Duration, now: Duration) {
        if self.unsent.is_empty() {
            self.waiting_since = now;
        }
        self.unsent.push_back(Unsent { reply, bytes, reserved, deadline });
    }

    /// Sends what finds room: the bytes of the blocks that went out whole, one number each.
    ///
    /// # Errors
    /// `Closed` when the other side is gone; what TLS finds wrong.
    pub(super) fn send(&mut self, now: Duration) -> Result<Vec<u64>> {
        let mut served = Vec::new();
        while let Some(first) = self.unsent.front_mut() {
            if self.sent == 0 && first.bytes.is_some() && now >= first.deadline {
                first.bytes = None;
                first.reply = Reply::without_block(first.reply.id, Kind::Busy);
            }
            let head = first.reply.encode();
            let bytes: &[u8] = first.bytes.as_ref().map_or(&[], |bytes| (**bytes).as_ref());
            let moved = match self.sent.checked_sub(head.len()) {
                Some(of_bytes) => self.connection.send(&bytes[of_bytes..], &[])?,
                None => self.connection.send(&head[self.sent..], bytes)?,
            };
            match moved {
                Moved::Bytes(count) => (self.sent, self.waiting_since) = (self.sent + count, now),
                Moved::Nothing => break,
                Moved::Ended => return Err(Error::closed("it has gone")),
            }
            if self.sent == head.len() + bytes.len() {
                self.sent = 0;
                self.reserved -= first.reserved;
                if !bytes.is_empty() {
                    served.push(bytes.len() as u64);
                }
                self.unsent.pop_front();
            }
        }
        self.connection.flush()?;
        Ok(served)
    }
}

impl AsFd for Guest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
