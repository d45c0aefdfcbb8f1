//! What a rank lets itself be convinced by: the run's secret, and perhaps certificates.
//!
//! This is the one place where a connection becomes one that is believed: [`Trust::call`] proves those that this rank
//! opens, a [`Visitor`] is one that came to it.

use crate::credentials::Credentials;
use crate::frame::{Progress, Reader};
use crate::gate::await_news;
use crate::handshake::{Handshake, Nonce, Purpose, Refusal, Turn, VERSION};
use crate::secret::{SECRET, SECRET_FILE, Secret};
use crate::stream::{Moved, Stream};
use crate::tls::Identity;
use gradus_error::{Error, Result};
use gradus_host::{Clock, random};
use rustix::event::PollFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Bytes of the longest frame of a handshake, and some.
const LONGEST: usize = 64;

/// What a rank brings to every connection of one purpose.
#[derive(Clone)]
pub(crate) struct Trust {
    pub(crate) secret: Secret,
    pub(crate) tls: Option<Identity>,
    pub(crate) purpose: Purpose,
    pub(crate) rank: usize,
}

impl Trust {
    /// The same towards connections of another purpose. Unix sockets lead to no other host, and go without TLS.
    pub(crate) fn towards(&self, purpose: Purpose) -> Self {
        let tls = self.tls.clone().filter(|_| purpose != Purpose::Memory);
        Self { tls, purpose, ..self.clone() }
    }

    /// Proves both sides of a connection that this rank has opened; `whom` names who should be there. Blocks until
    /// `until` at most.
    ///
    /// # Errors
    /// `Denied` when one side does not know the other's secret or accept its certificate; `Invalid` when it speaks
    /// another version, or only one of both speaks TLS; `Corrupt` when it is no rank; `Unavailable` when it does not
    /// answer in time; `Closed` when it closes before it has proven itself.
    pub(crate) fn call(
        &self,
        socket: OwnedFd,
        whom: &str,
        clock: &dyn Clock,
        until: Duration,
    ) -> Result<Stream> {
        self.check_user(&socket).map_err(|error| error.within(whom))?;
        let mut stream = match &self.tls {
            Some(identity) => identity.call(socket)?,
            None => Stream::plain(socket)?,
        };
        self.prove(&mut stream, clock, until).map_err(|error| error.within(whom))?;
        Ok(stream)
    }

    fn prove(&self, stream: &mut Stream, clock: &dyn Clock, until: Duration) -> Result<()> {
        let (mut handshake, opening) = Handshake::call(&self.secret, self.purpose, self.number(), &nonce());
        // A failure to send shows in what is received: perhaps a reason has come before the end.
        let _ = stream.send(&opening);
        loop {
            match converse(stream, &mut handshake)? {
                Outcome::Proven(_) => return Ok(()),
                Outcome::Refused(refusal) => return Err(explain(refusal)),
                Outcome::Ended => return Err(self.closed()),
                Outcome::Waiting if clock.now() < until => await_news(stream, PollFlags::IN, clock, until),
                Outcome::Waiting => return Err(Error::unavailable("did not prove itself in time")),
            }
        }
    }

    /// Whether the other end of a Unix socket is this process' own user: without a secret that alone says who is who.
    ///
    /// # Errors
    /// `Denied` when it is another, or the system does not say.
    pub(crate) fn check_user(&self, socket: impl AsFd) -> Result<()> {
        if self.purpose != Purpose::Memory || !self.secret.is_empty() {
            return Ok(());
        }
        let ours = rustix::process::geteuid();
        match Credentials::behind(socket) {
            Some(theirs) if theirs.user == ours.as_raw() => Ok(()),
            theirs => Err(Error::denied(format!(
                "is of user {}, this rank of user {ours}: start all as one user, or give all the same secret, in {SECRET} or \
                 in a file that {SECRET_FILE} names",
                theirs.map_or_else(|| "nobody knows which".to_owned(), |theirs| theirs.user.to_string())
            ))),
        }
    }

    /// One who has come, and has `limit` to prove itself and say its first frame.
    ///
    /// # Errors
    /// The system's failure.
    pub(crate) fn visitor(&self, socket: OwnedFd, deadline: Duration) -> Result<Visitor> {
        let stream = match &self.tls {
            Some(identity) => identity.answer(socket)?,
            None => Stream::plain(socket)?,
        };
        let handshake = Handshake::answer(&self.secret, self.purpose, self.number(), &nonce());
        Ok(Visitor { stream, handshake, proven: None, reader: Reader::default(), deadline })
    }

