//! Runs a plan on symbols instead of numbers, and says whether it does what it should, at any world size.
//!
//! A symbol stands for what an element holds: what one rank brought in one place, or a sum of two symbols, the same
//! whichever comes first (addition of floats commutes) but not whichever way three are bracketed. Equal symbols are
//! equal bits.
//!
//! # Model
//!
//! Elements that no span's edge parts are one *atom*. Streams are first in, first out and hold one item: the header of a
//! message, or one atom. The streams of a rank move independently; a step moves its atoms in order, each as soon as the
//! steps that it follows have passed that atom. Such a network computes the same in whatever order it moves (Kahn,
//! "The semantics of a simple language for parallel programming", 1974), and room for more only helps: a plan that ends
//! here ends on every transport that holds a header and an element. That dependencies leave nothing to chance is not
//! taken for granted: a plan is run in several orders, with room for one item and for many.

use crate::dependencies::dependencies;
use crate::plan::{Plan, Step};
use gradus_host::random::Stream;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a plan is to achieve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Every element of every rank holds the contribution of every rank once, summed in the same order everywhere.
    AllReduce,
    /// Every element of every rank holds what the root's held.
    Broadcast {
        /// The rank that sends.
        root: usize,
    },
    /// Every rank has heard of every rank.
    Barrier,
}

/// What is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A step names a peer outside the world, itself, or elements outside the buffer.
    OutOfRange {
        /// Whose step.
        rank: usize,
        /// Which one.
        step: usize,
    },
    /// Two ranks disagree on how many messages one sends the other.
    Unmatched {
        /// The sender.
        from: usize,
        /// The receiver.
        to: usize,
    },
    /// A message is sent with one length and awaited with another.
    OtherLength {
        /// The sender.
        from: usize,
        /// The receiver.
        to: usize,
        /// The message's place among those of this pair.
        message: usize,
    },
    /// Ranks wait for each other in a circle.
    Deadlock {
        /// A rank that waits for ever.
        rank: usize,
        /// The step at which it does.
        step: usize,
    },
    /// An element does not hold what it should.
    WrongResult {
        /// Whose element.
        rank: usize,
        /// Which one.
        element: usize,
    },
    /// An element holds the right sum, put together in another order than on rank 0.
    OtherOrder {
        /// Whose element.
        rank: usize,
        /// Which one.
        element: usize,
    },
}

/// Checks a plan against its goal.
///
/// # Errors
/// The first fault that was found.
pub fn check(plan: &Plan, goal: Goal) -> Result<(), Fault> {
    in_range(plan)?;
    let edges = edges(plan)?;
    for order in [Order::SendsFirst, Order::ReceivesFirst, Order::Random(1), Order::Random(2)] {
        for room in [1, usize::MAX] {
            let mut run = Run::new(plan, &edges, room);
            run.finish(order)?;
            run.judge(goal)?;
        }
    }
    Ok(())
}

fn in_range(plan: &Plan) -> Result<(), Fault> {
    for (rank, steps) in plan.ranks.iter().enumerate() {
        let wrong = |step: &Step| {
            step.peer() >= plan.ranks.len() || step.peer() == rank || step.span().end() > plan.len
        };
        if let Some(step) = steps.iter().position(wrong) {
            return Err(Fault::OutOfRange { rank, step });
        }
    }
    Ok(())
}

/// Starts of the atoms, and the end of the buffer: every span is a number of whole atoms, and the two spans of a message
/// are cut alike.
fn edges(plan: &Plan) -> Result<Vec<usize>, Fault> {
    let mut edges = BTreeSet::from([0, plan.len]);
    for step in plan.ranks.iter().flatten() {
        edges.extend([step.span().start, step.span().end()]);
    }
    let messages = messages(plan)?;
    loop {
        let before = edges.len();
        for (sent, received) in &messages {
            let inside = |span: &gradus_memory::Span| -> Vec<usize> {
                edges.range(span.start..span.end()).map(|edge| edge - span.start).collect()
            };
            let cuts: Vec<usize> = inside(sent).into_iter().chain(inside(received)).collect();
            edges.extend(cuts.iter().flat_map(|cut| [sent.start + cut, received.start + cut]));
        }
        if edges.len() == before {
            return Ok(edges.into_iter().collect());
        }
    }
}

type Message = (gradus_memory::Span, gradus_memory::Span);

