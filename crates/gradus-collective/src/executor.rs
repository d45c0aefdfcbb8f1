//! Runs plans over a transport, without blocking.
//!
//! Each stream to a peer has a queue of sends and one of receives: the steps of all collectives in flight, in the order
//! in which they were started. The first of each queue moves as many bytes as the transport takes or gives and as the
//! steps that it follows allow. So independent steps overlap, sums are passed on while they arrive, and a later
//! collective uses a stream as soon as the earlier ones are done with it. Steps that no peer has a part in have no queue:
//! they move when what they follow allows it.
//!
//! Since each stream serves collectives in one order, the same at both ends, and each collective alone needs no more than
//! room for a header and an element, the oldest collective in flight always gets on, and then the next.
//!
//! Nothing but calls to this executor touches the memory of collectives: there is no thread behind it.

use crate::flight::{FlightLog, Recorder};
use crate::flights::Flights;
use crate::header::{HEADER_BYTES, Header, Identity};
use crate::memory::{Memory, Regions};
use crate::operation::{Carry, Flight, Prepared, Ready};
use gradus_error::{Error, Result};
use gradus_fabric::{Direction, Interest, Transport};
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes that one stream moves before the others have their turn: the two halves of an exchange stay in step, and what
/// is summed is still in the cache when it is passed on.
const TURN_BYTES: usize = 128 << 10;

/// Bytes that go out together with their header, in one piece.
const STAGED_BYTES: usize = 4096;

/// A step that waits for its turn on a stream.
#[derive(Clone, Copy)]
struct Job {
    ticket: u64,
    step: usize,
    message: u32,
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
    outgoing: Vec<Outgoing>,
    incoming: Vec<Incoming>,
    flights: Flights,
    recorder: Recorder,
    pub(crate) moved: Moved,
}

impl Executor {
    pub(crate) fn new(transport: Box<dyn Transport>, recorder: Recorder) -> Self {
        let world_size = transport.world_size();
        Self {
            transport,
            outgoing: (0..world_size).map(|_| Outgoing::default()).collect(),
            incoming: (0..world_size).map(|_| Incoming::default()).collect(),
            flights: Flights::default(),
            recorder,
            moved: Moved::default(),
        }
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        &*self.transport
    }

    /// The ticket that the next collective gets.
    pub(crate) fn next_ticket(&self) -> u64 {
        self.flights.first + self.flights.queue.len() as u64
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flights.queue.is_empty()
    }

    /// Whether a collective is over; one that was never started is not.
    pub(crate) fn is_done(&self, ticket: u64) -> bool {
        if ticket < self.flights.first {
            return true;
        }
        let index = (ticket - self.flights.first) as usize;
        self.flights.queue.get(index).is_some_and(|flight| flight.pending == 0)
    }

    /// Queues a collective among `ranks`, of which its steps name peers by their place; its ticket.
    ///
    /// # Safety
    /// The memory is valid, aligned and otherwise untouched until the collective is over, or [`Executor::abandon`] was
    /// called, or the executor is gone; but before `ready` has said yes, if it is given, the caller may touch it.
    pub(crate) unsafe fn start(
        &mut self,
        identity: Identity,
        memory: Memory,
        prepared: Arc<Prepared>,
        ranks: &Arc<[usize]>,
        ready: Option<Ready>,
    ) -> u64 {
        let ticket = self.next_ticket();
        let scratch = self.flights.scratch(prepared.scratch_bytes(identity.element.bytes()));
        self.flights.unready += usize::from(ready.is_some());
        let flight = Flight::new(identity, Regions::new(memory, scratch), prepared, ready);
        let mut counts = vec![(0, 0); self.outgoing.len()];
        for (step, what) in flight.steps().iter().enumerate().filter(|(_, what)| !what.is_local()) {
            let peer = ranks[what.peer()];
            let (sends, receives) = &mut counts[peer];
            let (queue, count) = if what.sends() {
                (&mut self.outgoing[peer].queue, sends)
            } else {
                (&mut self.incoming[peer].queue, receives)
            };
            queue.push_back(Job { ticket, step, message: *count });
            *count += 1;
        }
        self.recorder.started(ticket, &flight, ranks, self.transport.rank());
        self.flights.queue.push_back(flight);
        self.record_and_retire();
        ticket
    }

