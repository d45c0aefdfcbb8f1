//! The time of a plan, by letting it run on a model of its links.
//!
//! # Model
//!
//! A step passes its elements in order. Two moments tell how it does: when its first *piece* has passed, and when all has;
//! in between it is taken to be steady. A step may begin when the steps that it follows have passed its first piece, and
//! cannot end before they have passed its last one: so ranges stream through ranks as the executor lets them, and a step
//! costs the same to price however many bytes it moves.
//!
//! A rank has three *servers*, for sending, receiving and adding (or one for all three): each gives its time to one step
//! after another, first come, first served. What a node's ranks share, its network card each way and its memory bus, they
//! share at the same time: it holds up the end of a step, never its beginning. A message is on its way for the link's latency without holding anything. Streams have room for all.
//!
//! Steps are taken up by the moment at which they can begin; who finds a server taken comes back when it is free. A step
//! never passes its first piece before it begins, so moments only grow.

use super::figures::LinkFigures;
use super::graph::Graph;
use crate::algorithm::Nodes;
use crate::generate::adds;
use crate::plan::Plan;
use gradus_error::{Error, Result};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Seconds until the last rank has passed its last step.
///
/// # Errors
/// `Invalid` when ranks' messages do not meet, or steps wait for each other in a circle.
pub(super) fn simulate(
    plan: &Plan,
    nodes: &Nodes,
    element_bytes: usize,
    figures: &LinkFigures,
) -> Result<f64> {
    let mut run = Run::new(plan, nodes, element_bytes, figures)?;
    let mut end = 0.0f64;
    let mut passed = 0;
    while let Some(Reverse((Moment(key), step))) = run.ready.pop() {
        let start = run.earliest(step);
        if start.to_bits() > key {
            run.ready.push(Reverse((Moment::of(start), step)));
            continue;
        }
        let sends = run.graph.steps[step].sends();
        let progress = if sends { run.send(step, start) } else { run.receive(step, start) };
        end = end.max(progress.last);
        passed += 1;
        run.pass(step, progress);
    }
    if passed < run.graph.steps.len() {
        return Err(Error::invalid("steps of the plan wait for each other in a circle"));
    }
    Ok(end)
}

/// Moments in seconds; they are never negative or no number, so their bits are ordered as they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(u64);

impl Moment {
    fn of(seconds: f64) -> Self {
        Self(seconds.max(0.0).to_bits())
    }
}

/// How a step passes its elements.
#[derive(Clone, Copy, Default)]
struct Progress {
    first: f64,
    last: f64,
}

/// Servers, by the moment from which they are free.
struct Servers {
    sending: Vec<f64>,
    receiving: Vec<f64>,
    adding: Vec<f64>,
    out: Vec<f64>,
    into: Vec<f64>,
    bus: Vec<f64>,
}

impl Servers {
    fn new(nodes: &Nodes) -> Self {
        let (ranks, nodes) = (vec![0.0; nodes.world_size()], vec![0.0; nodes.members().len()]);
        Self {
            sending: ranks.clone(),
            receiving: ranks.clone(),
            adding: ranks,
            out: nodes.clone(),
            into: nodes.clone(),
            bus: nodes,
        }
    }
}

/// Where a step's bytes leave or enter.
#[derive(Clone, Copy)]
struct Hop {
    node: usize,
    /// Whether both ends are on it.
    together: bool,
}

impl Servers {
    fn way_out(&mut self, hop: Hop) -> &mut f64 {
        if hop.together { &mut self.bus[hop.node] } else { &mut self.out[hop.node] }
    }

    /// The bus was paid on the way out.
    fn way_in(&mut self, hop: Hop) -> Option<&mut f64> {
        (!hop.together).then(|| &mut self.into[hop.node])
    }
}

/// What many share takes up everybody at once and gives each a part: nobody waits to begin, but nobody is done before all
/// that came earlier is. Returns when that is.
fn carry(shared: &mut f64, begun: f64, work: f64) -> f64 {
    *shared = shared.max(begun) + work;
    *shared
}