/// What each message reads and writes where that is not the same range.
fn messages(plan: &Plan) -> Result<Vec<Message>, Fault> {
    let mut pairs: BTreeMap<(usize, usize), [Vec<gradus_memory::Span>; 2]> = BTreeMap::new();
    for (rank, steps) in plan.ranks.iter().enumerate() {
        for step in steps {
            let (pair, side) = if step.sends() { ((rank, step.peer()), 0) } else { ((step.peer(), rank), 1) };
            pairs.entry(pair).or_default()[side].push(step.span());
        }
    }
    let mut messages = Vec::new();
    for ((from, to), [sent, received]) in pairs {
        if let Some(message) = sent.iter().zip(&received).position(|(s, r)| s.len != r.len) {
            return Err(Fault::OtherLength { from, to, message });
        }
        if sent.len() != received.len() {
            return Err(Fault::Unmatched { from, to });
        }
        messages.extend(sent.into_iter().zip(received).filter(|(s, r)| s.start != r.start));
    }
    Ok(messages)
}

/// Symbols, by number; the first are what each rank brought, atom by atom.
struct Symbols {
    world_size: usize,
    sums: BTreeMap<(usize, usize), usize>,
    known: Vec<Symbol>,
}

#[derive(Clone)]
struct Symbol {
    /// Whose contributions it holds, 64 ranks to a word.
    ranks: Vec<u64>,
    /// Of which atom.
    atom: usize,
    /// Whether it holds one of them twice.
    twice: bool,
    /// Whether it adds up different atoms.
    mixed: bool,
}

impl Symbols {
    fn new(world_size: usize, atoms: usize) -> Self {
        let words = world_size.div_ceil(64);
        let one = |rank: usize| {
            (0..words).map(|word| if word == rank / 64 { 1 << (rank % 64) } else { 0 }).collect()
        };
        let symbol = |rank, atom| Symbol { ranks: one(rank), atom, twice: false, mixed: false };
        let known = (0..world_size).flat_map(|rank| (0..atoms).map(move |atom| symbol(rank, atom))).collect();
        Self { world_size, sums: BTreeMap::new(), known }
    }

    fn sum(&mut self, a: usize, b: usize) -> usize {
        let next = self.known.len();
        let symbol = *self.sums.entry((a.min(b), a.max(b))).or_insert(next);
        if symbol == next {
            let (left, right) = (&self.known[a], &self.known[b]);
            let again = left.ranks.iter().zip(&right.ranks).any(|(l, r)| l & r != 0);
            self.known.push(Symbol {
                ranks: left.ranks.iter().zip(&right.ranks).map(|(l, r)| l | r).collect(),
                atom: left.atom,
                twice: left.twice || right.twice || again,
                mixed: left.mixed || right.mixed || left.atom != right.atom,
            });
        }
        symbol
    }

    /// Whether a symbol holds every rank's contribution to `atom` and nothing of others.
    fn holds_all(&self, symbol: usize, atom: usize) -> bool {
        let Symbol { ranks, mixed, .. } = &self.known[symbol];
        let count: u32 = ranks.iter().map(|word| word.count_ones()).sum();
        count as usize == self.world_size && !mixed && self.known[symbol].atom == atom
    }
}

#[derive(Clone, Copy)]
enum Order {
    SendsFirst,
    ReceivesFirst,
    Random(u64),
}

enum Item {
    Header,
    Atom(usize),
}

/// One end of a stream: its steps in order, and how far the first of them is.
struct End {
    rank: usize,
    peer: usize,
    sends: bool,
    steps: VecDeque<usize>,
    header_done: bool,
}

