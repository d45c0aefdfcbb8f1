//! How ranks that know nothing but rank 0's address find each other.
//!
//! Rank 0 listens; every other rank connects, says who it is and on what terms it wants to train, and gets back either
//! the table of all ranks or the reason why there is none. Rank 0 hears everybody before it judges, as far as the time
//! allows, and what it finds wrong goes to all who are connected: no rank is left waiting for a world that cannot be.
//! Strangers who connect by chance, stay silent or speak nonsense are dropped and hold nobody up.

use crate::doors::{Doors, Member};
use crate::frame::{self, Reader};
use crate::gate::{Arrival, Gate, NAP, frame_until, peer_address};
use crate::interface::Wish;
use crate::launch::Launch;
use crate::membership::Timeouts;
use crate::settings::TransportKind;
use crate::stream::Stream;
use crate::trust::Trust;
use crate::{dial, host};
use gradus_error::{Error, IoContext, Kind, Result};
use gradus_host::{Clock, random};
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener};
use std::time::Duration;

/// Which of the meetings at one place: epochs of a group meet there one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Occasion {
    /// The group; empty where ranks meet once, without membership.
    pub(crate) group: String,
    /// Its epoch.
    pub(crate) epoch: u64,
}

/// What a rank says first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    version: String,
    occasion: Occasion,
    rank: usize,
    world_size: usize,
    fingerprint: String,
    transport: TransportKind,
    /// Who does not say has one.
    #[serde(default = "one")]
    priority_levels: usize,
    member: Member,
}

const fn one() -> usize {
    1
}

/// What rank 0 says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The world is complete; as many members follow, one frame each, in the order of ranks.
    Welcome { world_size: usize, job: String },
    /// It cannot be: for the reason given, with the rank that is lost, if one is, and whether to mend or to retry.
    Refusal { lost: Option<usize>, mend: bool, message: String },
    /// It is over for whoever asks: the group is further on.
    Outdated { epoch: u64 },
}

/// What the rendezvous comes to.
pub(crate) struct Table {
    /// All ranks.
    pub(crate) members: Vec<Member>,
    /// Known to the members only: who knows it belongs here.
    pub(crate) job: String,
    /// Where we listen ourselves, as the table says.
    pub(crate) doors: Doors,
}

impl Table {
    /// What a person calls the nodes of all ranks.
    pub(crate) fn nodes(&self) -> Vec<String> {
        let name =
            |member: &Member| host::shown(if member.node.is_empty() { &member.name } else { &member.node });
        self.members.iter().map(name).collect()
    }
}

/// What a rank brings.
pub(crate) struct Terms<'a> {
    pub(crate) launch: &'a Launch,
    pub(crate) occasion: Occasion,
    /// Where rank 0 listens if it goes on doing so; else it listens as its launch says, and for this meeting only.
    pub(crate) entrance: Option<&'a TcpListener>,
    pub(crate) trust: Trust,
    /// What is wished about interfaces, and where.
    pub(crate) wish: Option<(Wish, &'static str)>,
    pub(crate) transport: TransportKind,
    /// The node that this rank lies on, if it has a name of its own.
    pub(crate) node: &'a str,
    pub(crate) fingerprint: &'a str,
    /// Levels of priority.
    pub(crate) levels: usize,
    /// How long to wait for ranks to come.
    pub(crate) timeout: Duration,
    pub(crate) timeouts: Timeouts,
    pub(crate) clock: &'a dyn Clock,
}

/// Meets the other ranks.
///
/// # Errors
/// `Invalid` where ranks disagree, the port is taken or the address is wrong, `Unavailable` when ranks do not come in
/// time, `Denied` when those who came instead are not believed or rank 0 does not believe us, `PeerLost` when one leaves
/// meanwhile.
pub(crate) fn meet(terms: &Terms) -> Result<Table> {
    let until = terms.clock.now() + terms.timeout;
    if terms.launch.rank == 0 { host_meeting(terms, until) } else { join_meeting(terms, until) }
}

