//! A connection that carries frames, never blocks and holds a bounded number of bytes.

use crate::frame::{self, Progress, Reader};
use crate::stream::{Moved, Stream};
use gradus_error::{Error, Result};
use rustix::event::PollFlags;
use rustix::net::sockopt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes that the other side may leave lying: the pages of the largest table take 4 MB at most.
const MOST_UNSENT: usize = 32 << 20;

/// One end of a connection.
pub(super) struct Link {
    stream: Stream,
    reader: Reader,
    unsent: Vec<u8>,
}

impl Link {
    /// A link over a connection whose other end is proven.
    ///
    /// # Errors
    /// The system's failure to prepare it.
    pub(super) fn new(stream: Stream) -> Result<Self> {
        sockopt::set_tcp_nodelay(&stream, true)
            .map_err(|error| Error::io("cannot prepare a connection", error.into()))?;
        Ok(Self { stream, reader: Reader::default(), unsent: Vec::new() })
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
        let broke = |error| Error::closed("the connection broke").with_source(error);
        self.stream.flush().map_err(broke)?;
        let mut sent = 0;
        while sent < self.unsent.len() {
            match self.stream.send(&self.unsent[sent..]).map_err(broke)? {
                Moved::Bytes(count) => sent += count,
                Moved::Nothing => break,
                Moved::Ended => return Err(Error::closed("the other side has gone")),
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
        match self.reader.read(&mut self.stream)? {
            Progress::Frame(body) => frame::decode(&body).map(Some),
            Progress::Waiting => Ok(None),
            Progress::Ended => Err(Error::closed("the other side has gone")),
        }
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        self.stream.news(if self.unsent.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT })
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
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
        let link = |socket: TcpStream| Link::new(Stream::plain(socket.into()).unwrap()).unwrap();
        (link(ours), link(theirs))
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
