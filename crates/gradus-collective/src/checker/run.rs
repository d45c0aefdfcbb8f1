//! Carries out a plan on symbols.

use super::Fault;
use super::atoms::{Atoms, Place};
use super::expectation::{Expectation, Want};
use super::symbols::{NOTHING, Symbols};
use crate::dependencies::{Hold, holds};
use crate::plan::{Part, Plan, Region, Step};
use gradus_host::random::Stream;
use gradus_memory::Span;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Clone, Copy)]
pub(super) enum Order {
    SendsFirst,
    ReceivesFirst,
    Random(u64),
}

enum Item {
    Header,
    Atom(usize),
}

/// Steps that move one after the other: those at one end of a stream, or a local one.
struct Lane {
    rank: usize,
    /// From which rank to which, if it is a stream's.
    stream: Option<(usize, usize)>,
    steps: Vec<usize>,
    /// The lane at the other end of the stream.
    other: Option<usize>,
}

/// How far a lane is.
#[derive(Default, Clone)]
struct Progress {
    /// Steps that are over.
    done: usize,
    /// Whether the next one's header has passed.
    header: bool,
}

impl Lane {
    fn sends(&self) -> bool {
        self.stream.is_some_and(|(from, _)| from == self.rank)
    }
}

/// What is known about one step before it moves.
struct Prepared {
    step: Step,
    holds: Vec<Hold>,
    /// Where its atoms begin, counted in elements from its start.
    cuts: Vec<usize>,
    /// The places of its first atom in what it reads and what it writes.
    reads: Option<(Region, usize)>,
    writes: Option<(Region, usize)>,
}

/// The edges of the atoms of one rank's regions.
struct Edges([Vec<usize>; 3]);

impl Edges {
    fn new(rank: usize, atoms: &Atoms) -> Self {
        Self(Region::ALL.map(|region| atoms.edges(Some((rank, region)))))
    }

    /// The number of the atom that begins with an element.
    fn atom(&self, region: Region, element: usize) -> usize {
        let edges = &self.0[region as usize];
        edges.binary_search(&element).expect("every span's ends are edges")
    }
}

/// A plan and what it is to achieve, cut into atoms: what all runs share.
pub(super) struct Layout<'a> {
    plan: &'a Plan,
    expectation: &'a Expectation,
    whole: Vec<usize>,
    edges: Vec<Edges>,
    steps: Vec<Vec<Prepared>>,
    lanes: Vec<Lane>,
    /// For each step, the lanes that it may hold up, and where.
    held_up: Vec<Vec<Vec<(usize, Hold)>>>,
}

impl<'a> Layout<'a> {
    pub(super) fn new(plan: &'a Plan, expectation: &'a Expectation, atoms: &Atoms) -> Self {
        let edges: Vec<Edges> = (0..plan.ranks.len()).map(|rank| Edges::new(rank, atoms)).collect();
        let ranks = plan.ranks.iter().zip(&edges).enumerate();
        let steps: Vec<_> = ranks.map(|(rank, (steps, edges))| prepare(rank, steps, atoms, edges)).collect();
        let lanes = lanes(plan);
        let held_up = held_up(&steps, &lanes);
        Self { plan, expectation, whole: atoms.edges(None as Place), edges, steps, lanes, held_up }
    }

    /// The atoms of a part of a rank's memory, each with the atom of the whole at which it lies.
    fn pairs(&self, rank: usize, part: Part, start: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let edges = &self.edges[rank];
        let first = edges.atom(part.region, part.span.start);
        let last = edges.atom(part.region, part.span.end());
        let whole = self.whole.binary_search(&start).expect("links end at edges");
        (first..last).zip(whole..)
    }
}

pub(super) struct Run<'a> {
    layout: &'a Layout<'a>,
    room: usize,
    symbols: Symbols,
    /// What each atom of each rank's regions holds.
    held: Vec<[Vec<usize>; 3]>,
    /// Atoms that each step of each rank has passed.
    passed: Vec<Vec<usize>>,
    lanes: Vec<Progress>,
    streams: BTreeMap<(usize, usize), VecDeque<Item>>,
    /// Lanes that may have become able to move.
    awake: BTreeSet<usize>,
}

fn lanes(plan: &Plan) -> Vec<Lane> {
    let mut ends: BTreeMap<(usize, (usize, usize)), Vec<usize>> = BTreeMap::new();
    let mut local = Vec::new();
    for (rank, steps) in plan.ranks.iter().enumerate() {
        for (index, step) in steps.iter().enumerate() {
            if step.is_local() {
                local.push(Lane { rank, stream: None, steps: vec![index], other: None });
            } else {
                let stream = if step.sends() { (rank, step.peer()) } else { (step.peer(), rank) };
                ends.entry((rank, stream)).or_default().push(index);
            }
        }
    }
    let places: BTreeMap<_, usize> = ends.keys().copied().zip(0..).collect();
    let lane = |((rank, stream), steps): ((usize, (usize, usize)), Vec<usize>)| {
        let other = if rank == stream.0 { stream.1 } else { stream.0 };
        Lane { rank, stream: Some(stream), steps, other: places.get(&(other, stream)).copied() }
    };
    ends.into_iter().map(lane).chain(local).collect()
}