impl Terms<'_> {
    fn hello(&self, doors: &Doors) -> Hello {
        Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            occasion: self.occasion.clone(),
            rank: self.launch.rank,
            world_size: self.launch.world_size,
            fingerprint: self.fingerprint.to_owned(),
            transport: self.transport,
            priority_levels: self.levels,
            member: doors.member(),
        }
    }

    fn place(&self) -> String {
        format!("{}:{}", self.launch.master_address, self.launch.master_port)
    }
}

/// A rank that has said hello and waits for the answer.
struct Guest {
    stream: Stream,
    hello: Hello,
}

fn host_meeting(terms: &Terms, until: Duration) -> Result<Table> {
    if let Some(kept) = terms.entrance {
        return hold_meeting(terms, kept, until);
    }
    let entrance = dial::entrance(terms.launch)?;
    let outcome = hold_meeting(terms, &entrance, until);
    // The descriptor may be held elsewhere too (by the launcher that handed it on): end it for all.
    let _ = rustix::net::shutdown(&entrance, rustix::net::Shutdown::Both);
    outcome
}

fn hold_meeting(terms: &Terms, entrance: &TcpListener, until: Duration) -> Result<Table> {
    let doors = Doors::open(dial::own_address(entrance)?.ip(), terms)?;
    let unheard = (1..terms.launch.world_size).collect();
    let mut meeting = Meeting { terms, own: terms.hello(&doors), guests: Vec::new(), unheard };
    meeting.guests.resize_with(terms.launch.world_size, || None);
    let gate = entrance.try_clone().context(|| "cannot prepare the rendezvous".to_owned())?;
    let outcome = meeting.gather(Gate::new(gate.into(), terms.trust.clone(), terms.clock)?, until);
    match outcome.and_then(|()| meeting.welcome()) {
        Ok((members, job)) => Ok(Table { members, job, doors }),
        Err(error) => {
            meeting.refuse(&error);
            Err(error)
        }
    }
}

/// Rank 0's view.
struct Meeting<'a> {
    terms: &'a Terms<'a>,
    own: Hello,
    guests: Vec<Option<Guest>>,
    unheard: BTreeSet<usize>,
}