    /// Forgets all collectives in flight; their memory is touched no more. The streams are of no more use.
    pub(crate) fn abandon(&mut self, reason: &Error) {
        self.transport.abort(reason);
        for (ticket, flight) in self.flights.in_flight().filter(|(_, flight)| flight.pending > 0) {
            self.recorder.given_up(ticket, flight);
        }
        self.outgoing.iter_mut().for_each(|outgoing| outgoing.queue.clear());
        self.incoming.iter_mut().for_each(|incoming| incoming.queue.clear());
        self.flights.first = self.next_ticket();
        self.flights.queue.clear();
        self.flights.unready = 0;
    }

    /// Moves what can move, each stream for one turn; whether anything did.
    ///
    /// # Errors
    /// Those of the transport; `Invalid` when a peer is at another collective, `Corrupt` when it sends no header.
    pub(crate) fn progress(&mut self) -> Result<bool> {
        let before = self.moved;
        let local = self.flights.advance_local(TURN_BYTES);
        for peer in 0..self.incoming.len() {
            if !self.incoming[peer].queue.is_empty() {
                self.advance_incoming(peer)?;
            }
            if !self.outgoing[peer].queue.is_empty() {
                self.advance_outgoing(peer)?;
            }
        }
        let moved = local || self.moved != before;
        if moved {
            self.record_and_retire();
        }
        Ok(moved)
    }

    fn record_and_retire(&mut self) {
        for (ticket, flight) in self.flights.in_flight() {
            self.recorder.moved(ticket, flight);
        }
        self.flights.retire();
    }

    /// What was done lately, into a log of this rank.
    pub(crate) fn record(&self) -> FlightLog {
        let log = FlightLog::new(self.transport.rank(), self.transport.world_size());
        self.recorder.log(log, self.flights.in_flight())
    }

