//! Keepers under a simulated network that loses, delays, cuts and resets, and hosts that crash and stand still.

use super::*;
use gradus_error::Result;
use gradus_host::simulation::{FaultSettings, Faults, Happening, Recording, Scenario, World};

/// What the machine may do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Planted {
    Nothing,
    /// A reply that nobody waits for ends its ask once more.
    AnswersTwice,
    /// Who was set aside stays so.
    NeverForgives,
    /// Nobody asks to be woken when an ask's time is up.
    KeepsNoTimer,
}

const NODES: usize = 4;
const HEAL: Duration = Duration::from_secs(20);
const END: Duration = Duration::from_secs(45);

/// How long a connection may take to be made.
const DIAL: Duration = Duration::from_secs(2);

/// Clocks of nodes may differ in pace, and timers have a resolution.
const SLACK: Duration = Duration::from_millis(100);

fn bounds() -> Bounds {
    Bounds {
        least: Duration::from_millis(200),
        most: Duration::from_secs(1),
        misses: 3,
        first_pause: Duration::from_millis(250),
        longest_pause: Duration::from_secs(4),
        asks: 8,
    }
}

/// What keepers send each other here: also what connections are made of.
#[derive(Debug, Clone)]
enum Said {
    Call(u64),
    Come(u64),
    Ask(AskId),
    Reply(AskId),
}

/// A keeper without its shell.
struct Node {
    node: usize,
    life: u64,
    patience: Patience,
    /// Attempts to connect that are under way: their numbers, and when they have failed.
    dials: BTreeMap<Peer, (u64, Duration)>,
    next: u64,
}

type NodeActions = Vec<Action<Said, Note>>;

impl Node {
    fn tell(&mut self, event: Event<Word, Tell>, now: Duration) -> NodeActions {
        let actions = self.patience.step(event, now);
        actions.into_iter().filter_map(|action| self.carry_out(action, now)).collect()
    }

    fn carry_out(&mut self, action: Action<Word, Note>, now: Duration) -> Option<Action<Said, Note>> {
        match action {
            Action::Send { to, message: Word::Ask { ask, .. } } => {
                Some(Action::Send { to, message: Said::Ask(ask) })
            }
            Action::Note(Note::Dial { peer }) => {
                self.next += 1;
                assert!(self.dials.insert(peer, (self.next, now + DIAL)).is_none(), "one attempt at a time");
                Some(Action::Send { to: peer, message: Said::Call(self.next) })
            }
            Action::Note(note) => Some(Action::Note(note)),
            Action::Send { .. } | Action::Persist(_) => None,
        }
    }

    /// Attempts that took too long have failed.
    fn fail_dials(&mut self, now: Duration) -> NodeActions {
        let late: Vec<Peer> =
            self.dials.iter().filter(|(_, (_, until))| *until <= now).map(|(peer, _)| *peer).collect();
        let failed = |peer: Peer| {
            self.dials.remove(&peer);
            self.tell(Event::Command(Tell::Unreachable { peer }), now)
        };
        late.into_iter().flat_map(failed).collect()
    }
}

impl Machine for Node {
    type Incoming = Said;
    type Outgoing = Said;
    type Command = Tell;
    type Note = Note;

    fn step(&mut self, event: Event<Said, Tell>, now: Duration) -> NodeActions {
        let mut actions = self.fail_dials(now);
        actions.extend(match event {
            Event::Message { from, message: Said::Call(number) } => {
                vec![Action::Send { to: from, message: Said::Come(number) }]
            }
            Event::Message { from, message: Said::Ask(ask) } => {
                vec![Action::Send { to: from, message: Said::Reply(ask) }]
            }
            Event::Message { from, message: Said::Come(number) } => {
                match self.dials.get(&from).is_some_and(|(expected, _)| *expected == number) {
                    true => {
                        self.dials.remove(&from);
                        self.tell(Event::Command(Tell::Connected { peer: from }), now)
                    }
                    false => Vec::new(),
                }
            }
            Event::Message { from, message: Said::Reply(ask) } => {
                self.tell(Event::Message { from, message: Word::Reply { ask, with_block: true } }, now)
            }
            // What is being dialled has no connection that could close.
            Event::Closed { peer } if self.dials.contains_key(&peer) => Vec::new(),
            Event::Closed { peer } => self.tell(Event::Closed { peer }, now),
            Event::Command(tell) => self.tell(Event::Command(tell), now),
            Event::Wake => self.tell(Event::Wake, now),
        });
        actions
    }

