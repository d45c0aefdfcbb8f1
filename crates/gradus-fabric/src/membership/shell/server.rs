//! A coordinator on a socket and a file: one loop that carries events in and actions out.

use super::super::coordinator::{Coordinator, CoordinatorNote};
use super::super::message::{Reply, Request};
use super::super::timeouts::Timeouts;
use super::attentive_clock::AttentiveClock;
use super::door::{Arrival, Door, listen, trust};
use super::link::Link;
use super::state_file::StateFile;
use crate::gate::timespec;
use crate::secret::Secret;
use gradus_error::{Error, IoContext, Kind, Result};
use gradus_host::machine::{Action, ActionOf, Event, EventOf, Machine, Peer};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// Connections at once; beyond that callers are turned away.
const MOST_LINKS: usize = 8192;

/// Messages that one connection may say before the others have their turn.
const ONE_TURN: usize = 64;

/// Nobody waits longer than this without looking around.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A member's connection and when it last said something.
struct Visitor {
    link: Link,
    heard: Duration,
}

/// A coordinator that serves members over TCP.
pub struct CoordinatorServer {
    machine: Coordinator,
    /// Where it keeps its state; nowhere if it ends with its members.
    file: Option<StateFile>,
    door: Door,
    address: SocketAddr,
    visitors: BTreeMap<Peer, Visitor>,
    last_peer: Peer,
    patience: Duration,
    clock: AttentiveClock,
}

impl CoordinatorServer {
    /// Listens on `address` (`host:port`, port 0 for any) and goes on from what `state` holds, if it exists. Members prove
    /// that they know `secret`.
    ///
    /// # Errors
    /// `Invalid` for an address that cannot be listened on, `Denied` for one beyond loopback without a secret or a file that another
    /// coordinator uses, `Corrupt` for a file that no coordinator wrote, or the system's failure.
    pub fn open(address: &str, state: &Path, timeouts: Timeouts, secret: &Secret) -> Result<Self> {
        let listener = listen(address, secret)?;
        let (file, stored) = StateFile::open(state)?;
        let within = |error: Error| error.within(format!("{} is of no use", state.display()));
        let machine = Coordinator::open(stored.as_deref(), timeouts).map_err(within)?;
        Self::serve(listener, machine, Some(file), timeouts, secret)
    }

    /// As [`CoordinatorServer::open`], but it keeps no state: for one that ends together with all its members, as a
    /// launcher's does.
    ///
    /// # Errors
    /// As [`CoordinatorServer::open`], but for those of the file.
    pub fn without_state(address: &str, timeouts: Timeouts, secret: &Secret) -> Result<Self> {
        let listener = listen(address, secret)?;
        Self::serve(listener, Coordinator::open(None, timeouts)?, None, timeouts, secret)
    }

