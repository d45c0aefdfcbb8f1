//! The time of a plan, by letting it run on a model of its links.
//!
//! # Model
//!
//! A step passes its elements in order. Two moments tell how it does: when its first *piece* has passed, and when all has;
//! in between it is taken to be steady. A step may begin when the steps that it follows have passed its first piece, and
//! cannot end before they have passed its last one: so ranges stream through ranks as the executor lets them, and a step
//! costs the same to price however many bytes it moves.
//!
//! A rank has three *servers*, for sending, receiving and adding (or one for all three), and its node has its network card
//! each way and its memory bus. A server works on all that it is given, piece by piece in turn: a message waits for the
//! first pieces of those before it, and is not over before all that was begun earlier is. A message is on its way for the
//! link's latency without holding anything. Streams have room for all.
//!
//! Steps are taken up by the moment at which they can begin. A step never passes its first piece before it begins, so
//! moments only grow.

use super::figures::{Link, LinkFigures};
use crate::algorithm::Nodes;
use crate::generate::adds;
use crate::graph::{Graph, Unmatched};
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
    if run.graph.steps.is_empty() {
        return Ok(0.0);
    }
    let mut end = 0.0f64;
    let mut passed = 0;
    while let Some(Reverse((moment, _, step))) = run.ready.pop() {
        let start = moment.seconds();
        let sends = run.graph.steps[step].sends();
        let progress = if sends { run.send(step, start) } else { run.receive(step, start) };
        end = end.max(progress.last);
        passed += 1;
        run.pass(step, progress);
    }
    if passed < run.graph.steps.len() {
        return Err(Error::invalid("steps of the plan wait for each other in a circle"));
    }
    Ok(figures.start() + end)
}

/// Moments in seconds; they are never negative or no number, so their bits are ordered as they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(u64);

impl Moment {
    fn of(seconds: f64) -> Self {
        Self(seconds.max(0.0).to_bits())
    }

    fn seconds(self) -> f64 {
        f64::from_bits(self.0)
    }
}

/// How a step passes its elements.
#[derive(Clone, Copy, Default)]
struct Progress {
    first: f64,
    last: f64,
}

/// What carries one piece after another.
#[derive(Clone, Copy, Default)]
struct Server {
    /// Until when it is taken by first pieces, and by all it was given.
    first_pieces: f64,
    all: f64,
}

impl Server {
    /// Gives it a message at a moment: seconds of work for the message as such, for its first piece, and for all of it.
    /// Returns when it is through.
    fn serve(&mut self, start: f64, fixed: f64, piece: f64, all: f64) -> Progress {
        self.first_pieces = self.first_pieces.max(start) + fixed + piece;
        self.all = self.all.max(start) + fixed + all;
        Progress { first: self.first_pieces, last: self.all }
    }
}

impl Progress {
    fn or_later(self, other: Self) -> Self {
        Self { first: self.first.max(other.first), last: self.last.max(other.last) }
    }
}

struct Servers {
    sending: Vec<Server>,
    receiving: Vec<Server>,
    adding: Vec<Server>,
    out: Vec<Server>,
    into: Vec<Server>,
    bus: Vec<Server>,
}

impl Servers {
    fn new(nodes: &Nodes) -> Self {
        let ranks = vec![Server::default(); nodes.world_size()];
        let nodes = vec![Server::default(); nodes.members().len()];
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

struct Run<'a> {
    graph: Graph<'a>,
    nodes: &'a Nodes,
    element_bytes: f64,
    figures: &'a LinkFigures,
    servers: Servers,
    progress: Vec<Progress>,
    /// By moment; of those that could begin at the same, what ranks list first, rank after rank.
    ready: BinaryHeap<Reverse<(Moment, u32, usize)>>,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, nodes: &'a Nodes, element_bytes: usize, figures: &'a LinkFigures) -> Result<Self> {
        let graph = Graph::new(plan).map_err(|Unmatched { from, to }| {
            Error::invalid(format!(
                "rank {to} does not await what rank {from} sends: check the plan before pricing it"
            ))
        })?;
        let free = graph.waits.iter().enumerate().filter(|(_, waits)| **waits == 0);
        let ready = free.map(|(step, _)| Reverse((Moment::of(0.0), graph.places[step], step))).collect();
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
                let place = self.graph.places[waiter];
                self.ready.push(Reverse((Moment::of(self.earliest(waiter)), place, waiter)));
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

    /// When a step can begin.
    fn earliest(&self, step: usize) -> f64 {
        let sent = self.graph.source[step].map_or(0.0, |send| self.progress[send as usize].first);
        let alpha = if self.graph.steps[step].sends() { 0.0 } else { self.link(self.hop(step)).alpha() };
        self.held_up(step, 0.0).first.max(sent + alpha)
    }

    fn hop(&self, step: usize) -> Hop {
        let (rank, peer) = (self.graph.ranks[step] as usize, self.graph.steps[step].peer());
        let (node, together) = (self.nodes.place(rank).0, self.nodes.are_together(rank, peer));
        Hop { node, together }
    }

    fn link(&self, hop: Hop) -> &'a Link {
        self.figures.link(hop.together)
    }

