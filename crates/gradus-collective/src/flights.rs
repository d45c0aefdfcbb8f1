//! All collectives in flight, and the scratch memory that they take turns with.

use crate::flight::PeerState;
use crate::header::{Identity, Operation};
use crate::memory::Scratch;
use crate::one_sided::Meeting;
use crate::operation::Flight;
use std::collections::VecDeque;

/// A collective in flight.
pub(crate) enum InFlight {
    /// Over streams.
    Streams(Flight),
    /// Among neighbours.
    Meeting(Meeting),
}

impl InFlight {
    pub(crate) fn identity(&self) -> &Identity {
        match self {
            Self::Streams(flight) => &flight.identity,
            Self::Meeting(meeting) => &meeting.identity,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        match self {
            Self::Streams(flight) => flight.pending == 0 && !flight.awaits_memory(),
            Self::Meeting(meeting) => meeting.is_over(),
        }
    }

    /// Whether anything has moved.
    pub(crate) fn has_moved(&self) -> bool {
        match self {
            Self::Streams(flight) => flight.has_moved(),
            Self::Meeting(meeting) => meeting.has_moved(),
        }
    }

    /// Bytes sent and received so far, headers not counted.
    pub(crate) fn exchanged(&self) -> (u64, u64) {
        match self {
            Self::Streams(flight) => flight.exchanged(),
            Self::Meeting(meeting) => meeting.exchanged(),
        }
    }

    /// How far it is with each peer with which it is not over; peers by their number in the transport.
    pub(crate) fn peers(&self, ranks: &[usize]) -> Vec<PeerState> {
        match self {
            Self::Streams(flight) => flight.peers(ranks),
            Self::Meeting(meeting) => meeting.peer_states(),
        }
    }

    /// Sender and receiver of a message, of which this rank, `own`, is one.
    pub(crate) fn message(&self, ranks: &[usize], own: usize) -> Option<[usize; 2]> {
        let Self::Streams(flight) = self else { return None };
        let step = flight.steps().first().filter(|_| flight.identity.operation == Operation::Message)?;
        let peer = ranks[step.peer()];
        Some(if step.sends() { [own, peer] } else { [peer, own] })
    }

    /// Asks whether its memory is ready; whether that was news.
    fn ask(&mut self) -> bool {
        match self {
            Self::Streams(flight) => flight.ask(),
            Self::Meeting(meeting) => meeting.ask(),
        }
    }

    fn advance_local(&mut self, turn: usize) -> bool {
        match self {
            Self::Streams(flight) => flight.advance_local(turn),
            Self::Meeting(_) => false,
        }
    }

    pub(crate) fn into_scratch(self) -> Scratch {
        match self {
            Self::Streams(flight) => flight.into_scratch(),
            Self::Meeting(meeting) => meeting.into_parts().0,
        }
    }
}

/// Scratch memories that are kept for the next collective.
const SPARE_SCRATCHES: usize = 4;

/// Collectives in flight, by growing ticket without gaps.
#[derive(Default)]
pub(crate) struct Flights {
    pub(crate) queue: VecDeque<InFlight>,
    /// The ticket of the first.
    pub(crate) first: u64,
    /// Those that still wait for their memory.
    pub(crate) unready: usize,
    scratches: Vec<Scratch>,
}

impl Flights {
    /// One that goes over streams.
    pub(crate) fn get(&mut self, ticket: u64) -> &mut Flight {
        let index = (ticket - self.first) as usize;
        match self.queue.get_mut(index) {
            Some(InFlight::Streams(flight)) => flight,
            _ => panic!("a collective over streams stays until all its steps are over"),
        }
    }

    /// All that go among neighbours and are not over.
    pub(crate) fn meetings(&self) -> impl Iterator<Item = &Meeting> {
        self.queue.iter().filter_map(|flight| match flight {
            InFlight::Meeting(meeting) if !meeting.is_over() => Some(meeting),
            _ => None,
        })
    }

    /// All that have not been retired, with their tickets.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = (u64, &InFlight)> {
        (self.first..).zip(&self.queue)
    }

    pub(crate) fn retire(&mut self) {
        while self.queue.front().is_some_and(InFlight::is_over) {
            let scratch = self.queue.pop_front().expect("it was there a moment ago").into_scratch();
            self.first += 1;
            self.keep(scratch);
        }
    }

    /// Takes back scratch memory.
    pub(crate) fn keep(&mut self, scratch: Scratch) {
        if !scratch.is_empty() && self.scratches.len() < SPARE_SCRATCHES {
            self.scratches.push(scratch);
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
        for flight in self.queue.iter_mut().filter(|flight| !flight.is_over()) {
            if flight.ask() {
                self.unready -= 1;
                moved = true;
            }
            moved |= flight.advance_local(turn);
        }
        moved
    }
}
