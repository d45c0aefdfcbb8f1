//! Connections between every two ranks of a table.
//!
//! Each rank first calls all ranks below it and says who it is, then lets in all above it and answers, then hears the
//! answers. Nobody waits for an answer before it listens, so nobody waits in a circle. The job's token, which only
//! members of the rendezvous know, proves on both ends who is on the line.

use crate::dial;
use crate::frame::{self, Reader};
use crate::gate::{Gate, frame_until};
use gradus_error::{Error, IoContext, Result};
use gradus_host::Clock;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Who is on which line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Introduction {
    job: String,
    rank: usize,
    line: usize,
}

/// What a mesh is made from.
pub(crate) struct Mesh<'a> {
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
    pub(crate) job: &'a str,
    /// Connections between every two ranks.
    pub(crate) lines: usize,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) until: Duration,
}

impl Mesh<'_> {
    /// Connects; the sockets, non-blocking, by peer and line (none to ourselves).
    ///
    /// # Errors
    /// `PeerLost` or `Unavailable` naming the rank that cannot be reached or does not call, `Corrupt` when somebody
    /// else answers.
    pub(crate) fn connect(
        &self,
        listener: OwnedFd,
        call: &dyn Fn(usize) -> Result<OwnedFd>,
    ) -> Result<Vec<Vec<OwnedFd>>> {
        let mut sockets: Vec<Vec<Option<OwnedFd>>> =
            (0..self.world_size).map(|_| (0..self.lines).map(|_| None).collect()).collect();
        for (peer, lines) in sockets.iter_mut().enumerate().take(self.rank) {
            for (line, socket) in lines.iter_mut().enumerate() {
                *socket = Some(self.introduce(peer, line, call(peer)?)?);
            }
        }
        self.let_in(&mut sockets, Gate::new(listener, self.clock)?)?;
        for (peer, lines) in sockets.iter().enumerate().take(self.rank) {
            for (line, socket) in lines.iter().flatten().enumerate() {
                self.hear_answer(peer, line, socket)?;
            }
        }
        Ok(sockets.into_iter().map(|lines| lines.into_iter().flatten().collect()).collect())
    }

    fn introduction(&self, line: usize) -> Result<Vec<u8>> {
        frame::encode(&Introduction { job: self.job.to_owned(), rank: self.rank, line })
    }

    fn introduce(&self, peer: usize, line: usize, socket: OwnedFd) -> Result<OwnedFd> {
        let describe = || format!("cannot speak to rank {peer}");
        rustix::io::ioctl_fionbio(&socket, true).context(describe)?;
        dial::send_all(&socket, &self.introduction(line)?, self.clock).map_err(|_| lost(peer))?;
        Ok(socket)
    }

    fn let_in(&self, sockets: &mut [Vec<Option<OwnedFd>>], mut gate: Gate) -> Result<()> {
        loop {
            let waiting = sockets.iter().enumerate().skip(self.rank + 1);
            let missing = waiting.clone().find(|(_, lines)| lines.iter().any(Option::is_none));
            let Some((missing, _)) = missing else { return Ok(()) };
            if self.clock.now() >= self.until {
                return Err(Error::unavailable(format!(
                    "rank {missing} did not connect to rank {} in time",
                    self.rank
                )));
            }
            for (socket, body) in gate.arrivals(self.until)? {
                let Some((peer, line)) = self.recognise(&body) else { continue };
                dial::send_all(&socket, &self.introduction(line)?, self.clock).map_err(|_| lost(peer))?;
                sockets[peer][line] = Some(socket);
            }
        }
    }

    /// The rank above us and the line that a caller speaks for, if it belongs here.
    fn recognise(&self, body: &[u8]) -> Option<(usize, usize)> {
        let Introduction { job, rank, line } = frame::decode(body).ok()?;
        let expected = job == self.job && rank > self.rank && rank < self.world_size && line < self.lines;
        expected.then_some((rank, line))
    }

    fn hear_answer(&self, peer: usize, line: usize, socket: &OwnedFd) -> Result<()> {
        let mut reader = Reader::default();
        let within = |error: Error| error.within(format!("rank {peer} on line {line}"));
        let Some(body) = frame_until(socket, &mut reader, self.clock, self.until).map_err(within)? else {
            return Err(lost(peer));
        };
        let answer: Introduction = frame::decode(&body).map_err(within)?;
        if answer.job == self.job && answer.rank == peer && answer.line == line {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "who answers for rank {peer} says it is rank {}, or of another job",
            answer.rank
        )))
    }
}

fn lost(peer: usize) -> Error {
    Error::peer_lost(peer, format!("rank {peer} went away while the ranks were connecting"))
}