struct Run<'a> {
    plan: &'a Plan,
    edges: &'a [usize],
    room: usize,
    symbols: Symbols,
    /// What each atom of each rank holds.
    held: Vec<Vec<usize>>,
    follows: Vec<Vec<Vec<usize>>>,
    /// Atoms that each step of each rank has passed.
    passed: Vec<Vec<usize>>,
    ends: Vec<End>,
    streams: BTreeMap<(usize, usize), VecDeque<Item>>,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, edges: &'a [usize], room: usize) -> Self {
        let (world_size, atoms) = (plan.ranks.len(), edges.len() - 1);
        let mut ends: BTreeMap<(usize, usize, bool), VecDeque<usize>> = BTreeMap::new();
        for (rank, steps) in plan.ranks.iter().enumerate() {
            for (index, step) in steps.iter().enumerate() {
                ends.entry((rank, step.peer(), step.sends())).or_default().push_back(index);
            }
        }
        let end = |((rank, peer, sends), steps)| End { rank, peer, sends, steps, header_done: false };
        Self {
            plan,
            edges,
            room,
            symbols: Symbols::new(world_size, atoms),
            held: (0..world_size).map(|rank| (rank * atoms..(rank + 1) * atoms).collect()).collect(),
            follows: plan.ranks.iter().map(|steps| dependencies(steps)).collect(),
            passed: plan.ranks.iter().map(|steps| vec![0; steps.len()]).collect(),
            ends: ends.into_iter().map(end).collect(),
            streams: BTreeMap::new(),
        }
    }

    /// Moves everything as far as it goes.
    fn finish(&mut self, order: Order) -> Result<(), Fault> {
        let mut ends: Vec<usize> = (0..self.ends.len()).collect();
        let mut stream = Stream::new(if let Order::Random(seed) = order { seed } else { 0 }, 0);
        loop {
            match order {
                Order::SendsFirst => ends.sort_by_key(|end| !self.ends[*end].sends),
                Order::ReceivesFirst => ends.sort_by_key(|end| self.ends[*end].sends),
                Order::Random(_) => ends.sort_by_cached_key(|_| stream.next_u64()),
            }
            let mut moved = false;
            for end in &ends {
                while self.advance(*end) {
                    moved = true;
                }
            }
            ends.retain(|end| !self.ends[*end].steps.is_empty());
            match ends.first() {
                None => return Ok(()),
                Some(end) if !moved => {
                    let End { rank, steps, .. } = &self.ends[*end];
                    return Err(Fault::Deadlock { rank: *rank, step: steps[0] });
                }
                Some(_) => {}
            }
        }
    }

    /// Moves one item at one end of a stream; `false` if it cannot.
    fn advance(&mut self, index: usize) -> bool {
        let end = &self.ends[index];
        let (rank, peer, sends) = (end.rank, end.peer, end.sends);
        let Some(step) = end.steps.front().copied() else { return false };
        let stream = self.streams.entry(if sends { (rank, peer) } else { (peer, rank) }).or_default();
        if sends && stream.len() >= self.room || !sends && stream.is_empty() {
            return false;
        }
        if !end.header_done {
            if sends {
                stream.push_back(Item::Header);
            } else {
                stream.pop_front();
            }
            self.ends[index].header_done = true;
        } else if !self.move_atom(rank, step) {
            return false;
        }
        self.retire(index, rank, step);
        true
    }

    fn atoms(&self, rank: usize, step: usize) -> std::ops::Range<usize> {
        let span = self.plan.ranks[rank][step].span();
        let place = |element: usize| self.edges.binary_search(&element).expect("every span's ends are edges");
        place(span.start)..place(span.end())
    }

    fn move_atom(&mut self, rank: usize, step: usize) -> bool {
        let atom = self.atoms(rank, step).start + self.passed[rank][step];
        let held_up = |earlier: &usize| {
            let atoms = self.atoms(rank, *earlier);
            atoms.contains(&atom) && atoms.start + self.passed[rank][*earlier] <= atom
        };
        if self.follows[rank][step].iter().any(held_up) {
            return false;
        }
        let what = self.plan.ranks[rank][step];
        let pair = if what.sends() { (rank, what.peer()) } else { (what.peer(), rank) };
        let stream = self.streams.get_mut(&pair).expect("advance has made it");
        let held = &mut self.held[rank][atom];
        if what.sends() {
            stream.push_back(Item::Atom(*held));
        } else {
            let Some(Item::Atom(symbol)) = stream.pop_front() else { return false };
            *held =
                if matches!(what, Step::Receive { .. }) { symbol } else { self.symbols.sum(*held, symbol) };
        }
        self.passed[rank][step] += 1;
        true
    }

    fn retire(&mut self, index: usize, rank: usize, step: usize) {
        if self.passed[rank][step] == self.atoms(rank, step).len() {
            self.ends[index].steps.pop_front();
            self.ends[index].header_done = false;
        }
    }

    fn judge(&self, goal: Goal) -> Result<(), Fault> {
        let atoms = self.edges.len() - 1;
        for (rank, held) in self.held.iter().enumerate() {
            for (atom, symbol) in held.iter().enumerate() {
                let element = self.edges[atom];
                let all = self.symbols.holds_all(*symbol, atom);
                let right = match goal {
                    Goal::AllReduce => all && !self.symbols.known[*symbol].twice,
                    Goal::Broadcast { root } => *symbol == root * atoms + atom,
                    Goal::Barrier => all,
                };
                if !right {
                    return Err(Fault::WrongResult { rank, element });
                }
                if goal == Goal::AllReduce && *symbol != self.held[0][atom] {
                    return Err(Fault::OtherOrder { rank, element });
                }
            }
        }
        Ok(())
    }
}
