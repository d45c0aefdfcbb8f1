//! A door that many knock at: accepts connections and reads the first frame of each, side by side, so that a stranger
//! who says nothing, or nonsense, holds nobody up and costs little.

use crate::frame::{Progress, Reader};
use gradus_error::{Error, Result};
use gradus_host::Clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long a connection may take to say its first frame.
const SILENCE: Duration = Duration::from_secs(10);

/// Connections that have not said theirs yet; beyond that the oldest goes.
const STRANGERS: usize = 1024;

/// Someone at the door.
struct Caller {
    socket: OwnedFd,
    reader: Reader,
    deadline: Duration,
}

/// A listening socket and those who have not introduced themselves yet.
pub(crate) struct Gate<'a> {
    listener: OwnedFd,
    callers: Vec<Caller>,
    clock: &'a dyn Clock,
}

impl<'a> Gate<'a> {
    /// A gate at a listening socket.
    ///
    /// # Errors
    /// The system's failure to make it non-blocking.
    pub(crate) fn new(listener: OwnedFd, clock: &'a dyn Clock) -> Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)
            .map_err(|error| Error::io("cannot prepare a listening socket", error.into()))?;
        Ok(Self { listener, callers: Vec::new(), clock })
    }

    /// Waits until `until` at most for callers to introduce themselves: their sockets, non-blocking, and the JSON of
    /// their first frames.
    ///
    /// # Errors
    /// The system's failure to wait or to accept.
    pub(crate) fn arrivals(&mut self, until: Duration) -> Result<Vec<(OwnedFd, Vec<u8>)>> {
        self.wait(until)?;
        self.accept()?;
        let now = self.clock.now();
        let mut arrived = Vec::new();
        for mut caller in std::mem::take(&mut self.callers) {
            match caller.reader.read(&caller.socket) {
                Ok(Progress::Frame(frame)) => arrived.push((caller.socket, frame)),
                Ok(Progress::Waiting) if now < caller.deadline => self.callers.push(caller),
                // Strangers are dropped without a word: nothing is owed to them, and their number is not ours to log.
                Ok(Progress::Waiting | Progress::Ended) | Err(_) => {}
            }
        }
        Ok(arrived)
    }

    fn wait(&self, until: Duration) -> Result<()> {
        let deadline = self.callers.iter().map(|caller| caller.deadline).fold(until, Duration::min);
        let limit = timespec(deadline.saturating_sub(self.clock.now()));
        let mut sockets = vec![PollFd::new(&self.listener, PollFlags::IN)];
        sockets.extend(self.callers.iter().map(|caller| PollFd::new(&caller.socket, PollFlags::IN)));
        match poll(&mut sockets, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::io("cannot wait for connections", error.into())),
        }
    }

    fn accept(&mut self) -> Result<()> {
        for _ in 0..STRANGERS {
            match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.admit(socket),
                Err(Errno::AGAIN) => break,
                // The caller hung up before being let in.
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO | Errno::PERM) => {}
                Err(error) => return Err(Error::io("cannot accept a connection", error.into())),
            }
        }
        Ok(())
    }

    fn admit(&mut self, socket: OwnedFd) {
        if self.callers.len() >= STRANGERS {
            self.callers.remove(0);
        }
        let deadline = self.clock.now() + SILENCE;
        self.callers.push(Caller { socket, reader: Reader::default(), deadline });
    }
}

/// Waits until `until` at most for one frame on a non-blocking socket; `None` when time is up or the other side closed.
///
/// # Errors
/// `Corrupt` when what arrives is no frame.
pub(crate) fn frame_until(
    socket: impl AsFd,
    reader: &mut Reader,
    clock: &dyn Clock,
    until: Duration,
) -> Result<Option<Vec<u8>>> {
    loop {
        match reader.read(&socket)? {
            Progress::Frame(frame) => return Ok(Some(frame)),
            Progress::Ended => return Ok(None),
            Progress::Waiting => {}
        }
        let left = until.saturating_sub(clock.now());
        if left.is_zero() {
            return Ok(None);
        }
        // A failure to wait shows at the next read; an interruption is no failure.
        let _ = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timespec(left)));
    }
}

/// A span of time for the system.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().min(1 << 31) as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}
