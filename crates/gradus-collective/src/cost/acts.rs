//! The time of programs among neighbours, by letting them run on a model of their host.
//!
//! # Model
//!
//! A rank does its acts one after the other, on a processor. An act takes the processor for what its bytes cost, or, for a
//! signal and for hearing one, for a moment. A signal is on its way for a hop without holding anything; between ranks of one
//! processor it is there at once. Where ranks share processors, they are dealt out in turn: a rank keeps its processor until it
//! would have to wait for a signal, and another one, if it could go on before that comes, has it after a switch.
//!
//! The act that can begin first is taken next, so moments only grow.

use super::neighbours::NeighbourFigures;
use super::{Method, Price, Traffic};
use crate::one_sided::{Act, Place, Program, Store};
use gradus_error::{Error, Result};
use std::collections::{BTreeMap, VecDeque};

/// What programs work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ground {
    /// Bytes of an element.
    pub element_bytes: usize,
    /// Bytes that a rank brings: rates go by that.
    pub buffer_bytes: u64,
    /// Whether what ranks reach of each other's input and output is registered; else it is private.
    pub registered: bool,
}

/// The price of programs, by rank; `None` where a rate that they need is not known.
///
/// # Errors
/// `Invalid` when a figure is none, or programs name ranks that there are not, or wait for signals that never come.
pub fn price_of_programs(
    programs: &[Program],
    ground: Ground,
    figures: &NeighbourFigures,
) -> Result<Option<Price>> {
    figures.validate()?;
    let rates = Rates::new(ground, figures);
    let mut run = Run::new(programs, figures);
    while let Some(rank) = run.next() {
        if run.act(rank, &rates)?.is_none() {
            return Ok(None);
        }
    }
    if (0..programs.len()).any(|rank| run.acts[rank] < programs[rank].acts.len()) {
        return Err(Error::invalid(
            "programs wait for signals that never come: check them before pricing them",
        ));
    }
    let seconds = run.clocks.iter().copied().fold(0.0, f64::max);
    Ok(Some(Price { seconds, method: Method::Simulated, traffic: traffic(programs, ground) }))
}

/// Bytes that ranks read of each other, or write to each other.
fn traffic(programs: &[Program], ground: Ground) -> Traffic {
    let reached = |act: &Act| match act {
        Act::Copy { from, to } | Act::Combine { from, to } if from.peer.or(to.peer).is_some() => {
            from.span.len
        }
        Act::Signal { carries: Some(place), .. } => place.span.len,
        _ => 0,
    };
    let elements: usize = programs.iter().flat_map(|program| &program.acts).map(reached).sum();
    let most_steps = programs.iter().map(|program| program.acts.len()).max().unwrap_or(0) as u64;
    Traffic { inside_bytes: (elements * ground.element_bytes) as u64, across_bytes: 0, most_steps }
}

/// Seconds for an element, by what is done with it.
struct Rates {
    own: Option<f64>,
    staged_copied: Option<f64>,
    staged_combined: Option<f64>,
    reached_copied: Option<f64>,
    reached_combined: Option<f64>,
    given: Option<f64>,
}

impl Rates {
    fn new(ground: Ground, figures: &NeighbourFigures) -> Self {
        let touches = &figures.bytes_per_s;
        let (copied, combined) = if ground.registered {
            (&touches.registered_combined, &touches.registered_combined)
        } else {
            (&touches.private_copied, &touches.private_combined)
        };
        let element = |curve: &super::Curve| {
            curve.seconds_per_byte(ground.buffer_bytes).map(|byte| byte * ground.element_bytes as f64)
        };
        Self {
            own: element(&touches.own),
            staged_copied: element(&touches.staged_copied),
            staged_combined: element(&touches.staged_combined),
            reached_copied: element(copied),
            reached_combined: element(combined),
            given: element(&touches.registered_given),
        }
    }

    /// Seconds to move a place to another one.
    fn moving(&self, from: &Place, to: &Place, combines: bool) -> Option<f64> {
        let element = match (from.peer, from.store, combines) {
            _ if to.peer.is_some() => self.given,
            (None, _, _) => self.own,
            (Some(_), Store::Staging, false) => self.staged_copied,
            (Some(_), Store::Staging, true) => self.staged_combined,
            (Some(_), _, false) => self.reached_copied,
            (Some(_), _, true) => self.reached_combined,
        };
        if from.span.len == 0 { Some(0.0) } else { Some(element? * from.span.len as f64) }
    }
}

