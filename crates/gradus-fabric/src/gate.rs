//! A door that many knock at: accepts connections, proves them and reads the first frame of each, side by side, so that
//! a stranger who says nothing, or nonsense, holds nobody up and costs little.
//!
//! Who does not know the secret cannot end what the gate is for, only waste its own time: it is refused, remembered (the
//! first few are) and told of if in the end somebody is missing.

use crate::frame::{Progress, Reader};
use crate::stream::Stream;
use crate::trust::{Trust, Visit, Visitor};
use gradus_error::{Error, Result};
use gradus_host::{Clock, descriptors};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long a connection may take to prove itself and say its first frame.
const SILENCE: Duration = Duration::from_secs(10);

/// Connections that have not said theirs yet; beyond that the oldest goes. A quarter at most of what this process may hold
/// open: the rest is for ranks, and for whatever else the process needs files for.
const STRANGERS: usize = 1024;
const SHARE: usize = 4;

/// Refusals that are remembered.
const REMEMBERED: usize = 4;

/// The longest sleep while ranks connect: whoever holds the clock may move it on meanwhile, to end all waiting.
pub(crate) const NAP: Duration = Duration::from_millis(50);

/// One who is believed, and what it said first.
pub(crate) struct Arrival {
    pub(crate) stream: Stream,
    /// The rank that it says it is.
    pub(crate) rank: usize,
    pub(crate) frame: Vec<u8>,
}

/// A listening socket and those who have not introduced themselves yet.
pub(crate) struct Gate<'a> {
    listener: OwnedFd,
    trust: Trust,
    visitors: Vec<Visitor>,
    refusals: Vec<String>,
    /// What the system said when visitors were turned away because there were no descriptors for them.
    shortage: Option<Errno>,
    clock: &'a dyn Clock,
}

impl<'a> Gate<'a> {
    /// A gate at a listening socket.
    ///
    /// # Errors
    /// The system's failure to make it non-blocking.
    pub(crate) fn new(listener: OwnedFd, trust: Trust, clock: &'a dyn Clock) -> Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)
            .map_err(|error| Error::io("cannot prepare a listening socket", error.into()))?;
        Ok(Self { listener, trust, visitors: Vec::new(), refusals: Vec::new(), shortage: None, clock })
    }

    /// Waits until `until` at most for visitors to prove and introduce themselves.
    ///
    /// # Errors
    /// The system's failure to wait or to accept.
    pub(crate) fn arrivals(&mut self, until: Duration) -> Result<Vec<Arrival>> {
        self.wait(until)?;
        self.accept()?;
        let now = self.clock.now();
        let mut arrived = Vec::new();
        for mut visitor in std::mem::take(&mut self.visitors) {
            match visitor.advance() {
                Visit::Arrived(rank, frame) => arrived.push(Arrival { stream: visitor.stream, rank, frame }),
                Visit::Waiting if now < visitor.deadline => self.visitors.push(visitor),
                Visit::Refused(reason) => self.remember(&visitor.stream, &reason),
                // Strangers are dropped without a word: nothing is owed to them, and their number is not ours to log.
                Visit::Waiting | Visit::Gone => {}
            }
        }
        Ok(arrived)
    }

    /// `missing`, which says who did not come; with those who came and were refused it is `Denied`, and `Exhausted` where
    /// some were turned away for want of descriptors.
    pub(crate) fn explain(&self, missing: Error) -> Error {
        if let Some(shortage) = self.shortage {
            return turned_away(&format!("{missing}; callers"), shortage);
        }
        if self.refusals.is_empty() {
            return missing;
        }
        Error::denied(format!("{missing}; refused were: {}", self.refusals.join("; ")))
    }

    /// That callers were turned away for want of descriptors, if some were since it was last asked.
    pub(crate) fn take_shortage(&mut self) -> Option<Error> {
        self.shortage.take().map(|shortage| turned_away("callers", shortage))
    }

    fn remember(&mut self, socket: impl AsFd, reason: &Error) {
        if self.refusals.len() >= REMEMBERED {
            return;
        }
        let from = match peer_address(socket) {
            Some(address) => format!("from {address}"),
            None => "on this host".to_owned(),
        };
        tracing::warn!(rank = self.trust.rank, "refused a connection {from}: {reason}");
        self.refusals.push(format!("{from}: {reason}"));
    }

