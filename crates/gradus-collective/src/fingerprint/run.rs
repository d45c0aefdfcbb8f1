//! Runs a plan on symbols, message by message, as far as each can go.

use super::symbols::{Fingerprint, Symbol};
use crate::checker::Fault;
use crate::generate::adds;
use crate::graph::{Graph, Unmatched};
use crate::plan::Plan;
use std::collections::VecDeque;

/// A message, by the number of its send.
type Message = u32;

pub(super) struct Run<'a, S> {
    graph: Graph<'a>,
    world_size: usize,
    /// Starts of the atoms, and the end of the buffer.
    edges: Vec<usize>,
    /// Atoms of each step.
    spans: Vec<(u32, u32)>,
    /// How many of them have passed.
    passed: Vec<u32>,
    /// What each atom of each rank holds, rank by rank.
    held: Vec<S>,
    /// What has left each message's sender and not arrived.
    wire: Vec<Option<S>>,
    /// The receive of each send, and the next send of its stream.
    sinks: Vec<Option<u32>>,
    after: Vec<Option<u32>>,
    /// Which messages are the first of their streams, and which of them wait to be looked at.
    begun: Vec<bool>,
    queued: Vec<bool>,
    queue: VecDeque<Message>,
}

impl<'a, S: Symbol> Run<'a, S> {
    /// # Errors
    /// `OutOfRange`, `Unmatched`, or `WrongResult` for a message that writes another range than it reads.
    pub(super) fn new(plan: &'a Plan) -> Result<Self, Fault> {
        in_range(plan)?;
        let graph = Graph::new(plan).map_err(|Unmatched { from, to }| Fault::Unmatched { from, to })?;
        let edges = edges(plan);
        let place = |element: usize| edges.partition_point(|edge| *edge < element) as u32;
        let spans =
            graph.steps.iter().map(|step| (place(step.span().start), place(step.span().end()))).collect();
        let (world_size, atoms, steps) = (plan.ranks.len(), edges.len() - 1, graph.steps.len());
        let brought = |index: usize| S::brought(index / atoms, index % atoms, world_size);
        let mut run = Self {
            world_size,
            spans,
            passed: vec![0; steps],
            held: (0..world_size * atoms).map(brought).collect(),
            wire: vec![None; steps],
            sinks: vec![None; steps],
            after: vec![None; steps],
            begun: vec![false; steps],
            queued: vec![false; steps],
            queue: VecDeque::new(),
            edges,
            graph,
        };
        run.link()?;
        Ok(run)
    }

    fn link(&mut self) -> Result<(), Fault> {
        for step in 0..self.graph.steps.len() {
            if let Some(send) = self.graph.source[step] {
                if self.spans[step] != self.spans[send as usize] {
                    let (rank, element) =
                        (self.graph.ranks[step] as usize, self.graph.steps[step].span().start);
                    return Err(Fault::WrongResult { rank, element });
                }
                self.sinks[send as usize] = Some(step as u32);
                continue;
            }
            match self.graph.before[step] {
                Some(before) => self.after[before as usize] = Some(step as u32),
                None => self.begin(step as u32),
            }
        }
        Ok(())
    }

    /// Moves everything as far as it goes.
    ///
    /// # Errors
    /// `Deadlock`, naming a step that is not over.
    pub(super) fn finish(&mut self, latest_first: bool) -> Result<(), Fault> {
        while let Some(message) = if latest_first { self.queue.pop_back() } else { self.queue.pop_front() } {
            self.queued[message as usize] = false;
            self.advance(message);
        }
        let stuck = (0..self.passed.len()).find(|step| self.passed[*step] < self.len(*step));
        stuck.map_or(Ok(()), |step| {
            Err(Fault::Deadlock {
                rank: self.graph.ranks[step] as usize,
                step: self.graph.places[step] as usize,
            })
        })
    }

    fn begin(&mut self, message: Message) {
        self.begun[message as usize] = true;
        self.look_at(message);
    }

    fn look_at(&mut self, message: Message) {
        if self.begun[message as usize] && !std::mem::replace(&mut self.queued[message as usize], true) {
            self.queue.push_back(message);
        }
    }

