//! Ranks of one host, over shared memory.
//!
//! Every rank owns an inbox, a memfd segment that all peers map: a bell in its first page, then the counters of one
//! ring for each peer, then the rings' bytes. Rank `p` produces into its ring in the inbox of `r`, and `r` consumes it
//! there. Inboxes are handed over Unix sockets in the abstract namespace, which leave nothing behind; the sockets then
//! stay open as lines of life.
//!
//! # Sleeping
//!
//! A rank that waits announces it in its inbox (`asleep` = 1), looks once more, then sleeps on the bell. A rank that
//! moved bytes looks whether its peer is asleep, and if so clears that, steps the bell and wakes it. Each side writes
//! one word and then reads the other's, with a sequentially consistent fence between: at least one of them sees what
//! the other wrote, so no wake-up is lost. The bell is read before the announcement, so a step in between makes the
//! sleep return at once. Should a peer die or misbehave, the sleep ends by itself after [`NAP`].

use crate::control::{Line, Lines, Surroundings};
use crate::dial;
use crate::gate::timespec;
use crate::holders::Holder;
use crate::mesh::Mesh;
use crate::rendezvous::Table;
use crate::ring::{COUNTER_BYTES, Consumer, Place, Producer};
use crate::stream::Stream;
use crate::transport::{Direction, Interest, Transport};
use crate::trust::Trust;
use gradus_error::{Error, IoContext, Result};
use gradus_host::{Clock, RealClock};
use gradus_memory::Segment;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use rustix::thread::futex;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, fence};
use std::time::Duration;

const PAGE: usize = 4096;

/// Offset of the word that says whether the inbox's owner sleeps; the bell itself is at 0.
const ASLEEP: usize = 128;

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

/// The longest sleep without a look whether the peers live.
const NAP: Duration = Duration::from_millis(20);

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
    ring_bytes: usize,
}

impl Plan {
    fn rings(&self) -> usize {
        self.world_size.saturating_sub(1)
    }

    fn data(&self) -> usize {
        PAGE + (self.rings() * COUNTER_BYTES).next_multiple_of(PAGE)
    }

    fn len(&self) -> usize {
        self.data() + self.rings() * self.ring_bytes
    }

    /// The ring from `sender` in the inbox of `owner`.
    fn place(&self, segment: &Arc<Segment>, owner: usize, sender: usize) -> Place {
        let slot = if sender < owner { sender } else { sender - 1 };
        Place {
            segment: Arc::clone(segment),
            counters: PAGE + slot * COUNTER_BYTES,
            data: self.data() + slot * self.ring_bytes,
            capacity: self.ring_bytes,
        }
    }
}

/// The bell of an inbox.
struct Bell(Arc<Segment>);

impl Bell {
    fn count(&self) -> &AtomicU32 {
        self.0.atomic_u32(0)
    }

    fn asleep(&self) -> &AtomicU32 {
        self.0.atomic_u32(ASLEEP)
    }

    /// Wakes the owner if it sleeps; called after a counter was stored.
    fn ring(&self) {
        fence(SeqCst);
        if self.asleep().load(Relaxed) != 0 && self.asleep().swap(0, AcqRel) != 0 {
            self.count().fetch_add(1, Release);
            // A failure leaves the owner to its nap.
            let _ = futex::wake(self.count(), futex::Flags::empty(), 1);
        }
    }
}

struct Peer {
    producer: Producer,
    consumer: Consumer,
    bell: Bell,
}

