//! Ranks of one node, over shared memory: all of a world, or those of a [`Circle`] whose other peers are reached by TCP
//! ([`crate::nodes`]).
//!
//! Every rank owns an inbox, a memfd segment that its peers map ([`crate::inbox`]). Rank `p` produces into its rings in the
//! inbox of `r`, and `r` consumes them there. Inboxes are handed over Unix sockets in the abstract namespace, which leave
//! nothing behind; the sockets then stay open as lines of life.
//!
//! Where the circle is the whole world each inbox also holds its owner's boards, one for each level of priority, for what
//! ranks do without a stream: see [`Neighbours`]. Else it goes with a cord for its bell.

use crate::bell::{self, Bell};
use crate::board::{HEADER_WORDS, Note};
use crate::circle::Circle;
use crate::control::{Line, Lines, Surroundings};
use crate::credentials::Credentials;
use crate::handover::{Handed, connect_sockets, hand_over, take_over};
use crate::holders::Holder;
use crate::inbox::Plan;
use crate::neighbours::{Location, Neighbour, Neighbours};
use crate::rendezvous::Table;
use crate::ring::{Consumer, Producer};
use crate::settings::{NetworkSettings, PeerMemory};
use crate::stream::Stream;
use crate::transport::{Direction, Interest, Lane, Transport};
use crate::trust::Trust;
use gradus_error::{Error, Kind, Result};
use gradus_host::{Clock, RealClock};
use gradus_memory::{PeerHeap, Segment, SharedHeap};
use rustix::event::{PollFd, PollFlags};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// How long to spin before sleeping. Waking a rank on another processor takes some 50 microseconds; who spins for less
/// falls asleep while its peer wakes, and so on in turns.
const SPIN: Duration = Duration::from_micros(200);

/// Looks between two looks at the clock: some three microseconds.
const LOOKS: usize = 64;

/// Looks between yields of the processor before sleeping.
const YIELDS: usize = 20;

/// The longest wait, while ranks meet, without a look at the time.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

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
    levels: usize,
    /// By [`Lane::index`]; none to ourselves, nor to ranks that are not of the circle.
    ends: Vec<Option<Ends>>,
    /// By level; none where others of the world share no memory with us.
    neighbours: Vec<Neighbours>,
    bell: Bell,
    lines: Lines,
    /// Whether every rank of the host has a processor.
    spin: bool,
    clock: RealClock,
}

impl SharedMemory {
    /// Exchanges inboxes with the ranks of the circle, which is around this one.
    ///
    /// # Errors
    /// `Exhausted` when memory is short, `PeerLost` or `Unavailable` naming a rank that does not take part, `Invalid`
    /// where settings differ.
    pub(crate) fn connect(
        trust: Trust,
        table: &mut Table,
        circle: &Circle,
        settings: &NetworkSettings,
        spin: bool,
        surroundings: Surroundings,
        (clock, until): (&dyn Clock, Duration),
    ) -> Result<Self> {
        let rank = trust.rank;
        let plan = Plan::new(circle, settings);
        let inbox = Arc::new(Segment::create(&format!("gradus-inbox-{rank}"), plan.len())?);
        inbox.populate(0, plan.len());
        let own = Own::new(rank, circle)?;
        let sockets = connect_sockets(trust, table, circle, clock, until)?;
        for (peer, lines) in sockets.iter().enumerate() {
            for socket in lines {
                let handed = hand_over(socket, &inbox, own.beside());
                handed.map_err(|error| error.within(format!("rank {peer}")))?;
            }
        }
        let mut transport = Self::new(rank, table, plan, own, inbox, spin, surroundings);
        let mut lines = Vec::with_capacity(sockets.len());
        for (peer, socket) in sockets.into_iter().map(|lines| lines.into_iter().next()).enumerate() {
            let line = socket.map(|socket| transport.take_over(plan, circle, peer, socket, (clock, until)));
            lines.push(line.transpose()?);
        }
        // Nobody hears a goodbye of a rank that did not come so far.
        transport.lines.fill(lines);
        if circle.is_whole() && transport.try_peer_memory(settings.peer_memory, (clock, until))? {
            transport.neighbours.iter_mut().for_each(Neighbours::allow_private);
        }
        Ok(transport)
    }

    /// One that has met nobody yet.
    fn new(
        rank: usize,
        table: &Table,
        plan: Plan,
        own: Own,
        inbox: Arc<Segment>,
        spin: bool,
        surroundings: Surroundings,
    ) -> Self {
        let world_size = table.members.len();
        let (neighbours, bell) = match own {
            Own::Heap(heap) => (plan.neighbours(rank, &inbox, &heap, spin), Bell::new(inbox)),
            Own::Cord(cord) => (Vec::new(), Bell::with_cord(inbox, cord)),
        };
        Self {
            rank,
            address: table.doors.address,
            world_size,
            levels: plan.levels,
            ends: (0..world_size * plan.levels).map(|_| None).collect(),
            neighbours,
            bell,
            lines: Lines::new(rank, Vec::new(), surroundings),
            spin,
            clock: RealClock::new(),
        }
    }

