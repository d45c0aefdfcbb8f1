//! All collectives in flight, and the scratch memory that they take turns with.

use crate::flight::PeerState;
use crate::header::{Identity, Operation};
use crate::memory::Scratch;
use crate::one_sided::Meeting;
use crate::operation::Flight;
use gradus_fabric::MOST_LEVELS;
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

/// Collectives in flight.
#[derive(Default)]
pub(crate) struct Flights {
    /// By growing ticket; what is over leaves, also from the middle: where some have priority, much may come and go while an
    /// old one waits.
    queue: VecDeque<(u64, InFlight)>,
    /// The ticket of the next.
    pub(crate) next: u64,
    /// How many there are at each level.
    at_level: [usize; MOST_LEVELS],
    /// Those that still wait for their memory.
    pub(crate) unready: usize,
    scratches: Vec<Scratch>,
}

impl Flights {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many are in flight at a level.
    #[inline]
    pub(crate) fn at_level(&self, level: usize) -> usize {
        self.at_level[level]
    }

    /// Takes in the next one; its ticket.
    pub(crate) fn push(&mut self, flight: InFlight) -> u64 {
        let ticket = self.next;
        self.next += 1;
        self.at_level[flight.identity().level()] += 1;
        self.queue.push_back((ticket, flight));
        ticket
    }

    fn index(&self, ticket: u64) -> Option<usize> {
        let first = self.queue.front()?.0;
        // Most often nothing has left from the middle.
        let guess = usize::try_from(ticket.checked_sub(first)?).ok()?;
        match self.queue.get(guess) {
            Some((found, _)) if *found == ticket => Some(guess),
            _ => self.queue.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok(),
        }
    }

    /// Whether one is over; one that was never started is not.
    pub(crate) fn is_done(&self, ticket: u64) -> bool {
        ticket < self.next && self.index(ticket).is_none_or(|index| self.queue[index].1.is_over())
    }

    /// One that goes over streams.
    pub(crate) fn get(&mut self, ticket: u64) -> &mut Flight {
        match self.index(ticket).map(|index| &mut self.queue[index].1) {
            Some(InFlight::Streams(flight)) => flight,
            _ => panic!("a collective over streams stays until all its steps are over"),
        }
    }

    /// All that go among neighbours and are not over.
    pub(crate) fn meetings(&self) -> impl Iterator<Item = &Meeting> {
        self.queue.iter().filter_map(|(_, flight)| match flight {
            InFlight::Meeting(meeting) if !meeting.is_over() => Some(meeting),
            _ => None,
        })
    }

    /// As [`Flights::meetings`], of one level and to be moved.
    pub(crate) fn meetings_at(&mut self, level: usize) -> impl Iterator<Item = &mut Meeting> {
        self.queue.iter_mut().filter_map(move |(_, flight)| match flight {
            InFlight::Meeting(meeting) if meeting.identity.level() == level && !meeting.is_over() => {
                Some(meeting)
            }
            _ => None,
        })
    }

    /// All that have not been retired, with their tickets, the oldest first.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = (u64, &InFlight)> {
        self.queue.iter().map(|(ticket, flight)| (*ticket, flight))
    }

    pub(crate) fn retire(&mut self) {
        while let Some(index) = self.queue.iter().position(|(_, flight)| flight.is_over()) {
            let (_, flight) = self.queue.remove(index).expect("it was there a moment ago");
            self.at_level[flight.identity().level()] -= 1;
            self.keep(flight.into_scratch());
        }
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        (self.unready, self.at_level) = (0, [0; MOST_LEVELS]);
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

    /// Carries out local steps of all of a level; whether anything moved or memory became ready.
    pub(crate) fn advance_local(&mut self, level: usize, turn: usize) -> bool {
        let mut moved = false;
        for (_, flight) in &mut self.queue {
            if flight.identity().level() != level || flight.is_over() {
                continue;
            }
            if flight.ask() {
                self.unready -= 1;
                moved = true;
            }
            moved |= flight.advance_local(turn);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Element;
    use crate::memory::{Buffer, Memory, Regions};
    use crate::operation::Prepared;
    use crate::plan::Step;
    use gradus_memory::Span;
    use std::sync::Arc;

    /// A message of one element, at a level.
    fn message(level: u8, to: &mut [u8]) -> InFlight {
        let identity = Identity {
            group: 0,
            sequence: 0,
            operation: Operation::Message,
            element: Element::U8,
            reduction: None,
            root: 0,
            len: 1,
            counts: 0,
            registered: false,
            level,
        };
        let prepared = Arc::new(Prepared::new(vec![Step::receive(1, Span::new(0, 1))]));
        let regions = Regions::new(Memory::InPlace(Buffer::of(to)), Scratch::new());
        InFlight::Streams(Flight::new(identity, regions, prepared, None))
    }

    #[test]
    fn what_is_over_leaves_from_the_middle_and_others_are_still_found() {
        let (mut flights, mut byte) = (Flights::default(), [0]);
        let tickets: Vec<u64> = (0..40).map(|i| flights.push(message(i % 3, &mut byte))).collect();
        // All at level 2 are over, then all at level 0.
        for level in [2, 0] {
            for ticket in tickets.iter().filter(|ticket| **ticket % 3 == level) {
                assert!(!flights.is_done(*ticket));
                flights.get(*ticket).pending = 0;
                assert!(flights.is_done(*ticket));
            }
            flights.retire();
            assert_eq!(flights.at_level(level as usize), 0);
            assert!(tickets.iter().filter(|ticket| **ticket % 3 == level).all(|one| flights.is_done(*one)));
            assert!(tickets.iter().filter(|ticket| **ticket % 3 == 1).all(|one| !flights.is_done(*one)));
        }
        assert_eq!((flights.in_flight().count(), flights.at_level(1)), (13, 13));
        assert_eq!(flights.get(4).identity.level, 1);
        assert!(!flights.is_done(40), "it was never started");
        flights.clear();
        assert!(flights.is_empty() && flights.is_done(4) && !flights.is_done(40));
    }
}