    fn advance_outgoing(&mut self, peer: usize) -> Result<()> {
        let mut turn = TURN_BYTES;
        while turn > 0 {
            let Some(job) = self.outgoing[peer].queue.front().copied() else { break };
            let sent = self.send_some(peer, job, turn)?;
            self.moved.sent += sent as u64;
            turn = turn.saturating_sub(sent);
            let outgoing = &mut self.outgoing[peer];
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

    fn send_some(&mut self, peer: usize, job: Job, most: usize) -> Result<usize> {
        let outgoing = &mut self.outgoing[peer];
        let flight = self.flights.get(job.ticket);
        if outgoing.staged.is_empty() {
            let bytes = flight.total(job.step) as u64;
            let header = Header { identity: flight.identity, message: job.message, bytes };
            outgoing.staged.extend_from_slice(&header.encode());
            let first = flight.outgoing(job.step, STAGED_BYTES);
            outgoing.staged.extend_from_slice(first);
            let count = first.len();
            flight.sent(job.step, count);
        }
        if outgoing.staged_sent < outgoing.staged.len() {
            let sent = self.transport.try_send(peer, &outgoing.staged[outgoing.staged_sent..])?;
            outgoing.staged_sent += sent;
            return Ok(sent);
        }
        let bytes = flight.outgoing(job.step, most);
        if bytes.is_empty() {
            return Ok(0);
        }
        let sent = self.transport.try_send(peer, bytes)?;
        flight.sent(job.step, sent);
        Ok(sent)
    }

    fn advance_incoming(&mut self, peer: usize) -> Result<()> {
        if !self.wants(peer) {
            return Ok(());
        }
        let Self { transport, incoming, flights, .. } = self;
        let rank = transport.rank();
        let mut intake =
            Intake { incoming: &mut incoming[peer], flights, rank, peer, turn: TURN_BYTES, fault: None };
        let received = transport.try_receive(peer, &mut |from, len| {
            // SAFETY: the transport hands out `len` readable bytes of memory of its own.
            unsafe { intake.take(from, len) }
        })?;
        let fault = intake.fault.take();
        self.moved.received += received as u64;
        fault.map_or(Ok(()), Err)
    }

    /// Whether the first receive from a peer would take bytes if there were any.
    fn wants(&mut self, peer: usize) -> bool {
        let incoming = &self.incoming[peer];
        let Some(job) = incoming.queue.front() else { return false };
        incoming.header_filled < HEADER_BYTES || self.flights.get(job.ticket).allowed(job.step) > 0
    }

    /// Whether the first send to a peer has bytes to give.
    fn offers(&mut self, peer: usize) -> bool {
        let outgoing = &self.outgoing[peer];
        let Some(job) = outgoing.queue.front() else { return false };
        outgoing.staged.is_empty()
            || outgoing.staged_sent < outgoing.staged.len()
            || self.flights.get(job.ticket).allowed(job.step) > 0
    }

    /// What the transport is to wait for: exactly that which would let [`Executor::progress`] move something.
    pub(crate) fn interests(&mut self) -> Vec<Interest> {
        let mut interests = Vec::new();
        for peer in 0..self.outgoing.len() {
            if self.wants(peer) {
                interests.push(Interest { peer, direction: Direction::Receive });
            }
            if self.offers(peer) {
                interests.push(Interest { peer, direction: Direction::Send });
            }
        }
        interests
    }

    /// Waits until something can move, `limit` at most.
    ///
    /// # Errors
    /// Those of the transport.
    pub(crate) fn wait(&mut self, interests: &[Interest], limit: std::time::Duration) -> Result<()> {
        self.transport.wait(interests, limit)
    }

    /// Whether a collective in flight waits for its memory: it has to be asked.
    pub(crate) fn awaits_memory(&self) -> bool {
        self.flights.unready > 0
    }

    /// The collective that is waited for longest.
    pub(crate) fn oldest(&self) -> Option<Identity> {
        self.flights.queue.iter().find(|flight| flight.pending > 0).map(|flight| flight.identity)
    }

    /// Whether a collective of a group is in flight.
    pub(crate) fn is_busy_with(&self, group: u64) -> bool {
        self.flights.queue.iter().any(|flight| flight.pending > 0 && flight.identity.group == group)
    }
}

/// Takes bytes of one stream apart into headers and what follows them.
struct Intake<'a> {
    incoming: &'a mut Incoming,
    flights: &'a mut Flights,
    rank: usize,
    peer: usize,
    turn: usize,
    fault: Option<Error>,
}

impl Intake<'_> {
    /// Takes bytes from the front of a range; returns how many.
    ///
    /// # Safety
    /// `len` bytes are readable at `from` and lie in no collective's buffer.
    unsafe fn take(&mut self, from: *const u8, len: usize) -> usize {
        let mut taken = 0;
        while taken < len && self.turn > 0 && self.fault.is_none() {
            let Some(job) = self.incoming.queue.front().copied() else { break };
            // SAFETY: taken < len.
            let rest = unsafe { from.add(taken) };
            let count = if self.incoming.header_filled < HEADER_BYTES {
                // SAFETY: len - taken bytes are readable.
                unsafe { self.take_header(job, rest, len - taken) }
            } else {
                let count = self.flights.get(job.ticket).allowed(job.step).min(len - taken).min(self.turn);
                // SAFETY: count bytes are readable, outside all buffers, and allowed; jobs of this queue receive.
                unsafe {
                    self.flights.get(job.ticket).take_in(job.step, rest, count, &mut self.incoming.carry)
                };
                self.turn -= count;
                count
            };
            self.finish(job);
            if count == 0 {
                break;
            }
            taken += count;
        }
        taken
    }

    /// # Safety
    /// `len` bytes are readable at `from`.
    unsafe fn take_header(&mut self, job: Job, from: *const u8, len: usize) -> usize {
        let Incoming { header, header_filled, .. } = &mut *self.incoming;
        let count = len.min(HEADER_BYTES - *header_filled);
        // SAFETY: count bytes are readable and fit what is left of the header.
        unsafe { std::ptr::copy_nonoverlapping(from, header.as_mut_ptr().add(*header_filled), count) };
        *header_filled += count;
        if *header_filled == HEADER_BYTES {
            let flight = self.flights.get(job.ticket);
            let bytes = flight.total(job.step) as u64;
            let expected = Header { identity: flight.identity, message: job.message, bytes };
            let arrived =
                Header::decode(header).map_err(|error| error.within(format!("from rank {}", self.peer)));
            self.fault = arrived.and_then(|header| header.expect(&expected, self.rank, self.peer)).err();
        }
        count
    }

    /// Ends the first job if it is over.
    fn finish(&mut self, job: Job) {
        let flight = self.flights.get(job.ticket);
        if self.fault.is_none() && self.incoming.header_filled == HEADER_BYTES && flight.is_whole(job.step) {
            self.incoming.queue.pop_front();
            self.incoming.header_filled = 0;
            flight.pending -= 1;
        }
    }
}
