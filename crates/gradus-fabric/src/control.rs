//! The line of each pair of ranks on which nothing travels but the end: a goodbye, or the reason for giving up.
//!
//! A socket that stays open as long as its process lives is the surest sign of life: the kernel closes it however the
//! process ends. A line that closes without a word is a death. On one host a handle to the process is watched as well,
//! because a child that the peer forked may hold its socket open. A rank that fails says why before it leaves, so that
//! the others blame the culprit and not the messenger.

use crate::frame::{self, Progress, Reader};
use crate::gate::timespec;
use crate::stream::Stream;
use gradus_error::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Characters of a reason that are passed on: a frame holds them whatever they are.
const REASON_CHARS: usize = 2000;

/// How long to wait for a reason once a peer's data have ended: its goodbye travels on another connection.
const AFTERWORD: Duration = Duration::from_secs(2);

/// A last word.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LastWord {
    /// The peer leaves in good order.
    Goodbye,
    /// The peer gives up.
    GivingUp { kind: Reason, message: String },
}

/// An error's kind, on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    Invalid,
    Denied,
    Unavailable,
    Exhausted,
    PeerLost { rank: usize },
    Fenced,
    Corrupt,
    Closed,
    Internal,
}

impl From<&Kind> for Reason {
    fn from(kind: &Kind) -> Self {
        match kind {
            Kind::Invalid => Self::Invalid,
            Kind::Denied => Self::Denied,
            Kind::Unavailable => Self::Unavailable,
            Kind::Exhausted => Self::Exhausted,
            Kind::PeerLost { rank } => Self::PeerLost { rank: *rank },
            Kind::Fenced => Self::Fenced,
            Kind::Corrupt => Self::Corrupt,
            Kind::Closed => Self::Closed,
            _ => Self::Internal,
        }
    }
}

impl From<Reason> for Kind {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Invalid => Self::Invalid,
            Reason::Denied => Self::Denied,
            Reason::Unavailable => Self::Unavailable,
            Reason::Exhausted => Self::Exhausted,
            Reason::PeerLost { rank } => Self::PeerLost { rank },
            Reason::Fenced => Self::Fenced,
            Reason::Corrupt => Self::Corrupt,
            Reason::Closed => Self::Closed,
            Reason::Internal => Self::Internal,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Left,
    Dead,
}

/// The line to one peer.
pub(crate) struct Line {
    stream: Stream,
    process: Option<OwnedFd>,
    reader: Reader,
    state: State,
}

impl Line {
    /// A line over a connection to another host, or to one that cannot be watched.
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, process: None, reader: Reader::default(), state: State::Open }
    }

    /// A line over a Unix socket: its other end is a process of this host.
    pub(crate) fn to_local_process(stream: Stream) -> Self {
        // The socket is still open afterwards or its closing will be seen, so the number names the process that held
        // it then. A kernel that refuses leaves the socket alone to tell.
        let process = rustix::net::sockopt::socket_peercred(&stream)
            .and_then(|credentials| pidfd_open(credentials.pid, PidfdFlags::empty()))
            .ok();
        Self { process, ..Self::new(stream) }
    }

    fn has_news(&self, watched: &[PollFd]) -> bool {
        watched.iter().any(|fd| !fd.revents().is_empty())
    }

    /// Reads what has arrived; a reason for giving up is returned.
    fn read(&mut self, ended: bool) -> Option<(Reason, String)> {
        loop {
            match self.reader.read(&mut self.stream) {
                Ok(Progress::Frame(body)) => match frame::decode(&body) {
                    Ok(LastWord::Goodbye) => self.state = State::Left,
                    Ok(LastWord::GivingUp { kind, message }) => {
                        self.state = State::Left;
                        return Some((kind, message));
                    }
                    Err(error) => {
                        self.state = State::Dead;
                        return Some((Reason::Corrupt, error.to_string()));
                    }
                },
                Ok(Progress::Waiting) if !ended => return None,
                Ok(Progress::Waiting | Progress::Ended) | Err(_) => {
                    if self.state == State::Open {
                        self.state = State::Dead;
                    }
                    return None;
                }
            }
        }
    }
}