    fn wait(&self, until: Duration) -> Result<()> {
        let deadline = self.visitors.iter().map(|visitor| visitor.deadline).fold(until, Duration::min);
        let limit = timespec(deadline.saturating_sub(self.clock.now()));
        let mut sockets = vec![PollFd::new(&self.listener, PollFlags::IN)];
        let news = |visitor: &'_ Visitor| visitor.stream.news(PollFlags::IN);
        sockets.extend(self.visitors.iter().map(|visitor| PollFd::new(&visitor.stream, news(visitor))));
        match poll(&mut sockets, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::io("cannot wait for connections", error.into())),
        }
    }

    fn accept(&mut self) -> Result<()> {
        for _ in 0..STRANGERS {
            match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.admit(socket)?,
                Err(Errno::AGAIN) => break,
                // The caller hung up before being let in.
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO | Errno::PERM) => {}
                // Strangers must not use up what ranks need.
                Err(short @ (Errno::MFILE | Errno::NFILE)) if !self.visitors.is_empty() => {
                    self.shortage = Some(short);
                    drop(self.visitors.remove(0));
                }
                Err(error) => return Err(Error::io("cannot accept a connection", error.into())),
            }
        }
        Ok(())
    }

    fn admit(&mut self, socket: OwnedFd) -> Result<()> {
        let most = STRANGERS.min(descriptors::limit() / SHARE).max(1);
        while self.visitors.len() >= most {
            self.visitors.remove(0);
        }
        if let Err(reason) = self.trust.check_user(&socket) {
            self.remember(&socket, &reason);
            return Ok(());
        }
        self.visitors.push(self.trust.visitor(socket, self.clock.now() + SILENCE)?);
        Ok(())
    }
}

fn turned_away(whom: &str, shortage: Errno) -> Error {
    Error::io(format!("{whom} were turned away"), shortage.into())
}

/// Where the other end of a TCP connection is, if it is still there.
pub(crate) fn peer_address(socket: impl AsFd) -> Option<SocketAddr> {
    rustix::net::getpeername(socket).ok()??.try_into().ok()
}

/// Waits until `until` at most for one frame; `None` when time is up or the other side closed.
///
/// # Errors
/// `Corrupt` when what arrives is no frame, what TLS finds wrong.
pub(crate) fn frame_until(
    stream: &mut Stream,
    reader: &mut Reader,
    clock: &dyn Clock,
    until: Duration,
) -> Result<Option<Vec<u8>>> {
    loop {
        match reader.read(stream)? {
            Progress::Frame(frame) => return Ok(Some(frame)),
            Progress::Ended => return Ok(None),
            Progress::Waiting => {}
        }
        if clock.now() >= until {
            return Ok(None);
        }
        await_news(stream, PollFlags::IN, clock, until);
    }
}

/// Waits a while, until `until` at most, for `interest` in a connection, or for room for what it holds.
pub(crate) fn await_news(stream: &Stream, interest: PollFlags, clock: &dyn Clock, until: Duration) {
    let left = nap(until, clock);
    // A failure to wait shows at the next try; an interruption is no failure.
    let _ = poll(&mut [PollFd::new(stream, stream.news(interest))], Some(&left));
}

/// For the system, how long to sleep towards `until` before the clock is to be looked at again.
pub(crate) fn nap(until: Duration, clock: &dyn Clock) -> Timespec {
    timespec(until.saturating_sub(clock.now()).min(NAP))
}