fn held_up(steps: &[Vec<Prepared>], lanes: &[Lane]) -> Vec<Vec<Vec<(usize, Hold)>>> {
    let mut held_up: Vec<_> = steps.iter().map(|steps| vec![Vec::new(); steps.len()]).collect();
    for (index, lane) in lanes.iter().enumerate() {
        for step in &lane.steps {
            for hold in &steps[lane.rank][*step].holds {
                held_up[lane.rank][hold.earlier].push((index, *hold));
            }
        }
    }
    held_up
}

fn prepare(rank: usize, steps: &[Step], atoms: &Atoms, edges: &Edges) -> Vec<Prepared> {
    let prepared = |(step, holds): (&Step, Vec<Hold>)| {
        let Part { region, span } = step.part();
        let place = |(part, _): (Part, bool)| (part.region, edges.atom(part.region, part.span.start));
        let reduces = matches!(step, Step::ReceiveReduce { .. } | Step::Divide { .. });
        Prepared {
            step: *step,
            holds,
            cuts: atoms.cuts(Some((rank, region)), span),
            reads: step.accesses().find(|(_, writes)| !writes || reduces).map(place),
            writes: step.accesses().find(|(_, writes)| *writes).map(place),
        }
    };
    steps.iter().zip(holds(steps)).map(prepared).collect()
}

impl<'a> Run<'a> {
    pub(super) fn new(layout: &'a Layout<'a>, room: usize) -> Self {
        let ranks = &layout.plan.ranks;
        let nothing = |edges: &Vec<usize>| vec![NOTHING; edges.len().saturating_sub(1)];
        let mut run = Self {
            layout,
            room,
            symbols: Symbols::new(ranks.len(), layout.whole.len() - 1),
            held: layout.edges.iter().map(|edges| edges.0.each_ref().map(nothing)).collect(),
            passed: ranks.iter().map(|steps| vec![0; steps.len()]).collect(),
            lanes: vec![Progress::default(); layout.lanes.len()],
            streams: BTreeMap::new(),
            awake: (0..layout.lanes.len()).collect(),
        };
        run.bring();
        run
    }

    fn bring(&mut self) {
        for (rank, duty) in self.layout.expectation.ranks.iter().enumerate() {
            for (part, start) in &duty.brings {
                for (place, atom) in self.layout.pairs(rank, *part, *start) {
                    self.held[rank][part.region as usize][place] = self.symbols.brought(rank, atom);
                }
            }
        }
    }

    /// Moves everything as far as it goes.
    pub(super) fn finish(&mut self, order: Order) -> Result<(), Fault> {
        let mut stream = Stream::new(if let Order::Random(seed) = order { seed } else { 0 }, 0);
        let lanes = &self.layout.lanes;
        while !self.awake.is_empty() {
            let mut awake: Vec<usize> = std::mem::take(&mut self.awake).into_iter().collect();
            match order {
                Order::SendsFirst => awake.sort_by_key(|lane| !lanes[*lane].sends()),
                Order::ReceivesFirst => awake.sort_by_key(|lane| lanes[*lane].sends()),
                Order::Random(_) => awake.sort_by_cached_key(|_| stream.next_u64()),
            }
            awake.into_iter().for_each(|lane| while self.advance(lane) {});
        }
        let waiting = |(lane, progress): &(&Lane, &Progress)| progress.done < lane.steps.len();
        match lanes.iter().zip(&self.lanes).find(waiting) {
            None => Ok(()),
            Some((lane, progress)) => {
                Err(Fault::Deadlock { rank: lane.rank, step: lane.steps[progress.done] })
            }
        }
    }

    /// Moves one item of a lane, and wakes those who may have waited for that; `false` if it cannot.
    fn advance(&mut self, index: usize) -> bool {
        let lane = &self.layout.lanes[index];
        let Some(step) = lane.steps.get(self.lanes[index].done).copied() else { return false };
        let behind_header = self.lanes[index].header || lane.stream.is_none();
        let moved = if behind_header { self.move_atom(lane.rank, step) } else { self.move_header(index) };
        if moved {
            self.awake.extend(lane.other);
        }
        let header = self.lanes[index].header || lane.stream.is_none();
        if header && self.passed[lane.rank][step] == self.layout.steps[lane.rank][step].cuts.len() {
            self.lanes[index] = Progress { done: self.lanes[index].done + 1, header: false };
            return true;
        }
        moved
    }