impl Meeting<'_> {
    /// Hears ranks until all are there, or one cannot take part, or time is up.
    fn gather(&mut self, mut gate: Gate, until: Duration) -> Result<()> {
        let mut verdict = Ok(());
        let mut until = until;
        while !self.unheard.is_empty() {
            let now = self.terms.clock.now();
            if now >= until {
                return verdict.and_then(|()| Err(gate.explain(self.missing())));
            }
            for arrival in gate.arrivals(until.min(now + NAP))? {
                if let Err(error) = self.hear(arrival).and_then(|()| self.all_there())
                    && verdict.is_ok()
                {
                    verdict = Err(error);
                    until = until.min(now + self.terms.timeouts.afterword);
                }
            }
            if verdict.is_ok() {
                self.all_there()?;
            }
        }
        verdict
    }

    fn hear(&mut self, Arrival { mut stream, rank, frame }: Arrival) -> Result<()> {
        let Ok(hello) = frame::decode::<Hello>(&frame) else { return Ok(()) };
        let Some(from) = peer_address(&stream).filter(|_| hello.rank == rank) else { return Ok(()) };
        if hello.occasion != self.own.occasion {
            // It belongs to another epoch, and must not end this one. Whoever is further on than we are hears of it by
            // the end of its connection, as we shall by membership.
            if hello.occasion.epoch < self.own.occasion.epoch {
                let answer = Answer::Outdated { epoch: self.own.occasion.epoch };
                let _ = frame::send(&mut stream, &frame::encode(&answer)?);
            }
            return Ok(());
        }
        self.unheard.remove(&rank);
        if let Err(error) = self.judge(&hello, from.ip()) {
            let _ = frame::send(&mut stream, &frame::encode(&Answer::from(&error))?);
            return Err(error);
        }
        self.guests[rank] = Some(Guest { stream, hello });
        Ok(())
    }

    fn judge(&self, hello: &Hello, from: IpAddr) -> Result<()> {
        let (rank, own) = (hello.rank, &self.own);
        let differs = |what: &str, theirs: &dyn std::fmt::Debug, ours: &dyn std::fmt::Debug| {
            Err(Error::invalid(format!(
                "rank {rank} (at {from}) was started with {what} {theirs:?}, rank 0 with {ours:?}: start all ranks alike"
            )))
        };
        if hello.version != own.version {
            return differs("version", &hello.version, &own.version);
        }
        if hello.world_size != own.world_size {
            return differs("world size", &hello.world_size, &own.world_size);
        }
        if rank >= own.world_size {
            return Err(Error::invalid(format!("rank {rank} (at {from}) is not below the world size")));
        }
        if rank == 0 || self.guests[rank].is_some() {
            return Err(Error::invalid(format!(
                "rank {rank} came twice, the second time from {from}: give every process a rank of its own, and every \
                 job a MASTER_PORT of its own"
            )));
        }
        if hello.transport != own.transport {
            return differs("transport", &hello.transport, &own.transport);
        }
        if hello.priority_levels != own.priority_levels {
            return differs("network.priority_levels", &hello.priority_levels, &own.priority_levels);
        }
        if hello.fingerprint != own.fingerprint {
            let (theirs, ours) = first_difference(&hello.fingerprint, &own.fingerprint);
            return differs("other settings:", &theirs, &ours);
        }
        Ok(())
    }

    /// Guests say nothing while they wait: one whose socket has news has gone.
    fn all_there(&self) -> Result<()> {
        let guests: Vec<&Guest> = self.guests.iter().flatten().collect();
        let mut sockets: Vec<_> =
            guests.iter().map(|guest| PollFd::new(&guest.stream, PollFlags::IN)).collect();
        let now = crate::gate::timespec(Duration::ZERO);
        if !matches!(poll(&mut sockets, Some(&now)), Ok(count) if count > 0) {
            return Ok(());
        }
        match sockets.iter().position(|socket| !socket.revents().is_empty()) {
            Some(gone) => Err(lost(guests[gone].hello.rank, "left the rendezvous before all ranks had come")),
            None => Ok(()),
        }
    }

    fn missing(&self) -> Error {
        let ranks = self.guests.iter().enumerate().skip(1).filter(|(_, guest)| guest.is_none());
        let mut names: Vec<String> = ranks.map(|(rank, _)| rank.to_string()).collect();
        let more = names.len().saturating_sub(16);
        names.truncate(16);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Error::unavailable(format!(
            "rank {}{more} of {} did not come to {} within {} s: look at the logs of these ranks",
            names.join(", "),
            self.own.world_size,
            self.terms.place(),
            self.terms.timeout.as_secs_f32()
        ))
    }

    fn welcome(&mut self) -> Result<(Vec<Member>, String)> {
        let Occasion { group, epoch } = &self.own.occasion;
        let [drawn, more] = [random::seed_from_system(), random::seed_from_system()];
        let job = format!("{group}:{epoch}:{drawn:016x}{more:016x}");
        let guests = self.guests.iter().flatten().map(|guest| guest.hello.member.clone());
        let members: Vec<Member> = std::iter::once(self.own.member.clone()).chain(guests).collect();
        let mut bytes = frame::encode(&Answer::Welcome { world_size: members.len(), job: job.clone() })?;
        for member in &members {
            bytes.extend(frame::encode(member)?);
        }
        for guest in self.guests.iter_mut().flatten() {
            dial::send_all(&mut guest.stream, &bytes, self.terms.clock)
                .map_err(|_| lost(guest.hello.rank, "left the rendezvous before the answer"))?;
        }
        Ok((members, job))
    }

    fn refuse(&mut self, error: &Error) {
        let Ok(bytes) = frame::encode(&Answer::from(error)) else { return };
        for guest in self.guests.iter_mut().flatten() {
            let _ = frame::send(&mut guest.stream, &bytes);
        }
    }
}

fn lost(rank: usize, what: &str) -> Error {
    Error::peer_lost(rank, format!("rank {rank} {what}"))
}