/// A span of time for the system.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().min(1 << 31) as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::Purpose;
    use crate::secret::Secret;
    use gradus_host::RealClock;
    use proptest::prelude::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn trust(rank: usize) -> Trust {
        Trust { secret: Secret::default(), tls: None, purpose: Purpose::Stream, rank }
    }

    /// A gate of rank 0, and a way to call it.
    fn gate(clock: &RealClock) -> (Gate<'_>, impl Fn() -> TcpStream + use<>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Gate::new(listener.into(), trust(0), clock).unwrap();
        (gate, move || TcpStream::connect(address).unwrap())
    }

    /// Serves a gate until somebody arrives.
    fn next(gate: &mut Gate, clock: &RealClock) -> Arrival {
        loop {
            assert!(clock.now() < PATIENCE, "nobody arrives");
            if let Some(arrival) = gate.arrivals(PATIENCE).unwrap().pop() {
                return arrival;
            }
        }
    }

    #[test]
    fn strangers_beyond_the_bound_push_out_the_oldest_and_ranks_get_in_all_the_same() {
        let clock = RealClock::new();
        let (mut gate, call) = gate(&clock);
        let mut strangers = Vec::new();
        for _ in 0..3 {
            // Fewer at once than a listening socket keeps waiting.
            strangers.extend((0..100).map(|_| call()));
            gate.arrivals(clock.now()).unwrap();
        }
        assert!(gate.visitors.len() <= STRANGERS && gate.refusals.is_empty());
        let arrival = std::thread::scope(|scope| {
            scope.spawn(|| {
                let clock = RealClock::new();
                let mut stream = trust(7).call(call().into(), "rank 0", &clock, PATIENCE).unwrap();
                crate::frame::send(&mut stream, &crate::frame::encode(&"hello").unwrap()).unwrap();
            });
            next(&mut gate, &clock)
        });
        assert_eq!((arrival.rank, arrival.frame.as_slice()), (7, b"\"hello\"".as_slice()));
    }

    #[test]
    fn the_first_refusals_are_remembered_and_told_of() {
        let clock = RealClock::new();
        let (mut gate, call) = gate(&clock);
        let missing = || Error::unavailable("rank 1 is missing");
        assert_eq!(*gate.explain(missing()).kind(), gradus_error::Kind::Unavailable);
        for _ in 0..2 * REMEMBERED {
            let mut stranger = call();
            // How TLS begins.
            stranger.write_all(&[22, 3, 1]).unwrap();
            let before = gate.refusals.len();
            while gate.refusals.len() == before && before < REMEMBERED {
                gate.arrivals(PATIENCE).unwrap();
            }
        }
        assert_eq!(gate.refusals.len(), REMEMBERED);
        let error = gate.explain(missing());
        assert_eq!(*error.kind(), gradus_error::Kind::Denied);
        assert!(error.to_string().contains("rank 1 is missing") && error.to_string().contains("speaks TLS"));
    }

    /// Calls a gate's Unix socket as another user; whether this process may be one.
    fn call_as_nobody(name: &SocketAddr) -> Option<UnixStream> {
        std::thread::scope(|scope| {
            let calling = scope.spawn(|| {
                // Of this thread only.
                let nobody = rustix::process::Uid::from_raw(65534);
                rustix::thread::set_thread_uid(nobody).ok()?;
                Some(UnixStream::connect_addr(name).unwrap())
            });
            calling.join().unwrap()
        })
    }

    #[test]
    fn without_a_secret_another_user_is_refused_at_a_unix_socket() {
        let clock = RealClock::new();
        let (listener, name) = crate::dial::local_door().unwrap();
        let name = SocketAddr::from_abstract_name(name).unwrap();
        for (secret, refused) in [(Secret::default(), 1), (Secret::make(), 0)] {
            let trust = Trust { secret, tls: None, purpose: Purpose::Memory, rank: 0 };
            let listener = listener.as_ref().unwrap().try_clone().unwrap();
            let mut gate = Gate::new(listener.into(), trust.clone(), &clock).unwrap();
            let Some(_stranger) = call_as_nobody(&name) else {
                return eprintln!("not run: only root can be another user");
            };
            let own = UnixStream::connect_addr(&name).unwrap();
            trust.check_user(&own).unwrap();
            gate.arrivals(PATIENCE).unwrap();
            assert_eq!((gate.refusals.len(), gate.visitors.len()), (refused, 2 - refused));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_strangers_say_is_never_an_arrival(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            let clock = RealClock::new();
            let (mut gate, call) = gate(&clock);
            let mut stranger = call();
            stranger.write_all(&bytes).unwrap();
            drop(stranger);
            // The first turn accepts; further ones hear what was still on its way, until the end.
            loop {
                prop_assert!(gate.arrivals(PATIENCE).unwrap().is_empty());
                if gate.visitors.is_empty() {
                    break;
                }
            }
        }
    }
}
