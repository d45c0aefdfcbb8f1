//! A connection that never blocks: a socket, plain or under TLS.
//!
//! One type serves rendezvous, data and signs of life, so that whatever reads and writes them knows no difference.
//! Under TLS what was taken may wait in this process, encrypted, until the socket has room: [`Stream::flush`] moves it,
//! every other call tries to, and nothing more is taken before it is gone.

use crate::tls;
use gradus_error::{Error, Result};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags};
use rustls::Connection;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes that are encrypted at once: four records of TLS's largest size.
const ENCRYPTED_BYTES: usize = 64 << 10;

/// Records without data that are read in one call: who sends nothing but these holds nobody here.
const MOST_EMPTY: usize = 64;

/// How TLS exports what a session is known by (RFC 9266, section 2).
const BINDING_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// What came of a try to move bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// So many were moved, at least one.
    Bytes(usize),
    /// It would have blocked.
    Nothing,
    /// The other side is gone, in good order or not.
    Ended,
}

impl Moved {
    /// The same with `before` bytes moved already. An end is found again by who tries again.
    const fn after(self, before: usize) -> Self {
        match self {
            Self::Bytes(count) => Self::Bytes(before + count),
            Self::Nothing | Self::Ended => Self::Bytes(before),
        }
    }
}

/// See the module.
pub(crate) enum Stream {
    Plain(OwnedFd),
    Tls(Box<Tls>),
}

/// A session over a socket.
pub(crate) struct Tls {
    socket: OwnedFd,
    connection: Connection,
}

impl Stream {
    /// A plain connection, from here on non-blocking.
    ///
    /// # Errors
    /// The system's failure.
    pub(crate) fn plain(socket: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(|error| Error::io("cannot prepare a connection", error.into()))?;
        Ok(Self::Plain(socket))
    }

    /// A connection under TLS, from here on non-blocking; the session begins with the first call.
    ///
    /// # Errors
    /// The system's failure.
    pub(crate) fn tls(socket: OwnedFd, mut connection: Connection) -> Result<Self> {
        connection.set_buffer_limit(Some(ENCRYPTED_BYTES));
        let Self::Plain(socket) = Self::plain(socket)? else { unreachable!("a plain connection is one") };
        Ok(Self::Tls(Box::new(Tls { socket, connection })))
    }

    /// Moves what has arrived into the front of `into`.
    ///
    /// # Errors
    /// `Denied` or `Invalid` when TLS refuses the other side or is refused by it, else the system's failure.
    pub(crate) fn receive(&mut self, into: &mut [u8]) -> Result<Moved> {
        match self {
            Self::Plain(socket) => outcome(Socket(socket).read(into), "cannot receive"),
            Self::Tls(session) => session.receive(into),
        }
    }

    /// Moves what has arrived into `first` and then `second`.
    ///
    /// # Errors
    /// As [`Stream::receive`].
    pub(crate) fn receive_two(&mut self, first: &mut [u8], second: &mut [u8]) -> Result<Moved> {
        match self {
            Self::Plain(socket) => {
                let mut places = [IoSliceMut::new(first), IoSliceMut::new(second)];
                outcome(Socket(socket).read_vectored(&mut places), "cannot receive")
            }
            Self::Tls(session) => session.receive(if first.is_empty() { second } else { first }),
        }
    }

    /// Takes bytes from the front of `first` and then of `second`; the first must not be empty.
    ///
    /// # Errors
    /// As [`Stream::receive`].
    pub(crate) fn send_two(&mut self, first: &[u8], second: &[u8]) -> Result<Moved> {
        match self {
            Self::Plain(socket) => {
                let places = [IoSlice::new(first), IoSlice::new(second)];
                outcome(Socket(socket).write_vectored(&places), "cannot send")
            }
            Self::Tls(session) => match session.send(first)? {
                Moved::Bytes(count) if count == first.len() && !second.is_empty() => {
                    Ok(session.send(second)?.after(count))
                }
                moved => Ok(moved),
            },
        }
    }

    /// Takes bytes from the front of `bytes`, which must not be empty.
    ///
    /// # Errors
    /// As [`Stream::receive`].
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<Moved> {
        match self {
            Self::Plain(socket) => outcome(Socket(socket).write(bytes), "cannot send"),
            Self::Tls(session) => session.send(bytes),
        }
    }

    /// Moves what was taken and waits in this process; whether nothing of it is left, or nobody to take it.
    ///
    /// # Errors
    /// As [`Stream::receive`].
    pub(crate) fn flush(&mut self) -> Result<bool> {
        match self {
            Self::Plain(_) => Ok(true),
            Self::Tls(session) => Ok(session.flush()? != Moved::Nothing),
        }
    }

