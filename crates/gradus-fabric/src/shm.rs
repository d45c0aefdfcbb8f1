//! Ranks of one host, over shared memory.
//!
//! Every rank owns an inbox, a memfd segment that all peers map: a bell in its first page, then the counters of one
//! ring for each lane, then the rings' bytes. Rank `p` produces into its rings in the inbox of `r`, and `r` consumes them
//! there. Inboxes are handed over Unix sockets in the abstract namespace, which leave nothing behind; the sockets then
//! stay open as lines of life.
//!
//! Beside the streams each inbox holds its owner's boards, one for each level of priority, for what ranks do without a
//! stream: see [`Neighbours`].

use crate::bell::Bell;
use crate::board::{Board, HEADER_WORDS, Note};
use crate::control::{Line, Lines, Surroundings};
use crate::credentials::Credentials;
use crate::handover::{connect_sockets, hand_over, take_over};
use crate::holders::Holder;
use crate::neighbours::{Location, Neighbour, Neighbours};
use crate::rendezvous::Table;
use crate::ring::{COUNTER_BYTES, Consumer, Place, Producer};
use crate::settings::{NetworkSettings, PeerMemory};
use crate::stream::Stream;
use crate::transport::{Direction, Interest, Lane, Transport};
use crate::trust::Trust;
use gradus_error::{Error, Result};
use gradus_host::{Clock, RealClock};
use gradus_memory::{PeerHeap, Segment, SharedHeap};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

const PAGE: usize = 4096;

/// All rings of an inbox together, by default, and the bounds of one: beyond a megabyte a ring falls out of the cache
/// that both sides should find it in.
const INBOX_BYTES: usize = 16 << 20;
const SMALLEST_RING: usize = 64 << 10;
const LARGEST_RING: usize = 1 << 20;

/// How long to spin before sleeping. Waking a rank on another processor takes some 50 microseconds; who spins for less
/// falls asleep while its peer wakes, and so on in turns.
const SPIN: Duration = Duration::from_micros(200);

/// Looks between two looks at the clock: some three microseconds.
const LOOKS: usize = 64;

/// Looks between yields of the processor before sleeping.
const YIELDS: usize = 20;

/// The longest wait, while ranks meet, without a look at the time.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Bytes of a ring when none were asked for: a power of two.
fn ring_bytes(asked: usize, world_size: usize) -> usize {
    if asked == 0 {
        let share = INBOX_BYTES / world_size.saturating_sub(1).max(1);
        return (1 << share.ilog2()).clamp(SMALLEST_RING, LARGEST_RING);
    }
    asked
}

/// Where things lie in an inbox.
#[derive(Clone, Copy)]
struct Plan {
    world_size: usize,
    levels: usize,
    ring_bytes: usize,
}

impl Plan {
    fn rings(&self) -> usize {
        self.world_size.saturating_sub(1) * self.levels
    }

    fn data(&self) -> usize {
        PAGE + (self.rings() * COUNTER_BYTES).next_multiple_of(PAGE)
    }

    fn board(&self, level: usize) -> usize {
        let first = self.data() + (self.rings() * self.ring_bytes).next_multiple_of(PAGE);
        first + level * Board::len(self.world_size)
    }

    fn len(&self) -> usize {
        self.board(self.levels)
    }

    /// The board of a level in an inbox.
    fn board_in(&self, inbox: &Arc<Segment>, level: usize) -> Board {
        Board::new(Arc::clone(inbox), self.board(level), self.world_size)
    }

    /// What this rank does with its neighbours, at each level, before it has met any.
    fn neighbours(
        &self,
        rank: usize,
        inbox: &Arc<Segment>,
        heap: &SharedHeap,
        spin: bool,
    ) -> Vec<Neighbours> {
        let level =
            |level| Neighbours::new(rank, self.board_in(inbox, level), heap.clone(), self.world_size, spin);
        (0..self.levels).map(level).collect()
    }

    /// Maps what `rank` touches of a peer's inbox, all at once.
    fn populate(&self, inbox: &Arc<Segment>, rank: usize, peer: usize) {
        inbox.populate(0, self.data());
        for level in 0..self.levels {
            let ring = self.place(inbox, peer, rank, level);
            inbox.populate(ring.data, ring.capacity);
        }
        inbox.populate(self.board(0), self.len() - self.board(0));
    }

    /// The ring from `sender` in the inbox of `owner`.
    fn place(&self, segment: &Arc<Segment>, owner: usize, sender: usize, level: usize) -> Place {
        let peer = if sender < owner { sender } else { sender - 1 };
        let slot = Lane { peer, level }.index(self.world_size - 1);
        Place {
            segment: Arc::clone(segment),
            counters: PAGE + slot * COUNTER_BYTES,
            data: self.data() + slot * self.ring_bytes,
            capacity: self.ring_bytes,
        }
    }
}

/// The ends of one lane.
struct Ends {
    producer: Producer,
    consumer: Consumer,
    bell: Bell,
}

