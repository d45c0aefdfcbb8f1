//! The line of each pair of ranks on which nothing travels but the end: a goodbye, or the reason for giving up.
//!
//! A socket that stays open as long as its process lives is the surest sign of life: the kernel closes it however the
//! process ends. A line that closes without a word is a death. On one host a handle to the process is watched as well,
//! because a child that the peer forked may hold its socket open. A rank that fails says why before it leaves, so that
//! the others blame the culprit and not the messenger.

use crate::alarm::Alarm;
use crate::frame::{self, Progress, Reader};
use crate::gate::timespec;
use crate::holders::{Holder, Process};
use crate::membership::Timeouts;
use crate::stream::Stream;
use gradus_error::{Error, Kind, Result};
use gradus_host::Clock;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::Shutdown;
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// Characters of a reason that are passed on: a frame holds them whatever they are.
const REASON_CHARS: usize = 2000;

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
    process: Option<Process>,
    /// Whether the other end is a process of this host, with which we share memory.
    local: bool,
    reader: Reader,
    state: State,
}

impl Line {
    /// A line over a connection to another host, or to one that cannot be watched.
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, process: None, local: false, reader: Reader::default(), state: State::Open }
    }

    /// A line over a Unix socket: its other end is a process of this host.
    pub(crate) fn to_local_process(stream: Stream) -> Self {
        // A kernel that refuses leaves the socket alone to tell.
        Self { process: Process::behind(&stream), local: true, ..Self::new(stream) }
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

/// What lines know of the world around them.
#[derive(Clone)]
pub(crate) struct Surroundings {
    /// The nodes of all ranks, for a person.
    pub(crate) nodes: Vec<String>,
    /// How long to bear silence.
    pub(crate) timeouts: Timeouts,
    /// What ends all waiting when it is raised.
    pub(crate) alarm: Option<Arc<Alarm>>,
}

/// The lines to all peers.
pub(crate) struct Lines {
    rank: usize,
    surroundings: Surroundings,
    /// By rank; none to ourselves.
    lines: Vec<Option<Line>>,
    /// What was found first; it is found again by whoever asks later.
    failure: Option<Failure>,
    /// Whether peers know already that we are going.
    parted: bool,
}

impl Lines {
    pub(crate) fn new(rank: usize, lines: Vec<Option<Line>>, surroundings: Surroundings) -> Self {
        Self { rank, surroundings, lines, failure: None, parted: false }
    }

    /// The lines, of which there was none before.
    pub(crate) fn fill(&mut self, lines: Vec<Option<Line>>) {
        self.lines = lines;
    }

    /// Whether the alarm was raised: costs one load.
    ///
    /// # Errors
    /// What it was raised with.
    pub(crate) fn heed(&self) -> Result<()> {
        self.surroundings.alarm.as_ref().map_or(Ok(()), |alarm| alarm.check())
    }

    /// The processes of this host with which we share memory, by rank.
    ///
    /// # Errors
    /// The system's failure to copy a descriptor.
    pub(crate) fn holders(&self) -> Result<Vec<Option<Holder>>> {
        let holder = |line: &Option<Line>| match line {
            Some(line) if line.local => Holder::new(line.stream.as_fd(), line.process.as_ref()).map(Some),
            _ => Ok(None),
        };
        self.lines.iter().map(holder).collect()
    }

    /// Keeps lost ranks of this host from memory that they share with us.
    ///
    /// # Errors
    /// `Unavailable` naming one that lives and could not be ended in time.
    pub(crate) fn fence(&self, lost: &[usize], clock: &dyn Clock) -> Result<()> {
        let until = clock.now() + self.surroundings.timeouts.connect;
        let holders = self.holders()?;
        for rank in lost {
            let Some(holder) = &holders[*rank] else { continue };
            holder.fence(clock, until).map_err(|error| error.within(self.name(*rank)))?;
        }
        Ok(())
    }

    /// Looks, without waiting, whether anybody died or gave up, or the alarm was raised.
    ///
    /// # Errors
    /// `PeerLost` naming who died; what a peer gave up with; what the alarm was raised with.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.look(Duration::ZERO)
    }

    /// Whether a peer said goodbye.
    pub(crate) fn has_left(&self, peer: usize) -> bool {
        self.lines[peer].as_ref().is_none_or(|line| line.state == State::Left)
    }

    /// The error for a peer whose data stream has ended: its last word, if it comes soon, or that it is lost.
    pub(crate) fn explain(&mut self, peer: usize) -> Error {
        self.last_word(peer).unwrap_or_else(|| self.left_too_early(peer))
    }

    /// Who died, or what anybody gave up with, if that is known soon; a peer that has left says nothing more.
    pub(crate) fn last_word(&mut self, peer: usize) -> Option<Error> {
        let known = self.check().err();
        let afterword = self.surroundings.timeouts.afterword;
        known.or_else(|| if self.has_left(peer) { None } else { self.look(afterword).err() })
    }

    /// The error for a peer that left in good order and is still needed.
    pub(crate) fn left_too_early(&self, peer: usize) -> Error {
        let (name, own) = (self.name(peer), self.rank);
        Error::peer_lost(peer, format!("{name} has left while rank {own} still needs it"))
    }

    /// A rank as a person knows it.
    pub(crate) fn name(&self, rank: usize) -> String {
        match self.surroundings.nodes.get(rank) {
            Some(node) => format!("rank {rank} on {node}"),
            None => format!("rank {rank}"),
        }
    }

    /// The sockets, processes and alarm whose news [`Lines::check`] would read; the alarm is the last.
    pub(crate) fn watched(&self) -> Vec<PollFd<'_>> {
        let open = self.lines.iter().flatten().filter(|line| line.state == State::Open);
        open.flat_map(|line| {
            let process = line.process.as_ref().map(|process| PollFd::new(process, PollFlags::IN));
            std::iter::once(PollFd::new(&line.stream, PollFlags::IN)).chain(process)
        })
        .chain(self.surroundings.alarm.as_deref().map(|alarm| PollFd::new(alarm, PollFlags::IN)))
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
            None => self.heed(),
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
                let message = format!("{} gave up: {message}", self.name(*rank));
                self.failure.get_or_insert(Failure { kind: reason.into(), message, told: true });
            } else if line.state == State::Dead {
                dead.get_or_insert(*rank);
            }
        }
        if let Some(rank) = dead
            && self.failure.is_none()
        {
            let (name, own) = (self.name(rank), self.rank);
            let message = format!("{name} has died (its connection to rank {own} closed without a word)");
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
        for line in self.lines.iter().flatten().filter(|line| line.local) {
            // A copy of the socket may be held to fence the peer: it must not keep our own end from being seen.
            let _ = rustix::net::shutdown(&line.stream, Shutdown::Write);
        }
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