    /// Maps what a peer hands over; the line to it.
    fn take_over(
        &mut self,
        plan: Plan,
        circle: &Circle,
        peer: usize,
        socket: OwnedFd,
        (clock, until): (&dyn Clock, Duration),
    ) -> Result<Line> {
        let rank = self.rank;
        let handed = take_over(&socket, plan.len(), clock, until).map_err(|error| {
            error.within(format!("rank {rank} cannot take over the inbox of rank {peer}"))
        })?;
        let Handed { inbox, beside } = handed;
        let (theirs, places) = (Arc::new(inbox), [rank, peer].map(|rank| circle.place(rank)));
        plan.populate(&theirs, places[0], places[1]);
        let bell = if circle.is_whole() {
            let heap = PeerHeap::open(beside)?;
            for (level, neighbours) in self.neighbours.iter_mut().enumerate() {
                let name = self.lines.name(peer);
                neighbours.meet(peer, neighbour(name, plan, level, &theirs, heap.again(), &socket));
            }
            Bell::new(theirs)
        } else {
            Bell::with_cord(theirs, beside)
        };
        for level in 0..plan.levels {
            let lane = Lane { peer, level };
            self.ends[lane.index(self.world_size)] = Some(Ends::new(plan, places, level, &self.bell, &bell));
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
        let inbox = Location::Private(self.bell.inbox().at(0, 1).addr());
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

    /// Looks, without waiting, whether anybody died or gave up.
    ///
    /// # Errors
    /// `PeerLost` naming who died; what a peer gave up with.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.lines.check()
    }

    fn ends(&mut self, lane: Lane) -> &mut Ends {
        self.ends[lane.index(self.world_size)].as_mut().expect("only ranks of a circle have streams in it")
    }

    fn is_ready(&self, interest: &Interest) -> Result<bool> {
        let Interest { lane, direction } = *interest;
        let ends = self.ends[lane.index(self.world_size)]
            .as_ref()
            .expect("only ranks of a circle have streams in it");
        match direction {
            Direction::Send => ends.producer.has_room(),
            Direction::Receive => Ok(ends.consumer.available()? > 0),
            Direction::Signal => Ok(self.neighbours[lane.level].has_news(lane.peer)),
        }
    }

    /// Whether this is how a rank is reached.
    pub(crate) fn reaches(&self, rank: usize) -> bool {
        self.ends[rank].is_some()
    }

    pub(crate) fn any_ready(&self, interests: &[Interest]) -> Result<bool> {
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

/// What a rank hands out beside its inbox.
enum Own {
    /// In a circle that is the whole world.
    Heap(SharedHeap),
    /// In another.
    Cord(OwnedFd),
}

impl Own {
    fn new(rank: usize, circle: &Circle) -> Result<Self> {
        if circle.is_whole() {
            return SharedHeap::create(&format!("gradus-heap-{rank}")).map(Self::Heap);
        }
        bell::cord().map(Self::Cord)
    }

    fn beside(&self) -> BorrowedFd<'_> {
        match self {
            Self::Heap(heap) => heap.file(),
            Self::Cord(cord) => cord.as_fd(),
        }
    }
}

impl Ends {
    /// The ends at the first of two places of a lane to the second.
    fn new(plan: Plan, [own, peer]: [usize; 2], level: usize, ours: &Bell, theirs: &Bell) -> Self {
        Self {
            producer: Producer::new(plan.place(theirs.inbox(), peer, own, level)),
            consumer: Consumer::new(plan.place(ours.inbox(), own, peer, level)),
            bell: theirs.clone(),
        }
    }
}

// In the parts of a wait, which are also those of a wait for more than this.
impl SharedMemory {
    /// Looks for a while before it is worth sleeping; whether it was worth it.
    pub(crate) fn is_ready_early(&self, interests: &[Interest]) -> Result<bool> {
        if self.spin && self.ready_soon(interests)? {
            return Ok(true);
        }
        for _ in 0..YIELDS {
            if self.any_ready(interests)? {
                return Ok(true);
            }
            rustix::thread::sched_yield();
        }
        Ok(false)
    }

    /// Sleeps, unless an interest is ready: `doze` returns, after a nap at most, once there is news of what it is given.
    pub(crate) fn sleep_beside(
        &self,
        interests: &[Interest],
        doze: impl FnOnce(Vec<PollFd<'_>>) -> Result<()>,
    ) -> Result<()> {
        self.bell.sleep_by_cord(
            || self.any_ready(interests),
            |cord| {
                let mut watched = self.lines.watched();
                watched.push(PollFd::from_borrowed_fd(cord, PollFlags::IN));
                doze(watched)
            },
        )
    }

    /// After a sleep: whether somebody is gone who is needed.
    pub(crate) fn look_around(&mut self, interests: &[Interest]) -> Result<()> {
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
        self.levels
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
        if self.is_ready_early(interests)? {
            return Ok(());
        }
        self.bell.sleep(limit, || self.any_ready(interests))?;
        self.look_around(interests)
    }

    fn fence(&mut self, lost: &[usize]) -> Result<()> {
        self.lines.fence(lost, &self.clock)
    }

    fn explain_loss(&mut self, error: Error) -> Error {
        match *error.kind() {
            Kind::PeerLost { rank } => self.lines.last_word(rank).unwrap_or(error),
            _ => error,
        }
    }

    fn abort(&mut self, reason: &Error) {
        self.lines.give_up(reason);
    }

    fn neighbours(&mut self, level: usize) -> Option<&mut Neighbours> {
        if self.neighbours.is_empty() { None } else { Some(&mut self.neighbours[level]) }
    }
}

/// A note of one word.
fn probe(word: u64) -> Note {
    let mut note = Note::default();
    note[0] = word;
    note
}

/// What is known of a peer when it has handed over its files.
fn neighbour(
    name: String,
    plan: Plan,
    level: usize,
    inbox: &Arc<Segment>,
    heap: PeerHeap,
    socket: &OwnedFd,
) -> Neighbour {
    let process = Credentials::behind(socket).and_then(|theirs| theirs.process);
    Neighbour {
        name,
        board: plan.board_in(inbox, level),
        bell: Bell::new(Arc::clone(inbox)),
        heap,
        process: process.map(|process| process.as_raw_nonzero().get()),
        signalled: 0,
        heard: 0,
    }
}

#[cfg(test)]
#[path = "shm_tests.rs"]
mod tests;