/// The first failure that was found.
struct Failure {
    kind: Kind,
    message: String,
    /// Whether the peer said so, and so knows.
    told: bool,
}

impl Failure {
    fn error(&self) -> Error {
        let error = Error::new(self.kind.clone(), self.message.clone());
        if self.told { error.told() } else { error }
    }
}

/// The lines to all peers.
pub(crate) struct Lines {
    rank: usize,
    /// By rank; none to ourselves.
    lines: Vec<Option<Line>>,
    /// What was found first; it is found again by whoever asks later.
    failure: Option<Failure>,
    /// Whether peers know already that we are going.
    parted: bool,
}

impl Lines {
    pub(crate) fn new(rank: usize, lines: Vec<Option<Line>>) -> Self {
        Self { rank, lines, failure: None, parted: false }
    }

    /// Looks, without waiting, whether anybody died or gave up.
    ///
    /// # Errors
    /// `PeerLost` naming who died; what a peer gave up with.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.look(Duration::ZERO)
    }

    /// Whether a peer said goodbye.
    pub(crate) fn has_left(&self, peer: usize) -> bool {
        self.lines[peer].as_ref().is_none_or(|line| line.state == State::Left)
    }

    /// The error for a peer whose data stream has ended: its last word, if it comes soon, or that it is lost.
    pub(crate) fn explain(&mut self, peer: usize) -> Error {
        if let Err(error) = self.check() {
            return error;
        }
        if !self.has_left(peer)
            && let Err(error) = self.look(AFTERWORD)
        {
            return error;
        }
        self.left_too_early(peer)
    }

    /// The error for a peer that left in good order and is still needed.
    pub(crate) fn left_too_early(&self, peer: usize) -> Error {
        Error::peer_lost(peer, format!("rank {peer} has left while rank {} still needs it", self.rank))
    }

    /// The sockets and processes whose news [`Lines::check`] would read.
    pub(crate) fn watched(&self) -> Vec<PollFd<'_>> {
        let open = self.lines.iter().flatten().filter(|line| line.state == State::Open);
        open.flat_map(|line| {
            let process = line.process.as_ref().map(|process| PollFd::new(process, PollFlags::IN));
            std::iter::once(PollFd::new(&line.stream, PollFlags::IN)).chain(process)
        })
        .collect()
    }

    /// Waits for news, `limit` at most, and takes them in.
    fn look(&mut self, limit: Duration) -> Result<()> {
        if self.failure.is_none() {
            let news = self.news(limit)?;
            self.take_in(&news);
        }
        match &self.failure {
            Some(failure) => Err(failure.error()),
            None => Ok(()),
        }
    }

    /// The ranks with news, and whether their processes have ended.
    fn news(&self, limit: Duration) -> Result<Vec<(usize, bool)>> {
        let mut watched = self.watched();
        match poll(&mut watched, Some(&timespec(limit))) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(error) => return Err(Error::io("cannot watch the other ranks", error.into())),
        }
        let mut news = Vec::new();
        let mut place = 0;
        for (rank, line) in self.lines.iter().enumerate() {
            let Some(line) = line.as_ref().filter(|line| line.state == State::Open) else { continue };
            let count = 1 + usize::from(line.process.is_some());
            let fds = &watched[place..place + count];
            place += count;
            if line.has_news(fds) {
                news.push((rank, fds[1..].iter().any(|fd| !fd.revents().is_empty())));
            }
        }
        Ok(news)
    }

    /// A reason that someone gave counts before a silent death: it names the culprit.
    fn take_in(&mut self, news: &[(usize, bool)]) {
        let mut dead = None;
        for (rank, ended) in news {
            let Some(line) = &mut self.lines[*rank] else { continue };
            if let Some((reason, message)) = line.read(*ended) {
                let message = format!("rank {rank} gave up: {message}");
                self.failure.get_or_insert(Failure { kind: reason.into(), message, told: true });
            } else if line.state == State::Dead {
                dead.get_or_insert(*rank);
            }
        }
        if let Some(rank) = dead
            && self.failure.is_none()
        {
            let message =
                format!("rank {rank} has died (its connection to rank {} closed without a word)", self.rank);
            self.failure = Some(Failure { kind: Kind::PeerLost { rank }, message, told: false });
        }
    }

    /// Tells every peer that we give up; only the first last word counts.
    pub(crate) fn give_up(&mut self, reason: &Error) {
        let message = reason.to_string().chars().take(REASON_CHARS).collect();
        self.part(&LastWord::GivingUp { kind: reason.kind().into(), message });
    }

    fn part(&mut self, word: &LastWord) {
        if std::mem::replace(&mut self.parted, true) {
            return;
        }
        let Ok(bytes) = frame::encode(word) else { return };
        for line in self.lines.iter_mut().flatten() {
            // Whoever cannot be told sees the line close.
            let _ = frame::send(&mut line.stream, &bytes);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.give_up(&Error::internal(format!("rank {} has panicked", self.rank)));
        }
        self.part(&LastWord::Goodbye);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn stream(socket: UnixStream) -> Stream {
        Stream::plain(socket.into()).unwrap()
    }

    /// Lines of rank 0 to ranks 1 and 2, and the other ends.
    fn lines() -> (Lines, UnixStream, UnixStream) {
        let pair = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (Line::to_local_process(stream(ours)), theirs)
        };
        let ((one, first), (two, second)) = (pair(), pair());
        (Lines::new(0, vec![None, Some(one), Some(two)]), first, second)
    }

    fn other_end(rank: usize, socket: UnixStream) -> Lines {
        Lines::new(rank, vec![Some(Line::new(stream(socket)))])
    }

    #[test]
    fn a_line_that_closes_without_a_word_is_a_death() {
        let (mut ours, first, _second) = lines();
        ours.check().unwrap();
        drop(first);
        assert_eq!(*ours.check().unwrap_err().kind(), Kind::PeerLost { rank: 1 });
        assert_eq!(*ours.check().unwrap_err().kind(), Kind::PeerLost { rank: 1 });
    }

    #[test]
    fn a_goodbye_is_no_failure_until_the_peer_is_needed() {
        let (mut ours, first, _second) = lines();
        drop(other_end(1, first));
        ours.check().unwrap();
        assert!(ours.has_left(1) && !ours.has_left(2));
        assert_eq!(*ours.explain(1).kind(), Kind::PeerLost { rank: 1 });
    }

    #[test]
    fn a_reason_counts_before_a_death() {
        let (mut ours, first, second) = lines();
        drop(first);
        let mut theirs = other_end(2, second);
        theirs.give_up(&Error::invalid("other length"));
        drop(theirs);
        let error = ours.check().unwrap_err();
        assert!(*error.kind() == Kind::Invalid && error.is_told());
        assert!(error.to_string().contains("rank 2 gave up: other length"), "{error}");
    }

    #[test]
    fn every_kind_survives_the_wire() {
        let kinds = [
            Kind::Invalid,
            Kind::Denied,
            Kind::Unavailable,
            Kind::Exhausted,
            Kind::PeerLost { rank: 5 },
            Kind::Fenced,
            Kind::Corrupt,
            Kind::Closed,
            Kind::Internal,
        ];
        for kind in kinds {
            let (mut ours, first, _second) = lines();
            other_end(1, first).give_up(&Error::new(kind.clone(), "x".repeat(100_000)));
            assert_eq!(*ours.check().unwrap_err().kind(), kind);
        }
    }

    #[test]
    fn a_line_with_nonsense_is_no_goodbye() {
        let (mut ours, first, _second) = lines();
        frame::send(&mut stream(first), &frame::encode(&"nonsense").unwrap()).unwrap();
        assert_eq!(*ours.check().unwrap_err().kind(), Kind::Corrupt);
    }
}
