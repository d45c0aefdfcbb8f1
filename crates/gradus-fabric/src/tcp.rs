//! Ranks anywhere, over TCP: two connections between every two ranks, one for data and one as a line of life.
//!
//! What arrives is read into a bounded buffer for each peer and handed out from there; what is sent goes straight from
//! the caller's memory to the kernel. Signals are never raised: a closed connection is an error like others.

use crate::control::{Line, Lines};
use crate::dial;
use crate::gate::timespec;
use crate::mesh::Mesh;
use crate::rendezvous::Table;
use crate::transport::{Direction, Interest, Transport};
use gradus_error::{Error, IoContext, Result};
use gradus_host::Clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, sockopt};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Bytes of the buffer of one peer: what fits the cache beside what is computed on it.
const BUFFER_BYTES: usize = 256 << 10;

/// Looks, each a system call of about a microsecond, before yielding: a few times what waking across processors takes.
const SPINS: usize = 200;

/// Looks between yields while spinning: others may want this processor, a peer among them.
const SPINS_PER_YIELD: usize = 8;

/// Looks between yields of the processor before sleeping.
const YIELDS: usize = 20;

/// The longest sleep in one call.
const NAP: Duration = Duration::from_secs(1);

/// A silent connection is probed after [`PROBE_IDLE`], every [`PROBE_INTERVAL`], and given up after [`PROBES`]: a host
/// that vanished is noticed in 25 seconds.
const PROBE_IDLE: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

struct Peer {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// What of the buffer has arrived and is not taken.
    filled: std::ops::Range<usize>,
}

impl Peer {
    fn new(socket: OwnedFd) -> Self {
        Self { socket, buffer: vec![0; BUFFER_BYTES], filled: 0..0 }
    }

    /// Reads what has arrived into the empty buffer; `false` when the stream has ended.
    fn fill(&mut self) -> Result<bool> {
        match rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(Errno::CONNRESET | Errno::TIMEDOUT | Errno::PIPE) => Ok(false),
            Ok((_, count)) => {
                self.filled = 0..count;
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(error) => Err(Error::io("cannot receive", error.into())),
        }
    }
}

/// The transport; see the module.
pub(crate) struct Tcp {
    rank: usize,
    peers: Vec<Option<Peer>>,
    lines: Lines,
    spins: usize,
}

impl Tcp {
    /// Connects to all ranks of the table.
    ///
    /// # Errors
    /// `PeerLost` or `Unavailable` naming a rank that does not take part.
    pub(crate) fn connect(
        rank: usize,
        table: Table,
        socket_buffer_bytes: usize,
        spin: bool,
        clock: &dyn Clock,
        until: Duration,
    ) -> Result<Self> {
        let mesh = Mesh { rank, world_size: table.members.len(), job: &table.job, lines: 2, clock, until };
        let sockets = mesh.connect(table.doors.tcp.into(), &|peer| {
            let address = table.members[peer].address;
            dial::try_once(address, clock, until).map(OwnedFd::from).map_err(|error| {
                Error::peer_lost(peer, format!("rank {rank} cannot reach rank {peer} at {address}"))
                    .with_source(error)
            })
        })?;
        let (mut peers, mut lines) = (Vec::new(), Vec::new());
        for sockets in sockets {
            let mut sockets = sockets.into_iter();
            let pair = sockets.next().zip(sockets.next());
            if let Some((data, control)) = &pair {
                tune(data, socket_buffer_bytes)?;
                watch(control)?;
            }
            let (peer, line) = pair.map(|(data, control)| (Peer::new(data), Line::new(control))).unzip();
            peers.push(peer);
            lines.push(line);
        }
        let spins = if spin { SPINS } else { 0 };
        Ok(Self { rank, peers, lines: Lines::new(rank, lines), spins })
    }

    fn peer(&mut self, peer: usize) -> &mut Peer {
        self.peers[peer].as_mut().expect("a rank has no stream to itself")
    }

