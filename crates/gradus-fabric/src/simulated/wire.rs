//! What lies between the ranks: streams, lines of life, the network beneath, and what strikes it.

use super::Conditions;
use super::pipe::Pipe;
use crate::transport::Lane;
use gradus_error::{Error, Kind, Result};
use gradus_host::simulation::{Course, Fault, Network};
use std::time::Duration;

/// How long a line of life may be silent: as TCP's probes are set by the real transport.
pub const SILENCE: Duration = Duration::from_secs(25);

/// Bytes that the network carries or loses as one.
const PACKET_BYTES: usize = 16 << 10;

/// How long TCP waits for a sign that something has arrived, at first and at most; each time twice as long as before
/// (RFC 6298, sections 2 and 5; Linux' own bounds).
const RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(120);

pub(super) type Plans = gradus_host::simulation::Plans<Event>;

/// What can come due.
pub(super) enum Event {
    /// Bytes of a stream arrive. Lanes are named as the sender sees them.
    Arrival { from: usize, to: Lane, count: usize },
    /// The sender of a stream hears that there is room again.
    Room { from: usize, to: Lane, count: usize },
    /// A stream ends.
    End { from: usize, to: Lane },
    /// A last word arrives on a line.
    Word { from: usize, to: usize, word: Word },
    /// Two ranks have heard nothing of each other for [`SILENCE`], if their silence was never broken.
    Silence { ranks: [usize; 2] },
    /// Something goes wrong.
    Strike(Fault),
}

/// How a line ends.
#[derive(Debug, Clone)]
pub(super) enum Word {
    Goodbye,
    GivingUp(Kind, String),
    /// None was said.
    Death,
}

/// Why a rank does nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    Left,
    Crashed,
}

struct Failure {
    kind: Kind,
    message: String,
    told: bool,
}

/// What one rank is and has.
struct Host {
    gone: Option<Gone>,
    /// Whether it has said its last word.
    parted: bool,
    /// When it has sent what it has to send.
    free_at: Duration,
    /// What it heard first of a failure.
    failure: Option<Failure>,
    /// Of whom it has heard the last word, by rank.
    heard: Vec<bool>,
}

/// See the module.
pub(super) struct Wire {
    network: Network,
    bandwidth_bytes_per_s: u64,
    end: Duration,
    hosts: Vec<Host>,
    /// By sender, then by its lane.
    pipes: Vec<Vec<Pipe>>,
    /// When the last word said on a line arrives, by sender, then by receiver.
    lines: Vec<Vec<Duration>>,
    /// Since when two ranks are silent, or were when they last were, by the lower, then by the other.
    silent_since: Vec<Vec<Duration>>,
}

impl Wire {
    pub(super) fn new(world_size: usize, conditions: &Conditions) -> Self {
        let Conditions { faults, seed, stream_bytes, bandwidth_bytes_per_s, end, .. } = conditions;
        let lanes = world_size * conditions.priority_levels.max(1);
        let host = || Host {
            gone: None,
            parted: false,
            free_at: Duration::ZERO,
            failure: None,
            heard: vec![false; world_size],
        };
        let pipes = || (0..lanes).map(|_| Pipe::new(*stream_bytes)).collect();
        Self {
            network: Network::new(faults.weather, faults.heal, *seed),
            bandwidth_bytes_per_s: (*bandwidth_bytes_per_s).max(1),
            end: *end,
            hosts: (0..world_size).map(|_| host()).collect(),
            pipes: (0..world_size).map(|_| pipes()).collect(),
            lines: vec![vec![Duration::ZERO; world_size]; world_size],
            silent_since: vec![vec![Duration::ZERO; world_size]; world_size],
        }
    }

    // What ranks ask.

    /// Whether a rank can still do anything.
    ///
    /// # Errors
    /// `Closed` when it has crashed, `Internal` when the world is over.
    pub(super) fn check(&self, rank: usize, now: Duration) -> Result<()> {
        if now >= self.end {
            return Err(Error::internal(format!("rank {rank} has come to the end of simulated time")));
        }
        if self.hosts[rank].gone.is_some() {
            return Err(Error::closed(format!("rank {rank} has crashed")));
        }
        Ok(())
    }

    /// What a rank has heard of a failure.
    pub(super) fn failure(&self, rank: usize) -> Option<Error> {
        self.hosts[rank].failure.as_ref().map(|Failure { kind, message, told }| {
            let error = Error::new(kind.clone(), message.clone());
            if *told { error.told() } else { error }
        })
    }