    /// Our rank on the wire; no world is so large that it does not fit.
    fn number(&self) -> u32 {
        u32::try_from(self.rank).unwrap_or(u32::MAX)
    }

    fn closed(&self) -> Error {
        let hint = if self.tls.is_some() { " (does it expect TLS, as this rank does?)" } else { "" };
        Error::closed(format!("closed the connection before it had proven itself{hint}"))
    }
}

fn nonce() -> Nonce {
    let mut nonce = Nonce::default();
    random::fill_from_system(&mut nonce);
    nonce
}

/// Someone who has come.
pub(crate) struct Visitor {
    pub(crate) stream: Stream,
    handshake: Handshake,
    proven: Option<usize>,
    reader: Reader,
    pub(crate) deadline: Duration,
}

/// What a [`Visitor`] came to.
pub(crate) enum Visit {
    /// It is proven, and has said its first frame: its rank, and the frame.
    Arrived(usize, Vec<u8>),
    /// More is awaited.
    Waiting,
    /// It is not believed, for a reason worth telling.
    Refused(Error),
    /// It is nobody of interest, or has gone.
    Gone,
}

impl Visitor {
    /// Takes what has arrived.
    pub(crate) fn advance(&mut self) -> Visit {
        let proven = match self.proven {
            Some(rank) => rank,
            None => match converse(&mut self.stream, &mut self.handshake) {
                Ok(Outcome::Proven(rank)) => *self.proven.insert(rank as usize),
                Ok(Outcome::Waiting) => return Visit::Waiting,
                Ok(Outcome::Refused(Refusal::Stranger) | Outcome::Ended) => return Visit::Gone,
                Ok(Outcome::Refused(refusal)) => return Visit::Refused(explain(refusal)),
                Err(error) => return Visit::Refused(error),
            },
        };
        match self.reader.read(&mut self.stream) {
            Ok(Progress::Frame(frame)) => Visit::Arrived(proven, frame),
            Ok(Progress::Waiting) => Visit::Waiting,
            Ok(Progress::Ended) | Err(_) => Visit::Gone,
        }
    }
}

enum Outcome {
    Proven(u32),
    Refused(Refusal),
    Waiting,
    Ended,
}

/// Carries a handshake on as far as bytes have come.
fn converse(stream: &mut Stream, handshake: &mut Handshake) -> Result<Outcome> {
    let mut space = [0; LONGEST];
    loop {
        let wanted = handshake.wanted();
        let count = match stream.receive(&mut space[..wanted])? {
            Moved::Bytes(count) => count,
            Moved::Nothing => return Ok(Outcome::Waiting),
            Moved::Ended => return Ok(Outcome::Ended),
        };
        let (turn, reply) = handshake.take(&space[..count], &stream.binding()?);
        // The frames of a handshake fit any socket's buffer; if one does not, the other side sees the end.
        if !reply.is_empty() && stream.send(&reply)? != Moved::Bytes(reply.len()) {
            return Ok(Outcome::Ended);
        }
        match turn {
            Turn::More => {}
            Turn::Proven(rank) => return Ok(Outcome::Proven(rank)),
            Turn::Refused(refusal) => return Ok(Outcome::Refused(refusal)),
        }
    }
}

fn explain(refusal: Refusal) -> Error {
    let mend = format!("give all ranks the same one, in {SECRET} or in a file that {SECRET_FILE} names");
    match refusal {
        Refusal::Stranger => Error::corrupt("is no rank of ours: it does not speak as one"),
        Refusal::Tls => {
            Error::invalid("speaks TLS, this rank does not: set network.tls.* on all ranks or on none")
        }
        Refusal::Version(theirs) => Error::invalid(format!(
            "speaks version {theirs} of the handshake, this rank {VERSION}: start the same version everywhere"
        )),
        Refusal::Purpose => Error::corrupt("is no rank of ours, or came to a door that is not for it"),
        Refusal::Secret(rank) => {
            Error::denied(format!("who says to be rank {rank} does not know this rank's secret: {mend}"))
        }
        Refusal::Refused(rank) => {
            Error::denied(format!("rank {rank} has another secret than this rank: {mend}"))
        }
    }
}
