//! Carries out programs among neighbours on symbols, and says whether they do what they should whatever order their ranks
//! run in.
//!
//! One order is tried. That is enough because every access to memory is held against all others by vector clocks
//! (Mattern, "Virtual time and global states of distributed systems", 1989): two that touch one element, one of them to write
//! it, must be parted by signals. Then no order can make a difference.

use super::Fault;
use super::expectation::{Expectation, Want};
use super::symbols::{NOTHING, Symbols};
use crate::one_sided::{Act, Place, Program, Store};
use crate::plan::{Part, Region};
use std::collections::{BTreeMap, VecDeque};

/// Checks that programs, by rank, give ranks what they want of what they bring.
///
/// # Errors
/// The first fault that was found.
pub fn verify(programs: &[Program], expectation: &Expectation) -> Result<(), Fault> {
    let mut run = Run::new(programs, expectation)?;
    run.finish()?;
    run.part()?;
    run.judge(expectation)
}

/// How far each rank was when something happened.
type Clock = Vec<u64>;

/// One element of somebody's memory.
#[derive(Clone)]
struct Cell {
    symbol: usize,
    /// Who wrote it last, and how far that rank was then.
    writer: Option<(usize, u64)>,
    /// How far each rank was when it read that.
    readers: BTreeMap<usize, u64>,
}

impl Cell {
    fn holding(symbol: usize) -> Self {
        Self { symbol, writer: None, readers: BTreeMap::new() }
    }
}

/// A signal that was not heard yet.
struct Signal {
    clock: Clock,
    symbols: Vec<usize>,
}

struct Run<'a> {
    programs: &'a [Program],
    symbols: Symbols,
    /// By rank and store.
    memory: Vec<[Vec<Cell>; 4]>,
    /// Which ranks bring what lies in their output.
    in_place: Vec<bool>,
    clocks: Vec<Clock>,
    next: Vec<usize>,
    /// By sender and receiver.
    signals: BTreeMap<(usize, usize), VecDeque<Signal>>,
    /// How many were shown, and heard.
    shown: BTreeMap<(usize, usize), u64>,
    heard: BTreeMap<(usize, usize), u64>,
}

impl<'a> Run<'a> {
    fn new(programs: &'a [Program], expectation: &Expectation) -> Result<Self, Fault> {
        let ranks = programs.len();
        let mut memory = Vec::new();
        for (rank, program) in programs.iter().enumerate() {
            let duty = &expectation.ranks[rank];
            let extents =
                [duty.input, duty.output, program.extent(Store::Scratch), program.extent(Store::Staging)];
            memory.push(extents.map(|extent| vec![Cell::holding(NOTHING); extent]));
        }
        let mut run = Self {
            programs,
            symbols: Symbols::new(ranks, expectation.whole),
            memory,
            in_place: expectation.ranks.iter().map(|duty| duty.input == 0).collect(),
            clocks: vec![vec![0; ranks]; ranks],
            next: vec![0; ranks],
            signals: BTreeMap::new(),
            shown: BTreeMap::new(),
            heard: BTreeMap::new(),
        };
        run.bring(expectation);
        for (rank, program) in programs.iter().enumerate() {
            if let Some(step) = program.acts.iter().position(|act| !run.is_possible(rank, act)) {
                return Err(Fault::OutOfRange { rank, step });
            }
        }
        Ok(run)
    }

    fn bring(&mut self, expectation: &Expectation) {
        for (rank, duty) in expectation.ranks.iter().enumerate() {
            for (Part { region, span }, start) in &duty.brings {
                let store = if *region == Region::Input { Store::Input } else { Store::Output };
                for i in 0..span.len {
                    let symbol = self.symbols.brought(rank, start + i);
                    self.memory[rank][store as usize][span.start + i] = Cell::holding(symbol);
                }
            }
        }
    }

