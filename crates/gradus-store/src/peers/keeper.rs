//! The one thread that moves the bytes of a keeper: lines to those whom it asks, guests who ask it.
//!
//! It waits for all of them at once and blocks for none; connecting, which may take long, is done by threads that end
//! when it is done, one at a time for each peer. What is decided about time is decided by [`Patience`].

mod asking;
mod connecting;
mod serving;

use super::guest::Guest;
use super::inbox::{Bell, Command, Inbox, ended};
use super::line::Line;
use super::patience::{AskId, Bounds, Patience};
use super::protocol::Hello;
use super::{PeerCounters, PeersSettings, Place, Serve};
use asking::Pending;
use gradus_fabric::service::{Keys, Listener};
use gradus_host::machine::{Event, Machine};
use gradus_host::{Clock, RealClock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long to rest when the system does not let this thread wait: it is short of memory.
const REST: Duration = Duration::from_millis(10);

/// A peer that can be asked.
struct Known {
    place: Place,
    line: Option<Line>,
    /// Whether it was told of already that it cannot be spoken with.
    complained: bool,
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

/// For the system, a little longer than `span`, so that the time has come when it is over.
fn timespec(span: Duration) -> Timespec {
    let span = span.min(Duration::from_secs(3600)) + Duration::from_micros(50);
    Timespec { tv_sec: span.as_secs().cast_signed(), tv_nsec: i64::from(span.subsec_nanos()) }
}
