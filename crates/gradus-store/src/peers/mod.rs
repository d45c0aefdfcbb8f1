//! Keepers of several nodes ask each other for blocks, so that each block comes from the bucket once for all of them.
//!
//! - [`Homes`] says whom to ask: a pure function of members and blocks, and perhaps of what is on disk ([`Holdings`]).
//! - [`Peers`] asks and serves: one thread moves all bytes of a keeper, over two connections with every other one, a way
//!   each, which are opened when they are first needed and proven like every other connection of a run.
//! - How long is waited, and who is left alone for a while, is decided by a pure machine (`patience`).
//!
//! Invariants: every ask ends once, in bounded time, whatever the other side does; a block arrives whole and with the CRC
//! that its sender found, or not at all; nobody writes to a page whose ask has ended; what waits for a slow asker, and who
//! is served at all, is bounded. An ask that fails costs time only: the bucket has every block.

mod counters;
mod guest;
mod holdings;
mod homes;
mod inbox;
mod keeper;
mod line;
mod patience;
mod protocol;

pub use counters::{Counters, PeerCounters};
pub use guest::Bytes;
pub use holdings::Holdings;
pub use homes::{Homes, Member, Route};

use crate::blocks::BlockKey;
use crate::crc32c::crc32c;
use gradus_error::{Error, IoContext, Result};
use gradus_fabric::service::{Keys, Listener};
use gradus_host::random;
use inbox::{Command, Inbox};
use keeper::Keeper;
use protocol::{Hello, Kind, MOST_BYTES, VERSION};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// The longest patience that can be set: asks say theirs in 32 bits of milliseconds, and nobody waits longer for a cache.
const LONGEST: Duration = Duration::from_secs(3600);

/// Bounds of a keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeersSettings {
    /// The shortest time that an ask is waited for, however fast the peer has been.
    pub least_patience: Duration,
    /// The longest, and the time that a peer has to be connected.
    pub most_patience: Duration,
    /// Asks in a row that a peer may leave unanswered before it is set aside.
    pub misses: u32,
    /// How long it is set aside at first; each time it fails again, twice as long.
    pub first_pause: Duration,
    /// The longest that it is.
    pub longest_pause: Duration,
    /// Asks that wait for one peer at a time; more are not asked.
    pub asks_per_peer: usize,
    /// Bytes of blocks that one asker may have asked for and not taken; more is answered with *busy*. One block always goes.
    pub unsent_bytes: u64,
}

impl Default for PeersSettings {
    fn default() -> Self {
        Self {
            least_patience: Duration::from_millis(500),
            most_patience: Duration::from_secs(5),
            misses: 3,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            asks_per_peer: 64,
            unsent_bytes: 64 << 20,
        }
    }
}

impl PeersSettings {
    /// Whether every value is possible.
    ///
    /// # Errors
    /// `Invalid`, naming the key and its range.
    pub fn check(&self) -> Result<()> {
        let spans = [
            ("least_patience", self.least_patience, self.most_patience),
            ("most_patience", self.most_patience, LONGEST),
            ("first_pause", self.first_pause, self.longest_pause),
            ("longest_pause", self.longest_pause, LONGEST),
        ];
        let wrong = spans.iter().find(|(_, span, most)| span < &Duration::from_millis(1) || span > most);
        if let Some((key, span, most)) = wrong {
            return Err(Error::invalid(format!("cache.peers.{key} is {span:?}: give 1ms to {most:?}")));
        }
        let numbers = [
            ("misses", u64::from(self.misses), 1000),
            ("asks_per_peer", self.asks_per_peer as u64, 4096),
            ("unsent_bytes", self.unsent_bytes, 1 << 40),
        ];
        match numbers.iter().find(|(_, number, most)| !(1..=*most).contains(number)) {
            Some((key, number, most)) => {
                Err(Error::invalid(format!("cache.peers.{key} is {number}: give 1 to {most}")))
            }
            None => Ok(()),
        }
    }
}

/// A member and where it is called, as all tell all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Who.
    pub member: Member,
    /// Where: [`Listener::address`].
    pub address: SocketAddr,
}

/// What an ask is for, and who is to be told. The page is written from the keeper's thread, between [`Peers::ask`] and
/// [`Wanted::done`] only.
pub trait Wanted: Send {
    /// Where the block's bytes go; of exactly its length, always the same.
    fn page(&mut self) -> &mut [u8];

    /// The page is filled, and its CRC is that of the sender; or it is not, and whatever stands in it is worth nothing.
    /// Must not block; called once.
    fn done(self: Box<Self>, outcome: Result<()>);
}

/// One block, wanted of one peer.
pub struct Ask {
    /// Whom to ask.
    pub node: String,
    /// For what.
    pub key: BlockKey,
    /// Where in the order of samples it is used.
    pub position: u64,
    /// Where it goes.
    pub wanted: Box<dyn Wanted>,
}

/// What a peer wants of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Which block.
    pub key: BlockKey,
    /// Its length, as the asker knows it; an [`Answer`] of another one is not sent.
    pub length: u32,
    /// Where in the order of samples the asker uses it.
    pub position: u64,
}

/// Who has blocks.
pub trait Serve: Send + Sync {
    /// Sees to it that `answer` is given, now or later, from any thread. Must not block: it is called by the thread that
    /// moves the bytes of all peers. An answer that is dropped says that the block is not here.
    fn serve(&self, asked: Asked, answer: Answer);
}

