//! The one thread that moves the bytes of a keeper: lines to those whom it asks, guests who ask it.
//!
//! It waits for all of them at once and blocks for none; connecting, which may take long, is done by threads that end
//! when it is done, one at a time for each peer. What is decided about time is decided by [`Patience`].

use super::guest::Guest;
use super::inbox::{Bell, Command, Inbox, ended};
use super::line::{Line, Takes};
use super::patience::{AskId, Bounds, End, Note, Patience, Tell, Word};
use super::protocol::{self, Hello, Kind, Reply, Welcome};
use super::{Answer, Ask, Asked, PeerCounters, PeersSettings, Place, Serve, Wanted};
use crate::blocks::BlockKey;
use crate::crc32c::crc32c;
use gradus_error::{Error, Result};
use gradus_fabric::service::{self, Arrival, Connection, Keys, Listener};
use gradus_host::machine::{Action, Event, Machine};
use gradus_host::{Clock, RealClock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Guests at a time; beyond that callers are sent away.
const MOST_GUESTS: usize = 4096;

/// How long to rest when the system does not let this thread wait: it is short of memory.
const REST: Duration = Duration::from_millis(10);

/// A peer that can be asked.
struct Known {
    place: Place,
    line: Option<Line>,
    /// Whether it was told of already that it cannot be spoken with.
    complained: bool,
}

/// An ask under way.
struct Pending {
    peer: u64,
    key: BlockKey,
    position: u64,
    wanted: Box<dyn Wanted>,
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

/// See the module.
pub(super) struct Keeper {
    hello: Hello,
    keys: Keys,
    listener: Listener,
    serve: Arc<dyn Serve>,
    settings: PeersSettings,
    inbox: Arc<Inbox>,
    bell: Bell,
    clock: RealClock,
    patience: Patience,
    numbers: BTreeMap<String, u64>,
    known: BTreeMap<u64, Known>,
    guests: BTreeMap<u64, Guest>,
    pending: BTreeMap<AskId, Pending>,
    next: u64,
}

impl Keeper {
    pub(super) fn new(
        hello: Hello,
        keys: Keys,
        listener: Listener,
        serve: Arc<dyn Serve>,
        settings: PeersSettings,
        (inbox, bell): (Arc<Inbox>, Bell),
        seed: u64,
    ) -> Self {
        let bounds = Bounds {
            least: settings.least_patience,
            most: settings.most_patience,
            misses: settings.misses,
            first_pause: settings.first_pause,
            longest_pause: settings.longest_pause,
            asks: settings.asks_per_peer,
        };
        Self {
            hello,
            keys,
            listener,
            serve,
            settings,
            inbox,
            bell,
            clock: RealClock::new(),
            patience: Patience::new(bounds, seed),
            numbers: BTreeMap::new(),
            known: BTreeMap::new(),
            guests: BTreeMap::new(),
            pending: BTreeMap::new(),
            next: 0,
        }
    }

    /// Serves until the end is asked for.
    pub(super) fn run(mut self) {
        while self.turn() {}
        for command in self.inbox.end() {
            if let Command::Ask(ask) = command {
                ask.wanted.done(Err(ended()));
            }
        }
        for pending in std::mem::take(&mut self.pending).into_values() {
            pending.wanted.done(Err(ended()));
        }
    }

    /// Waits and does what is to be done; whether to go on.
    fn turn(&mut self) -> bool {
        let ready = self.wait();
        let mut goes_on = true;
        for command in self.inbox.take(&mut self.bell) {
            goes_on &= self.obey(command);
        }
        for arrival in self.listener.arrivals() {
            self.let_in(arrival);
        }
        for peer in ready.lines {
            self.attend_line(peer);
        }
        for guest in ready.guests {
            self.attend_guest(guest);
        }
        self.send_away_the_stuck();
        self.tell(Event::Wake);
        goes_on
    }

    // Waiting.

    fn wait(&self) -> Ready {
        let now = self.clock.now();
        let stuck = self.guests.values().filter_map(|guest| guest.deadline(self.settings.most_patience));
        let until = stuck.chain(self.patience.deadline()).min();
        let lines: Vec<(u64, &Line)> =
            self.known.iter().filter_map(|(peer, known)| Some((*peer, known.line.as_ref()?))).collect();
        let is_at_once = lines.iter().any(|(_, line)| line.is_unfinished());
        let until = if is_at_once { Some(now) } else { until };
        let limit = until.map(|until| timespec(until.saturating_sub(now)));
        let mut sockets =
            vec![PollFd::new(&self.bell, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        sockets.extend(lines.iter().map(|(_, line)| PollFd::new(*line, line.interest())));
        sockets.extend(self.guests.values().map(|guest| PollFd::new(guest, guest.interest())));
        match poll(&mut sockets, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => self.clock.sleep(REST),
        }
        let has_news = |socket: &PollFd<'_>| !socket.revents().is_empty();
        let (of_lines, of_guests) = sockets[2..].split_at(lines.len());
        let lines = lines.iter().zip(of_lines);
        let lines = lines.filter(|((_, line), socket)| line.is_unfinished() || has_news(socket));
        let guests = self.guests.keys().zip(of_guests).filter(|(_, socket)| has_news(socket));
        Ready {
            lines: lines.map(|((peer, _), _)| *peer).collect(),
            guests: guests.map(|(guest, _)| *guest).collect(),
        }
    }

    // What other threads want.

    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Ask(ask) => self.begin(ask),
            Command::Answered { guest, id, kind, crc32c, bytes } => {
                let now = self.clock.now();
                if let Some(found) = self.guests.get_mut(&guest) {
                    found.answer(id, kind, crc32c, bytes, now);
                    self.attend_guest(guest);
                }
            }
            Command::Dialled { peer, outcome } => self.dialled(peer, outcome),
            Command::Update(places) => self.update(places),
            Command::End => return false,
        }
        true
    }

    fn begin(&mut self, ask: Ask) {
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

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn update(&mut self, places: Vec<Place>) {
        let own = self.hello.node.clone();
        let mut wanted: BTreeMap<String, Place> =
            places.into_iter().map(|place| (place.member.node.clone(), place)).collect();
        wanted.remove(&own);
        let is_gone = |(peer, known): (&u64, &Known)| {
            let stays = wanted.get(&known.place.member.node) == Some(&known.place);
            (!stays).then_some(*peer)
        };
        let gone: Vec<u64> = self.known.iter().filter_map(is_gone).collect();
        for peer in gone {
            self.tell(Event::Closed { peer });
            self.patience.forget(peer);
            if let Some(known) = self.known.remove(&peer) {
                self.numbers.remove(&known.place.member.node);
            }
        }
        for (node, place) in wanted {
            if !self.numbers.contains_key(&node) {
                let peer = self.number();
                self.numbers.insert(node, peer);
                self.known.insert(peer, Known { place, line: None, complained: false });
            }
        }
    }

    // Connecting.

    fn dial(&mut self, peer: u64) {
        let Some(known) = self.known.get(&peer) else { return };
        let (inbox, keys, hello) = (Arc::clone(&self.inbox), self.keys.clone(), self.hello.clone());
        let (place, limit) = (known.place.clone(), self.settings.most_patience);
        let dialling = std::thread::Builder::new().name("gradus-dial".into()).spawn(move || {
            let outcome = meet(&keys, &place, &hello, limit);
            inbox.push(Command::Dialled { peer, outcome });
        });
        if let Err(error) = dialling {
            let outcome = Err(Error::io("cannot start a thread to connect", error));
            self.inbox.push(Command::Dialled { peer, outcome });
        }
    }

    fn dialled(&mut self, peer: u64, outcome: Result<Connection>) {
        // One that was dropped meanwhile is not to be asked.
        let Some(known) = self.known.get_mut(&peer) else { return };
        match outcome {
            Ok(connection) => {
                known.line = Some(Line::new(connection));
                known.complained = false;
                self.tell(Event::Command(Tell::Connected { peer }));
            }
            Err(error) => {
                let node = &known.place.member.node;
                if !std::mem::replace(&mut known.complained, true) {
                    tracing::warn!("node {node} cannot be asked for blocks, the bucket is: {error}");
                }
                self.tell(Event::Command(Tell::Unreachable { peer }));
            }
        }
    }

    // Asking.

    fn attend_line(&mut self, peer: u64) {
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
    fn tell(&mut self, event: Event<Word, Tell>) {
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

    // Serving.

    fn let_in(&mut self, arrival: Arrival) {
        let Arrival { mut connection, said } = arrival;
        let Ok(hello) = service::understand::<Hello>(&said) else { return };
        let crowded = (self.guests.len() >= MOST_GUESTS).then(|| "it serves too many others".to_owned());
        if let Some(reason) = hello.objection(&self.hello).or(crowded) {
            tracing::warn!("node {:.64} is not served: {reason}", hello.node);
            // Whom it does not reach sees the end.
            let _ = connection.say(&Welcome::Refused { reason });
            return;
        }
        if connection.say(&Welcome::Come { node: self.hello.node.clone() }).is_err() {
            return;
        }
        // One that calls again has lost its connection, whether that shows here or not.
        self.guests.retain(|_, guest| guest.node != hello.node);
        let guest = self.number();
        self.guests.insert(guest, Guest::new(hello.node, connection, self.clock.now()));
    }

    fn attend_guest(&mut self, number: u64) {
        if let Err(error) = self.try_attend_guest(number)
            && let Some(guest) = self.guests.remove(&number)
        {
            tracing::debug!("node {} asks no more: {error}", guest.node);
        }
    }

    fn try_attend_guest(&mut self, number: u64) -> Result<()> {
        let now = self.clock.now();
        let Some(guest) = self.guests.get_mut(&number) else { return Ok(()) };
        let asks = guest.receive(self.settings.unsent_bytes, now)?;
        let sent = guest.send(now);
        let node = guest.node.clone();
        for ask in asks {
            let protocol::Ask { id, key, length, position, .. } = ask;
            let inbox = Arc::clone(&self.inbox);
            let answer = Answer { inbox, guest: number, id, length, given: false };
            self.serve.serve(Asked { key, length, position }, answer);
        }
        for bytes in sent? {
            self.count(&node, PeerCounters::served(bytes));
        }
        Ok(())
    }

    fn send_away_the_stuck(&mut self) {
        let (now, limit) = (self.clock.now(), self.settings.most_patience);
        self.guests.retain(|_, guest| guest.deadline(limit).is_none_or(|deadline| now < deadline));
    }

    // Counting.

    fn count(&self, node: &str, counted: PeerCounters) {
        let known = self.numbers.get(node).and_then(|peer| self.known.get(peer));
        let mut counts = self.inbox.counts();
        let node = if known.is_some() { node } else { "" };
        let is_near = known.is_some_and(|known| known.place.member.rack == self.hello.rack);
        *(if is_near { &mut counts.in_rack } else { &mut counts.across }) += counted;
        *counts.by_node.entry(node.to_owned()).or_default() += counted;
    }
}

struct Ready {
    lines: Vec<u64>,
    guests: Vec<u64>,
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

/// Connects to a peer that this node will ask.
fn meet(keys: &Keys, place: &Place, hello: &Hello, limit: Duration) -> Result<Connection> {
    let (clock, node) = (RealClock::new(), &place.member.node);
    let whom = format!("node {node}");
    let (connection, answer) = service::call(keys, place.address, &whom, hello, &clock, clock.now() + limit)?;
    match service::understand(&answer).map_err(|error| error.within(&whom))? {
        Welcome::Come { node: found } if found == *node => Ok(connection),
        Welcome::Come { node: found } => {
            Err(Error::invalid(format!("at {} is node {found:.64}, not {node}", place.address)))
        }
        Welcome::Refused { reason } => Err(Error::denied(format!("{whom} refuses this node: {reason:.256}"))),
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

/// For the system, a little longer than `span`, so that the time has come when it is over.
fn timespec(span: Duration) -> Timespec {
    let span = span.min(Duration::from_secs(3600)) + Duration::from_micros(50);
    Timespec { tv_sec: span.as_secs().cast_signed(), tv_nsec: i64::from(span.subsec_nanos()) }
}