    /// Sleeps until there is news, `limit` at most; whether there was any about the interests, and about the lines.
    fn look(&self, interests: &[Interest], limit: &Timespec) -> Result<(bool, bool)> {
        let mut sockets: Vec<PollFd> = Vec::with_capacity(interests.len() + self.peers.len());
        for Interest { peer, direction } in interests {
            let peer = self.peers[*peer].as_ref().expect("a rank has no stream to itself");
            if *direction == Direction::Receive && !peer.filled.is_empty() {
                return Ok((true, false));
            }
            let way = if *direction == Direction::Send { PollFlags::OUT } else { PollFlags::IN };
            sockets.push(PollFd::new(&peer.socket, way));
        }
        sockets.extend(self.lines.watched());
        match poll(&mut sockets, Some(limit)) {
            Ok(0) | Err(Errno::INTR) => return Ok((false, false)),
            Ok(_) => {}
            Err(error) => return Err(Error::io("cannot wait for the other ranks", error.into())),
        }
        let any = |fds: &[PollFd]| fds.iter().any(|fd| !fd.revents().is_empty());
        Ok((any(&sockets[..interests.len()]), any(&sockets[interests.len()..])))
    }
}

/// For bulk: no waiting for more, and buffers of the size asked for, if one is (the system may grant less).
fn tune(socket: &OwnedFd, buffer_bytes: usize) -> Result<()> {
    let describe = || "cannot prepare a connection".to_owned();
    sockopt::set_tcp_nodelay(socket, true).context(describe)?;
    if buffer_bytes == 0 {
        return Ok(());
    }
    sockopt::set_socket_recv_buffer_size(socket, buffer_bytes).context(describe)?;
    sockopt::set_socket_send_buffer_size(socket, buffer_bytes).context(describe)
}

/// For a line of life.
fn watch(socket: &OwnedFd) -> Result<()> {
    let describe = || "cannot watch a connection".to_owned();
    sockopt::set_tcp_nodelay(socket, true).context(describe)?;
    sockopt::set_socket_keepalive(socket, true).context(describe)?;
    sockopt::set_tcp_keepidle(socket, PROBE_IDLE).context(describe)?;
    sockopt::set_tcp_keepintvl(socket, PROBE_INTERVAL).context(describe)?;
    sockopt::set_tcp_keepcnt(socket, PROBES).context(describe)
}

impl Transport for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.peers.len()
    }

    fn name(&self) -> &'static str {
        "TCP"
    }

    fn try_send(&mut self, peer: usize, bytes: &[u8]) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match rustix::net::send(&self.peer(peer).socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::TIMEDOUT) => Err(self.lines.explain(peer)),
            Err(error) => Err(Error::io(format!("cannot send to rank {peer}"), error.into())),
        }
    }

    fn try_receive(
        &mut self,
        peer: usize,
        consume: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize> {
        let from = self.peer(peer);
        if from.filled.is_empty()
            && !from.fill().map_err(|error| error.within(format!("from rank {peer}")))?
        {
            return Err(self.lines.explain(peer));
        }
        if from.filled.is_empty() {
            return Ok(0);
        }
        let arrived = &from.buffer[from.filled.clone()];
        let count = consume(arrived.as_ptr(), arrived.len());
        assert!(count <= arrived.len(), "a consumer takes no more than it is given");
        from.filled.start += count;
        Ok(count)
    }

    fn wait(&mut self, interests: &[Interest], limit: Duration) -> Result<()> {
        let at_once = timespec(Duration::ZERO);
        for look in 0..self.spins + YIELDS {
            match self.look(interests, &at_once)? {
                (true, _) => return Ok(()),
                (false, true) => self.lines.check()?,
                (false, false) => {}
            }
            if look >= self.spins || look % SPINS_PER_YIELD == 0 {
                rustix::thread::sched_yield();
            }
        }
        self.look(interests, &timespec(limit.min(NAP)))?;
        self.lines.check()
    }

    fn abort(&mut self, reason: &Error) {
        self.lines.give_up(reason);
    }
}
