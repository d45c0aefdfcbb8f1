//! Runs plans over a transport, without blocking.
//!
//! Each lane to a peer has a queue of sends and one of receives: the steps of all collectives in flight, in the order
//! in which they were started. The first of each queue moves as many bytes as the transport takes or gives and as the
//! steps that it follows allow. So independent steps overlap, sums are passed on while they arrive, and a later
//! collective uses a stream as soon as the earlier ones are done with it. Steps that no peer has a part in have no queue:
//! they move when what they follow allows it.
//!
//! Since each lane serves collectives in one order, the same at both ends, and each collective alone needs no more than
//! room for a header and an element, the oldest collective in flight of a level always gets on, and then the next. Levels
//! share nothing that could be full, and each is served again and again ([`levels`]), so none waits for another.
//!
//! Nothing but calls to this executor touches the memory of collectives, here or, where memory is registered, on a peer that is in
//! the same one: there is no thread behind it.

mod intake;
mod levels;
mod meetings;
mod straight;
mod strangers;

use crate::flight::{FlightLog, Recorder};
use crate::flights::{Flights, InFlight};
use crate::header::{HEADER_BYTES, Header, Identity};
use crate::memory::{Memory, Regions};
use crate::one_sided::{Awaits, Past};
use crate::operation::{Carry, Flight, Prepared, Ready};
use gradus_error::{Error, Result};
use gradus_fabric::{Direction, Interest, Lane, Neighbours, Transport};
use gradus_host::Ticks;
use intake::Intake;
use meetings::Meetings;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that a local step moves before the streams have their turn. How many a stream moves the transport says: few enough
/// that the two halves of an exchange stay in step, and what is summed is still in the cache when it is passed on.
const TURN_BYTES: usize = 128 << 10;

/// Bytes that go out together with their header, in one piece.
const STAGED_BYTES: usize = 4096;

/// A collective, and this rank's place in it.
pub(crate) struct Call<'a> {
    pub(crate) identity: Identity,
    /// Who its steps mean, by their number in the transport.
    pub(crate) ranks: &'a Arc<[usize]>,
    /// This rank's place among them.
    pub(crate) rank: usize,
    /// The other end of a message; `None` where all take part.
    pub(crate) with: Option<usize>,
}

/// A step that waits for its turn on a stream.
#[derive(Clone, Copy)]
struct Job {
    ticket: u64,
    step: usize,
    message: u32,
    /// How many operations were begun before with that peer.
    order: u64,
}

#[derive(Default)]
struct Outgoing {
    queue: VecDeque<Job>,
    /// The header of the first job, and a copy of what could go with it; empty before it has begun.
    staged: Vec<u8>,
    staged_sent: usize,
}

struct Incoming {
    queue: VecDeque<Job>,
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    carry: Carry,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { queue: VecDeque::new(), header: [0; HEADER_BYTES], header_filled: 0, carry: Carry::default() }
    }
}

/// Bytes moved so far.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// See the module.
pub(crate) struct Executor {
    transport: Box<dyn Transport>,
    world_size: usize,
    levels: usize,
    /// Calls in a row in which a level with something in flight was not served.
    passed_over: u32,
    /// By [`Lane::index`], as what is incoming.
    outgoing: Vec<Outgoing>,
    incoming: Vec<Incoming>,
    flights: Flights,
    recorder: Recorder,
    pub(crate) moved: Moved,
    /// What was begun with each peer, at all levels together: the same at both ends, or they do not do the same.
    pasts: Vec<Past>,
    meetings: Meetings,
    begin: Begin,
}

/// What beginning a collective over streams counts in: kept from one to the next.
#[derive(Default)]
struct Begin {
    /// What there was before with each of its ranks.
    pasts: Vec<Past>,
    /// Messages to and from each peer.
    messages: Vec<(u32, u32)>,
}

impl Executor {
    pub(crate) fn new(transport: Box<dyn Transport>, recorder: Recorder) -> Self {
        let (world_size, levels) = (transport.world_size(), transport.levels());
        let lanes = world_size * levels;
        Self {
            transport,
            world_size,
            levels,
            passed_over: 0,
            outgoing: (0..lanes).map(|_| Outgoing::default()).collect(),
            incoming: (0..lanes).map(|_| Incoming::default()).collect(),
            flights: Flights::default(),
            recorder,
            moved: Moved::default(),
            pasts: vec![Past::default(); world_size],
            meetings: Meetings::default(),
            begin: Begin::default(),
        }
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        &*self.transport
    }

    /// What ranks of one host have beside streams, as the lowest level knows it.
    pub(crate) fn neighbours(&mut self) -> Option<&Neighbours> {
        self.transport.neighbours(0).map(|neighbours| &*neighbours)
    }