/// A processor: until when it is taken, and by whom.
#[derive(Clone, Copy, Default)]
struct Processor {
    taken_until: f64,
    rank: Option<usize>,
}

struct Run<'a> {
    programs: &'a [Program],
    figures: &'a NeighbourFigures,
    /// By rank: the next act, and when the one before was over.
    acts: Vec<usize>,
    clocks: Vec<f64>,
    processors: Vec<Processor>,
    /// When signals that nobody has heard yet were shown, by sender and receiver.
    signals: BTreeMap<(usize, usize), VecDeque<f64>>,
}

impl<'a> Run<'a> {
    fn new(programs: &'a [Program], figures: &'a NeighbourFigures) -> Self {
        let ranks = programs.len();
        let processors = figures.processors_of(ranks);
        let mut run = Self {
            programs,
            figures,
            acts: vec![0; ranks],
            clocks: vec![0.0; ranks],
            processors: vec![Processor::default(); processors],
            signals: BTreeMap::new(),
        };
        for rank in 0..ranks {
            run.work(rank, 0.0, figures.start_us * 1e-6);
        }
        run
    }

    fn processor(&self, rank: usize) -> usize {
        rank % self.processors.len()
    }

    /// The rank whose next act can begin first; one that has its processor before one that has not.
    fn next(&self) -> Option<usize> {
        let could = (0..self.programs.len()).filter_map(|rank| Some((self.earliest(rank)?, rank)));
        could.min_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, rank)| rank)
    }

    /// When a rank's next act can begin; `None` when it waits for a signal that nobody has shown yet, or is done.
    fn earliest(&self, rank: usize) -> Option<f64> {
        let there = match self.programs[rank].acts.get(self.acts[rank])? {
            Act::Hear { peer, .. } => self.shown(*peer, rank)?,
            _ => 0.0,
        };
        let processor = self.processors[self.processor(rank)];
        let switch = if processor.rank == Some(rank) { 0.0 } else { self.switch() };
        Some(there.max(self.clocks[rank]).max(processor.taken_until + switch))
    }

    /// Seconds until a processor works for another rank.
    fn switch(&self) -> f64 {
        if self.processors.len() < self.programs.len() { self.figures.switch_us * 1e-6 } else { 0.0 }
    }

    /// When the next signal of `from` is there for `to`.
    fn shown(&self, from: usize, to: usize) -> Option<f64> {
        let shown = self.signals.get(&(from, to))?.front()?;
        let apart = self.processor(from) != self.processor(to);
        Some(shown + if apart { self.figures.hop_us * 1e-6 } else { 0.0 })
    }

    /// Has a rank's processor busy for it from a moment on.
    fn work(&mut self, rank: usize, from: f64, seconds: f64) {
        let processor = self.processor(rank);
        let until = from.max(self.processors[processor].taken_until) + seconds;
        self.processors[processor] = Processor { taken_until: until, rank: Some(rank) };
        self.clocks[rank] = until;
    }

    /// Does a rank's next act, which it can; `None` where a rate is not known.
    fn act(&mut self, rank: usize, rates: &Rates) -> Result<Option<()>> {
        let start = self.earliest(rank).expect("it was found to be the first");
        let act = &self.programs[rank].acts[self.acts[rank]];
        let moment = self.figures.signal_us * 1e-6;
        let seconds = match act {
            Act::Signal { .. } | Act::Hear { .. } => Some(moment),
            Act::Copy { from, to } => rates.moving(from, to, false),
            Act::Combine { from, to } => rates.moving(from, to, true),
            Act::Divide { place, .. } => rates.own.map(|element| element * place.span.len as f64),
        };
        let Some(seconds) = seconds else { return Ok(None) };
        self.work(rank, start, seconds);
        match act {
            Act::Signal { peer, .. } if *peer >= self.programs.len() => {
                return Err(Error::invalid(format!("rank {rank} signals rank {peer}, which is none")));
            }
            Act::Signal { peer, .. } => {
                self.signals.entry((rank, *peer)).or_default().push_back(self.clocks[rank]);
            }
            Act::Hear { peer, .. } => {
                self.signals.get_mut(&(*peer, rank)).and_then(VecDeque::pop_front);
            }
            _ => {}
        }
        self.acts[rank] += 1;
        Ok(Some(()))
    }
}