    fn deadline(&self) -> Option<Duration> {
        let asks = self.patience.deadline().filter(|_| self.patience.planted != Planted::KeepsNoTimer);
        self.dials.values().map(|(_, until)| *until).chain(asks).min()
    }
}

/// Sees that every ask ends once, and in time.
struct Watcher {
    planted: Planted,
    next: AskId,
    /// Asks that have not ended: of whom, whom, and since when.
    open: BTreeMap<AskId, (usize, Peer, Duration)>,
    /// The current life of each node: what came before is nobody's concern.
    lives: [u64; NODES],
    paused: [bool; NODES],
    /// When each last stood still, or began.
    disturbed: [Duration; NODES],
    /// Who had a reply of whom after all had healed.
    served: BTreeSet<(usize, Peer)>,
    faults: Vec<String>,
}

impl Watcher {
    fn disturb(&mut self, node: usize, at: Duration, paused: bool) {
        (self.paused[node], self.disturbed[node]) = (paused, at);
    }

    fn check_time(&mut self, at: Duration) {
        let limit = (bounds().most + SLACK).mul_f64(1.1);
        let disturbed = self.disturbed;
        let late = self
            .open
            .iter()
            .find(|(_, (node, _, since))| !self.paused[*node] && at > disturbed[*node].max(*since) + limit);
        if let Some((ask, (node, peer, since))) = late {
            self.faults.push(format!("ask {ask} of {node} at {peer} since {since:?} is open at {at:?}"));
        }
    }

    fn ended(&mut self, at: Duration, node: usize, ask: AskId, end: End) {
        let Some((_, peer, _)) = self.open.remove(&ask) else {
            return self
                .faults
                .push(format!("ask {ask} of {node} ends at {at:?} though it is not open: {end:?}"));
        };
        if end == End::Came && at > HEAL {
            self.served.insert((node, peer));
        }
    }
}

impl Scenario for Watcher {
    type Machine = Node;
    type Message = Said;

    fn nodes(&self) -> usize {
        NODES
    }

    fn start(&mut self, node: usize, life: u64, _: Option<&[u8]>) -> Result<Node> {
        let mut patience = Patience::new(bounds(), life * 100 + node as u64);
        patience.planted = self.planted;
        self.lives[node] = life;
        Ok(Node { node, life, patience, dials: BTreeMap::new(), next: life << 32 })
    }

    fn command(&mut self, at: Duration, machine: &Node, chance: &mut Stream) -> Option<Tell> {
        self.check_time(at);
        let (node, peer) = (machine.node, chance.next_below(NODES as u64));
        if peer == node as u64 || machine.life != self.lives[node] {
            return None;
        }
        self.next += 1;
        self.open.insert(self.next, (node, peer, at));
        Some(Tell::Ask { ask: self.next, peer })
    }

    fn observe(&mut self, at: Duration, node: usize, happening: Happening<'_, Self>) {
        match happening {
            Happening::Started | Happening::Failed(_) | Happening::Crashed | Happening::TakenOver => {
                self.open.retain(|_, (asker, ..)| *asker != node);
                self.disturb(node, at, false);
            }
            Happening::Paused => self.disturb(node, at, true),
            Happening::Resumed => self.disturb(node, at, false),
            Happening::Noted(Note::Over { ask, end }) => self.ended(at, node, *ask, *end),
            Happening::Noted(_) | Happening::GhostNoted(_) => {}
        }
    }
}

fn run(seed: u64, planted: Planted) -> Watcher {
    let settings = FaultSettings {
        nodes: NODES,
        expendable: 0,
        heal: HEAL,
        longest: Duration::from_secs(5),
        longest_delay: Duration::from_millis(200),
    };
    let watcher = Watcher {
        planted,
        next: 0,
        open: BTreeMap::new(),
        lives: [0; NODES],
        paused: [false; NODES],
        disturbed: [Duration::ZERO; NODES],
        served: BTreeSet::new(),
        faults: Vec::new(),
    };
    World::new(watcher, Faults::draw(seed, &settings), seed, Recording::Nothing).run(END).scenario
}

