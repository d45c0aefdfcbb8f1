//! Connections between ranks of a table: between every two, or those that meet here.
//!
//! Each rank first calls all ranks below it, proves itself, says who it is and hears the answer, then lets in all above
//! it. Who is waited for is always of a lower rank, so nobody waits in a circle. That both ends know the run's secret is
//! proven before ([`Trust`]); the job's token, which only members of the rendezvous know, tells this world from others
//! that share the secret.

use crate::dial;
use crate::frame::{self, Reader};
use crate::gate::{Arrival, Gate, NAP, frame_until};
use crate::stream::Stream;
use crate::trust::Trust;
use gradus_error::{Error, Kind, Result};
use gradus_host::Clock;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Who is on which line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Introduction {
    job: String,
    rank: usize,
    line: usize,
}

/// What a mesh is made from.
pub(crate) struct Mesh<'a> {
    pub(crate) rank: usize,
    pub(crate) job: &'a str,
    pub(crate) trust: Trust,
    /// Connections to each rank of the world, as many as it wants of us: none to those that are not met.
    pub(crate) lines: Vec<usize>,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) until: Duration,
}

impl Mesh<'_> {
    /// Connects; the connections by peer and line.
    ///
    /// # Errors
    /// `PeerLost` or `Unavailable` naming the rank that cannot be reached or does not call, `Denied` when it is not
    /// believed, `Corrupt` when somebody else answers.
    pub(crate) fn connect(
        &self,
        listener: OwnedFd,
        call: &dyn Fn(usize) -> Result<OwnedFd>,
    ) -> Result<Vec<Vec<Stream>>> {
        let mut streams: Vec<Vec<Option<Stream>>> =
            self.lines.iter().map(|lines| (0..*lines).map(|_| None).collect()).collect();
        for (peer, lines) in streams.iter_mut().enumerate().take(self.rank) {
            for (line, stream) in lines.iter_mut().enumerate() {
                *stream = Some(self.introduce(peer, line, call(peer)?)?);
            }
        }
        self.let_in(&mut streams, Gate::new(listener, self.trust.clone(), self.clock)?)?;
        Ok(streams.into_iter().map(|lines| lines.into_iter().flatten().collect()).collect())
    }

    fn introduction(&self, line: usize) -> Result<Vec<u8>> {
        frame::encode(&Introduction { job: self.job.to_owned(), rank: self.rank, line })
    }

    fn introduce(&self, peer: usize, line: usize, socket: OwnedFd) -> Result<Stream> {
        let whom = format!("rank {peer}");
        let mut stream = self.trust.call(socket, &whom, self.clock, self.until).map_err(|error| {
            if *error.kind() == Kind::Closed { lost(peer).with_source(error) } else { error }
        })?;
        let said = dial::send_all(&mut stream, &self.introduction(line)?, self.clock);
        said.map_err(|error| lost(peer).with_source(error))?;
        self.hear_answer(peer, line, &mut stream)?;
        Ok(stream)
    }

    fn let_in(&self, streams: &mut [Vec<Option<Stream>>], mut gate: Gate) -> Result<()> {
        loop {
            let waiting = streams.iter().enumerate().skip(self.rank + 1);
            let missing = waiting.clone().find(|(_, lines)| lines.iter().any(Option::is_none));
            let Some((missing, _)) = missing else { return Ok(()) };
            if self.clock.now() >= self.until {
                let missing = format!("rank {missing} did not connect to rank {} in time", self.rank);
                return Err(gate.explain(Error::unavailable(missing)));
            }
            let until = self.until.min(self.clock.now() + NAP);
            for Arrival { mut stream, rank, frame } in gate.arrivals(until)? {
                let Some((peer, line)) = self.recognise(&frame).filter(|(peer, _)| *peer == rank) else {
                    continue;
                };
                let said = dial::send_all(&mut stream, &self.introduction(line)?, self.clock);
                said.map_err(|error| lost(peer).with_source(error))?;
                streams[peer][line] = Some(stream);
            }
        }
    }

    /// The rank above us and the line that a caller speaks for, if it belongs here.
    fn recognise(&self, body: &[u8]) -> Option<(usize, usize)> {
        let Introduction { job, rank, line } = frame::decode(body).ok()?;
        let expected =
            job == self.job && rank > self.rank && self.lines.get(rank).is_some_and(|lines| line < *lines);
        expected.then_some((rank, line))
    }

    fn hear_answer(&self, peer: usize, line: usize, stream: &mut Stream) -> Result<()> {
        let mut reader = Reader::default();
        let within = |error: Error| error.within(format!("rank {peer} on line {line}"));
        let Some(body) = frame_until(stream, &mut reader, self.clock, self.until).map_err(within)? else {
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
