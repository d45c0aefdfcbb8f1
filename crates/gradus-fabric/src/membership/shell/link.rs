//! A connection that carries frames, never blocks and holds a bounded number of bytes.

use crate::frame::{self, Progress, Reader};
use gradus_error::{Error, Result};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, sockopt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes that the other side may leave lying: the pages of the largest table take 30 MB at most.
const MOST_UNSENT: usize = 32 << 20;

/// One end of a connection.
pub(super) struct Link {
    socket: OwnedFd,
    reader: Reader,
    unsent: Vec<u8>,
}

impl Link {
    /// A link over a connected socket.
    ///
    /// # Errors
    /// The system's failure to prepare it.
    pub(super) fn new(socket: OwnedFd) -> Result<Self> {
        let failed = |error: Errno| Error::io("cannot prepare a connection", error.into());
        rustix::io::ioctl_fionbio(&socket, true).map_err(failed)?;
        sockopt::set_tcp_nodelay(&socket, true).map_err(failed)?;
        Ok(Self { socket, reader: Reader::default(), unsent: Vec::new() })
    }

    /// Sends a message, or keeps what the other side cannot take yet.
    ///
    /// # Errors
    /// `Closed` when the connection is of no more use.
    pub(super) fn send(&mut self, message: &impl Serialize) -> Result<()> {
        self.unsent.extend(frame::encode(message)?);
        self.flush()?;
        match self.unsent.len() {
            0..=MOST_UNSENT => Ok(()),
            _ => Err(Error::closed("the other side takes nothing")),
        }
    }

    /// Sends what was kept, as far as the other side takes it.
    ///
    /// # Errors
    /// `Closed` when the connection is of no more use.
    pub(super) fn flush(&mut self) -> Result<()> {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match rustix::net::send(
                &self.socket,
                &self.unsent[sent..],
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(Error::closed("the connection broke").with_source(error)),
            }
        }
        self.unsent.drain(..sent);
        Ok(())
    }

    /// The next message, if one has come in full.
    ///
    /// # Errors
    /// `Closed` when the other side has gone, `Corrupt` when it speaks nonsense.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        match self.reader.read(&self.socket)? {
            Progress::Frame(body) => frame::decode(&body).map(Some),
            Progress::Waiting => Ok(None),
            Progress::Ended => Err(Error::closed("the other side has gone")),
        }
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        if self.unsent.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (Link, Link) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let theirs = listener.accept().unwrap().0;
        (Link::new(ours.into()).unwrap(), Link::new(theirs.into()).unwrap())
    }

    fn next(link: &mut Link) -> Result<String> {
        loop {
            if let Some(message) = link.receive()? {
                return Ok(message);
            }
            rustix::event::poll(&mut [rustix::event::PollFd::new(link, PollFlags::IN)], None).unwrap();
        }
    }

    #[test]
    fn what_does_not_fit_goes_later_and_in_order() {
        let (mut ours, mut theirs) = pair();
        let long = |number: usize| number.to_string().repeat(10_000);
        for number in 0..1000 {
            ours.send(&long(number % 10)).unwrap();
        }
        assert!(ours.interest().contains(PollFlags::OUT), "nothing was kept");
        for number in 0..1000 {
            ours.flush().unwrap();
            assert_eq!(next(&mut theirs).unwrap(), long(number % 10));
        }
        drop(ours);
        assert_eq!(*next(&mut theirs).unwrap_err().kind(), Kind::Closed);
    }

    #[test]
    fn who_takes_nothing_is_given_up() {
        let (mut ours, _theirs) = pair();
        let long = "x".repeat(60_000);
        let error = (0..2000).find_map(|_| ours.send(&long).err()).unwrap();
        assert_eq!(*error.kind(), Kind::Closed);
    }
}
