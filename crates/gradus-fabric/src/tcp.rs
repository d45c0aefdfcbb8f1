//! Ranks anywhere, over TCP: a connection for each lane between every two ranks, and one as a line of life. Ranks that
//! are reached by shared memory ([`crate::nodes`]) are left out.
//!
//! What arrives is read into a bounded buffer for each lane and handed out from there, or straight into the caller's memory;
//! what is sent goes straight from the caller's memory to the kernel. Signals are never raised: a closed connection is an
//! error like others. Under TLS some of what was taken may be held back, encrypted, until there is room: waiting moves it,
//! and so does dropping.
//!
//! While it spins, a wait for one or two streams returns at once: the caller's next try costs a system call less than a look
//! before it. It yields no processor then: two ranks that begin on one processor and yield to each other never stay off it
//! long enough for the system to move one of them away.

use crate::circle::Circle;
use crate::control::{Line, Lines, Surroundings};
use crate::dial;
use crate::gate::timespec;
use crate::mesh::Mesh;
use crate::rendezvous::Table;
use crate::settings::NetworkSettings;
use crate::stream::{Moved, Stream};
use crate::transport::{Direction, Interest, Lane, Transport};
use crate::trust::Trust;
use gradus_error::{Error, IoContext, Result};
use gradus_host::{Clock, RealClock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, sockopt};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Bytes of the buffer of one lane: what comes in a turn, and fits the cache beside what is computed on it. A buffer that
/// was never used takes no memory.
const BUFFER_BYTES: usize = TURN_BYTES;

/// Bytes of one call: the more there are, the less of the time is spent between calls, with neither processor copying.
const TURN_BYTES: usize = 512 << 10;

/// Looks, each a system call of about half a microsecond, before yielding: a few times what waking across processors
/// takes.
const SPINS: usize = 400;

/// Looks between yields of the processor before sleeping.
const YIELDS: usize = 20;

/// Streams up to which trying each of them again is cheaper than asking the system about all.
const FEW_STREAMS: usize = 2;

/// The longest sleep in one call.
const NAP: Duration = Duration::from_secs(1);

/// How long a transport that is dropped waits for room for what it still holds.
const LAST_BYTES: Duration = Duration::from_secs(10);

/// The end of one lane.
struct End {
    stream: Stream,
    buffer: Vec<u8>,
    /// What of the buffer has arrived and is not taken.
    filled: std::ops::Range<usize>,
}

impl End {
    fn new(stream: Stream) -> Self {
        Self { stream, buffer: vec![0; BUFFER_BYTES], filled: 0..0 }
    }

    /// Reads what has arrived into the empty buffer; `false` when the stream has ended.
    fn fill(&mut self) -> Result<bool> {
        let moved = self.stream.receive(&mut self.buffer)?;
        if let Moved::Bytes(count) = moved {
            self.filled = 0..count;
        }
        Ok(moved != Moved::Ended)
    }
}

/// The transport; see the module.
pub(crate) struct Tcp {
    rank: usize,
    address: SocketAddr,
    world_size: usize,
    /// By [`Lane::index`]; none to ourselves, nor to ranks that are reached another way.
    ends: Vec<Option<End>>,
    lines: Lines,
    spins: usize,
    /// Calls of `wait` since something moved.
    fruitless: usize,
}

impl Tcp {
    /// Connects to all ranks of the table that are not of the circle around this one.
    ///
    /// # Errors
    /// `PeerLost` or `Unavailable` naming a rank that does not take part.
    pub(crate) fn connect(
        trust: Trust,
        table: Table,
        circle: &Circle,
        settings: &NetworkSettings,
        spin: bool,
        surroundings: Surroundings,
        (clock, until): (&dyn Clock, Duration),
    ) -> Result<Self> {
        let rank = trust.rank;
        let (world_size, address) = (table.members.len(), table.doors.address);
        let levels = settings.priority_levels;
        let lines = circle.lines_outside(levels + 1);
        let mesh = Mesh { rank, job: &table.job, trust, lines, clock, until };
        let streams = mesh.connect(table.doors.tcp.into(), &|peer| {
            let address = table.members[peer].address;
            let socket = dial::try_once(address, clock, until).map(OwnedFd::from);
            socket.map_err(|error| dial::unreachable(rank, peer, &format!("at {address}"), error))
        })?;
        let mut ends: Vec<Option<End>> = (0..world_size * levels).map(|_| None).collect();
        let mut lines = Vec::new();
        for (peer, mut streams) in streams.into_iter().enumerate() {
            // The last one is the line of life.
            let control = streams.pop();
            for (level, data) in streams.into_iter().enumerate() {
                tune(&data, settings.socket_buffer_bytes)?;
                ends[Lane { peer, level }.index(world_size)] = Some(End::new(data));
            }
            if let Some(control) = &control {
                watch(control, surroundings.timeouts.detection)?;
            }
            lines.push(control.map(Line::new));
        }
        let (lines, spins) = (Lines::new(rank, lines, surroundings), if spin { SPINS } else { 0 });
        Ok(Self { rank, address, world_size, ends, lines, spins, fruitless: 0 })
    }

