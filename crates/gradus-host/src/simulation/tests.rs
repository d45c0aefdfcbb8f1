//! The world held against a small machine whose faults are known: a ledger that must not forget what it confirmed.

use super::*;
use crate::machine::{Action, Event, Machine};
use crate::random::Stream;
use gradus_error::{Error, Result};
use std::time::Duration;

const CLIENTS: usize = 3;
const HEAL: Duration = Duration::from_secs(5);
const END: Duration = Duration::from_secs(8);

#[derive(Debug, Clone)]
enum Message {
    Add(u64),
    Confirmed(u64),
}

/// What a ledger may do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    ConfirmsBeforeStoring,
    KeepsNoTimer,
}

/// Node 0 stores the largest number it was told and confirms it; the others count up, and tell again what was not
/// confirmed.
struct Ledger {
    node: usize,
    planted: Planted,
    number: u64,
    confirmed: u64,
    tell_at: Duration,
}

impl Ledger {
    fn keep(&mut self, from: u64, number: u64) -> Vec<Action<Message, u64>> {
        self.number = self.number.max(number);
        let mut actions = vec![
            Action::Persist(self.number.to_le_bytes().to_vec()),
            Action::Send { to: from, message: Message::Confirmed(number) },
        ];
        if self.planted == Planted::ConfirmsBeforeStoring {
            actions.reverse();
        }
        actions
    }

    fn tell(&mut self, now: Duration) -> Vec<Action<Message, u64>> {
        let wanted = self.planted != Planted::KeepsNoTimer && self.node > 0 && now >= self.tell_at;
        self.tell_at = now + Duration::from_millis(200);
        let add = || Action::Send { to: 0, message: Message::Add(self.number) };
        wanted.then(add).into_iter().collect()
    }
}

impl Machine for Ledger {
    type Incoming = Message;
    type Outgoing = Message;
    type Command = u64;
    type Note = u64;

    fn step(&mut self, event: Event<Message, u64>, now: Duration) -> Vec<Action<Message, u64>> {
        match event {
            Event::Message { from, message: Message::Add(number) } => self.keep(from, number),
            Event::Message { message: Message::Confirmed(number), .. } => {
                self.confirmed = self.confirmed.max(number);
                vec![Action::Note(number)]
            }
            Event::Command(number) => {
                self.number = number;
                vec![Action::Send { to: 0, message: Message::Add(number) }]
            }
            Event::Closed { .. } | Event::Wake => self.tell(now),
        }
    }

    fn deadline(&self) -> Option<Duration> {
        (self.node > 0 && self.number > self.confirmed).then_some(self.tell_at)
    }
}

struct Ledgers {
    planted: Planted,
    next: u64,
    confirmed: u64,
    faults: Vec<String>,
}

impl Scenario for Ledgers {
    type Machine = Ledger;
    type Message = Message;

    fn nodes(&self) -> usize {
        1 + CLIENTS
    }

    fn start(&mut self, node: usize, _: u64, stored: Option<&[u8]>) -> Result<Ledger> {
        let number = match stored {
            None => 0,
            Some(bytes) => u64::from_le_bytes(bytes.try_into().map_err(|_| Error::corrupt("a torn file"))?),
        };
        if node == 0 && number < self.confirmed {
            self.faults.push(format!("{} was confirmed, {number} is stored", self.confirmed));
        }
        Ok(Ledger { node, planted: self.planted, number, confirmed: 0, tell_at: Duration::ZERO })
    }

    fn command(&mut self, at: Duration, machine: &Ledger, chance: &mut Stream) -> Option<u64> {
        let wanted = machine.node > 0 && at < HEAL && chance.next_below(2) == 0;
        self.next += u64::from(wanted);
        wanted.then_some(self.next)
    }

    fn observe(&mut self, _: Duration, _: usize, happening: Happening<'_, Self>) {
        match happening {
            Happening::Failed(error) => self.faults.push(error.to_string()),
            Happening::Noted(number) => self.confirmed = self.confirmed.max(*number),
            _ => {}
        }
    }
}

fn faults(seed: u64) -> Faults {
    let settings = FaultSettings {
        nodes: 1 + CLIENTS,
        expendable: 0,
        heal: HEAL,
        longest: Duration::from_secs(1),
        longest_delay: Duration::from_millis(50),
    };
    Faults::draw(seed, &settings)
}

fn run(seed: u64, planted: Planted, recording: Recording) -> Outcome<Ledgers> {
    let scenario = Ledgers { planted, next: 0, confirmed: 0, faults: Vec::new() };
    World::new(scenario, faults(seed), seed, recording).run(END)
}

#[test]
fn the_same_seed_gives_the_same_trace_here_and_everywhere() {
    let lines = |seed| run(seed, Planted::Nothing, Recording::Lines).trace;
    let (first, second) = (lines(7), lines(7));
    assert_eq!(first.lines(), second.lines());
    assert_eq!(first.digest(), run(7, Planted::Nothing, Recording::Digest).trace.digest());
    assert_ne!(first.digest(), lines(8).digest());
    // Changes when, and only when, what a seed means changes.
    assert_eq!(first.digest(), 0xd08bdfcb13e8b536, "{} lines", first.lines().len());
}

#[test]
fn what_was_confirmed_is_never_lost_and_everything_is_confirmed_in_the_end() {
    for seed in 0..300 {
        let ledgers = run(seed, Planted::Nothing, Recording::Nothing).scenario;
        assert!(ledgers.faults.is_empty(), "seed {seed}: {:?}", ledgers.faults);
        assert!(ledgers.next > 20 && ledgers.confirmed > 0, "seed {seed}");
    }
}

#[test]
fn planted_bugs_are_found() {
    let found =
        |seed: u64| !run(seed, Planted::ConfirmsBeforeStoring, Recording::Nothing).scenario.faults.is_empty();
    assert!((0..300).any(found), "no seed finds that the ledger confirms before it stores");
    let last = |planted| {
        (0..100).filter(|seed| run(*seed, planted, Recording::Nothing).scenario.confirms_all()).count()
    };
    assert!(last(Planted::KeepsNoTimer) < last(Planted::Nothing), "no seed finds that nothing is told again");
}

impl Ledgers {
    /// Whether the newest number was confirmed; it is not where its client died before telling it again.
    fn confirms_all(&self) -> bool {
        self.confirmed == self.next
    }
}

#[test]
fn every_fault_is_drawn_and_all_end_in_time() {
    let mut kinds = [0; 6];
    for strike in (0..300).flat_map(|seed| faults(seed).strikes) {
        let (kind, length) = match strike.fault {
            Fault::Crash { down, .. } => (0, down.unwrap()),
            Fault::Pause { length, .. } => (1, length),
            Fault::TakeOver { length, .. } => (2, length),
            Fault::Cut { length, .. } => (3, length),
            Fault::Slow { length, .. } => (4, length),
            Fault::Reset { .. } => (5, Duration::ZERO),
        };
        kinds[kind] += 1;
        assert!(strike.at + length <= HEAL);
    }
    assert!(kinds.iter().all(|count| *count > 20), "{kinds:?}");
}

#[test]
fn the_clock_of_a_world_shows_its_time() {
    let scenario = Ledgers { planted: Planted::Nothing, next: 0, confirmed: 0, faults: Vec::new() };
    let world = World::new(scenario, Faults::none(), 1, Recording::Nothing);
    let clock = world.clock();
    world.run(END);
    let now = crate::Clock::now(&clock);
    assert!(now > END - Duration::from_secs(1) && now <= END, "{now:?}");
}
