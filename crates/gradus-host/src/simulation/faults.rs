//! What goes wrong, and when: a list, drawn from a seed before anything runs.

use super::Purpose;
use super::clock::nanoseconds;
use crate::random::Stream;
use std::time::Duration;

/// How the network treats a message while it is not perfect.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weather {
    /// The shortest time on the way.
    pub shortest_delay: Duration,
    /// The longest; within these bounds messages overtake each other.
    pub longest_delay: Duration,
    /// The share of messages that never arrive.
    pub loss: f64,
    /// The share of messages that arrive twice.
    pub duplication: f64,
}

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A node's process ends without a word.
    Crash {
        /// Which node.
        node: usize,
        /// Whether its disk loses what was not synced.
        power_loss: bool,
        /// How long until it is started again from its disk; `None` for good.
        down: Option<Duration>,
    },
    /// A node's process stands still and then goes on with the state that it had.
    Pause {
        /// Which node.
        node: usize,
        /// How long.
        length: Duration,
    },
    /// A node's process stands still, a successor is started on its disk and at its address, and then the old one wakes:
    /// it can speak, but neither hear nor store any more.
    TakeOver {
        /// Which node.
        node: usize,
        /// How long the old one stands still.
        length: Duration,
    },
    /// Messages from some nodes to others are lost; the other way, too, unless it is cut one way only.
    Cut {
        /// The nodes on one side; the others are on the other one.
        side: Vec<usize>,
        /// Whether messages from the other side to this one still arrive.
        one_way: bool,
        /// How long.
        length: Duration,
    },
    /// Messages from and to a node take longer.
    Slow {
        /// Which node.
        node: usize,
        /// By how much.
        delay: Duration,
        /// How long.
        length: Duration,
    },
    /// A connection is closed though both ends live.
    Reset {
        /// Who is told.
        node: usize,
        /// Of whom.
        peer: usize,
    },
}

/// A fault and its moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strike {
    /// When it strikes.
    pub at: Duration,
    /// What it is.
    pub fault: Fault,
}

/// Within which bounds faults are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultSettings {
    /// Nodes of the world.
    pub nodes: usize,
    /// Nodes, the last ones, that may be lost for good.
    pub expendable: usize,
    /// Until when things go wrong.
    pub heal: Duration,
    /// The longest that a pause, a cut or a restart takes.
    pub longest: Duration,
    /// The longest that a message travels.
    pub longest_delay: Duration,
}

/// Everything that goes wrong in one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// The network while it is not perfect.
    pub weather: Weather,
    /// What strikes, in the order of time.
    pub strikes: Vec<Strike>,
    /// From when on the network is perfect and nothing strikes; every strike that ends has ended by then.
    pub heal: Duration,
}

/// More faults in one run hide each other.
const MOST_STRIKES: u64 = 9;

impl Faults {
    /// Nothing goes wrong: the network delivers everything in at most a millisecond.
    pub fn none() -> Self {
        let weather = Weather {
            shortest_delay: Duration::from_micros(100),
            longest_delay: Duration::from_millis(1),
            loss: 0.0,
            duplication: 0.0,
        };
        Self { weather, strikes: Vec::new(), heal: Duration::ZERO }
    }

    /// The faults of a seed.
    pub fn draw(seed: u64, settings: &FaultSettings) -> Self {
        let chance = &mut Purpose::Faults.stream(seed);
        let weather = draw_weather(chance, settings.longest_delay);
        let count = chance.next_below(MOST_STRIKES + 1);
        let mut strikes: Vec<Strike> = (0..count).map(|_| draw_strike(chance, settings)).collect();
        strikes.sort_by_key(|strike| strike.at);
        Self { weather, strikes, heal: settings.heal }
    }
}

/// A part of `span`, drawn evenly.
pub(super) fn part_of(chance: &mut Stream, span: Duration) -> Duration {
    Duration::from_nanos(chance.next_below(nanoseconds(span).max(1)))
}

/// Half of all networks lose and repeat nothing, as TCP does; the others up to a fifth.
fn draw_weather(chance: &mut Stream, longest_delay: Duration) -> Weather {
    let unreliable = chance.next_below(2) as f64 * 0.2;
    Weather {
        shortest_delay: Duration::from_micros(100),
        longest_delay: Duration::from_millis(1) + part_of(chance, longest_delay),
        loss: unreliable * chance.next_f64(),
        duplication: unreliable * chance.next_f64(),
    }
}

fn draw_strike(chance: &mut Stream, settings: &FaultSettings) -> Strike {
    let at = part_of(chance, settings.heal);
    let length = part_of(chance, settings.longest).min(settings.heal - at);
    // Every third fault hits the first node, which is the one that others depend on.
    let node = if chance.next_below(3) == 0 { 0 } else { chance.next_below(settings.nodes as u64) as usize };
    let fault = match chance.next_below(8) {
        0 | 1 => draw_crash(chance, settings, node, length),
        2 | 3 => Fault::Pause { node, length },
        4 => Fault::TakeOver { node, length },
        5 => draw_cut(chance, settings, length),
        6 => Fault::Slow { node, delay: part_of(chance, settings.longest), length },
        _ => Fault::Reset { node, peer: chance.next_below(settings.nodes as u64) as usize },
    };
    Strike { at, fault }
}

fn draw_crash(chance: &mut Stream, settings: &FaultSettings, node: usize, length: Duration) -> Fault {
    let lasting = node + settings.expendable >= settings.nodes && chance.next_below(3) == 0;
    let power_loss = chance.next_below(2) == 0;
    Fault::Crash { node, power_loss, down: (!lasting).then_some(length) }
}

fn draw_cut(chance: &mut Stream, settings: &FaultSettings, length: Duration) -> Fault {
    let side = (0..settings.nodes).filter(|_| chance.next_below(2) == 0).collect();
    Fault::Cut { side, one_way: chance.next_below(3) == 0, length }
}
