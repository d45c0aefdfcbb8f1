//! A member of a group, for a program: its heartbeat runs in a thread of its own.

use super::super::member::{COORDINATOR, Member, MemberCommand, MemberNote};
use super::super::message::{Epoch, GroupSettings, Identity, Reply, Request};
use super::super::timeouts::Timeouts;
use super::door::trust;
use super::link::Link;
use super::place::{CoordinatorAddress, Way, at_first};
use crate::gate::timespec;
use crate::secret::Secret;
use crate::tls::{Identity as Certificates, TlsSettings};
use gradus_error::{Error, IoContext, Result};
use gradus_host::machine::{Action, Event, EventOf, Machine};
use gradus_host::{Clock, RealClock};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a member needs to join.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Where the coordinator is found.
    pub coordinator: CoordinatorAddress,
    /// The group.
    pub group: String,
    /// What kind of group it is; all its members say the same.
    pub settings: GroupSettings,
    /// Who joins.
    pub identity: Identity,
    /// The spans, the same as the coordinator's.
    pub timeouts: Timeouts,
    /// What the coordinator knows too; the empty one serves on loopback only.
    pub secret: Secret,
    /// TLS with the coordinator, which then needs it too.
    pub tls: TlsSettings,
}

/// The epoch in which the member may act, and until when by the client's clock.
type Licence = Option<(Epoch, Duration)>;

/// Who sees what comes to pass at once.
pub(crate) type Watch = Box<dyn FnMut(&MemberNote) + Send>;

/// A member whose signs of life are given by a thread.
///
/// Dropping it leaves the group in good order; a process that ends otherwise is found dead. It must not be carried
/// through a fork.
pub struct MembershipClient {
    commands: Sender<MemberCommand>,
    bell: UnixStream,
    events: Receiver<MemberNote>,
    licence: Arc<Mutex<Licence>>,
    clock: RealClock,
    thread: Option<JoinHandle<()>>,
}

impl MembershipClient {
    /// Reaches the coordinator and begins to join. Blocks for `failure_detection` and one last try at most.
    ///
    /// # Errors
    /// `Unavailable` when the coordinator, or etcd, cannot be reached, or nobody leads there; `Denied` when it has another secret or
    /// certificate, or etcd does not let us; `Invalid` for files of TLS that are of no use, or when only one side speaks TLS;
    /// `Corrupt` when etcd holds no coordinator's address; or the system's failure to make a thread.
    pub fn join(settings: ClientSettings) -> Result<Self> {
        let limit = settings.timeouts.detection;
        Self::join_watched(settings, limit, Box::new(|_| {}))
    }

    /// As [`MembershipClient::join`], but it tries for as long as `limit`; `watch` sees everything that comes to pass before it
    /// can be asked for, on the member's thread, which it must not hold up.
    ///
    /// # Errors
    /// As [`MembershipClient::join`].
    pub(crate) fn join_watched(settings: ClientSettings, limit: Duration, watch: Watch) -> Result<Self> {
        let ClientSettings { coordinator, group, settings, identity, timeouts, secret, tls } = settings;
        let clock = RealClock::new();
        let trust = trust(secret, Certificates::read(&tls)?, 1);
        let mut way = Way::new(coordinator, trust, timeouts.connect)?;
        let link = at_first(limit, &timeouts, &clock, || way.reach())?;
        let describe = || "cannot start a member's thread".to_owned();
        let (bell, rope) = UnixStream::pair().context(describe)?;
        for socket in [&bell, &rope] {
            socket.set_nonblocking(true).context(describe)?;
        }
        let (commands, to_obey) = channel();
        let (to_tell, events) = channel();
        let licence = Arc::new(Mutex::new(None));
        let keeper = Keeper {
            member: Member::new(&group, settings, identity, timeouts),
            link: Some(link),
            heard: clock.now(),
            way,
            answered: false,
            complaint: None,
            patience: timeouts.reconnect,
            commands: to_obey,
            bell: rope,
            events: to_tell,
            watch,
            licence: Arc::clone(&licence),
            clock,
        };
        let thread = std::thread::Builder::new().name("gradus-member".into());
        let thread = thread.spawn(move || keeper.run()).context(describe)?;
        Ok(Self { commands, bell, events, licence, clock, thread: Some(thread) })
    }

    /// The next thing that comes to pass, waiting `limit` for it; `None` when nothing has.
    ///
    /// # Errors
    /// `Closed` when nothing will come any more: the member was fenced or refused, and was told so before.
    pub fn next_event(&self, limit: Duration) -> Result<Option<MemberNote>> {
        match self.events.recv_timeout(limit) {
            Ok(note) => Ok(Some(note)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::closed("the member belongs to its group no more"))
            }
        }
    }

    /// Nothing of an older epoch is in flight any more: the one named may begin.
    pub fn acknowledge(&self, epoch: Epoch) {
        self.ask(MemberCommand::Acknowledge(epoch));
    }

    /// The epoch named is of no use, a peer does not answer: form another.
    pub fn abandon(&self, epoch: Epoch) {
        self.ask(MemberCommand::Abandon(epoch));
    }

    /// The epoch in which this process may act, now; ask again before each act that others will see.
    pub fn may_act(&self) -> Option<Epoch> {
        let licence = *self.licence.lock().unwrap_or_else(PoisonError::into_inner);
        licence.filter(|(_, until)| self.clock.now() < *until).map(|(epoch, _)| epoch)
    }

    /// Asks the member for something.
    pub(crate) fn ask(&self, command: MemberCommand) {
        // A thread that has ended obeys nothing, and has said why.
        let _ = self.commands.send(command);
        let _ = (&self.bell).write(&[1]);
    }
}

