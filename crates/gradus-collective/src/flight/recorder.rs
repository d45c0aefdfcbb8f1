//! The last operations of a rank, in bounded memory.

use super::log::{FlightEntry, FlightLog, PeerState};
use crate::header::{Identity, Operation};
use crate::operation::Flight;
use gradus_host::Clock;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Operations that are remembered.
const CAPACITY: usize = 1000;

/// One operation, as it is kept.
struct Entry {
    ticket: u64,
    identity: Identity,
    ranks: Arc<[usize]>,
    /// Sender and receiver of a message.
    message: Option<[usize; 2]>,
    started: Duration,
    first_byte: Option<Duration>,
    done: Option<Duration>,
    bytes: (u64, u64),
    /// Known once it was given up.
    peers: Vec<PeerState>,
}

/// See the module.
pub(crate) struct Recorder {
    clock: Arc<dyn Clock>,
    /// By growing ticket without gaps.
    entries: VecDeque<Entry>,
    forgotten: u64,
}

impl Recorder {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, entries: VecDeque::with_capacity(CAPACITY), forgotten: 0 }
    }

    /// A collective was started.
    pub(crate) fn started(&mut self, ticket: u64, flight: &Flight, ranks: &Arc<[usize]>, own: usize) {
        if self.entries.len() == CAPACITY {
            self.entries.pop_front();
            self.forgotten += 1;
        }
        let identity = flight.identity;
        self.entries.push_back(Entry {
            ticket,
            identity,
            ranks: Arc::clone(ranks),
            message: message(flight, ranks, own),
            started: self.clock.now(),
            first_byte: None,
            done: None,
            bytes: (0, 0),
            peers: Vec::new(),
        });
    }

    /// A collective has moved.
    pub(crate) fn moved(&mut self, ticket: u64, flight: &Flight) {
        let Some(index) = self.entries.front().and_then(|first| ticket.checked_sub(first.ticket)) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        if entry.first_byte.is_none() && flight.has_moved() {
            entry.first_byte = Some(self.clock.now());
        }
        if entry.done.is_none() && flight.pending == 0 {
            entry.done = Some(self.clock.now());
            entry.bytes = flight.exchanged();
        }
    }

    /// A collective is given up: what is known of it is kept.
    pub(crate) fn given_up(&mut self, ticket: u64, flight: &Flight) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.ticket == ticket) {
            entry.bytes = flight.exchanged();
            entry.peers = flight.peers(&entry.ranks);
        }
    }

    /// The record, with what is in flight.
    pub(crate) fn log<'a>(
        &self,
        mut log: FlightLog,
        in_flight: impl Iterator<Item = (u64, &'a Flight)>,
    ) -> FlightLog {
        let epoch = self.clock.calendar().saturating_sub(self.clock.now());
        (log.epoch_us, log.forgotten) = (micros(epoch), self.forgotten);
        log.operations = self.entries.iter().map(Entry::written).collect();
        for (ticket, flight) in in_flight.filter(|(_, flight)| flight.pending > 0) {
            let index = self.entries.iter().position(|entry| entry.ticket == ticket);
            if let Some(entry) = index.map(|index| &mut log.operations[index]) {
                (entry.bytes_sent, entry.bytes_received) = flight.exchanged();
                entry.peers = flight.peers(&entry.ranks);
            }
        }
        log
    }
}

/// Sender and receiver of a message, of which this rank is one.
fn message(flight: &Flight, ranks: &[usize], own: usize) -> Option<[usize; 2]> {
    let step = flight.steps().first().filter(|_| flight.identity.operation == Operation::Message)?;
    let peer = ranks[step.peer()];
    Some(if step.sends() { [own, peer] } else { [peer, own] })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Entry {
    fn written(&self) -> FlightEntry {
        FlightEntry {
            group: self.identity.group,
            message: self.message,
            sequence: self.identity.sequence,
            what: self.identity.to_string(),
            ranks: self.ranks.to_vec(),
            started_us: micros(self.started),
            first_byte_us: self.first_byte.map(micros),
            done_us: self.done.map(micros),
            bytes_sent: self.bytes.0,
            bytes_received: self.bytes.1,
            peers: self.peers.clone(),
        }
    }
}