struct Run<'a> {
    graph: Graph<'a>,
    nodes: &'a Nodes,
    element_bytes: f64,
    figures: &'a LinkFigures,
    servers: Servers,
    progress: Vec<Progress>,
    ready: BinaryHeap<Reverse<(Moment, usize)>>,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, nodes: &'a Nodes, element_bytes: usize, figures: &'a LinkFigures) -> Result<Self> {
        let graph = Graph::new(plan)?;
        let free = graph.waits.iter().enumerate().filter(|(_, waits)| **waits == 0);
        let ready = free.map(|(step, _)| Reverse((Moment::of(0.0), step))).collect();
        let progress = vec![Progress::default(); graph.steps.len()];
        let servers = Servers::new(nodes);
        Ok(Self { graph, nodes, element_bytes: element_bytes as f64, figures, servers, progress, ready })
    }

    /// Takes note, and wakes who waited.
    fn pass(&mut self, step: usize, progress: Progress) {
        self.progress[step] = progress;
        for waiter in std::mem::take(&mut self.graph.waiters[step]) {
            let waiter = waiter as usize;
            self.graph.waits[waiter] -= 1;
            if self.graph.waits[waiter] == 0 {
                self.ready.push(Reverse((Moment::of(self.earliest(waiter)), waiter)));
            }
        }
    }

    fn bytes(&self, step: usize) -> f64 {
        self.graph.steps[step].span().len as f64 * self.element_bytes
    }

    fn piece(&self, step: usize) -> f64 {
        self.bytes(step).min(self.figures.piece_bytes as f64)
    }

    /// When a step has passed its elements before `element`.
    fn passed(&self, step: usize, element: usize) -> f64 {
        let Progress { first, last } = self.progress[step];
        let bytes = element.saturating_sub(self.graph.steps[step].span().start) as f64 * self.element_bytes;
        let (piece, all) = (self.piece(step), self.bytes(step));
        if bytes <= piece { first } else { first + (last - first) * (bytes - piece) / (all - piece) }
    }

    /// When a step may pass its first piece, and when it could be over for its predecessors at `rate` seconds a byte.
    fn held_up(&self, step: usize, rate: f64) -> Progress {
        let span = self.graph.steps[step].span();
        let piece = (self.figures.piece_bytes as f64 / self.element_bytes).ceil() as usize;
        let mut held = Progress::default();
        for earlier in self.graph.follows[step].iter().map(|earlier| *earlier as usize) {
            let other = self.graph.steps[earlier].span();
            let (from, to) = (span.start.max(other.start), span.end().min(other.end()));
            let (early, late) =
                (self.passed(earlier, to.min(from.saturating_add(piece))), self.passed(earlier, to));
            let rest = |element: usize| (span.end() - element) as f64 * self.element_bytes * rate;
            if from < span.start.saturating_add(piece) {
                held.first = held.first.max(early);
            }
            let last_piece = self.piece(step).min((to - from) as f64 * self.element_bytes) * rate;
            held.last = held.last.max(early + rest(from)).max(late + last_piece + rest(to));
        }
        if let Some(before) = self.graph.before[step] {
            held.first = held.first.max(self.progress[before as usize].last);
        }
        held
    }

    /// When a step can begin, as its servers stand.
    fn earliest(&self, step: usize) -> f64 {
        let rank = self.graph.ranks[step] as usize;
        let held = self.held_up(step, 0.0).first;
        if self.graph.steps[step].sends() {
            return held.max(self.servers.sending[rank]);
        }
        let there = held.max(self.arrival(step).first);
        if self.needs_processor(step) { there.max(self.servers.adding[rank]) } else { there }
    }

    fn hop(&self, step: usize) -> Hop {
        let (rank, peer) = (self.graph.ranks[step] as usize, self.graph.steps[step].peer());
        let (node, together) = (self.nodes.place(rank).0, self.nodes.are_together(rank, peer));
        Hop { node, together }
    }

    /// Seconds for a byte on the rank's own way and on what its node shares.
    fn rates(&self, hop: Hop) -> (f64, f64) {
        let shared = if hop.together { self.figures.bus_bytes_per_s } else { self.figures.nic_bytes_per_s };
        (self.figures.link(hop.together).beta(), shared.map_or(0.0, |bytes_per_s| 1.0 / bytes_per_s))
    }

    fn overhead(&self, hop: Hop) -> f64 {
        self.figures.link(hop.together).overhead()
    }

    fn send(&mut self, step: usize, start: f64) -> Progress {
        let rank = self.graph.ranks[step] as usize;
        let (hop, bytes) = (self.hop(step), self.bytes(step));
        let (own, shared) = self.rates(hop);
        let (rate, begun) = (own.max(shared), start + self.overhead(hop));
        let held = self.held_up(step, rate);
        self.servers.sending[rank] = begun + bytes * own;
        self.share_processor(rank, begun + bytes * own);
        let out = carry(self.servers.way_out(hop), begun, bytes * shared);
        let last = held.last.max(begun + bytes * rate).max(out);
        Progress { first: begun + self.piece(step) * rate, last }
    }

    /// When the first piece of what a receive takes can be there, and when the last: the rank's and the node's ways in
    /// carry one message after another.
    fn arrival(&self, step: usize) -> Progress {
        let rank = self.graph.ranks[step] as usize;
        let (hop, bytes, piece) = (self.hop(step), self.bytes(step), self.piece(step));
        let (own, shared) = self.rates(hop);
        let rate = own.max(shared);
        let sent =
            self.graph.source[step].map_or_else(Progress::default, |send| self.progress[send as usize]);
        let alpha = self.figures.link(hop.together).alpha();
        let mut start = sent.first + alpha - piece * rate;
        if !self.figures.one_at_a_time {
            start = start.max(self.servers.receiving[rank]);
        }
        Progress { first: start + piece * rate, last: (sent.last + alpha).max(start + bytes * rate) }
    }

    /// Whether a receive costs the rank's processor more than its message's overhead.
    fn needs_processor(&self, step: usize) -> bool {
        self.figures.one_at_a_time || adds(self.graph.steps[step])
    }

    fn receive(&mut self, step: usize, start: f64) -> Progress {
        let rank = self.graph.ranks[step] as usize;
        let (hop, bytes, piece) = (self.hop(step), self.bytes(step), self.piece(step));
        let (own, shared) = self.rates(hop);
        let arrived = self.arrival(step);
        let entered = arrived.first - piece * own.max(shared);
        self.servers.receiving[rank] = entered + bytes * own;
        let entry = self.servers.way_in(hop).map_or(0.0, |way_in| carry(way_in, entered, bytes * shared));
        let moving = if self.figures.one_at_a_time { own } else { 0.0 };
        let rate = moving + if adds(self.graph.steps[step]) { self.figures.gamma() } else { 0.0 };
        let (held, begun) = (self.held_up(step, rate), start + self.overhead(hop));
        if self.needs_processor(step) {
            self.servers.adding[rank] = begun + bytes * rate;
            self.share_processor(rank, begun + bytes * rate);
        }
        let last = held.last.max(arrived.last.max(entry) + piece * rate).max(begun + bytes * rate);
        Progress { first: begun + piece * rate, last }
    }

    /// Where one processor does everything, what one of its servers has done the others have.
    fn share_processor(&mut self, rank: usize, until: f64) {
        if self.figures.one_at_a_time {
            self.servers.sending[rank] = until;
            self.servers.adding[rank] = until;
        }
    }
}