    /// Whether something that was taken waits for room.
    pub(crate) fn is_holding(&self) -> bool {
        matches!(self, Self::Tls(session) if session.connection.wants_write())
    }

    /// What to wait for besides `interest`, so that what is held moves on.
    pub(crate) fn news(&self, interest: PollFlags) -> PollFlags {
        if self.is_holding() { interest | PollFlags::OUT } else { interest }
    }

    /// What ties a proof to this connection; the session must have begun.
    ///
    /// # Errors
    /// `Corrupt` when it has not.
    pub(crate) fn binding(&self) -> Result<[u8; 32]> {
        let Self::Tls(session) = self else { return Ok([0; 32]) };
        let exported = session.connection.export_keying_material([0; 32], BINDING_LABEL, None);
        exported.map_err(|error| Error::corrupt("a TLS session has no binding").with_source(error))
    }

    /// The socket itself, if there is no TLS around it.
    pub(crate) fn into_plain(self) -> Option<OwnedFd> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) => None,
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(socket) => socket.as_fd(),
            Self::Tls(session) => session.socket.as_fd(),
        }
    }
}

impl Tls {
    fn receive(&mut self, into: &mut [u8]) -> Result<Moved> {
        for _ in 0..MOST_EMPTY {
            match outcome(self.connection.reader().read(into), "cannot receive")? {
                Moved::Nothing => {}
                moved => return Ok(moved),
            }
            match self.connection.read_tls(&mut Socket(&self.socket)) {
                // The reader says on the next round whether anything came before the end.
                Ok(_) => {}
                Err(error) => {
                    self.flush()?;
                    return outcome(Err(error), "cannot receive");
                }
            }
            let processed = self.connection.process_new_packets();
            // An alert goes out also when the session ends here.
            let flushed = self.flush();
            processed.map_err(|error| tls::refusal(&error))?;
            flushed?;
        }
        Ok(Moved::Nothing)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<Moved> {
        match self.flush()? {
            Moved::Bytes(_) => {}
            held_or_ended => return Ok(held_or_ended),
        }
        let taken = outcome(self.connection.writer().write(bytes), "cannot send")?;
        self.flush()?;
        // Nothing is taken beyond the limit before a session has begun.
        Ok(if taken == Moved::Ended { Moved::Nothing } else { taken })
    }

    /// `Bytes` when nothing is left to be sent.
    fn flush(&mut self) -> Result<Moved> {
        while self.connection.wants_write() {
            match outcome(self.connection.write_tls(&mut Socket(&self.socket)), "cannot send")? {
                Moved::Bytes(_) => {}
                moved => return Ok(moved),
            }
        }
        Ok(Moved::Bytes(0))
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        self.connection.send_close_notify();
        // Who is not reached sees the socket close.
        let _ = self.flush();
    }
}

/// A non-blocking socket as the standard library's traits have it.
struct Socket<'a>(&'a OwnedFd);

impl Read for Socket<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self.0, into, RecvFlags::DONTWAIT)?.1)
    }

    fn read_vectored(&mut self, into: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut nothing_else = RecvAncillaryBuffer::default();
        Ok(rustix::net::recvmsg(self.0, into, &mut nothing_else, RecvFlags::DONTWAIT)?.bytes)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let (mut nothing_else, flags) =
            (SendAncillaryBuffer::default(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        Ok(rustix::net::sendmsg(self.0, bytes, &mut nothing_else, flags)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn outcome(moved: io::Result<usize>, doing: &str) -> Result<Moved> {
    match moved {
        Ok(0) => Ok(Moved::Ended),
        Ok(count) => Ok(Moved::Bytes(count)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(Moved::Nothing)
        }
        Err(error) if is_end(&error) => Ok(Moved::Ended),
        Err(error) => Err(Error::io(doing, error)),
    }
}

/// Whether an error says that the other side, or the way to it, is no more. A connection that has timed out reports the
/// last thing that was heard of its way, such as that no host answers there.
fn is_end(error: &io::Error) -> bool {
    let lost = [
        Errno::CONNRESET,
        Errno::CONNABORTED,
        Errno::TIMEDOUT,
        Errno::PIPE,
        Errno::HOSTUNREACH,
        Errno::HOSTDOWN,
        Errno::NETUNREACH,
        Errno::NETDOWN,
    ];
    error.kind() == ErrorKind::UnexpectedEof
        || Errno::from_io_error(error).is_some_and(|errno| lost.contains(&errno))
}

#[cfg(test)]
#[path = "stream_tests.rs"]
pub(crate) mod tests;
