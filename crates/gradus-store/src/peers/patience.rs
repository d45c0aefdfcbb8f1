//! How long peers are waited for, and when they are left alone: a pure machine.
//!
//! Every ask ends once, in one of four ways ([`End`]), and by its deadline at the latest: whoever asks has the bucket to go
//! to. The deadline follows from how long replies of that peer took so far (mean and deviation as in RFC 6298), within
//! bounds that are set. A peer that misses several deadlines in a row, or whose connection ends, is *set aside*: nothing is
//! asked of it for a while, which doubles from time to time and differs by chance, so that not all return at once; then one
//! ask at a time, until it replies. Misses that lie together count as one: what was asked before the last one was counted
//! says nothing new.
//!
//! Invariants: every ask ends exactly once, not after its deadline unless time itself went by unseen; a peer has a bounded
//! number of asks; only one attempt to connect to a peer is under way at a time.

use gradus_host::machine::{Action, Event, Machine, Peer};
use gradus_host::random::Stream;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Names the stream that pauses are drawn from.
const PURPOSE: u64 = 0x7061_7469_656e;

/// Bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The shortest and the longest that an ask is waited for.
    pub(super) least: Duration,
    pub(super) most: Duration,
    /// Misses in a row after which a peer is set aside.
    pub(super) misses: u32,
    /// The first and the longest while for which it is.
    pub(super) first_pause: Duration,
    pub(super) longest_pause: Duration,
    /// Asks that a peer may have at a time.
    pub(super) asks: usize,
}

/// The number of an ask, used once.
pub(super) type AskId = u64;

/// What peers and this node say to each other, as far as the machine cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// To a peer: this is wanted.
    Ask { ask: AskId, patience: Duration },
    /// From a peer: all of it is here. What came without a block says nothing of how long blocks take.
    Reply { ask: AskId, with_block: bool },
}

/// What the program around the machine tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    /// Ask a peer.
    Ask { ask: AskId, peer: Peer },
    /// It is connected now.
    Connected { peer: Peer },
    /// It could not be.
    Unreachable { peer: Peer },
}

/// What the machine tells the program around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Note {
    /// Connect to a peer.
    Dial { peer: Peer },
    /// A peer is set aside; the connection to it, if there is one, is to be closed without a word to the machine.
    Aside { peer: Peer },
    /// An ask has ended.
    Over { ask: AskId, end: End },
}

/// How an ask ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It was replied to.
    Came,
    /// It was not, in time.
    Late,
    /// The connection ended, or there was none to be had.
    Lost,
    /// It was not asked: the peer is set aside, or has as many asks as it may.
    NotAsked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Way {
    #[default]
    Down,
    Dialling,
    Up,
}

#[derive(Debug, Default)]
struct State {
    way: Way,
    outstanding: usize,
    /// Mean and deviation of how long replies took.
    measured: Option<(Duration, Duration)>,
    misses: u32,
    /// What was asked before this counts for no further miss.
    counted: Duration,
    /// Nothing is asked before this.
    aside_until: Duration,
    /// How long it was set aside last; zero while it replies.
    pause: Duration,
}

#[derive(Debug)]
struct Outstanding {
    peer: Peer,
    asked_at: Duration,
    deadline: Duration,
}

/// See the module.
pub(super) struct Patience {
    bounds: Bounds,
    peers: BTreeMap<Peer, State>,
    asks: BTreeMap<AskId, Outstanding>,
    deadlines: BTreeSet<(Duration, AskId)>,
    chance: Stream,
    #[cfg(test)]
    planted: tests::Planted,
}

type Actions = Vec<Action<Word, Note>>;

impl Patience {
    pub(super) fn new(bounds: Bounds, seed: u64) -> Self {
        Self {
            bounds,
            peers: BTreeMap::new(),
            asks: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            chance: Stream::new(seed, PURPOSE),
            #[cfg(test)]
            planted: tests::Planted::Nothing,
        }
    }

    fn ask(&mut self, ask: AskId, peer: Peer, now: Duration) -> Actions {
        let state = self.peers.entry(peer).or_default();
        let most = if state.pause.is_zero() { self.bounds.asks } else { 1 };
        if now < state.aside_until || state.outstanding >= most {
            return vec![over(ask, End::NotAsked)];
        }
        state.outstanding += 1;
        let patience = allowance(&self.bounds, state);
        let deadline = now + patience;
        self.asks.insert(ask, Outstanding { peer, asked_at: now, deadline });
        self.deadlines.insert((deadline, ask));
        match state.way {
            Way::Up => vec![Action::Send { to: peer, message: Word::Ask { ask, patience } }],
            Way::Dialling => Vec::new(),
            Way::Down => {
                state.way = Way::Dialling;
                vec![Action::Note(Note::Dial { peer })]
            }
        }
    }

    /// What waited for a connection is asked.
    fn connected(&mut self, peer: Peer, now: Duration) -> Actions {
        let state = self.peers.entry(peer).or_default();
        state.way = Way::Up;
        let waiting = self.asks.iter().filter(|(_, outstanding)| outstanding.peer == peer);
        let send = |(ask, outstanding): (&AskId, &Outstanding)| {
            let patience = outstanding.deadline.saturating_sub(now);
            Action::Send { to: peer, message: Word::Ask { ask: *ask, patience } }
        };
        waiting.map(send).collect()
    }