impl From<&Error> for Answer {
    fn from(error: &Error) -> Self {
        let lost = match error.kind() {
            Kind::PeerLost { rank } => Some(*rank),
            _ => None,
        };
        let message = error.to_string().chars().take(4000).collect();
        Self::Refusal { lost, mend: *error.kind() == Kind::Invalid, message }
    }
}

fn join_meeting(terms: &Terms, until: Duration) -> Result<Table> {
    let way = || format!("cannot prepare the way to {}", terms.place());
    let socket = dial::reach(terms.launch, terms.clock, until)?;
    let doors = Doors::open(socket.local_addr().context(way)?.ip(), terms)?;
    let rank_0 = socket.peer_addr().context(way)?.ip();
    let hello = frame::encode(&terms.hello(&doors))?;
    // Rank 0 may have come later than we: it waits as long as we do, from then on, and then says who is missing.
    let until = terms.clock.now() + terms.timeout + terms.timeouts.detection;
    let whom = format!("what answers at {} as rank 0", terms.place());
    let called = terms.trust.call(socket.into(), &whom, terms.clock, until);
    let mut stream = called.map_err(|error| match error.kind() {
        Kind::Closed => lost(0, "closed the rendezvous without an answer").with_source(error),
        _ => error,
    })?;
    // A failure to send shows as the end of the stream, after any answer that has come before it.
    let _ = dial::send_all(&mut stream, &hello, terms.clock);
    let (mut members, job) = read_table(terms, &mut stream, until)?;
    if members[0].address.ip().is_unspecified() {
        // Rank 0 listens on every address: it is reached where we have reached it.
        members[0].address.set_ip(rank_0);
    }
    Ok(Table { members, job, doors })
}

fn read_table(terms: &Terms, stream: &mut Stream, until: Duration) -> Result<(Vec<Member>, String)> {
    let mut reader = Reader::default();
    let mut next = || {
        let foreign =
            |error: Error| error.within(format!("what answers at {} is no rank 0 of ours", terms.place()));
        match frame_until(stream, &mut reader, terms.clock, until).map_err(foreign)? {
            Some(body) => Ok(body),
            None if terms.clock.now() < until => Err(lost(0, "closed the rendezvous without an answer")),
            None => Err(Error::unavailable(format!("rank 0 at {} did not answer in time", terms.place()))),
        }
    };
    let (world_size, job) = match frame::decode(&next()?)? {
        Answer::Welcome { world_size, job } => (world_size, job),
        Answer::Refusal { lost, mend, message } => return Err(refused(lost, mend, message)),
        Answer::Outdated { epoch } => {
            let Occasion { group, epoch: own } = &terms.occasion;
            let message =
                format!("group {group} is in epoch {epoch}, this rank in epoch {own}: it is over here");
            return Err(Error::new(Kind::Fenced, message));
        }
    };
    if world_size != terms.launch.world_size {
        return Err(Error::corrupt(format!(
            "rank 0 announces {world_size} ranks, not {}",
            terms.launch.world_size
        )));
    }
    let members: Vec<Member> = (0..world_size).map(|_| frame::decode(&next()?)).collect::<Result<_>>()?;
    Ok((members, job))
}

fn refused(lost: Option<usize>, mend: bool, message: String) -> Error {
    let message = format!("rank 0 says: {message}");
    match lost {
        Some(rank) => Error::peer_lost(rank, message),
        None if mend => Error::invalid(message),
        None => Error::unavailable(message),
    }
}

/// The first lines in which two fingerprints differ: they hold one setting a line.
fn first_difference<'a>(theirs: &'a str, ours: &'a str) -> (&'a str, &'a str) {
    let (mut theirs, mut ours) = (theirs.lines(), ours.lines());
    loop {
        match (theirs.next(), ours.next()) {
            (Some(a), Some(b)) if a == b => {}
            (a, b) => return (a.unwrap_or("nothing more"), b.unwrap_or("nothing more")),
        }
    }
}

#[cfg(test)]
#[path = "rendezvous_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "occasion_tests.rs"]
mod occasion_tests;