    /// Whether an act names ranks and memory that there are, and only what it may touch of them.
    fn is_possible(&self, rank: usize, act: &Act) -> bool {
        let stranger = |peer: usize| peer >= self.programs.len() || peer == rank;
        let lawful = |(place, writes): (Place, bool)| {
            let allowed = match (place.peer, place.store) {
                (_, Store::Input) => !writes,
                (Some(_), Store::Scratch) => false,
                (Some(_), store) => !writes || store == Store::Output,
                (None, _) => true,
            };
            allowed
                && !place.peer.is_some_and(stranger)
                && place.span.end() <= self.store(rank, place).1.len()
        };
        let itself = match act {
            Act::Signal { peer, .. } | Act::Hear { peer, .. } => stranger(*peer),
            Act::Copy { from, to } | Act::Combine { from, to } => {
                from.overlaps(to) || from.span.len != to.span.len
            }
            Act::Divide { place, .. } => place.peer.is_some(),
        };
        !itself && Program::accesses(act).all(lawful)
    }

    fn finish(&mut self) -> Result<(), Fault> {
        loop {
            let mut moved = false;
            for rank in 0..self.programs.len() {
                while let Some(act) = self.programs[rank].acts.get(self.next[rank])
                    && self.carry_out(rank, act)?
                {
                    self.next[rank] += 1;
                    moved = true;
                }
            }
            let stuck =
                (0..self.programs.len()).find(|rank| self.next[*rank] < self.programs[*rank].acts.len());
            match stuck {
                None => return Ok(()),
                Some(rank) if !moved => return Err(Fault::Deadlock { rank, step: self.next[rank] }),
                Some(_) => {}
            }
        }
    }

    /// Carries out an act; `false` when it must wait.
    fn carry_out(&mut self, rank: usize, act: &Act) -> Result<bool, Fault> {
        self.clocks[rank][rank] += 1;
        match *act {
            Act::Signal { peer, carries } => {
                let symbols = carries.map(|place| self.read(rank, place)).transpose()?.unwrap_or_default();
                let shown = self.shown.entry((rank, peer)).or_default();
                *shown += 1;
                if *shown > self.heard.get(&(peer, rank)).copied().unwrap_or(0) + 1 {
                    return Err(Fault::OutOfTurn { from: rank, to: peer });
                }
                let clock = self.clocks[rank].clone();
                self.signals.entry((rank, peer)).or_default().push_back(Signal { clock, symbols });
            }
            Act::Hear { peer, to } => {
                let Some(signal) = self.signals.entry((peer, rank)).or_default().pop_front() else {
                    return Ok(false);
                };
                *self.heard.entry((peer, rank)).or_default() += 1;
                for (own, theirs) in self.clocks[rank].iter_mut().zip(&signal.clock) {
                    *own = (*own).max(*theirs);
                }
                if let Some(place) = to {
                    self.write(rank, place, signal.symbols)?;
                } else if !signal.symbols.is_empty() {
                    return Err(Fault::OutOfRange { rank, step: self.next[rank] });
                }
            }
            Act::Copy { from, to } => {
                let symbols = self.read(rank, from)?;
                self.write(rank, to, symbols)?;
            }
            Act::Combine { from, to } => {
                let (a, b) = (self.read(rank, to)?, self.read(rank, from)?);
                let combined = a.into_iter().zip(b).map(|(a, b)| self.symbols.combined(a, b)).collect();
                self.write(rank, to, combined)?;
            }
            Act::Divide { place, by } => {
                let symbols = self.read(rank, place)?;
                let divided = symbols.into_iter().map(|a| self.symbols.divided(a, by)).collect();
                self.write(rank, place, divided)?;
            }
        }
        Ok(true)
    }

    /// Whose memory a place is in, and which: what a rank in place brings is its output.
    fn store(&self, rank: usize, place: Place) -> ((usize, usize), &[Cell]) {
        let owner = place.peer.unwrap_or(rank);
        let brought = place.store == Store::Input && place.peer.is_some() && self.in_place[owner];
        let store = if brought { Store::Output } else { place.store } as usize;
        ((owner, store), &self.memory[owner][store])
    }

