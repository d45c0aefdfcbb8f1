//! What is asked of others: each ask from its beginning to its end, over the line to its peer.

use super::Keeper;
use crate::blocks::BlockKey;
use crate::crc32c::crc32c;
use crate::peers::line::Takes;
use crate::peers::patience::{AskId, End, Note, Tell, Word};
use crate::peers::protocol::{self, Kind, Reply};
use crate::peers::{Ask, PeerCounters, Wanted};
use gradus_error::{Error, Result};
use gradus_host::Clock;
use gradus_host::machine::{Action, Event, Machine};
use std::collections::BTreeMap;
use std::time::Duration;

/// An ask under way.
pub(super) struct Pending {
    peer: u64,
    key: BlockKey,
    position: u64,
    pub(super) wanted: Box<dyn Wanted>,
    /// What its reply came to.
    came: Option<Came>,
}

/// What came for an ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    Whole,
    /// With another CRC than its sender found.
    Damaged,
    /// No block.
    Without(Kind),
}

impl Keeper {
    pub(super) fn begin(&mut self, ask: Ask) {
        let Some(peer) = self.numbers.get(&ask.node).copied() else {
            let message = format!("{} is no node that blocks are asked of", ask.node);
            return ask.wanted.done(Err(Error::unavailable(message)));
        };
        self.count(&ask.node, PeerCounters { asked_blocks: 1, ..PeerCounters::default() });
        let Ask { key, position, wanted, .. } = ask;
        let id = self.number();
        self.pending.insert(id, Pending { peer, key, position, wanted, came: None });
        self.tell(Event::Command(Tell::Ask { ask: id, peer }));
    }

    pub(super) fn attend_line(&mut self, peer: u64) {
        // Taken out while it is worked on, for what comes may change who is known.
        let Some(mut line) = self.known.get_mut(&peer).and_then(|known| known.line.take()) else { return };
        let mut taker = Taker { peer, pending: &mut self.pending, over: Vec::new() };
        let worked = line.send().and_then(|()| line.receive(&mut taker));
        let over = taker.over;
        if let Some(known) = self.known.get_mut(&peer) {
            known.line = Some(line);
        }
        for (ask, came) in over {
            match came {
                // The connection ends with it; as a reply it would speak for the peer.
                Came::Damaged => self.finish(ask, End::Came),
                Came::Whole | Came::Without(_) => {
                    let message = Word::Reply { ask, with_block: came == Came::Whole };
                    self.tell(Event::Message { from: peer, message });
                }
            }
        }
        if let Err(error) = worked {
            self.hang_up(peer, &error);
        }
    }

    fn hang_up(&mut self, peer: u64, error: &Error) {
        let Some(known) = self.known.get_mut(&peer) else { return };
        known.line = None;
        tracing::debug!("the connection to node {} has ended: {error}", known.place.member.node);
        self.tell(Event::Closed { peer });
    }

    /// Tells the machine, and does what it asks for.
    pub(super) fn tell(&mut self, event: Event<Word, Tell>) {
        let now = self.clock.now();
        for action in self.patience.step(event, now) {
            match action {
                Action::Send { to, message: Word::Ask { ask, patience } } => self.send_ask(to, ask, patience),
                Action::Note(Note::Dial { peer }) => self.dial(peer),
                Action::Note(Note::Aside { peer }) => self.leave_alone(peer),
                Action::Note(Note::Over { ask, end }) => self.finish(ask, end),
                // It says nothing else, and stores nothing.
                Action::Send { .. } | Action::Persist(_) => {}
            }
        }
    }

    fn send_ask(&mut self, peer: u64, id: AskId, patience: Duration) {
        let line = self.known.get_mut(&peer).and_then(|known| known.line.as_mut());
        let (Some(line), Some(pending)) = (line, self.pending.get_mut(&id)) else { return };
        // Both are bounded where they come from.
        let length = u32::try_from(pending.wanted.page().len()).unwrap_or(u32::MAX);
        let patience_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        let Pending { key, position, .. } = pending;
        line.ask(&protocol::Ask { id, key: *key, length, position: *position, patience_ms });
        // What cannot be sent shows when the connection is attended to.
        let _ = line.send();
    }

    fn leave_alone(&mut self, peer: u64) {
        let Some(known) = self.known.get_mut(&peer) else { return };
        known.line = None;
        let node = known.place.member.node.clone();
        tracing::debug!("node {node} is not asked for blocks for a while");
        self.count(&node, PeerCounters { set_aside: 1, ..PeerCounters::default() });
    }

    fn finish(&mut self, id: AskId, end: End) {
        let Some(pending) = self.pending.remove(&id) else { return };
        let Pending { peer, mut wanted, came, .. } = pending;
        let bytes = wanted.page().len() as u64;
        let node = self.known.get(&peer).map_or_else(String::new, |known| known.place.member.node.clone());
        let came = came.filter(|_| end == End::Came);
        self.count(
            &node,
            match came {
                Some(Came::Whole) => PeerCounters::received(bytes),
                Some(Came::Damaged) => PeerCounters { corrupt: 1, ..PeerCounters::default() },
                Some(Came::Without(kind)) => PeerCounters::without_block(kind),
                None => PeerCounters::without_reply(end),
            },
        );
        wanted.done(match came {
            Some(Came::Whole) => Ok(()),
            Some(Came::Damaged) => {
                Err(Error::corrupt(format!("a block of node {node} came damaged: its CRC-32C differs")))
            }
            Some(Came::Without(kind)) => Err(without(&node, kind)),
            None => Err(unanswered(&node, end)),
        });
    }
}

/// What takes in what comes from one peer.
struct Taker<'a> {
    peer: u64,
    pending: &'a mut BTreeMap<AskId, Pending>,
    over: Vec<(AskId, Came)>,
}

impl Takes for Taker<'_> {
    fn page(&mut self, id: u64) -> Option<&mut [u8]> {
        let pending = self.pending.get_mut(&id).filter(|pending| pending.peer == self.peer)?;
        // One that has its block already is owed nothing more.
        pending.came.is_none().then(|| pending.wanted.page())
    }

    fn replied(&mut self, reply: &Reply) -> Result<()> {
        let pending = self.pending.get_mut(&reply.id).filter(|pending| pending.peer == self.peer);
        let Some(pending) = pending.filter(|pending| pending.came.is_none()) else { return Ok(()) };
        let came = match reply.kind {
            Kind::Block if crc32c(pending.wanted.page()) == reply.crc32c => Came::Whole,
            Kind::Block => Came::Damaged,
            kind => Came::Without(kind),
        };
        pending.came = Some(came);
        self.over.push((reply.id, came));
        match came {
            Came::Damaged => Err(Error::corrupt("it sends damaged blocks")),
            Came::Whole | Came::Without(_) => Ok(()),
        }
    }
}

fn without(node: &str, kind: Kind) -> Error {
    match kind {
        Kind::Refused => Error::denied(format!("node {node} does not serve this one")),
        Kind::Busy => Error::unavailable(format!("node {node} has too much to do")),
        Kind::NotHere | Kind::Block => Error::unavailable(format!("node {node} does not have the block")),
    }
}

fn unanswered(node: &str, end: End) -> Error {
    Error::unavailable(match end {
        End::Lost => format!("the connection to node {node} has ended, or could not be made"),
        End::NotAsked => format!("node {node} is not asked now"),
        End::Late | End::Came => format!("node {node} did not send the block in time"),
    })
}
