//! Processes of this host that share memory with this one, and how they are kept from writing it.
//!
//! A process that was stopped may wake in the middle of a store, years later by its own clock. No message reaches it and
//! no epoch is asked for by a store: memory that it maps is safe from it only once it has ended, or has let go by itself.
//! So each holder is held by a descriptor of its *process*, taken when it connected, through which it can be ended
//! whatever number the system has given away since; and by the socket on which it connected, which it closes when, and
//! only when, it has let go of everything that it was given.

use crate::credentials::Credentials;
use crate::gate::timespec;
use gradus_error::{Error, IoContext, Result};
use gradus_host::Clock;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A process of this host, by a descriptor that names no other process, ever.
pub(crate) struct Process(OwnedFd);

impl Process {
    /// The process that opened the other end of a Unix socket; `None` where the system does not tell, it has ended, or it
    /// is this process itself (whose threads may play ranks).
    pub(crate) fn behind(socket: impl AsFd) -> Option<Self> {
        let process = Credentials::behind(&socket)?.process.filter(|process| *process != getpid())?;
        let process = pidfd_open(process, PidfdFlags::empty()).ok()?;
        // The number was given to no other process as long as its owner's socket was open, and it still is.
        (!has_closed(&socket)).then_some(Self(process))
    }

    fn try_clone(&self) -> Result<Self> {
        self.0.try_clone().context(|| "cannot hold a process".to_owned()).map(Self)
    }

    /// Ends it; whether it has ended by `until`.
    fn end(&self, clock: &dyn Clock, until: Duration) -> bool {
        // One that has ended already cannot be signalled, and is found so below.
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
        loop {
            let left = timespec(until.saturating_sub(clock.now()));
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                ended => return ended == Ok(1),
            }
        }
    }
}

impl AsFd for Process {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether the other end of a Unix socket was closed, or will be written to no more.
fn has_closed(socket: impl AsFd) -> bool {
    let at_once = timespec(Duration::ZERO);
    let mut polled = [PollFd::new(&socket, PollFlags::RDHUP)];
    poll(&mut polled, Some(&at_once)) == Ok(1)
}

/// One of them.
pub(crate) struct Holder {
    socket: OwnedFd,
    process: Option<Process>,
}

impl Holder {
    /// Who is at the other end of `socket`.
    ///
    /// # Errors
    /// The system's failure to copy a descriptor.
    pub(crate) fn new(socket: BorrowedFd, process: Option<&Process>) -> Result<Self> {
        let socket = socket.try_clone_to_owned().context(|| "cannot hold a connection".to_owned())?;
        Ok(Self { socket, process: process.map(Process::try_clone).transpose()? })
    }

    /// Keeps it from writing memory that it was given: it has let go, or is ended now.
    ///
    /// # Errors
    /// `Unavailable` when it lives and could not be ended by `until`.
    pub(crate) fn fence(&self, clock: &dyn Clock, until: Duration) -> Result<()> {
        let harmless = has_closed(&self.socket)
            || self.process.as_ref().is_some_and(|process| process.end(clock, until))
            // It may have closed while it was being ended by another, or by itself.
            || has_closed(&self.socket);
        if harmless {
            return Ok(());
        }
        Err(Error::unavailable(
            "a process of this host that shares memory with this one lives, and cannot be ended: end it by hand",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use gradus_host::RealClock;
    use std::io::Read;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::process::{Child, Command, Stdio};

    const LIMIT: Duration = Duration::from_secs(60);

    /// Names the socket to which a copy of this test connects instead of testing.
    const CALL: &str = "GRADUS_TEST_HOLDER";

    fn abstract_name(name: &str) -> SocketAddr {
        SocketAddr::from_abstract_name(name).unwrap()
    }

    /// A child that has connected to us, stays until its standard input ends, and our end of the connection.
    fn holder(test: &str) -> (Child, UnixStream) {
        let name = format!("gradus-test-{}-{test}", std::process::id());
        let listener = UnixListener::bind_addr(&abstract_name(&name)).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("holders::tests::{test}")]).env(CALL, name);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        (child, listener.accept().unwrap().0)
    }

    /// Plays the holder if this process was started as one.
    fn plays_holder() -> bool {
        let Ok(name) = std::env::var(CALL) else { return false };
        let _line = UnixStream::connect_addr(&abstract_name(&name)).unwrap();
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        true
    }

    #[test]
    fn a_stopped_process_is_ended() {
        if plays_holder() {
            return;
        }
        let (mut child, socket) = holder("a_stopped_process_is_ended");
        let process = Process::behind(&socket).unwrap();
        let holder = Holder::new(socket.as_fd(), Some(&process)).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::STOP).unwrap();
        let clock = RealClock::new();
        holder.fence(&clock, clock.now() + LIMIT).unwrap();
        let ended = std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap());
        assert_eq!(ended, Some(Signal::KILL.as_raw()));
        // And again, now that its number may be another's.
        holder.fence(&clock, clock.now() + LIMIT).unwrap();
        assert!(Process::behind(&socket).is_none(), "who has gone is not held by a number");
    }

    #[test]
    fn who_has_let_go_is_left_alone() {
        if plays_holder() {
            return;
        }
        let (mut child, socket) = holder("who_has_let_go_is_left_alone");
        let process = Process::behind(&socket).unwrap();
        let (line, other_end) = UnixStream::pair().unwrap();
        let holder = Holder::new(line.as_fd(), Some(&process)).unwrap();
        other_end.shutdown(std::net::Shutdown::Write).unwrap();
        let clock = RealClock::new();
        holder.fence(&clock, clock.now()).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it was ended");
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn who_lives_and_cannot_be_ended_is_named_as_such() {
        let (line, _other_end) = UnixStream::pair().unwrap();
        assert!(Process::behind(&line).is_none(), "no process ends itself");
        let holder = Holder::new(line.as_fd(), None).unwrap();
        let clock = RealClock::new();
        assert_eq!(*holder.fence(&clock, clock.now()).unwrap_err().kind(), Kind::Unavailable);
    }
}
