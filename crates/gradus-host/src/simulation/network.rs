//! A network that delays, loses, repeats, reorders and parts, as the faults of the run say.

use super::Purpose;
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
pub struct Network {
    weather: Weather,
    heal: Duration,
    cuts: Vec<Cut>,
    slow: Vec<Slowness>,
    chance: Stream,
}

impl Network {
    /// A network with this weather until it heals, whose chances follow from the seed of the run.
    pub fn new(weather: Weather, heal: Duration, seed: u64) -> Self {
        Self { weather, heal, cuts: Vec::new(), slow: Vec::new(), chance: Purpose::Network.stream(seed) }
    }

    /// Parts some nodes from the others, from now on until a time; one way, or both.
    pub fn cut(&mut self, side: Vec<usize>, one_way: bool, until: Duration) {
        self.cuts.push(Cut { side, one_way, until });
    }

    /// Has messages from and to a node take longer, from now on until a time.
    pub fn slow_down(&mut self, node: usize, delay: Duration, until: Duration) {
        self.slow.push(Slowness { node, delay, until });
    }

    /// When a message sent `now` arrives: never, once or twice, and at the latest when the network heals. `now` may lie
    /// ahead: what strikes until then is not foreseen.
    pub fn arrivals(&mut self, now: Duration, from: usize, to: usize) -> Vec<Duration> {
        if now >= self.heal {
            return vec![now + part_of(&mut self.chance, PERFECT_DELAY)];
        }
        if self.is_cut(now, from, to) || self.chance.next_f64() < self.weather.loss {
            return Vec::new();
        }
        let copies = if self.chance.next_f64() < self.weather.duplication { 2 } else { 1 };
        (0..copies).map(|_| self.arrival(now, from, to)).collect()
    }

    /// Whether nothing gets from one node to another at a time, now or later.
    pub fn is_cut(&self, at: Duration, from: usize, to: usize) -> bool {
        self.cuts.iter().any(|cut| at < cut.until && cut.stops(from, to))
    }

    fn arrival(&mut self, now: Duration, from: usize, to: usize) -> Duration {
        let Weather { shortest_delay, longest_delay, .. } = self.weather;
        let delay = shortest_delay + part_of(&mut self.chance, longest_delay - shortest_delay);
        let touches = |slowness: &&Slowness| now < slowness.until && [from, to].contains(&slowness.node);
        let touched = self.slow.iter().filter(touches);
        let extra: Duration = touched.map(|slowness| slowness.delay).sum();
        (now + delay + extra).min(self.heal.max(now + shortest_delay))
    }
}
