//! The last operations of a rank, in bounded memory.

use super::log::{FlightEntry, FlightLog, PeerState};
use crate::flights::InFlight;
use crate::header::Identity;
use crate::one_sided::Meeting;
use gradus_host::{Clock, TickScale, Ticks};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Operations that are remembered.
const CAPACITY: usize = 1000;

/// When something happened.
#[derive(Clone, Copy)]
enum Moment {
    Time(Duration),
    /// Of what is over before a clock could be read.
    Ticks(Ticks),
}

/// One operation, as it is kept.
struct Entry {
    ticket: u64,
    identity: Identity,
    /// Who takes part; `None` where that is as in the entry before.
    ranks: Option<Arc<[usize]>>,
    /// Sender and receiver of a message.
    message: Option<[usize; 2]>,
    started: Moment,
    first_byte: Option<Moment>,
    done: Option<Moment>,
    bytes: (u64, u64),
    /// Known once it was given up.
    peers: Vec<PeerState>,
}

/// See the module.
pub(crate) struct Recorder {
    clock: Arc<dyn Clock>,
    scale: TickScale,
    /// By growing ticket without gaps.
    entries: VecDeque<Entry>,
    /// Who takes part in the last one.
    last_ranks: Option<Arc<[usize]>>,
    forgotten: u64,
}

impl Recorder {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let scale = TickScale::new(&*clock);
        Self { clock, scale, entries: VecDeque::with_capacity(CAPACITY), last_ranks: None, forgotten: 0 }
    }

    fn now(&self) -> Moment {
        Moment::Time(self.clock.now())
    }

    /// How long some ticks took.
    pub(crate) fn duration(&self, ticks: Ticks) -> Duration {
        self.scale.rate(&*self.clock).duration(ticks)
    }

    /// A collective was started.
    pub(crate) fn started(&mut self, ticket: u64, flight: &InFlight, ranks: &Arc<[usize]>, own: usize) {
        let message = flight.message(ranks, own);
        let entry = Entry::new(ticket, *flight.identity(), self.news_of(ranks), self.now());
        self.push(Entry { message, ..entry });
    }

    /// A collective has come and gone.
    pub(crate) fn passed(
        &mut self,
        ticket: u64,
        times: (Ticks, Ticks),
        meeting: &Meeting,
        ranks: &Arc<[usize]>,
    ) {
        let (began, done) = (Moment::Ticks(times.0), Some(Moment::Ticks(times.1)));
        let bytes = meeting.exchanged();
        let entry = Entry::new(ticket, meeting.identity, self.news_of(ranks), began);
        self.push(Entry { first_byte: Some(began), done, bytes, ..entry });
    }

    /// The ranks, where they are not those of the last entry: to share them costs more than to compare.
    fn news_of(&mut self, ranks: &Arc<[usize]>) -> Option<Arc<[usize]>> {
        if self.last_ranks.as_ref().is_some_and(|last| Arc::ptr_eq(last, ranks)) {
            return None;
        }
        self.last_ranks = Some(Arc::clone(ranks));
        self.last_ranks.clone()
    }

    /// Who takes part in an entry.
    fn ranks(&self, index: usize) -> &[usize] {
        self.entries.range(..=index).rev().find_map(|entry| entry.ranks.as_deref()).unwrap_or_default()
    }

    fn push(&mut self, entry: Entry) {
        if self.entries.len() == CAPACITY {
            let oldest = self.entries.pop_front();
            self.forgotten += 1;
            if let Some((next, oldest)) = self.entries.front_mut().zip(oldest)
                && next.ranks.is_none()
            {
                next.ranks = oldest.ranks;
            }
        }
        self.entries.push_back(entry);
    }

    /// A collective has moved.
    pub(crate) fn moved(&mut self, ticket: u64, flight: &InFlight) {
        let Some(index) = self.entries.front().and_then(|first| ticket.checked_sub(first.ticket)) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        if entry.first_byte.is_none() && flight.has_moved() {
            entry.first_byte = Some(Moment::Time(self.clock.now()));
        }
        if entry.done.is_none() && flight.is_over() {
            entry.done = Some(Moment::Time(self.clock.now()));
            entry.bytes = flight.exchanged();
        }
    }

    /// A collective is given up: what is known of it is kept.
    pub(crate) fn given_up(&mut self, ticket: u64, flight: &InFlight) {
        if let Some(index) = self.entries.iter().position(|entry| entry.ticket == ticket) {
            let (bytes, peers) = (flight.exchanged(), flight.peers(self.ranks(index)));
            let entry = &mut self.entries[index];
            (entry.bytes, entry.peers) = (bytes, peers);
        }
    }

    /// The record, with what is in flight.
    pub(crate) fn log<'a>(
        &self,
        mut log: FlightLog,
        in_flight: impl Iterator<Item = (u64, &'a InFlight)>,
    ) -> FlightLog {
        let epoch = self.clock.calendar().saturating_sub(self.clock.now());
        (log.epoch_us, log.forgotten) = (micros(epoch), self.forgotten);
        let rate = self.scale.rate(&*self.clock);
        let at = |moment| match moment {
            Moment::Time(time) => micros(time),
            Moment::Ticks(reading) => micros(rate.moment(reading)),
        };
        let entries = self.entries.iter().enumerate();
        log.operations = entries.map(|(index, entry)| entry.written(self.ranks(index), at)).collect();
        for (ticket, flight) in in_flight.filter(|(_, flight)| !flight.is_over()) {
            let index = self.entries.iter().position(|entry| entry.ticket == ticket);
            if let Some(entry) = index.map(|index| &mut log.operations[index]) {
                (entry.bytes_sent, entry.bytes_received) = flight.exchanged();
                entry.peers = flight.peers(&entry.ranks);
            }
        }
        log
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Entry {
    fn new(ticket: u64, identity: Identity, ranks: Option<Arc<[usize]>>, started: Moment) -> Self {
        let peers = Vec::new();
        Self {
            ticket,
            identity,
            ranks,
            message: None,
            started,
            first_byte: None,
            done: None,
            bytes: (0, 0),
            peers,
        }
    }

    fn written(&self, ranks: &[usize], at: impl Fn(Moment) -> u64) -> FlightEntry {
        FlightEntry {
            group: self.identity.group,
            message: self.message,
            sequence: self.identity.sequence,
            what: self.identity.to_string(),
            ranks: ranks.to_vec(),
            level: self.identity.level(),
            started_us: at(self.started),
            first_byte_us: self.first_byte.map(&at),
            done_us: self.done.map(&at),
            bytes_sent: self.bytes.0,
            bytes_received: self.bytes.1,
            peers: self.peers.clone(),
        }
    }
}
