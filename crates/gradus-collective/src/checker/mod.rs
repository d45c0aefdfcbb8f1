//! Runs a plan on symbols instead of numbers, and says whether it does what it should, at any world size.
//!
//! A symbol stands for what an element holds: what one rank brought in one place, or a sum of two symbols, the same
//! whichever comes first (addition of floats commutes) but not whichever way three are bracketed. Equal symbols are
//! equal bits.
//!
//! # Model
//!
//! Elements that no span's edge parts are one *atom*: ranges that move together are cut alike. Streams are first in, first out and hold one item: the header of a
//! message, or one atom. The streams of a rank move independently; a step moves its atoms in order, each as soon as the
//! steps that it follows have passed that atom. Such a network computes the same in whatever order it moves (Kahn,
//! "The semantics of a simple language for parallel programming", 1974), and room for more only helps: a plan that ends
//! here ends on every transport that holds a header and an element. That dependencies leave nothing to chance is not
//! taken for granted: a plan is run in several orders, with room for one item and for many.

mod atoms;
mod expectation;
pub mod one_sided;
mod run;
mod symbols;

pub use expectation::{Duty, Expectation, Want};

use crate::plan::{Part, Plan, Region, Step};
use atoms::{Atoms, Link, Place, place};
use gradus_memory::Span;
use run::{Layout, Order, Run};
use std::collections::BTreeMap;

/// What a plan over one buffer, worked on in place, is to achieve. Other cases: [`Expectation`] and [`verify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Every element of every rank holds the contribution of every rank once, summed in the same order everywhere.
    AllReduce,
    /// Every element of the root holds the contribution of every rank once.
    Reduce {
        /// The rank that gets the sum.
        root: usize,
    },
    /// Every element of every rank holds what the root's held.
    Broadcast {
        /// The rank that sends.
        root: usize,
    },
    /// Every rank has heard of every rank.
    Barrier,
}

impl Goal {
    /// The same as what ranks bring and want, for a buffer of `len` elements.
    pub fn expectation(self, world_size: usize, len: usize) -> Expectation {
        match self {
            Self::AllReduce => Expectation::all_reduce(world_size, len, true),
            Self::Reduce { root } => Expectation::reduce(world_size, len, root, true),
            Self::Broadcast { root } => Expectation::broadcast(world_size, len, root, true),
            Self::Barrier => Expectation::barrier(world_size),
        }
    }
}

/// What is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A step names a peer outside the world, itself, or elements outside the memory; writes the input; or copies
    /// elements onto themselves.
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
    /// Two ranks touch an element, one of them to write it, and nothing tells which is first.
    Race {
        /// One of them.
        rank: usize,
        /// Its act; one beyond the last when it is done and somebody still touches its buffers.
        step: usize,
    },
    /// A rank signals again before it has heard the other's answer.
    OutOfTurn {
        /// The one that signals.
        from: usize,
        /// Who may not have read the signal before.
        to: usize,
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

/// Checks a plan that works in place against its goal.
///
/// # Errors
/// The first fault that was found.
pub fn check(plan: &Plan, goal: Goal) -> Result<(), Fault> {
    verify(plan, &goal.expectation(plan.ranks.len(), plan.len))
}

/// Checks that a plan gives ranks what they want of what they bring.
///
/// # Errors
/// The first fault that was found.
pub fn verify(plan: &Plan, expectation: &Expectation) -> Result<(), Fault> {
    in_range(plan, expectation)?;
    let layout = Layout::new(plan, expectation, &atoms(plan, expectation)?);
    for order in [Order::SendsFirst, Order::ReceivesFirst, Order::Random(1), Order::Random(2)] {
        for room in [1, usize::MAX] {
            let mut run = Run::new(&layout, room);
            run.finish(order)?;
            run.judge()?;
        }
    }
    Ok(())
}

fn in_range(plan: &Plan, expectation: &Expectation) -> Result<(), Fault> {
    for (rank, steps) in plan.ranks.iter().enumerate() {
        let duty = &expectation.ranks[rank];
        let outside = |(part, writes): (Part, bool)| match part.region {
            Region::Input => writes || part.span.end() > duty.input,
            Region::Output => part.span.end() > duty.output,
            Region::Scratch => false,
        };
        let onto_itself = |step: &Step| matches!(step, Step::Copy { from, to } if from.overlaps(to));
        let stranger =
            |step: &Step| !step.is_local() && (step.peer() >= plan.ranks.len() || step.peer() == rank);
        let wrong = |step: &Step| stranger(step) || onto_itself(step) || step.accesses().any(outside);
        if let Some(step) = steps.iter().position(wrong) {
            return Err(Fault::OutOfRange { rank, step });
        }
    }
    Ok(())
}

/// All memory, cut into atoms.
fn atoms(plan: &Plan, expectation: &Expectation) -> Result<Atoms, Fault> {
    let mut links = messages(plan)?;
    links.extend(Link::of_expectation(expectation));
    let mut spans = vec![(None, Span::new(0, expectation.whole))];
    for (rank, steps) in plan.ranks.iter().enumerate() {
        for step in steps {
            spans.extend(step.accesses().map(|(part, _)| place(rank, part)));
            if let Step::Copy { from, to } = step {
                links.push(Link::new(place(rank, *from), place(rank, *to)));
            }
        }
    }
    Ok(Atoms::new(spans.into_iter(), &links))
}

/// One end of each message between two ranks.
type Ends = Vec<(Place, Span)>;

/// What each message reads and writes.
fn messages(plan: &Plan) -> Result<Vec<Link>, Fault> {
    let mut pairs: BTreeMap<(usize, usize), [Ends; 2]> = BTreeMap::new();
    for (rank, steps) in plan.ranks.iter().enumerate() {
        for step in steps.iter().filter(|step| !step.is_local()) {
            let (pair, side) = if step.sends() { ((rank, step.peer()), 0) } else { ((step.peer(), rank), 1) };
            pairs.entry(pair).or_default()[side].push(place(rank, step.part()));
        }
    }
    let mut messages = Vec::new();
    for ((from, to), [sent, received]) in pairs {
        if let Some(message) = sent.iter().zip(&received).position(|(s, r)| s.1.len != r.1.len) {
            return Err(Fault::OtherLength { from, to, message });
        }
        if sent.len() != received.len() {
            return Err(Fault::Unmatched { from, to });
        }
        messages.extend(sent.into_iter().zip(received).map(|(sent, received)| Link::new(sent, received)));
    }
    Ok(messages)
}