impl Watcher {
    /// Whether each was served by each other once all had healed.
    fn all_served(&self) -> bool {
        self.served.len() == NODES * (NODES - 1)
    }
}

#[test]
fn every_ask_ends_once_and_in_time_and_all_are_served_in_the_end() {
    for seed in 0..200 {
        let watcher = run(seed, Planted::Nothing);
        assert!(watcher.faults.is_empty(), "seed {seed}: {:?}", watcher.faults);
        assert!(watcher.all_served(), "seed {seed}: {:?}", watcher.served);
    }
}

#[test]
fn planted_bugs_are_found() {
    let is_wrong = |seed, planted| !run(seed, planted).faults.is_empty();
    assert!(
        (0..100).any(|seed| is_wrong(seed, Planted::AnswersTwice)),
        "no seed finds an ask that ends twice"
    );
    assert!((0..100).any(|seed| is_wrong(seed, Planted::KeepsNoTimer)), "no seed finds an ask that lasts");
    let starves = |seed| !run(seed, Planted::NeverForgives).all_served();
    assert!((0..100).any(starves), "no seed finds a peer that is left alone for ever");
}

/// A machine that speaks with one peer, which is connected.
fn connected() -> Patience {
    let mut patience = Patience::new(bounds(), 1);
    assert_eq!(ask(&mut patience, 1, Duration::ZERO), [Action::Note(Note::Dial { peer: 0 })]);
    let sent = patience.step(Event::Command(Tell::Connected { peer: 0 }), Duration::ZERO);
    assert!(matches!(sent[..], [Action::Send { to: 0, message: Word::Ask { ask: 1, .. } }]));
    reply(&mut patience, 1, Duration::from_millis(1));
    patience
}

fn ask(patience: &mut Patience, ask: AskId, now: Duration) -> Actions {
    patience.step(Event::Command(Tell::Ask { ask, peer: 0 }), now)
}

fn reply(patience: &mut Patience, ask: AskId, now: Duration) {
    let message = Word::Reply { ask, with_block: true };
    assert_eq!(patience.step(Event::Message { from: 0, message }, now), [over(ask, End::Came)]);
}

#[test]
fn a_fast_peer_is_waited_for_less_long_than_an_unknown_one_and_never_less_than_the_least() {
    let mut patience = Patience::new(bounds(), 1);
    ask(&mut patience, 1, Duration::ZERO);
    assert_eq!(patience.deadline(), Some(bounds().most));
    let mut patience = connected();
    ask(&mut patience, 2, Duration::from_secs(1));
    assert_eq!(patience.deadline(), Some(Duration::from_secs(1) + bounds().least));
}

#[test]
fn a_burst_of_late_asks_is_one_miss_and_a_row_of_them_sets_aside() {
    let mut patience = connected();
    let mut now = Duration::from_secs(1);
    for row in 0..bounds().misses {
        let first = 10 * AskId::from(row) + 10;
        (first..first + 5).for_each(|number| drop(ask(&mut patience, number, now)));
        now += bounds().most;
        let actions = patience.step(Event::Wake, now);
        let is_aside = actions.contains(&Action::Note(Note::Aside { peer: 0 }));
        assert_eq!(is_aside, row + 1 == bounds().misses, "{row}");
        now += Duration::from_millis(1);
    }
    assert_eq!(ask(&mut patience, 100, now), [over(100, End::NotAsked)]);
    // Later it is connected anew, and asked for one at a time.
    now += bounds().longest_pause * 2;
    assert_eq!(ask(&mut patience, 101, now), [Action::Note(Note::Dial { peer: 0 })]);
    assert_eq!(ask(&mut patience, 102, now), [over(102, End::NotAsked)]);
}

#[test]
fn a_peer_has_a_bounded_number_of_asks() {
    let mut patience = connected();
    let now = Duration::from_secs(1);
    let most = bounds().asks as AskId;
    (10..10 + most)
        .for_each(|number| assert!(matches!(ask(&mut patience, number, now)[..], [Action::Send { .. }])));
    assert_eq!(ask(&mut patience, 99, now), [over(99, End::NotAsked)]);
    reply(&mut patience, 10, now);
    assert!(matches!(ask(&mut patience, 100, now)[..], [Action::Send { .. }]));
}