    fn lost(&mut self, peer: Peer, now: Duration) -> Actions {
        let known = self.peers.get_mut(&peer).filter(|state| state.way != Way::Down);
        let Some(state) = known else { return Vec::new() };
        state.way = Way::Down;
        self.set_aside(peer, End::Lost, now)
    }

    fn replied(&mut self, ask: AskId, with_block: bool, now: Duration) -> Actions {
        #[cfg(test)]
        if self.planted == tests::Planted::AnswersTwice && !self.asks.contains_key(&ask) {
            return vec![over(ask, End::Came)];
        }
        let Some(outstanding) = self.finish(ask) else { return Vec::new() };
        let state = self.peers.entry(outstanding.peer).or_default();
        if with_block {
            state.measured = Some(measured(state.measured, now.saturating_sub(outstanding.asked_at)));
        }
        state.misses = 0;
        state.pause = Duration::ZERO;
        vec![over(ask, End::Came)]
    }

    /// Ends all asks whose time is up.
    fn expire(&mut self, now: Duration) -> Actions {
        let mut actions = Vec::new();
        while let Some((_, ask)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            let Some(outstanding) = self.finish(ask) else { continue };
            actions.push(over(ask, End::Late));
            actions.extend(self.missed(&outstanding, now));
        }
        actions
    }

    fn missed(&mut self, outstanding: &Outstanding, now: Duration) -> Actions {
        let state = self.peers.entry(outstanding.peer).or_default();
        if outstanding.asked_at < state.counted {
            return Vec::new();
        }
        state.counted = now;
        state.misses += 1;
        let fails_again = !state.pause.is_zero();
        if state.misses < self.bounds.misses && !fails_again {
            return Vec::new();
        }
        // One that is being dialled goes on to be: there is one attempt at a time.
        if state.way == Way::Up {
            state.way = Way::Down;
        }
        self.set_aside(outstanding.peer, End::Late, now)
    }

    /// Nothing is asked of a peer for a while; what was asked ends.
    fn set_aside(&mut self, peer: Peer, end: End, now: Duration) -> Actions {
        let share = 1.0 + self.chance.next_f64() / 2.0;
        let state = self.peers.entry(peer).or_default();
        state.pause = (state.pause * 2).clamp(self.bounds.first_pause, self.bounds.longest_pause);
        state.aside_until = now + state.pause.mul_f64(share);
        (state.misses, state.counted) = (0, now);
        #[cfg(test)]
        if self.planted == tests::Planted::NeverForgives {
            state.aside_until = Duration::MAX;
        }
        let of_peer = self.asks.iter().filter(|(_, outstanding)| outstanding.peer == peer);
        let asks: Vec<AskId> = of_peer.map(|(ask, _)| *ask).collect();
        let mut actions = vec![Action::Note(Note::Aside { peer })];
        for ask in asks {
            self.finish(ask);
            actions.push(over(ask, end));
        }
        actions
    }

    fn finish(&mut self, ask: AskId) -> Option<Outstanding> {
        let outstanding = self.asks.remove(&ask)?;
        self.deadlines.remove(&(outstanding.deadline, ask));
        let state = self.peers.entry(outstanding.peer).or_default();
        state.outstanding -= 1;
        Some(outstanding)
    }

    /// Forgets a peer that has no asks and is not connected: it will not be asked again.
    pub(super) fn forget(&mut self, peer: Peer) {
        self.peers.remove(&peer);
    }
}

fn over(ask: AskId, end: End) -> Action<Word, Note> {
    Action::Note(Note::Over { ask, end })
}

/// How long a peer is waited for: what it has shown, doubled for each miss in a row; all there is while it has shown nothing.
fn allowance(bounds: &Bounds, state: &State) -> Duration {
    let Some((mean, deviation)) = state.measured else { return bounds.most };
    let usual = (mean + deviation * 4).saturating_mul(1 << state.misses.min(16));
    usual.clamp(bounds.least, bounds.most)
}

/// Mean and deviation with one more (RFC 6298, section 2).
fn measured(before: Option<(Duration, Duration)>, took: Duration) -> (Duration, Duration) {
    let Some((mean, deviation)) = before else { return (took, took / 2) };
    ((mean * 7 + took) / 8, (deviation * 3 + mean.abs_diff(took)) / 4)
}

impl Machine for Patience {
    type Incoming = Word;
    type Outgoing = Word;
    type Command = Tell;
    type Note = Note;

    fn step(&mut self, event: Event<Word, Tell>, now: Duration) -> Actions {
        let mut actions = self.expire(now);
        actions.extend(match event {
            Event::Command(Tell::Ask { ask, peer }) => self.ask(ask, peer, now),
            Event::Command(Tell::Connected { peer }) => self.connected(peer, now),
            Event::Command(Tell::Unreachable { peer }) | Event::Closed { peer } => self.lost(peer, now),
            Event::Message { message: Word::Reply { ask, with_block }, .. } => {
                self.replied(ask, with_block, now)
            }
            Event::Message { message: Word::Ask { .. }, .. } | Event::Wake => Vec::new(),
        });
        actions
    }

    fn deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
#[path = "patience_tests.rs"]
mod tests;