    /// Whether a rank has heard the last word of another.
    pub(super) fn has_heard(&self, rank: usize, of: usize) -> bool {
        self.hosts[rank].heard[of]
    }

    /// The stream from a rank along one of its lanes.
    pub(super) fn pipe(&mut self, from: usize, to: Lane) -> &mut Pipe {
        let world_size = self.hosts.len();
        &mut self.pipes[from][to.index(world_size)]
    }

    /// The lanes of a rank to another.
    fn lanes(&self, peer: usize) -> impl Iterator<Item = Lane> + use<> {
        let levels = self.pipes[0].len() / self.hosts.len();
        (0..levels).map(move |level| Lane { peer, level })
    }

    /// Takes bytes from the front, as many as the stream has room for; their number.
    pub(super) fn send(&mut self, plans: &mut Plans, from: usize, to: Lane, bytes: &[u8]) -> usize {
        let taken = self.pipe(from, to).take_in(bytes);
        for start in (0..taken).step_by(PACKET_BYTES) {
            let count = PACKET_BYTES.min(taken - start);
            let departure = self.departure(plans.now(), from, count);
            let arrival = self.arrival(departure, from, to.peer);
            plans.plan(self.pipe(from, to).in_order(arrival), Event::Arrival { from, to, count });
        }
        taken
    }

    /// Tells the sender of a stream that so many of its bytes were taken.
    pub(super) fn make_room(&mut self, plans: &mut Plans, from: usize, to: Lane, count: usize) {
        let at = self.arrival(plans.now(), to.peer, from);
        plans.plan(at, Event::Room { from, to, count });
    }

    /// Says a last word to all, if none was said.
    pub(super) fn part(&mut self, plans: &mut Plans, rank: usize, word: &Word) {
        let host = &mut self.hosts[rank];
        if host.gone.is_some() || std::mem::replace(&mut host.parted, true) {
            return;
        }
        plans.record(rank, format_args!("parts: {word:?}"));
        self.say_to_all(plans, rank, word);
    }

    /// A rank's connections close.
    pub(super) fn leave(&mut self, plans: &mut Plans, rank: usize) {
        if self.hosts[rank].gone.is_none() {
            self.hosts[rank].gone = Some(Gone::Left);
            self.end_streams(plans, rank);
        }
    }

    // The way of a message.

    /// When bytes have left a rank, behind all that it has sent before.
    fn departure(&mut self, now: Duration, from: usize, bytes: usize) -> Duration {
        let nanoseconds = bytes as u64 * 1_000_000_000 / self.bandwidth_bytes_per_s;
        let free_at = &mut self.hosts[from].free_at;
        *free_at = now.max(*free_at) + Duration::from_nanos(nanoseconds);
        *free_at
    }

    /// When something that leaves at a time arrives, sent again as often as it takes.
    fn arrival(&mut self, departure: Duration, from: usize, to: usize) -> Duration {
        let (mut at, mut pause) = (departure, RETRY);
        loop {
            if let Some(arrival) = self.network.arrivals(at, from, to).into_iter().min() {
                return arrival;
            }
            at += pause;
            pause = (pause * 2).min(LONGEST_RETRY);
        }
    }