    /// Moves a message as far as it goes, wakes those who waited for it, and begins the next of its stream.
    fn advance(&mut self, send: Message) {
        let receive = self.sinks[send as usize].expect("every send has its receive");
        let [mut sent, mut received] = [false; 2];
        loop {
            let (out, into) = (self.put(send as usize), self.take(send as usize, receive as usize));
            sent |= out;
            received |= into;
            if !out && !into {
                break;
            }
        }
        for (moved, step) in [(sent, send), (received, receive)] {
            if moved {
                self.wake(step as usize);
            }
        }
        let over = self.passed[receive as usize] == self.len(receive as usize);
        if over && std::mem::replace(&mut self.begun[send as usize], false) {
            self.after[send as usize].into_iter().for_each(|next| self.begin(next));
        }
    }

    /// Sends an atom if there is room and it is final.
    fn put(&mut self, send: usize) -> bool {
        let free = self.wire[send].is_none();
        let Some(place) = self.next(send).filter(|_| free) else { return false };
        self.wire[send] = Some(self.held[place].clone());
        self.passed[send] += 1;
        true
    }

    /// Receives an atom if one has come and may be written.
    fn take(&mut self, send: usize, receive: usize) -> bool {
        let arrived = self.wire[send].is_some();
        let Some(place) = self.next(receive).filter(|_| arrived) else { return false };
        let symbol = self.wire[send].take().expect("one has arrived");
        if adds(self.graph.steps[receive]) {
            self.held[place].add(&symbol);
        } else {
            self.held[place] = symbol;
        }
        self.passed[receive] += 1;
        true
    }

    /// Where the atom lies that a step moves next, unless it is over or an earlier step holds it up.
    fn next(&self, step: usize) -> Option<usize> {
        let atom = self.spans[step].0 + self.passed[step];
        let held_up = |earlier: &u32| {
            let ((from, to), passed) = (self.spans[*earlier as usize], self.passed[*earlier as usize]);
            (from..to).contains(&atom) && from + passed <= atom
        };
        let may_move = atom < self.spans[step].1 && !self.graph.follows[step].iter().any(held_up);
        may_move.then(|| self.graph.ranks[step] as usize * self.atoms() + atom as usize)
    }

    fn wake(&mut self, step: usize) {
        for at in 0..self.graph.waiters[step].len() {
            let waiter = self.graph.waiters[step][at];
            self.look_at(self.graph.source[waiter as usize].unwrap_or(waiter));
        }
    }

    fn len(&self, step: usize) -> u32 {
        self.spans[step].1 - self.spans[step].0
    }

    pub(super) fn ranks(&self) -> usize {
        self.world_size
    }

    pub(super) fn atoms(&self) -> usize {
        self.edges.len() - 1
    }

    /// The first element of an atom.
    pub(super) fn element(&self, atom: usize) -> usize {
        self.edges[atom]
    }

    pub(super) fn held(&self, rank: usize, atom: usize) -> &S {
        &self.held[rank * self.atoms() + atom]
    }
}

impl Run<'_, Fingerprint> {
    /// Everybody's contributions to an atom, once.
    pub(super) fn whole(&self, atom: usize) -> Fingerprint {
        let mut whole = Fingerprint::EMPTY;
        (0..self.world_size).for_each(|rank| whole.add(&Fingerprint::brought(rank, atom, self.world_size)));
        whole
    }
}

fn in_range(plan: &Plan) -> Result<(), Fault> {
    for (rank, steps) in plan.ranks.iter().enumerate() {
        let world_size = plan.ranks.len();
        if let Some(step) = super::sampled::out_of_range(steps, rank, world_size, plan.len) {
            return Err(Fault::OutOfRange { rank, step });
        }
    }
    Ok(())
}

fn edges(plan: &Plan) -> Vec<usize> {
    let spans = plan.ranks.iter().flatten().map(crate::plan::Step::span);
    let mut edges: Vec<usize> =
        spans.flat_map(|span| [span.start, span.end()]).chain([0, plan.len]).collect();
    edges.sort_unstable();
    edges.dedup();
    edges
}