    fn serve(
        listener: TcpListener,
        machine: Coordinator,
        file: Option<StateFile>,
        timeouts: Timeouts,
        secret: &Secret,
    ) -> Result<Self> {
        Ok(Self {
            machine,
            file,
            address: listener.local_addr().context(|| "cannot read a socket's own address".to_owned())?,
            door: Door::open(listener, trust(secret, 0))?,
            visitors: BTreeMap::new(),
            last_peer: 0,
            patience: timeouts.detection * 4,
            clock: AttentiveClock::new(timeouts.heartbeat),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is readable, telling `observe` what comes to pass.
    ///
    /// # Errors
    /// `Fenced` when another coordinator has taken over, or the system's failure to wait or to store.
    pub fn run(&mut self, stop: impl AsFd, mut observe: impl FnMut(&CoordinatorNote)) -> Result<()> {
        self.tell(Event::Wake, &mut observe)?;
        while let Some(speakers) = self.wait(&stop)? {
            for arrival in self.door.arrivals() {
                self.let_in(arrival, &mut observe)?;
            }
            for peer in speakers {
                self.hear(peer, &mut observe)?;
            }
            if self.machine.deadline().is_some_and(|deadline| self.clock.now() >= deadline) {
                self.tell(Event::Wake, &mut observe)?;
            }
        }
        Ok(())
    }

    /// Waits for something to do: who has something to say, or can take what was kept; `None` is to stop.
    fn wait(&mut self, stop: &impl AsFd) -> Result<Option<Vec<Peer>>> {
        let now = self.clock.now();
        let limit = self.machine.deadline().map_or(LONGEST_WAIT, |deadline| deadline.saturating_sub(now));
        let mut watched = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(&self.door, PollFlags::IN)];
        watched.extend(
            self.visitors.values().map(|visitor| PollFd::new(&visitor.link, visitor.link.interest())),
        );
        let limit = limit.min(LONGEST_WAIT);
        let polled = poll(&mut watched, Some(&timespec(limit)));
        self.clock.has_waited(limit);
        match polled {
            Ok(_) if !watched[0].revents().is_empty() => Ok(None),
            Ok(_) => {
                let ready =
                    self.visitors.keys().zip(&watched[2..]).filter(|(_, fd)| !fd.revents().is_empty());
                Ok(Some(ready.map(|(peer, _)| *peer).collect()))
            }
            Err(Errno::INTR) => Ok(Some(Vec::new())),
            Err(error) => Err(Error::io("cannot wait for members", error.into())),
        }
    }

    fn let_in(&mut self, arrival: Arrival, observe: &mut impl FnMut(&CoordinatorNote)) -> Result<()> {
        let now = self.clock.now();
        self.visitors.retain(|_, visitor| now < visitor.heard + self.patience);
        if self.visitors.len() >= MOST_LINKS {
            return Ok(());
        }
        self.last_peer += 1;
        self.visitors.insert(self.last_peer, Visitor { link: arrival.link, heard: now });
        self.tell(Event::Message { from: self.last_peer, message: arrival.request }, observe)
    }

    /// Takes in what a member has said, and its end.
    fn hear(&mut self, peer: Peer, observe: &mut impl FnMut(&CoordinatorNote)) -> Result<()> {
        for _ in 0..ONE_TURN {
            let Some(visitor) = self.visitors.get_mut(&peer) else { return Ok(()) };
            let received = visitor.link.flush().and_then(|()| visitor.link.receive::<Request>());
            match received {
                Ok(None) => return Ok(()),
                Ok(Some(message)) => {
                    visitor.heard = self.clock.now();
                    self.tell(Event::Message { from: peer, message }, observe)?;
                }
                Err(_) => return self.part_with(peer, observe),
            }
        }
        Ok(())
    }

    fn part_with(&mut self, peer: Peer, observe: &mut impl FnMut(&CoordinatorNote)) -> Result<()> {
        self.visitors.remove(&peer);
        self.tell(Event::Closed { peer }, observe)
    }

    /// Lets the machine take one step and does what it asks for.
    fn tell(
        &mut self,
        event: EventOf<Coordinator>,
        observe: &mut impl FnMut(&CoordinatorNote),
    ) -> Result<()> {
        for action in self.machine.step(event, self.clock.now()) {
            self.carry_out(action, observe)?;
        }
        match self.machine.is_superseded() {
            true => Err(Error::new(Kind::Fenced, "another coordinator has taken over: this one stops")),
            false => Ok(()),
        }
    }

    fn carry_out(
        &mut self,
        action: ActionOf<Coordinator>,
        observe: &mut impl FnMut(&CoordinatorNote),
    ) -> Result<()> {
        match action {
            Action::Send { to, message } => self.send(to, &message),
            Action::Persist(bytes) => return self.file.as_ref().map_or(Ok(()), |file| file.replace(&bytes)),
            Action::Note(note) => observe(&note),
        }
        Ok(())
    }

    /// A link that fails shows at the next reading.
    fn send(&mut self, to: Peer, message: &Reply) {
        if let Some(visitor) = self.visitors.get_mut(&to) {
            let _ = visitor.link.send(message);
        }
    }
}
