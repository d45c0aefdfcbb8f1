//! The time of known algorithms by formula.
//!
//! An algorithm is a number of *hops*, one after another. A hop lasts as long as its first piece needs to get through
//! (`path`: latency, both ends' overhead, moving, adding) or as long as the busiest server works on it (`work`: a rank's
//! ways in and out, its processor, its node's card and bus), whichever is more; the last one also needs to bring its
//! last byte home. With pieces as large as messages that is the textbook's alpha-beta-gamma cost (Thakur, Rabenseifner
//! and Gropp, IJHPCA 2005): `2 (W - 1)(alpha + n/W beta) + (W - 1) n/W gamma` for a ring.
//!
//! On links of two levels a share that goes around a ring meets all of them in turn, so its paths are averaged, while
//! the slowest server sets the pace. Ranks of a node are taken to follow each other in the ring.
//!
//! Two levels are three algorithms one after another; that elements stream from one into the next is left out.
//!
//! Formulas serve where a plan has too many steps to let it run, and as a cross-check where it has not.

use super::figures::{Link, LinkFigures};
use crate::algorithm::{Algorithm, AllReduce, Nodes, Spread};

/// Seconds, for algorithms whose formula is known here: flat ones; beyond one level, rings and direct ones, and those of two
/// levels that are direct inside even nodes, in all their lanes.
pub(super) fn closed_form(
    algorithm: &Algorithm,
    nodes: &Nodes,
    bytes: f64,
    element_bytes: usize,
    figures: &LinkFigures,
) -> Option<f64> {
    let world = World { nodes, figures };
    if nodes.world_size() == 1 {
        return Some(0.0);
    }
    Some(figures.start() + of_messages(&world, algorithm, bytes, element_bytes)?)
}

/// Without what a collective takes as such.
fn of_messages(world: &World<'_>, algorithm: &Algorithm, bytes: f64, element_bytes: usize) -> Option<f64> {
    let nodes = world.nodes;
    let one_level = nodes.members().len() == 1 || nodes.largest() == 1;
    match algorithm {
        Algorithm::AllReduce(AllReduce::Ring { block }) => {
            Some(world.ring(bytes, *block as f64 * element_bytes as f64))
        }
        Algorithm::AllReduce(AllReduce::Direct) => Some(world.direct(bytes)),
        Algorithm::AllReduce(AllReduce::TwoLevel { nodes, lanes, inside: Spread::Direct, across })
            if nodes.smallest() == nodes.largest() && *lanes == nodes.largest() =>
        {
            world.two_level(across, bytes, element_bytes)
        }
        _ if !one_level => None,
        Algorithm::AllReduce(AllReduce::RecursiveDoubling) => Some(total(&world.doubling(bytes))),
        Algorithm::AllReduce(AllReduce::HalvingDoubling) => Some(total(&world.halving_doubling(bytes))),
        Algorithm::Broadcast { spread, .. } | Algorithm::Reduce { spread, .. } => {
            world.spread(spread, bytes, matches!(algorithm, Algorithm::Reduce { .. }))
        }
        _ => None,
    }
}

/// Messages that ranks exchange side by side.
#[derive(Clone, Copy, Default)]
struct Hop {
    /// Seconds until the first piece is through, and until the last byte is if nobody else is in the way.
    path: f64,
    whole: f64,
    /// Seconds of the busiest server.
    work: f64,
}

/// Hops one after another: those before the last are left as soon as the next can begin.
fn total(hops: &[Hop]) -> f64 {
    let Some((last, before)) = hops.split_last() else { return 0.0 };
    before.iter().map(|hop| hop.path.max(hop.work)).sum::<f64>() + last.whole.max(last.work)
}

struct World<'a> {
    nodes: &'a Nodes,
    figures: &'a LinkFigures,
}