/// The transport; see the module.
pub(crate) struct SharedMemory {
    rank: usize,
    address: SocketAddr,
    world_size: usize,
    /// By [`Lane::index`]; none to ourselves.
    ends: Vec<Option<Ends>>,
    /// By level.
    neighbours: Vec<Neighbours>,
    bell: Bell,
    lines: Lines,
    /// Whether every rank of the host has a processor.
    spin: bool,
    clock: RealClock,
}

impl SharedMemory {
    /// Exchanges inboxes with all ranks of the table.
    ///
    /// # Errors
    /// `Exhausted` when memory is short, `PeerLost` or `Unavailable` naming a rank that does not take part, `Invalid`
    /// where settings differ.
    pub(crate) fn connect(
        trust: Trust,
        table: &mut Table,
        settings: &NetworkSettings,
        spin: bool,
        surroundings: Surroundings,
        (clock, until): (&dyn Clock, Duration),
    ) -> Result<Self> {
        let (rank, world_size) = (trust.rank, table.members.len());
        let ring_bytes = ring_bytes(settings.ring_bytes, world_size);
        let plan = Plan { world_size, levels: settings.priority_levels, ring_bytes };
        let inbox = Arc::new(Segment::create(&format!("gradus-inbox-{rank}"), plan.len())?);
        inbox.populate(0, plan.len());
        let heap = SharedHeap::create(&format!("gradus-heap-{rank}"))?;
        let sockets = connect_sockets(trust, table, clock, until)?;
        for (peer, lines) in sockets.iter().enumerate() {
            for socket in lines {
                hand_over(socket, &inbox, &heap).map_err(|error| error.within(format!("rank {peer}")))?;
            }
        }
        let mut transport = Self {
            rank,
            address: table.doors.address,
            world_size,
            ends: (0..world_size * plan.levels).map(|_| None).collect(),
            neighbours: plan.neighbours(rank, &inbox, &heap, spin),
            bell: Bell(inbox),
            lines: Lines::new(rank, Vec::new(), surroundings),
            spin,
            clock: RealClock::new(),
        };
        let mut lines = Vec::with_capacity(world_size);
        for (peer, socket) in sockets.into_iter().map(|lines| lines.into_iter().next()).enumerate() {
            let line = socket.map(|socket| transport.take_over(plan, peer, socket, clock, until));
            lines.push(line.transpose()?);
        }
        // Nobody hears a goodbye of a rank that did not come so far.
        transport.lines.fill(lines);
        if transport.try_peer_memory(settings.peer_memory, (clock, until))? {
            transport.neighbours.iter_mut().for_each(Neighbours::allow_private);
        }
        Ok(transport)
    }

    /// Maps what a peer hands over; the line to it.
    fn take_over(
        &mut self,
        plan: Plan,
        peer: usize,
        socket: OwnedFd,
        clock: &dyn Clock,
        until: Duration,
    ) -> Result<Line> {
        let rank = self.rank;
        let handed = take_over(&socket, plan.len(), clock, until).map_err(|error| {
            error.within(format!("rank {rank} cannot take over the inbox of rank {peer}"))
        })?;
        let theirs = Arc::new(handed.inbox);
        plan.populate(&theirs, rank, peer);
        for level in 0..plan.levels {
            let lane = Lane { peer, level };
            self.ends[lane.index(self.world_size)] = Some(Ends::new(plan, rank, lane, &self.bell.0, &theirs));
            self.neighbours[level].meet(peer, neighbour(plan, level, &theirs, handed.heap.again(), &socket));
        }
        Ok(Line::to_local_process(Stream::plain(socket)?))
    }

    /// Whether every rank may read the private memory of every other: all try, and hear how the others fared.
    ///
    /// # Errors
    /// `PeerLost` naming a rank that died meanwhile, `Unavailable` one that does not answer in time.
    fn try_peer_memory(
        &mut self,
        wanted: PeerMemory,
        (clock, until): (&dyn Clock, Duration),
    ) -> Result<bool> {
        let others: Vec<usize> = (0..self.world_size()).filter(|peer| *peer != self.rank).collect();
        let inbox = Location::Private(self.bell.0.at(0, 1).addr());
        // One level finds out for all.
        for peer in &others {
            self.neighbours[0].signal(*peer, &probe(inbox.to_word()), &[0; HEADER_WORDS]);
        }
        let mut readable = wanted != PeerMemory::Never;
        for peer in &others {
            let [word, ..] = self.hear(*peer, clock, until)?;
            readable = readable && self.neighbours[0].can_read(*peer, Location::from_word(word), wanted);
        }
        for peer in &others {
            self.neighbours[0].signal(*peer, &probe(u64::from(readable)), &[0; HEADER_WORDS]);
        }
        let mut all = readable;
        for peer in &others {
            let [word, ..] = self.hear(*peer, clock, until)?;
            all = all && word == 1;
        }
        tracing::debug!(rank = self.rank, readable, all, "ranks read each other's memory");
        Ok(all)
    }