/// The transport; see the module.
pub(crate) struct SharedMemory {
    rank: usize,
    address: SocketAddr,
    peers: Vec<Option<Peer>>,
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
        asked_ring_bytes: usize,
        spin: bool,
        surroundings: Surroundings,
        (clock, until): (&dyn Clock, Duration),
    ) -> Result<Self> {
        let (rank, world_size) = (trust.rank, table.members.len());
        let plan = Plan { world_size, ring_bytes: ring_bytes(asked_ring_bytes, world_size) };
        let inbox = Arc::new(Segment::create(&format!("gradus-inbox-{rank}"), plan.len())?);
        inbox.populate(0, plan.len());
        let sockets = connect_sockets(trust, table, clock, until)?;
        for (peer, lines) in sockets.iter().enumerate() {
            for socket in lines {
                hand_over(socket, &inbox).map_err(|error| error.within(format!("rank {peer}")))?;
            }
        }
        let (mut peers, mut lines) = (Vec::new(), Vec::new());
        for (peer, socket) in sockets.into_iter().map(|lines| lines.into_iter().next()).enumerate() {
            let Some(socket) = socket else {
                peers.push(None);
                lines.push(None);
                continue;
            };
            let theirs = take_over(&socket, plan.len(), clock, until).map_err(|error| {
                error.within(format!("rank {rank} cannot take over the inbox of rank {peer}"))
            })?;
            peers.push(Some(Peer::new(plan, rank, peer, &inbox, Arc::new(theirs))));
            lines.push(Some(Line::to_local_process(Stream::plain(socket)?)));
        }
        let lines = Lines::new(rank, lines, surroundings);
        Ok(Self {
            rank,
            address: table.doors.address,
            peers,
            bell: Bell(inbox),
            lines,
            spin,
            clock: RealClock::new(),
        })
    }

    /// The processes with which memory is shared, by rank.
    ///
    /// # Errors
    /// The system's failure to copy a descriptor.
    pub(crate) fn holders(&self) -> Result<Vec<Option<Holder>>> {
        self.lines.holders()
    }

    fn peer(&mut self, peer: usize) -> &mut Peer {
        self.peers[peer].as_mut().expect("a rank has no stream to itself")
    }

    fn is_ready(&self, interest: &Interest) -> Result<bool> {
        let peer = self.peers[interest.peer].as_ref().expect("a rank has no stream to itself");
        match interest.direction {
            Direction::Send => peer.producer.has_room(),
            Direction::Receive => Ok(peer.consumer.available()? > 0),
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

    fn sleep(&self, interests: &[Interest], limit: Duration) -> Result<()> {
        let seen = self.bell.count().load(Acquire);
        self.bell.asleep().store(1, Relaxed);
        fence(SeqCst);
        let ready = self.any_ready(interests);
        if let Ok(false) = ready {
            // Whatever ends the sleep, the caller looks again.
            let nap = timespec(limit.min(NAP));
            let _ = futex::wait(self.bell.count(), futex::Flags::empty(), seen, Some(&nap));
        }
        self.bell.asleep().store(0, Relaxed);
        ready.map(|_| ())
    }
}

impl Peer {
    fn new(plan: Plan, rank: usize, peer: usize, ours: &Arc<Segment>, theirs: Arc<Segment>) -> Self {
        let outgoing = plan.place(&theirs, peer, rank);
        theirs.populate(0, plan.data());
        theirs.populate(outgoing.data, outgoing.capacity);
        Self {
            producer: Producer::new(outgoing),
            consumer: Consumer::new(plan.place(ours, rank, peer)),
            bell: Bell(theirs),
        }
    }
}

impl Transport for SharedMemory {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.peers.len()
    }

    fn name(&self) -> &'static str {
        "shared memory"
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    fn try_send(&mut self, peer: usize, bytes: &[u8]) -> Result<usize> {
        let Peer { producer, bell, .. } = self.peer(peer);
        producer.write(bytes, || bell.ring()).map_err(|error| error.within(format!("to rank {peer}")))
    }

    fn try_receive(
        &mut self,
        peer: usize,
        consume: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize> {
        let Peer { consumer, bell, .. } = self.peer(peer);
        let taken = consumer.take(consume).map_err(|error| error.within(format!("from rank {peer}")))?;
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
        self.sleep(interests, limit)?;
        if self.any_ready(interests)? {
            return Ok(());
        }
        self.lines.check()?;
        // What a peer sent before its goodbye is in the ring by now: look once more before missing it.
        let gone = interests.iter().find(|interest| self.lines.has_left(interest.peer));
        match gone {
            Some(gone) if !self.is_ready(gone)? => Err(self.lines.left_too_early(gone.peer)),
            _ => Ok(()),
        }
    }

    fn fence(&mut self, lost: &[usize]) -> Result<()> {
        self.lines.fence(lost, &self.clock)
    }

    fn abort(&mut self, reason: &Error) {
        self.lines.give_up(reason);
    }
}

fn connect_sockets(
    trust: Trust,
    table: &mut Table,
    clock: &dyn Clock,
    until: Duration,
) -> Result<Vec<Vec<OwnedFd>>> {
    let rank = trust.rank;
    let Some(listener) = table.doors.local.take() else {
        return Err(Error::unavailable(format!("rank {rank} has no socket to hand out shared memory")));
    };
    let mesh = Mesh { rank, world_size: table.members.len(), job: &table.job, trust, lines: 1, clock, until };
    let streams = mesh.connect(listener.into(), &|peer| {
        dial::reach_local(&table.members[peer].socket, until.saturating_sub(clock.now())).map_err(|error| {
            Error::peer_lost(peer, format!("rank {peer} cannot be reached on this host")).with_source(error)
        })
    })?;
    let plain = |lines: Vec<Stream>| lines.into_iter().filter_map(Stream::into_plain).collect();
    Ok(streams.into_iter().map(plain).collect())
}

/// Sends the inbox' file along with one byte, which carries it.
fn hand_over(socket: &OwnedFd, inbox: &Segment) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [inbox.file()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)), "the space holds one file");
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&[1])], &mut ancillary, SendFlags::NOSIGNAL);
    sent.map(|_| ()).context(|| "cannot hand over shared memory".to_owned())
}

/// Receives a file and maps it.
fn take_over(socket: &OwnedFd, len: usize, clock: &dyn Clock, until: Duration) -> Result<Segment> {
    dial::wait_readable(socket, clock, until)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    received.context(|| "no shared memory arrived".to_owned())?;
    let files = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let file = files.flatten().next().ok_or_else(|| Error::unavailable("no shared memory arrived"))?;
    Segment::open(file, len)
}