impl World<'_> {
    fn ranks(&self) -> f64 {
        self.nodes.world_size() as f64
    }

    /// The only level there is.
    fn link(&self) -> &Link {
        self.figures.link(self.nodes.members().len() == 1)
    }

    fn gamma(&self, adds: bool) -> f64 {
        if adds { self.figures.gamma() } else { 0.0 }
    }

    /// A message of every rank over one kind of link; `sharers` of a node's ranks send theirs that way.
    fn hop_over(&self, link: &Link, bytes: f64, adds: bool, sharers: f64) -> Hop {
        let together = std::ptr::eq(link, self.figures.link(true));
        let shared = if together { self.figures.bus_bytes_per_s } else { self.figures.nic_bytes_per_s };
        let shared = shared.map_or(0.0, |bytes_per_s| sharers / bytes_per_s);
        let (beta, gamma) = (link.beta(), self.gamma(adds));
        let taking_in = if self.figures.one_at_a_time { beta + gamma } else { gamma };
        let fixed = link.alpha() + 2.0 * link.overhead();
        let piece = bytes.min(self.figures.piece_bytes as f64);
        let (path, whole) = (fixed + piece * (beta + taking_in), bytes - piece);
        let (busiest, overheads) = if self.figures.one_at_a_time {
            (2.0 * beta + gamma, 2.0 * link.overhead())
        } else {
            (beta.max(gamma), link.overhead())
        };
        Hop { path, whole: path + whole * busiest, work: overheads + bytes * busiest.max(shared) }
    }

    fn hop(&self, bytes: f64, adds: bool) -> Hop {
        self.hop_over(self.link(), bytes, adds, self.nodes.largest() as f64)
    }

    /// `hops` among a power of two ranks, and what handing over to them and back costs the others.
    fn folded(&self, bytes: f64, mut hops: Vec<Hop>) -> Vec<Hop> {
        if !self.nodes.world_size().is_power_of_two() {
            hops.insert(0, self.hop(bytes, true));
            hops.push(self.hop(bytes, false));
        }
        hops
    }

    fn doubling(&self, bytes: f64) -> Vec<Hop> {
        let rounds = self.nodes.world_size().ilog2() as usize;
        self.folded(bytes, vec![self.hop(bytes, true); rounds])
    }

    fn halving_doubling(&self, bytes: f64) -> Vec<Hop> {
        let halves = |round: u32| bytes / f64::from(2u32 << round);
        let rounds = 0..self.nodes.world_size().ilog2();
        let halving = rounds.clone().map(|round| self.hop(halves(round), true));
        self.folded(bytes, halving.chain(rounds.rev().map(|round| self.hop(halves(round), false))).collect())
    }

    /// A message of every rank to the next one around the ring.
    fn ring_hop(&self, bytes: f64, adds: bool) -> Hop {
        let size = self.nodes.largest() as f64;
        let out = if self.nodes.members().len() > 1 {
            self.nodes.members().len() as f64 / self.ranks()
        } else {
            0.0
        };
        let inside = self.hop_over(&self.figures.inside, bytes, adds, size);
        let across = self.hop_over(&self.figures.across, bytes, adds, 1.0);
        let mean = |of: fn(&Hop) -> f64| of(&inside) * (1.0 - out) + of(&across) * out;
        let work = match out {
            0.0 => inside.work,
            1.0 => across.work,
            _ => inside.work.max(across.work) - self.other_neighbour(bytes),
        };
        Hop { path: mean(|hop| hop.path), whole: mean(|hop| hop.whole), work }
    }

    /// Seconds by which a processor that does everything has it easier than if both its neighbours were on the slower
    /// level: one of them is not.
    fn other_neighbour(&self, bytes: f64) -> f64 {
        let LinkFigures { inside, across, one_at_a_time, .. } = self.figures;
        if *one_at_a_time { bytes * (inside.beta() - across.beta()).abs() } else { 0.0 }
    }

    /// The first block goes through all hops; those after it cost their work.
    fn ring(&self, bytes: f64, block: f64) -> f64 {
        let (block, hops) = (block.min(bytes), self.nodes.world_size() - 1);
        let share = block / self.ranks();
        let (gather, spread) = (self.ring_hop(share, true), self.ring_hop(share, false));
        let first: Vec<Hop> = [vec![gather; hops], vec![spread; hops]].concat();
        let blocks = if block > 0.0 { bytes / block } else { 1.0 };
        total(&first) + (blocks - 1.0) * hops as f64 * (gather.work + spread.work)
    }

    /// A message of every rank to every other: all are sent, and while the last ones are on their way the first are
    /// taken in.
    fn direct_hop(&self, bytes: f64, adds: bool) -> f64 {
        let size = self.nodes.largest() as f64;
        let (near, far) = (size - 1.0, self.ranks() - size);
        let LinkFigures { inside, across, one_at_a_time, .. } = self.figures;
        let piece = bytes.min(self.figures.piece_bytes as f64);
        let send = |link: &Link| link.overhead() + bytes * link.beta();
        let rate = |link: &Link| self.gamma(adds) + if *one_at_a_time { link.beta() } else { 0.0 };
        let take = |link: &Link| link.overhead() + bytes * rate(link);
        // What arrives last is taken in piece by piece meanwhile.
        let tail = |link: &Link| {
            link.overhead() + piece * rate(link) + (bytes - piece) * (rate(link) - link.beta()).max(0.0)
        };
        let sends = near * send(inside) + far * send(across);
        let takes = near * take(inside) + far * take(across);
        let (first, last) =
            (if near > 0.0 { inside } else { across }, if far > 0.0 { across } else { inside });
        let begun = first.overhead() + piece * first.beta() + first.alpha();
        let own = if *one_at_a_time { sends.max(begun) + takes } else { begun + takes };
        let shared = |limit: Option<f64>, peers: f64| limit.map_or(0.0, |rate| size * peers * bytes / rate);
        let common =
            shared(self.figures.nic_bytes_per_s, far).max(shared(self.figures.bus_bytes_per_s, near));
        own.max(sends.max(common) + last.alpha() + tail(last))
    }

    /// In as many lanes as a node has ranks: straight to them inside nodes, all lanes across at once, straight back.
    fn two_level(&self, across: &AllReduce, bytes: f64, element_bytes: usize) -> Option<f64> {
        let (lanes, count) = (self.nodes.largest(), self.nodes.members().len());
        let share = bytes / lanes as f64;
        let together = Nodes::even(lanes, lanes);
        let inside = World { nodes: &together, figures: self.figures };
        let card = self.figures.nic_bytes_per_s.map(|bytes_per_s| bytes_per_s / lanes as f64);
        let (apart, figures) =
            (Nodes::even(count, 1), LinkFigures { nic_bytes_per_s: card, ..*self.figures });
        let lane = World { nodes: &apart, figures: &figures };
        let summed = of_messages(&lane, &Algorithm::AllReduce(across.clone()), share, element_bytes)?;
        Some(inside.direct_hop(share, true) + summed + inside.direct_hop(share, false))
    }

    fn direct(&self, bytes: f64) -> f64 {
        let share = bytes / self.ranks();
        self.direct_hop(share, true) + self.direct_hop(share, false)
    }

    fn spread(&self, spread: &Spread, bytes: f64, adds: bool) -> Option<f64> {
        let hop = self.hop(bytes, adds);
        match spread {
            Spread::Binomial if self.nodes.world_size().is_power_of_two() => {
                Some(total(&vec![hop; self.nodes.world_size().ilog2() as usize]))
            }
            Spread::Chain => Some((self.ranks() - 2.0) * hop.path + hop.whole),
            _ => None,
        }
    }
}