    /// Waits for a signal, of the lowest level.
    fn hear(&mut self, peer: usize, clock: &dyn Clock, until: Duration) -> Result<Note> {
        loop {
            if let Some(note) = self.neighbours[0].hear(peer) {
                return Ok(note);
            }
            if clock.now() >= until {
                return Err(Error::unavailable(format!(
                    "rank {peer} did not answer in shared memory in time"
                )));
            }
            let signal = Interest { lane: Lane::lowest(peer), direction: Direction::Signal };
            self.wait(&[signal], LONGEST_WAIT)?;
        }
    }

    /// The processes with which memory is shared, by rank.
    ///
    /// # Errors
    /// The system's failure to copy a descriptor.
    pub(crate) fn holders(&self) -> Result<Vec<Option<Holder>>> {
        self.lines.holders()
    }

    fn ends(&mut self, lane: Lane) -> &mut Ends {
        self.ends[lane.index(self.world_size)].as_mut().expect("a rank has no stream to itself")
    }

    fn is_ready(&self, interest: &Interest) -> Result<bool> {
        let Interest { lane, direction } = *interest;
        let ends = self.ends[lane.index(self.world_size)].as_ref().expect("a rank has no stream to itself");
        match direction {
            Direction::Send => ends.producer.has_room(),
            Direction::Receive => Ok(ends.consumer.available()? > 0),
            Direction::Signal => Ok(self.neighbours[lane.level].has_news(lane.peer)),
        }
    }

    fn any_ready(&self, interests: &[Interest]) -> Result<bool> {
        for interest in interests {
            if self.is_ready(interest)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Spins for a while; whether it was worth it.
    fn ready_soon(&self, interests: &[Interest]) -> Result<bool> {
        let start = self.clock.now();
        loop {
            for _ in 0..LOOKS {
                if self.any_ready(interests)? {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if self.clock.now() - start >= SPIN {
                return Ok(false);
            }
            // Costs little when nobody else wants this processor, and much is won when it is the peer who does.
            rustix::thread::sched_yield();
        }
    }
}

impl Ends {
    fn new(plan: Plan, rank: usize, lane: Lane, ours: &Arc<Segment>, theirs: &Arc<Segment>) -> Self {
        Self {
            producer: Producer::new(plan.place(theirs, lane.peer, rank, lane.level)),
            consumer: Consumer::new(plan.place(ours, rank, lane.peer, lane.level)),
            bell: Bell(Arc::clone(theirs)),
        }
    }
}

impl Transport for SharedMemory {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn name(&self) -> &'static str {
        "shared memory"
    }

    fn levels(&self) -> usize {
        self.neighbours.len()
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    fn try_send(&mut self, lane: Lane, bytes: &[u8]) -> Result<usize> {
        let Ends { producer, bell, .. } = self.ends(lane);
        producer.write(bytes, || bell.ring()).map_err(|error| error.within(format!("to rank {}", lane.peer)))
    }

    fn try_receive(
        &mut self,
        lane: Lane,
        consume: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize> {
        let Ends { consumer, bell, .. } = self.ends(lane);
        let taken =
            consumer.take(consume).map_err(|error| error.within(format!("from rank {}", lane.peer)))?;
        if taken > 0 {
            bell.ring();
        }
        Ok(taken)
    }

    fn wait(&mut self, interests: &[Interest], limit: Duration) -> Result<()> {
        self.lines.heed()?;
        if self.spin && self.ready_soon(interests)? {
            return Ok(());
        }
        for _ in 0..YIELDS {
            if self.any_ready(interests)? {
                return Ok(());
            }
            rustix::thread::sched_yield();
        }
        self.bell.sleep(limit, || self.any_ready(interests))?;
        if self.any_ready(interests)? {
            return Ok(());
        }
        self.lines.check()?;
        // What a peer sent before its goodbye is in the ring by now: look once more before missing it.
        let gone = interests.iter().find(|interest| self.lines.has_left(interest.lane.peer));
        match gone {
            Some(gone) if !self.is_ready(gone)? => Err(self.lines.left_too_early(gone.lane.peer)),
            _ => Ok(()),
        }
    }

    fn fence(&mut self, lost: &[usize]) -> Result<()> {
        self.lines.fence(lost, &self.clock)
    }

    fn abort(&mut self, reason: &Error) {
        self.lines.give_up(reason);
    }

    fn neighbours(&mut self, level: usize) -> Option<&mut Neighbours> {
        Some(&mut self.neighbours[level])
    }
}

/// A note of one word.
fn probe(word: u64) -> Note {
    let mut note = Note::default();
    note[0] = word;
    note
}

/// What is known of a peer when it has handed over its files.
fn neighbour(plan: Plan, level: usize, inbox: &Arc<Segment>, heap: PeerHeap, socket: &OwnedFd) -> Neighbour {
    let process = Credentials::behind(socket).and_then(|theirs| theirs.process);
    Neighbour {
        board: plan.board_in(inbox, level),
        bell: Bell(Arc::clone(inbox)),
        heap,
        process: process.map(|process| process.as_raw_nonzero().get()),
        signalled: 0,
        heard: 0,
    }
}

#[cfg(test)]
#[path = "shm_tests.rs"]
mod tests;
