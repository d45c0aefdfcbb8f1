//! All collectives in flight, and the scratch memory that they take turns with.

use crate::memory::Scratch;
use crate::operation::Flight;
use std::collections::VecDeque;

/// Scratch memories that are kept for the next collective.
const SPARE_SCRATCHES: usize = 4;

/// Collectives in flight, by growing ticket without gaps.
#[derive(Default)]
pub(crate) struct Flights {
    pub(crate) queue: VecDeque<Flight>,
    /// The ticket of the first.
    pub(crate) first: u64,
    /// Those that still wait for their memory.
    pub(crate) unready: usize,
    scratches: Vec<Scratch>,
}

impl Flights {
    pub(crate) fn get(&mut self, ticket: u64) -> &mut Flight {
        let index = (ticket - self.first) as usize;
        self.queue.get_mut(index).expect("a collective stays until all its steps are over")
    }

    /// All that have not been retired, with their tickets.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = (u64, &Flight)> {
        (self.first..).zip(&self.queue)
    }

    pub(crate) fn retire(&mut self) {
        while self.queue.front().is_some_and(|flight| flight.pending == 0) {
            let scratch = self.queue.pop_front().expect("it was there a moment ago").into_scratch();
            self.first += 1;
            if !scratch.is_empty() && self.scratches.len() < SPARE_SCRATCHES {
                self.scratches.push(scratch);
            }
        }
    }

    /// Memory of `bytes` at least, with undefined content.
    pub(crate) fn scratch(&mut self, bytes: usize) -> Scratch {
        let words = bytes.div_ceil(size_of::<u64>());
        match self.scratches.iter().position(|scratch| scratch.len() >= words) {
            _ if words == 0 => Scratch::new(),
            Some(index) => self.scratches.swap_remove(index),
            None => {
                // What was too small once is too small again.
                self.scratches.pop();
                vec![0; words]
            }
        }
    }

    /// Carries out local steps of all; whether anything moved or memory became ready.
    pub(crate) fn advance_local(&mut self, turn: usize) -> bool {
        let mut moved = false;
        for flight in self.queue.iter_mut().filter(|flight| flight.pending > 0) {
            if flight.ask() {
                self.unready -= 1;
                moved = true;
            }
            moved |= flight.advance_local(turn);
        }
        moved
    }
}