/// What a peer waits for.
pub struct Answer {
    inbox: Arc<Inbox>,
    guest: u64,
    id: u64,
    length: u32,
    given: bool,
}

impl Answer {
    /// The block; held until it is sent, or nobody waits for it any more.
    pub fn block(mut self, bytes: Bytes) {
        let held = (*bytes).as_ref();
        if held.len() != self.length as usize {
            tracing::warn!(
                "a block of {} bytes answers an ask for {}: it is not sent",
                held.len(),
                self.length
            );
            return self.give(Kind::NotHere, 0, None);
        }
        let crc = crc32c(held);
        self.give(Kind::Block, crc, Some(bytes));
    }

    /// It is not to be had here.
    pub fn not_here(mut self) {
        self.give(Kind::NotHere, 0, None);
    }

    /// Not now: there is too much to do.
    pub fn busy(mut self) {
        self.give(Kind::Busy, 0, None);
    }

    fn give(&mut self, kind: Kind, crc32c: u32, bytes: Option<Bytes>) {
        self.given = true;
        self.inbox.push(Command::Answered { guest: self.guest, id: self.id, kind, crc32c, bytes });
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.given {
            self.give(Kind::NotHere, 0, None);
        }
    }
}

/// A node's keeper among those of others. Dropping it ends all asks and all serving.
pub struct Peers {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl Peers {
    /// Begins to serve those who come to `listener`; nobody can be asked before [`Peers::update`]. `dataset` is what the
    /// dataset is known by: with whom reads another there is nothing to exchange.
    ///
    /// # Errors
    /// `Invalid` for impossible settings; the system's failure to make a thread.
    pub fn start(
        own: Member,
        dataset: &str,
        keys: Keys,
        listener: Listener,
        serve: Arc<dyn Serve>,
        settings: &PeersSettings,
    ) -> Result<Self> {
        settings.check()?;
        let describe = || "cannot start to exchange blocks with other nodes".to_owned();
        let (inbox, bell) = Inbox::new().context(describe)?;
        let hello = Hello {
            version: VERSION,
            node: own.node.clone(),
            rack: own.rack.clone(),
            capacity_blocks: own.capacity_blocks,
            dataset: dataset.to_owned(),
        };
        let seed = random::seed_from_system();
        let keeper =
            Keeper::new(hello, keys, listener, serve, settings.clone(), (Arc::clone(&inbox), bell), seed);
        let builder = std::thread::Builder::new().name("gradus-peers".into());
        let thread = builder.spawn(move || keeper.run()).context(describe)?;
        Ok(Self { inbox, thread: Some(thread) })
    }

    /// Who can be asked from now on, this node itself among them or not. Asks of those who are gone, or have moved, end.
    pub fn update(&self, places: Vec<Place>) {
        self.inbox.push(Command::Update(places));
    }

    /// By which others ask, as long as this keeper goes on.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.inbox))
    }

    /// What came and went so far.
    pub fn counters(&self) -> Counters {
        self.inbox.counts().clone()
    }

    /// See [`Handle::ask`].
    pub fn ask(&self, ask: Ask) {
        self.handle().ask(ask);
    }
}

/// Asks other nodes; does not keep the keeper going.
#[derive(Clone)]
pub struct Handle(Arc<Inbox>);

impl Handle {
    /// Asks for a block; never blocks. Ends by [`Wanted::done`], `Ok` or: `Unavailable` when the peer does not have it, is
    /// busy, gone, set aside or too slow; `Denied` when it refuses this node; `Corrupt` when its bytes are damaged; `Invalid` for a page that no
    /// block has; `Closed` when this keeper has ended. Whatever it is, the bucket has the block.
    pub fn ask(&self, mut ask: Ask) {
        let length = ask.wanted.page().len();
        if !(1..=MOST_BYTES as usize).contains(&length) {
            return ask.wanted.done(Err(Error::invalid(format!("no block has {length} bytes"))));
        }
        self.0.ask(ask);
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.inbox.push(Command::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What takes bytes that another node could send, for a fuzzer: whether they are an ask, or a reply, or the beginning of a
/// conversation.
#[doc(hidden)]
pub fn is_understood(bytes: &[u8]) -> bool {
    let ask = bytes.first_chunk().is_some_and(|frame| protocol::Ask::decode(frame).is_ok());
    let reply = bytes.first_chunk().is_some_and(|frame| protocol::Reply::decode(frame).is_ok());
    let hello = serde_json::from_slice::<Hello>(bytes).is_ok_and(|hello| hello.objection(&hello).is_none());
    let _ = Holdings::from_bytes(bytes.to_vec(), bytes.len() as u64 * 8 - u64::from(!bytes.is_empty()));
    ask || reply || hello || serde_json::from_slice::<protocol::Welcome>(bytes).is_ok()
}

/// Inputs that [`is_understood`] takes.
#[doc(hidden)]
pub fn understood() -> Vec<Vec<u8>> {
    let key = BlockKey { object: [7; 16], number: 3 };
    let ask = protocol::Ask { id: 1, key, length: 4096, position: 9, patience_ms: 500 };
    let reply = protocol::Reply { id: 1, kind: Kind::Block, length: 4096, crc32c: 5 };
    let hello = br#"{"version":1,"node":"a","rack":"r","capacity_blocks":5,"dataset":"d"}"#;
    vec![ask.encode().into(), reply.encode().into(), hello.to_vec()]
}
