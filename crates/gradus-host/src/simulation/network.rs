//! A network that delays, loses, repeats, reorders and parts, as the faults of the run say.

use super::faults::{Weather, part_of};
use crate::random::Stream;
use std::time::Duration;

/// The network once it has healed.
const PERFECT_DELAY: Duration = Duration::from_millis(1);

struct Cut {
    side: Vec<usize>,
    one_way: bool,
    until: Duration,
}

impl Cut {
    fn stops(&self, from: usize, to: usize) -> bool {
        let (leaves, enters) = (self.side.contains(&from), self.side.contains(&to));
        if self.one_way { leaves && !enters } else { leaves != enters }
    }
}

struct Slowness {
    node: usize,
    delay: Duration,
    until: Duration,
}

/// The ways between all nodes.
pub(super) struct Network {
    weather: Weather,
    heal: Duration,
    cuts: Vec<Cut>,
    slow: Vec<Slowness>,
    chance: Stream,
}

impl Network {
    pub(super) fn new(weather: Weather, heal: Duration, chance: Stream) -> Self {
        Self { weather, heal, cuts: Vec::new(), slow: Vec::new(), chance }
    }

    pub(super) fn cut(&mut self, side: Vec<usize>, one_way: bool, until: Duration) {
        self.cuts.push(Cut { side, one_way, until });
    }

    pub(super) fn slow_down(&mut self, node: usize, delay: Duration, until: Duration) {
        self.slow.push(Slowness { node, delay, until });
    }

    /// When a message sent `now` arrives: never, once or twice, and at the latest when the network heals.
    pub(super) fn arrivals(&mut self, now: Duration, from: usize, to: usize) -> Vec<Duration> {
        if now >= self.heal {
            return vec![now + part_of(&mut self.chance, PERFECT_DELAY)];
        }
        if self.is_cut(now, from, to) || self.chance.next_f64() < self.weather.loss {
            return Vec::new();
        }
        let copies = if self.chance.next_f64() < self.weather.duplication { 2 } else { 1 };
        (0..copies).map(|_| self.arrival(now, from, to)).collect()
    }

    pub(super) fn is_cut(&mut self, now: Duration, from: usize, to: usize) -> bool {
        self.cuts.retain(|cut| now < cut.until);
        self.cuts.iter().any(|cut| cut.stops(from, to))
    }

    fn arrival(&mut self, now: Duration, from: usize, to: usize) -> Duration {
        let Weather { shortest_delay, longest_delay, .. } = self.weather;
        let delay = shortest_delay + part_of(&mut self.chance, longest_delay - shortest_delay);
        self.slow.retain(|slowness| now < slowness.until);
        let touched = self.slow.iter().filter(|slowness| [from, to].contains(&slowness.node));
        let extra: Duration = touched.map(|slowness| slowness.delay).sum();
        (now + delay + extra).min(self.heal.max(now + shortest_delay))
    }
}