    fn cells(&mut self, rank: usize, place: Place) -> &mut [Cell] {
        let (owner, store) = self.store(rank, place).0;
        &mut self.memory[owner][store][place.span.start..place.span.end()]
    }

    fn read(&mut self, rank: usize, place: Place) -> Result<Vec<usize>, Fault> {
        let (clock, step) = (self.clocks[rank].clone(), self.next[rank]);
        let mut symbols = Vec::new();
        for cell in self.cells(rank, place) {
            if cell.writer.is_some_and(|(writer, then)| clock[writer] < then) {
                return Err(Fault::Race { rank, step });
            }
            cell.readers.insert(rank, clock[rank]);
            symbols.push(cell.symbol);
        }
        Ok(symbols)
    }

    fn write(&mut self, rank: usize, place: Place, symbols: Vec<usize>) -> Result<(), Fault> {
        let (clock, step) = (self.clocks[rank].clone(), self.next[rank]);
        if symbols.len() != place.span.len {
            return Err(Fault::OutOfRange { rank, step });
        }
        for (cell, symbol) in self.cells(rank, place).iter_mut().zip(symbols) {
            let mut before = cell.writer.into_iter().chain(std::mem::take(&mut cell.readers));
            if before.any(|(other, then)| clock[other] < then) {
                return Err(Fault::Race { rank, step });
            }
            *cell = Cell { symbol, writer: Some((rank, clock[rank])), readers: BTreeMap::new() };
        }
        Ok(())
    }

    /// All signals were heard; and a rank's buffers are its own again when it is done.
    fn part(&self) -> Result<(), Fault> {
        if let Some(((from, to), _)) = self.signals.iter().find(|(_, signals)| !signals.is_empty()) {
            return Err(Fault::Unmatched { from: *from, to: *to });
        }
        for (rank, stores) in self.memory.iter().enumerate() {
            let cells = stores[Store::Input as usize].iter().chain(&stores[Store::Output as usize]);
            let mut touched = cells.flat_map(|cell| cell.writer.into_iter().chain(cell.readers.clone()));
            if touched.any(|(other, then)| self.clocks[rank][other] < then) {
                return Err(Fault::Race { rank, step: self.next[rank] });
            }
        }
        Ok(())
    }

    fn judge(&self, expectation: &Expectation) -> Result<(), Fault> {
        let mut combined = vec![None; expectation.whole];
        for (rank, duty) in expectation.ranks.iter().enumerate() {
            for (span, start, want) in &duty.wants {
                for i in 0..span.len {
                    let (element, atom) = (span.start + i, start + i);
                    let symbol = self.memory[rank][Store::Output as usize][element].symbol;
                    let all = self.symbols.holds_all(symbol, atom);
                    let right = match *want {
                        Want::Combined => {
                            let divisor = self.symbols.divisor(symbol);
                            all && self.symbols.holds_once(symbol) && divisor == expectation.divisor
                        }
                        Want::From(brought) => symbol == self.symbols.brought(brought, atom),
                        Want::Heard => true,
                    };
                    if !right {
                        return Err(Fault::WrongResult { rank, element });
                    }
                    if *want == Want::Combined && *combined[atom].get_or_insert(symbol) != symbol {
                        return Err(Fault::OtherOrder { rank, element });
                    }
                }
            }
        }
        self.judge_hearing(expectation)
    }

    /// Where hearing of all is what is wanted, every rank's end follows every other's beginning.
    fn judge_hearing(&self, expectation: &Expectation) -> Result<(), Fault> {
        for (rank, duty) in expectation.ranks.iter().enumerate() {
            let wants = duty.wants.iter().any(|(_, _, want)| *want == Want::Heard);
            if wants && self.clocks[rank].contains(&0) && self.programs.len() > 1 {
                return Err(Fault::WrongResult { rank, element: 0 });
            }
        }
        Ok(())
    }
}