    /// What came of a try to send to a peer.
    fn sent(&mut self, peer: usize, moved: Result<Moved>) -> Result<usize> {
        match moved {
            Ok(Moved::Bytes(count)) => {
                self.fruitless = 0;
                Ok(count)
            }
            Ok(Moved::Nothing) => Ok(0),
            Ok(Moved::Ended) => Err(self.lines.explain(peer)),
            Err(error) => Err(error.within(format!("to rank {peer}"))),
        }
    }

    fn end(&mut self, lane: Lane) -> &mut End {
        self.ends[lane.index(self.world_size)]
            .as_mut()
            .expect("only ranks outside the circle have connections")
    }

    /// Moves what streams hold.
    fn flush(&mut self) -> Result<()> {
        for (index, end) in self.ends.iter_mut().enumerate() {
            let Some(End { stream, .. }) = end else { continue };
            stream.flush().map_err(|error| error.within(format!("to rank {}", index % self.world_size)))?;
        }
        Ok(())
    }

    /// Before a wait: whether the alarm was raised, and what streams hold is moved.
    ///
    /// # Errors
    /// What it was raised with; a stream's failure.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        self.lines.heed()?;
        self.flush()
    }

    /// Whether it is too early to sleep: who waits is to try again.
    ///
    /// # Errors
    /// As [`Tcp::check`].
    pub(crate) fn is_early(&mut self, interests: &[Interest]) -> Result<bool> {
        let looks = self.fruitless;
        self.fruitless += 1;
        if looks >= self.spins + YIELDS {
            return Ok(false);
        }
        if looks >= self.spins {
            rustix::thread::sched_yield();
        }
        // Where there are few, who called us tries again: that is as good as a look.
        let few = interests.len() <= FEW_STREAMS;
        if !few && self.look(interests, Vec::new(), &timespec(Duration::ZERO))?.1 {
            self.lines.check()?;
        }
        Ok(true)
    }

    /// Something has moved: from now on it is early again.
    pub(crate) fn stir(&mut self) {
        self.fruitless = 0;
    }

    /// Looks, without waiting, whether anybody died or gave up.
    ///
    /// # Errors
    /// `PeerLost` naming who died; what a peer gave up with.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.lines.check()
    }

    /// Sleeps until there is news, also of what else is `watched`, `limit` at most; whether there was any about the interests,
    /// and about the rest.
    pub(crate) fn look<'a>(
        &'a self,
        interests: &[Interest],
        watched: Vec<PollFd<'a>>,
        limit: &Timespec,
    ) -> Result<(bool, bool)> {
        let mut sockets: Vec<PollFd> = Vec::with_capacity(interests.len() + self.ends.len());
        for Interest { lane, direction } in interests {
            let end = self.ends[lane.index(self.world_size)].as_ref();
            let end = end.expect("only ranks outside the circle have connections");
            if *direction == Direction::Receive && !end.filled.is_empty() {
                return Ok((true, false));
            }
            let way = if *direction == Direction::Send { PollFlags::OUT } else { PollFlags::IN };
            sockets.push(PollFd::new(&end.stream, way));
        }
        let wanted = sockets.len();
        sockets.extend(self.lines.watched());
        sockets.extend(watched);
        let holding = self.ends.iter().flatten().filter(|end| end.stream.is_holding());
        sockets.extend(holding.map(|end| PollFd::new(&end.stream, PollFlags::OUT)));
        match poll(&mut sockets, Some(limit)) {
            Ok(0) | Err(Errno::INTR) => return Ok((false, false)),
            Ok(_) => {}
            Err(error) => return Err(Error::io("cannot wait for the other ranks", error.into())),
        }
        let any = |fds: &[PollFd]| fds.iter().any(|fd| !fd.revents().is_empty());
        Ok((any(&sockets[..wanted]), any(&sockets[wanted..])))
    }
}

impl Drop for Tcp {
    /// What was taken is still to reach its peer, before the lines say goodbye.
    fn drop(&mut self) {
        let clock = RealClock::new();
        let until = clock.now() + LAST_BYTES;
        for end in self.ends.iter_mut().flatten() {
            let _ = dial::finish(&mut end.stream, &clock, until);
        }
    }
}