    /// Levels of priority.
    pub(crate) fn levels(&self) -> usize {
        self.levels
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether a collective is over; one that was never started is not.
    pub(crate) fn is_done(&self, ticket: u64) -> bool {
        self.flights.is_done(ticket)
    }

    /// Queues a collective over streams; its ticket.
    ///
    /// # Safety
    /// The memory is valid, aligned and otherwise untouched until the collective is over, or [`Executor::abandon`] was
    /// called, or the executor is gone; but before `ready` has said yes, if it is given, the caller may touch it.
    pub(crate) unsafe fn start(
        &mut self,
        call: &Call,
        memory: Memory,
        prepared: Arc<Prepared>,
        ready: Option<Ready>,
    ) -> u64 {
        let Begin { mut pasts, mut messages } = std::mem::take(&mut self.begin);
        pasts.clear();
        self.count_in(call, |_, past| pasts.push(past));
        let scratch = self.flights.scratch(prepared.scratch_bytes(call.identity.element.bytes()));
        self.flights.unready += usize::from(ready.is_some());
        let flight = Flight::new(call.identity, Regions::new(memory, scratch), prepared, ready);
        messages.clear();
        messages.resize(self.world_size, (0, 0));
        for (step, what) in flight.steps().iter().enumerate().filter(|(_, what)| !what.is_local()) {
            let (peer, order) = (call.ranks[what.peer()], pasts[what.peer()].order);
            let (sends, receives) = &mut messages[peer];
            let lane = Lane { peer, level: call.identity.level() }.index(self.world_size);
            let (queue, count) = if what.sends() {
                (&mut self.outgoing[lane].queue, sends)
            } else {
                (&mut self.incoming[lane].queue, receives)
            };
            let ticket = self.flights.next;
            queue.push_back(Job { ticket, step, message: *count, order });
            *count += 1;
        }
        for (past, (sends, receives)) in self.pasts.iter_mut().zip(&messages) {
            past.sends = past.sends.wrapping_add(*sends);
            past.receives = past.receives.wrapping_add(*receives);
        }
        self.begin = Begin { pasts, messages };
        let ticket = self.push(InFlight::Streams(flight), call.ranks);
        self.record_and_retire();
        ticket
    }

    fn push(&mut self, flight: InFlight, ranks: &Arc<[usize]>) -> u64 {
        self.recorder.started(self.flights.next, &flight, ranks, self.transport.rank());
        self.flights.push(flight)
    }

    /// Counts in an operation, and tells for each of its ranks what there was before.
    fn count_in(&mut self, call: &Call, mut tell: impl FnMut(usize, Past)) {
        for (place, rank) in call.ranks.iter().enumerate() {
            let past = &mut self.pasts[*rank];
            tell(*rank, *past);
            past.order += u64::from(call.with.is_none_or(|peer| place == peer));
        }
    }

    /// Forgets all collectives in flight; their memory is touched no more. The streams are of no more use.
    pub(crate) fn abandon(&mut self, reason: &Error) {
        self.transport.abort(reason);
        for (ticket, flight) in self.flights.in_flight().filter(|(_, flight)| !flight.is_over()) {
            self.recorder.given_up(ticket, flight);
        }
        self.outgoing.iter_mut().for_each(|outgoing| outgoing.queue.clear());
        self.incoming.iter_mut().for_each(|incoming| incoming.queue.clear());
        self.flights.clear();
        self.meetings.open = 0;
    }

    fn record_and_retire(&mut self) {
        for (ticket, flight) in self.flights.in_flight() {
            self.recorder.moved(ticket, flight);
        }
        self.flights.retire();
    }

    /// How long some ticks took.
    pub(crate) fn duration(&self, ticks: Ticks) -> Duration {
        self.recorder.duration(ticks)
    }

    /// What was done lately, into a log of this rank.
    pub(crate) fn record(&self) -> FlightLog {
        let log = FlightLog::new(self.transport.rank(), self.transport.world_size());
        self.recorder.log(log, self.flights.in_flight())
    }

    fn advance_outgoing(&mut self, lane: Lane, most: usize) -> Result<()> {
        let mut turn = self.transport.turn_bytes(lane).min(most);
        while turn > 0 {
            let index = lane.index(self.world_size);
            let Some(job) = self.outgoing[index].queue.front().copied() else { break };
            let sent = self.send_some(lane, job, turn)?;
            self.moved.sent += sent as u64;
            turn = turn.saturating_sub(sent);
            let outgoing = &mut self.outgoing[index];
            let flight = self.flights.get(job.ticket);
            if outgoing.staged_sent == outgoing.staged.len() && flight.is_whole(job.step) {
                outgoing.queue.pop_front();
                outgoing.staged.clear();
                outgoing.staged_sent = 0;
                flight.pending -= 1;
            } else if sent == 0 {
                break;
            }
        }
        Ok(())
    }

    fn send_some(&mut self, lane: Lane, job: Job, most: usize) -> Result<usize> {
        let outgoing = &mut self.outgoing[lane.index(self.world_size)];
        let flight = self.flights.get(job.ticket);
        if outgoing.staged.is_empty() {
            outgoing.staged.extend_from_slice(&expected(flight, job).encode());
            let first = flight.outgoing(job.step, STAGED_BYTES);
            outgoing.staged.extend_from_slice(first);
            let count = first.len();
            flight.sent(job.step, count);
        }
        let staged = &outgoing.staged[outgoing.staged_sent..];
        let bytes = flight.outgoing(job.step, most);
        if staged.is_empty() && bytes.is_empty() {
            return Ok(0);
        }
        let sent = self.transport.try_send_two(lane, staged, bytes)?;
        let of_staged = sent.min(staged.len());
        outgoing.staged_sent += of_staged;
        flight.sent(job.step, sent - of_staged);
        Ok(sent)
    }

    fn advance_incoming(&mut self, lane: Lane, most: usize) -> Result<()> {
        if !self.wants(lane) {
            return Ok(());
        }
        let Self { transport, incoming, flights, world_size, .. } = self;
        let (rank, turn) = (transport.rank(), transport.turn_bytes(lane).min(most));
        let incoming = &mut incoming[lane.index(*world_size)];
        let mut intake = Intake { incoming, flights, rank, lane, turn, fault: None };
        let received = match intake.straight_from(&mut **transport)? {
            Some(received) => received,
            None => transport.try_receive(lane, &mut |from, len| {
                // SAFETY: the transport hands out `len` readable bytes of memory of its own.
                unsafe { intake.take(from, len) }
            })?,
        };
        let fault = intake.fault.take();
        self.moved.received += received as u64;
        fault.map_or(Ok(()), Err)
    }

    /// Whether the first receive on a lane would take bytes if there were any.
    fn wants(&mut self, lane: Lane) -> bool {
        let incoming = &self.incoming[lane.index(self.world_size)];
        let Some(job) = incoming.queue.front() else { return false };
        incoming.header_filled < HEADER_BYTES || self.flights.get(job.ticket).allowed(job.step) > 0
    }

    /// Whether the first send on a lane has bytes to give.
    fn offers(&mut self, lane: Lane) -> bool {
        let outgoing = &self.outgoing[lane.index(self.world_size)];
        let Some(job) = outgoing.queue.front() else { return false };
        outgoing.staged.is_empty()
            || outgoing.staged_sent < outgoing.staged.len()
            || self.flights.get(job.ticket).allowed(job.step) > 0
    }

    /// What the transport is to wait for: exactly that which would let [`Executor::progress`] move something.
    pub(crate) fn interests(&mut self) -> Vec<Interest> {
        let mut interests = Vec::new();
        for lane in self.busy_lanes() {
            if self.wants(lane) {
                interests.push(Interest { lane, direction: Direction::Receive });
            }
            if self.offers(lane) {
                interests.push(Interest { lane, direction: Direction::Send });
            }
        }
        let awaited = self.flights.meetings().filter_map(|meeting| match meeting.awaits() {
            Awaits::Signal(peer) => {
                let lane = Lane { peer, level: meeting.identity.level() };
                Some(Interest { lane, direction: Direction::Signal })
            }
            _ => None,
        });
        interests.extend(awaited);
        interests
    }

    /// Waits until something can move, `limit` at most.
    ///
    /// # Errors
    /// Those of the transport.
    pub(crate) fn wait(&mut self, interests: &[Interest], limit: Duration) -> Result<()> {
        self.transport.wait(interests, limit)
    }

    /// Whether a collective in flight waits for what nobody will wake us for: its memory, which has to be asked, or a slot.
    pub(crate) fn awaits_memory(&self) -> bool {
        self.flights.unready > 0 || self.flights.meetings().any(|meeting| meeting.awaits() == Awaits::Memory)
    }

    /// The collective that is waited for longest.
    pub(crate) fn oldest(&self) -> Option<Identity> {
        self.flights.in_flight().find(|(_, flight)| !flight.is_over()).map(|(_, flight)| *flight.identity())
    }

    /// Whether a collective of a group is in flight.
    pub(crate) fn is_busy_with(&self, group: u64) -> bool {
        self.flights.in_flight().any(|(_, flight)| !flight.is_over() && flight.identity().group == group)
    }
}

/// What stands before a step's bytes.
fn expected(flight: &Flight, job: Job) -> Header {
    let bytes = flight.total(job.step) as u64;
    Header { identity: flight.identity, message: job.message, bytes, order: job.order }
}