impl Drop for MembershipClient {
    fn drop(&mut self) {
        self.ask(MemberCommand::Leave);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's side.
struct Keeper {
    member: Member,
    link: Option<Link>,
    /// When the coordinator was heard last, or a connection to it made.
    heard: Duration,
    way: Way,
    /// Whether the link has brought an answer yet.
    answered: bool,
    /// Why it could not be reached the last time, if it could not.
    complaint: Option<String>,
    /// How long a coordinator that may lead no more is listened to in vain.
    patience: Duration,
    commands: Receiver<MemberCommand>,
    bell: UnixStream,
    events: Sender<MemberNote>,
    watch: Watch,
    licence: Arc<Mutex<Licence>>,
    clock: RealClock,
}

impl Keeper {
    fn run(mut self) {
        self.tell(Event::Wake);
        while !self.member.has_ended() {
            self.wait();
            self.obey();
            self.hear();
            self.look_elsewhere();
            if self.member.deadline().is_some_and(|deadline| self.clock.now() >= deadline) {
                self.tell(Event::Wake);
            }
        }
    }

    fn wait(&self) {
        let now = self.clock.now();
        let limit = self.member.deadline().map_or(Duration::ZERO, |deadline| deadline.saturating_sub(now));
        let mut watched = vec![PollFd::new(&self.bell, PollFlags::IN)];
        watched.extend(self.link.iter().map(|link| PollFd::new(link, link.interest())));
        // A failure to wait shows at the next reading; an interruption is no failure.
        let _ = poll(&mut watched, Some(&timespec(limit)));
    }

    fn obey(&mut self) {
        while matches!((&self.bell).read(&mut [0; 64]), Ok(count) if count > 0) {}
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.tell(Event::Command(command)),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.tell(Event::Command(MemberCommand::Leave)),
            }
        }
    }

    fn hear(&mut self) {
        while let Some(link) = &mut self.link {
            match link.flush().and_then(|()| link.receive::<Reply>()) {
                Ok(None) => return,
                Ok(Some(message)) => {
                    self.heard = self.clock.now();
                    self.answered = true;
                    self.tell(Event::Message { from: COORDINATOR, message });
                }
                Err(_) => return self.hang_up(),
            }
        }
    }

    /// Who was let in and dropped without an answer calls again with the next heartbeat only: whoever drops it has no room, or
    /// does not lead, and would be called without a pause.
    fn hang_up(&mut self) {
        self.link = None;
        if self.answered {
            self.tell(Event::Closed { peer: COORDINATOR });
        }
    }

    /// A coordinator that stands still closes nothing, while another may lead: two heartbeats without an answer, and the one who
    /// leads is looked up anew.
    fn look_elsewhere(&mut self) {
        let silent = self.clock.now() >= self.heard + self.patience;
        if silent && self.link.is_some() && self.way.may_lead_elsewhere() {
            self.hang_up();
        }
    }

    fn tell(&mut self, event: EventOf<Member>) {
        let actions = self.member.step(event, self.clock.now());
        // Whoever hears of a change by an event must find the licence changed already.
        *self.licence.lock().unwrap_or_else(PoisonError::into_inner) = self.member.may_act(self.clock.now());
        for action in actions {
            match action {
                Action::Send { message, .. } => self.send(&message),
                Action::Note(note) => {
                    (self.watch)(&note);
                    // A program that has gone asks for nothing any more.
                    let _ = self.events.send(note);
                }
                Action::Persist(_) => {}
            }
        }
    }

    /// What cannot be said now is said again with the next heartbeat, over a new connection.
    fn send(&mut self, message: &Request) {
        if self.link.is_none() {
            let reached = self.way.reach();
            self.complain(reached.as_ref().err());
            self.link = reached.ok();
            self.answered = false;
            self.heard = self.clock.now();
        }
        if let Some(link) = &mut self.link
            && link.send(message).is_err()
        {
            self.link = None;
        }
    }

    /// Tells a person why the coordinator is not reached, once for each reason.
    fn complain(&mut self, error: Option<&Error>) {
        let complaint = error.map(Error::to_string);
        if let Some(reason) = complaint.as_ref().filter(|_| complaint != self.complaint) {
            tracing::warn!("{reason}: trying again and again");
        }
        self.complaint = complaint;
    }
}

#[cfg(test)]
mod tests {
    use super::super::door;
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn who_is_let_in_and_dropped_calls_again_with_the_next_heartbeat_only() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut door = door::open(listener, trust(Secret::default(), None, 0)).unwrap();
        let timeouts = Timeouts::from(Duration::from_millis(800)).unwrap();
        let identity = Identity { name: "a".into(), incarnation: 1, host: "h".into(), address: "a".into() };
        let clock = RealClock::new();
        let client = MembershipClient::join(ClientSettings {
            coordinator: CoordinatorAddress::At(address),
            group: "g".into(),
            settings: GroupSettings::fixed(1),
            identity,
            timeouts,
            secret: Secret::default(),
            tls: TlsSettings::default(),
        })
        .unwrap();
        const CALLS: u32 = 5;
        let mut called = 0;
        while called < CALLS {
            poll(&mut [PollFd::new(&door, PollFlags::IN)], None).unwrap();
            called += door.arrivals().len() as u32;
        }
        assert!(clock.now() >= timeouts.heartbeat * (CALLS - 1));
        drop(door);
        drop(client);
    }
}