    /// Seconds for a byte on what ranks of a node share.
    fn shared_rate(&self, hop: Hop) -> f64 {
        let shared = if hop.together { self.figures.bus_bytes_per_s } else { self.figures.nic_bytes_per_s };
        shared.map_or(0.0, |bytes_per_s| 1.0 / bytes_per_s)
    }

    fn send(&mut self, step: usize, start: f64) -> Progress {
        let (hop, bytes, piece) = (self.hop(step), self.bytes(step), self.piece(step));
        let (own, shared) = (self.link(hop).beta(), self.shared_rate(hop));
        let held = self.held_up(step, own.max(shared));
        let server = &mut self.servers.sending[self.graph.ranks[step] as usize];
        let sent = server.serve(start, self.figures.link(hop.together).overhead(), piece * own, bytes * own);
        let way_out = if hop.together { &mut self.servers.bus } else { &mut self.servers.out };
        let let_out = way_out[hop.node].serve(start, 0.0, piece * shared, bytes * shared);
        sent.or_later(let_out).or_later(Progress { first: 0.0, last: held.last })
    }

    /// When what a receive takes is there. The bus was paid on the way out.
    fn arrive(&mut self, step: usize) -> Progress {
        let (hop, bytes, piece) = (self.hop(step), self.bytes(step), self.piece(step));
        let own = self.link(hop).beta();
        let shared = if hop.together { 0.0 } else { self.shared_rate(hop) };
        let sent =
            self.graph.source[step].map_or_else(Progress::default, |send| self.progress[send as usize]);
        let alpha = self.link(hop).alpha();
        let mut there = Progress { first: sent.first + alpha, last: sent.last + alpha };
        let entering = there.first - piece * own.max(shared);
        if !hop.together {
            let entry = self.servers.into[hop.node].serve(entering, 0.0, piece * shared, bytes * shared);
            there = there.or_later(entry);
        }
        if !self.figures.one_at_a_time {
            let server = &mut self.servers.receiving[self.graph.ranks[step] as usize];
            there = there.or_later(server.serve(entering, 0.0, piece * own, bytes * own));
        }
        there
    }

    fn receive(&mut self, step: usize, start: f64) -> Progress {
        let (hop, bytes, piece) = (self.hop(step), self.bytes(step), self.piece(step));
        let (rank, adds) = (self.graph.ranks[step] as usize, adds(self.graph.steps[step]));
        let (link, one_at_a_time) = (self.link(hop), self.figures.one_at_a_time);
        let there = self.arrive(step);
        let moving = if one_at_a_time { link.beta() } else { 0.0 };
        let rate = moving + if adds { self.figures.gamma() } else { 0.0 };
        let held = self.held_up(step, rate);
        let start = start.max(there.first);
        let taken = match (one_at_a_time, adds) {
            (false, false) => Progress { first: start + link.overhead(), last: start + link.overhead() },
            (false, true) => {
                self.servers.adding[rank].serve(start, link.overhead(), piece * rate, bytes * rate)
            }
            (true, _) => self.servers.sending[rank].serve(start, link.overhead(), piece * rate, bytes * rate),
        };
        taken.or_later(Progress { first: 0.0, last: held.last.max(there.last + piece * rate) })
    }
}