    fn others(&self, rank: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.hosts.len()).filter(move |other| *other != rank)
    }

    fn say_to_all(&mut self, plans: &mut Plans, from: usize, word: &Word) {
        for to in self.others(from) {
            let arrival = self.arrival(plans.now(), from, to);
            let last = &mut self.lines[from][to];
            *last = arrival.max(*last);
            plans.plan(*last, Event::Word { from, to, word: word.clone() });
        }
    }

    fn end_streams(&mut self, plans: &mut Plans, from: usize) {
        for to in self.others(from) {
            for lane in self.lanes(to) {
                let arrival = self.arrival(plans.now(), from, to);
                plans.plan(self.pipe(from, lane).in_order(arrival), Event::End { from, to: lane });
            }
        }
    }

    // What comes due.

    fn hear(&mut self, plans: &mut Plans, from: usize, to: usize, word: Word) {
        let host = &mut self.hosts[to];
        if host.gone.is_some() || std::mem::replace(&mut host.heard[from], true) {
            return;
        }
        plans.record(to, format_args!("hears the last of {from}: {word:?}"));
        let failure = match word {
            Word::Goodbye => None,
            Word::GivingUp(kind, message) => {
                Some(Failure { kind, message: format!("rank {from} gave up: {message}"), told: true })
            }
            Word::Death => {
                let message =
                    format!("rank {from} has died (its connection to rank {to} closed without a word)");
                Some(Failure { kind: Kind::PeerLost { rank: from }, message, told: false })
            }
        };
        host.failure = host.failure.take().or(failure);
        plans.wake(to);
    }

    fn strike(&mut self, plans: &mut Plans, fault: Fault) {
        let now = plans.now();
        let until = |length: Duration| now.saturating_add(length);
        match fault {
            Fault::Crash { node, power_loss, .. } => self.crash(plans, node, power_loss),
            // Nobody takes over from a rank: it only stands still.
            Fault::Pause { node, length } | Fault::TakeOver { node, length } => {
                plans.record(node, format_args!("stands still for {length:?}"));
                plans.hold(node, until(length));
            }
            Fault::Cut { side, one_way, length } => {
                plans.record(0, format_args!("{side:?} cut off for {length:?}, one way: {one_way}"));
                self.silence(plans, |wire| wire.network.cut(side, one_way, until(length)));
            }
            Fault::Slow { node, delay, length } => self.network.slow_down(node, delay, until(length)),
            Fault::Reset { node, peer } if node != peer => {
                plans.record(node, format_args!("loses its connections to {peer}"));
                self.lanes(node).for_each(|lane| self.pipe(peer, lane).ended = true);
                self.hear(plans, peer, node, Word::Death);
            }
            Fault::Reset { .. } => {}
        }
    }

    fn crash(&mut self, plans: &mut Plans, rank: usize, power_loss: bool) {
        if self.hosts[rank].gone.is_some() {
            return;
        }
        plans.record(rank, format_args!("crashes (power lost: {power_loss})"));
        self.silence(plans, |wire| wire.hosts[rank].gone = Some(Gone::Crashed));
        plans.wake(rank);
        if !power_loss {
            // The last word said before, if any, stands.
            self.say_to_all(plans, rank, &Word::Death);
            self.end_streams(plans, rank);
        }
    }

    /// Lets something strike that may silence ranks. Every two that can answer each other before and not after are asked after in
    /// time; those that could not before are silent since then.
    fn silence(&mut self, plans: &mut Plans, strike: impl FnOnce(&mut Self)) {
        let ranks = 0..self.hosts.len();
        let pairs = ranks.clone().flat_map(|one| ranks.clone().skip(one + 1).map(move |other| [one, other]));
        let now = plans.now();
        let answering: Vec<_> = pairs.filter(|[one, other]| !self.is_silent(now, *one, *other)).collect();
        strike(self);
        for [one, other] in answering {
            if self.is_silent(now, one, other) {
                self.silent_since[one][other] = now;
                plans.plan(now + SILENCE, Event::Silence { ranks: [one, other] });
            }
        }
    }

    /// Whether a question has no answer: one way is cut, or an end is dead.
    fn is_silent(&self, now: Duration, one: usize, other: usize) -> bool {
        let dead = |rank: usize| self.hosts[rank].gone == Some(Gone::Crashed);
        let cut = |from, to| self.network.is_cut(now, from, to);
        dead(one) || dead(other) || cut(one, other) || cut(other, one)
    }
}

impl Course for Wire {
    type Event = Event;

    fn happen(&mut self, event: Event, plans: &mut Plans) {
        match event {
            Event::Arrival { from, to, count } => {
                plans.record(to.peer, format_args!("gets {count} bytes from {from}, level {}", to.level));
                self.pipe(from, to).arrive(count);
                plans.wake(to.peer);
            }
            Event::Room { from, to, count } => {
                self.pipe(from, to).room += count;
                plans.wake(from);
            }
            Event::End { from, to } => {
                self.pipe(from, to).ended = true;
                plans.wake(to.peer);
            }
            Event::Word { from, to, word } => self.hear(plans, from, to, word),
            Event::Silence { ranks: [one, other] } => {
                let lasted = plans.now() - self.silent_since[one][other] >= SILENCE;
                if lasted && self.is_silent(plans.now(), one, other) {
                    self.hear(plans, one, other, Word::Death);
                    self.hear(plans, other, one, Word::Death);
                }
            }
            Event::Strike(fault) => self.strike(plans, fault),
        }
    }
}