/// For bulk: no waiting for more, and buffers of the size asked for, if one is (the system may grant less).
pub(crate) fn tune(socket: &Stream, buffer_bytes: usize) -> Result<()> {
    let describe = || "cannot prepare a connection".to_owned();
    sockopt::set_tcp_nodelay(socket, true).context(describe)?;
    if stays_at_home(socket) {
        // Where there is no line to share, pacing (which BBR, the default of some systems, does) only takes time. This one
        // is in every kernel and open to everybody; should it be refused, the connection serves all the same.
        let _ = sockopt::set_tcp_congestion(socket, "reno");
    }
    if buffer_bytes == 0 {
        return Ok(());
    }
    sockopt::set_socket_recv_buffer_size(socket, buffer_bytes).context(describe)?;
    sockopt::set_socket_send_buffer_size(socket, buffer_bytes).context(describe)
}

/// Whether both ends are on this host.
fn stays_at_home(socket: &Stream) -> bool {
    let ip = |address: Option<SocketAddrAny>| Some(SocketAddr::try_from(address?).ok()?.ip());
    let ours = ip(rustix::net::getsockname(socket).ok());
    let theirs = ip(rustix::net::getpeername(socket).ok().flatten());
    ours.is_some() && ours == theirs
}

/// For a line of life: a host that vanished is noticed after `detection` of silence, in the whole seconds that the system
/// counts in. Data have no such limit, for a peer that lives may leave them untouched for long.
fn watch(socket: &Stream, detection: Duration) -> Result<()> {
    let describe = || "cannot watch a connection".to_owned();
    let seconds = |span: Duration| Duration::from_secs(span.as_secs().max(1));
    let milliseconds = u32::try_from(detection.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_nodelay(socket, true).context(describe)?;
    sockopt::set_socket_keepalive(socket, true).context(describe)?;
    sockopt::set_tcp_keepidle(socket, seconds(detection / 4)).context(describe)?;
    sockopt::set_tcp_keepintvl(socket, seconds(detection / 4)).context(describe)?;
    // Limits the silence while probes go unanswered too, instead of their number (tcp(7)).
    sockopt::set_tcp_user_timeout(socket, milliseconds).context(describe)
}

impl Transport for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn name(&self) -> &'static str {
        "TCP"
    }

    fn levels(&self) -> usize {
        self.ends.len() / self.world_size
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    fn try_send(&mut self, lane: Lane, bytes: &[u8]) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let moved = self.end(lane).stream.send(bytes);
        self.sent(lane.peer, moved)
    }

    fn turn_bytes(&self, _lane: Lane) -> usize {
        TURN_BYTES
    }

    fn try_send_two(&mut self, lane: Lane, first: &[u8], second: &[u8]) -> Result<usize> {
        if first.is_empty() {
            return self.try_send(lane, second);
        }
        let moved = self.end(lane).stream.send_two(first, second);
        self.sent(lane.peer, moved)
    }

    fn try_receive_into(&mut self, lane: Lane, first: &mut [u8], second: &mut [u8]) -> Result<Option<usize>> {
        let from = self.end(lane);
        if !from.filled.is_empty() || first.is_empty() && second.is_empty() {
            return Ok(None);
        }
        match from.stream.receive_two(first, second) {
            Ok(Moved::Bytes(count)) => {
                self.fruitless = 0;
                Ok(Some(count))
            }
            Ok(Moved::Nothing) => Ok(Some(0)),
            Ok(Moved::Ended) => Err(self.lines.explain(lane.peer)),
            Err(error) => Err(error.within(format!("from rank {}", lane.peer))),
        }
    }

    fn try_receive(
        &mut self,
        lane: Lane,
        consume: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize> {
        let from = self.end(lane);
        if from.filled.is_empty()
            && !from.fill().map_err(|error| error.within(format!("from rank {}", lane.peer)))?
        {
            return Err(self.lines.explain(lane.peer));
        }
        if from.filled.is_empty() {
            return Ok(0);
        }
        let arrived = &from.buffer[from.filled.clone()];
        let count = consume(arrived.as_ptr(), arrived.len());
        assert!(count <= arrived.len(), "a consumer takes no more than it is given");
        from.filled.start += count;
        if count > 0 {
            self.fruitless = 0;
        }
        Ok(count)
    }

    fn wait(&mut self, interests: &[Interest], limit: Duration) -> Result<()> {
        self.prepare()?;
        if self.is_early(interests)? {
            return Ok(());
        }
        self.look(interests, Vec::new(), &timespec(limit.min(NAP)))?;
        self.check()
    }

    fn abort(&mut self, reason: &Error) {
        self.lines.give_up(reason);
    }
}