    /// Whether a stream has room at its start, or something at its end.
    fn is_open(&mut self, stream: (usize, usize), sends: bool) -> bool {
        let queue = self.streams.entry(stream).or_default();
        if sends { queue.len() < self.room } else { !queue.is_empty() }
    }

    fn move_header(&mut self, index: usize) -> bool {
        let lane = &self.layout.lanes[index];
        let Some(stream) = lane.stream else { return false };
        if !self.is_open(stream, lane.sends()) {
            return false;
        }
        let queue = self.streams.entry(stream).or_default();
        if lane.sends() {
            queue.push_back(Item::Header);
        } else {
            queue.pop_front();
        }
        self.lanes[index].header = true;
        true
    }

    /// Whether a step must stay where it is.
    fn is_held(&self, rank: usize, step: usize, element: usize) -> bool {
        let steps = &self.layout.steps[rank];
        steps[step].holds.iter().any(|hold| {
            let earlier = &steps[hold.earlier];
            let passed = earlier.cuts.get(self.passed[rank][hold.earlier]);
            let passed = passed.copied().unwrap_or(earlier.step.span().len);
            hold.stop(passed).is_some_and(|stop| stop <= element)
        })
    }

    /// Whether the stream of a step lets its next atom through.
    fn may_pass(&mut self, rank: usize, step: &Step) -> bool {
        match step {
            Step::Send { peer, .. } => self.is_open((rank, *peer), true),
            Step::Receive { peer, .. } | Step::ReceiveReduce { peer, .. } => {
                self.is_open((*peer, rank), false)
            }
            Step::Copy { .. } | Step::Divide { .. } => true,
        }
    }

    fn move_atom(&mut self, rank: usize, step: usize) -> bool {
        let (prepared, passed) = (&self.layout.steps[rank][step], self.passed[rank][step]);
        let Some(element) = prepared.cuts.get(passed) else { return false };
        if self.is_held(rank, step, *element) || !self.may_pass(rank, &prepared.step) {
            return false;
        }
        let held = &mut self.held[rank];
        let read = prepared.reads.map(|(region, first)| held[region as usize][first + passed]);
        let arrived = match prepared.step {
            Step::Receive { peer, .. } | Step::ReceiveReduce { peer, .. } => {
                let queue = self.streams.get_mut(&(peer, rank)).expect("advance has made it");
                let Some(Item::Atom(symbol)) = queue.pop_front() else { return false };
                Some(symbol)
            }
            _ => None,
        };
        let symbol = match (read, arrived) {
            (Some(a), Some(b)) => self.symbols.combined(a, b),
            (one, other) => one.or(other).unwrap_or(NOTHING),
        };
        let symbol = match prepared.step {
            Step::Divide { by, .. } => self.symbols.divided(symbol, by),
            _ => symbol,
        };
        if let Step::Send { peer, .. } = prepared.step {
            self.streams.entry((rank, peer)).or_default().push_back(Item::Atom(symbol));
        }
        if let Some((region, first)) = prepared.writes {
            held[region as usize][first + passed] = symbol;
        }
        self.passed[rank][step] += 1;
        let waiting = self.layout.held_up[rank][step].iter().filter(|(_, hold)| hold.is_for(*element));
        self.awake.extend(waiting.map(|(lane, _)| *lane));
        true
    }

    /// Holds what ranks have against what they want.
    pub(super) fn judge(&self) -> Result<(), Fault> {
        let mut combined = vec![None; self.layout.whole.len()];
        for (rank, duty) in self.layout.expectation.ranks.iter().enumerate() {
            for (span, start, want) in &duty.wants {
                self.judge_part(rank, (*span, *start), *want, &mut combined)?;
            }
        }
        Ok(())
    }

    fn judge_part(
        &self,
        rank: usize,
        (span, start): (Span, usize),
        want: Want,
        combined: &mut [Option<usize>],
    ) -> Result<(), Fault> {
        let output = Region::Output as usize;
        for (place, atom) in self.layout.pairs(rank, Part::output(span), start) {
            let symbol = self.held[rank][output][place];
            let element = self.layout.edges[rank].0[output][place];
            let all = self.symbols.holds_all(symbol, atom);
            let right = match want {
                Want::Combined => {
                    let divisor = self.symbols.divisor(symbol);
                    all && self.symbols.holds_once(symbol) && divisor == self.layout.expectation.divisor
                }
                Want::From(brought) => symbol == self.symbols.brought(brought, atom),
                Want::Heard => all,
            };
            if !right {
                return Err(Fault::WrongResult { rank, element });
            }
            if want == Want::Combined && *combined[atom].get_or_insert(symbol) != symbol {
                return Err(Fault::OtherOrder { rank, element });
            }
        }
        Ok(())
    }
}
