//! A process' life in a group: one world after the other, each with a transport of its own.
//!
//! A [`Session`] joins a group at its coordinator ([`crate::membership`]) and hands out a [`World`] for each epoch that
//! becomes active: the ranks of its members and a transport among exactly these. When a rank is lost the transports of
//! all others fail at once, even of those who wait for somebody else ([`Transport::wait`]); whoever drops its transport and
//! asks for the next world gets one, in the same process.
//!
//! Each epoch is met for anew, at the door of its rank 0: fresh sockets, fresh shared memory, a fresh token. So nothing of
//! an older epoch can reach a newer one: who calls for an older one is told that it is over, and what a late process still
//! writes lands in memory that nobody looks at any more. Before this process acknowledges an epoch it ends the processes
//! of its host that are in it no more and hold memory of the world before, as far as the system lets it.
//!
//! The order of these steps is decided by a pure machine ([`passage`]); here is its shell.

mod passage;
mod seats;
mod watch;

pub use seats::Order;

use crate::alarm::{Alarm, Impatient};
use crate::connect::{Joined, join_world};
use crate::handshake::Purpose;
use crate::holders::Holder;
use crate::launch::Launch;
use crate::membership::{
    ClientSettings, CoordinatorAddress, Epoch, GroupSettings, Identity, MembershipClient, Table, Timeouts,
};
use crate::rendezvous::{Occasion, Terms};
use crate::secret::Secret;
use crate::settings::{NetworkSettings, TransportKind};
use crate::tls::{self, TlsSettings};
use crate::transport::{Alone, Transport};
use crate::trust::Trust;
use crate::{dial, host, reach};
use gradus_error::{Error, Kind, Result};
use gradus_host::machine::{Action, Event, EventOf, Machine};
use gradus_host::{Clock, RealClock};
use passage::{Passage, Step, Turn};
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use watch::Watch;

/// What a process needs to live in a group.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// Where the coordinator is found.
    pub coordinator: CoordinatorAddress,
    /// The group.
    pub group: String,
    /// How many members it has; all say the same.
    pub size: GroupSettings,
    /// This process' name: no other's of the group, and the same again when it returns.
    pub name: String,
    /// Which member has which rank; all say the same.
    pub order: Order,
    /// What the coordinator and all members know; the empty one serves on loopback only.
    pub secret: Secret,
    /// TLS with the coordinator, which then needs it too; with other members it is as the network's settings say.
    pub coordinator_tls: TlsSettings,
    /// How bytes travel; all say the same.
    pub transport: TransportKind,
    /// Times, sizes and interfaces of the network. `failure_detection` is the coordinator's too.
    pub network: NetworkSettings,
    /// Interfaces to be reached at where the settings name none and the coordinator is not on loopback, as
    /// `NCCL_SOCKET_IFNAME` lists them.
    pub interfaces: String,
    /// On what terms this process wants to take part; members with different ones form no world.
    pub fingerprint: String,
}

/// One epoch of a group, as this process lives in it.
pub struct World {
    /// Which.
    pub epoch: Epoch,
    /// This process' rank.
    pub rank: usize,
    /// All members, by rank.
    pub members: Vec<Identity>,
    /// The connections to all others.
    pub transport: Box<dyn Transport>,
    /// Processes of this host that left the worlds before, hold their memory, and could not be ended: whatever memory was
    /// shared with them must not be used again, but for what a transport has made for itself.
    pub unfenced: Vec<Identity>,
}

/// A member of a group. Dropping it leaves the group in good order; drop the transport of its world before.
pub struct Session {
    client: MembershipClient,
    watch: Arc<Watch>,
    passage: Passage,
    settings: SessionSettings,
    timeouts: Timeouts,
    identity: Identity,
    /// Where this member is met when it is rank 0; told to the others by the table.
    door: TcpListener,
    /// Those with whom memory was shared in the last world.
    holders: Vec<(Identity, Holder)>,
    unfenced: Vec<Identity>,
    /// Why the newest epoch could not be connected.
    trouble: Option<Error>,
    clock: RealClock,
}

impl Session {
    /// Reaches the coordinator and begins to join. Blocks for `failure_detection` and one last try at most.
    ///
    /// # Errors
    /// As [`Session::join_within`].
    pub fn join(settings: SessionSettings) -> Result<Self> {
        let limit = settings.network.failure_detection;
        Self::join_within(settings, limit)
    }

    /// As [`Session::join`]; a coordinator that is not there yet is tried for as long as `limit`.
    ///
    /// # Errors
    /// `Invalid` when a setting is impossible or others could not reach this process, `Unavailable` when the coordinator cannot be reached, `Denied` when it has
    /// another secret, or this process would be reached beyond loopback without one; the system's failure.
    pub fn join_within(settings: SessionSettings, limit: Duration) -> Result<Self> {
        settings.network.check()?;
        settings.size.check()?;
        let timeouts = settings.network.timeouts()?;
        let clock = RealClock::new();
        let until = clock.now().saturating_add(limit);
        let place = settings.coordinator.place_now(limit, &timeouts, &clock)?;
        let door = reach::listen(&settings.network, &settings.interfaces, &settings.secret, &place)?;
        let identity = Identity {
            name: settings.name.clone(),
            // A process that comes back has started later.
            incarnation: u64::try_from(clock.calendar().as_nanos()).unwrap_or(u64::MAX),
            host: node_name(&settings.network),
            address: dial::own_address(&door)?.to_string(),
        };
        let watch = Arc::new(Watch::default());
        let watching = Arc::clone(&watch);
        let member = ClientSettings {
            coordinator: settings.coordinator.clone(),
            group: settings.group.clone(),
            settings: settings.size,
            identity: identity.clone(),
            timeouts,
            secret: settings.secret.clone(),
            tls: settings.coordinator_tls.clone(),
        };
        let left = until.saturating_sub(clock.now());
        let client = MembershipClient::join_watched(member, left, Box::new(move |note| watching.note(note)))?;
        Ok(Self {
            client,
            watch,
            passage: Passage::new(timeouts.detection),
            settings,
            timeouts,
            identity,
            door,
            holders: Vec::new(),
            unfenced: Vec::new(),
            trouble: None,
            clock,
        })
    }

    /// The world of the next epoch, waiting `limit` for it. The transport of the one before must have been dropped;
    /// if that epoch still stands it is given up, once membership had the time to tell who is lost in it.
    ///
    /// # Errors
    /// `Unavailable` when there is none in time: asking again goes on waiting. `Fenced` when the group goes on without this
    /// process: stop, or join anew. `Invalid` when the coordinator or the other members want another group, settings or
    /// terms than this process, or it still holds a transport; `Denied`, `Exhausted` and others of [`crate::connect`].
    pub fn next_world(&mut self, limit: Duration) -> Result<World> {
        if let Some(epoch) = self.watch.held() {
            return Err(Error::invalid(format!(
                "the transport of epoch {epoch} is still held: drop it before asking for another"
            )));
        }
        let until = self.clock.now().saturating_add(limit);
        let mut event = Event::Command(Turn::Want);
        loop {
            if let Some(world) = self.tell(event, until)? {
                return Ok(world);
            }
            event = self.next_event(until)?;
        }
    }

    /// Whether membership knows of something newer than the world of `epoch`: a member is gone, or others have come and
    /// wait for [`Session::next_world`]. Costs a lock.
    pub fn is_outdated(&self, epoch: Epoch) -> bool {
        self.watch.is_outdated(epoch)
    }

    /// The epoch in which this process may act, now; to be asked before each act that others will see, other than by the
    /// transport.
    pub fn may_act(&self) -> Option<Epoch> {
        self.client.may_act()
    }

    /// The next thing that happens to the passage.
    fn next_event(&self, until: Duration) -> Result<EventOf<Passage>> {
        loop {
            let now = self.clock.now();
            if self.passage.deadline().is_some_and(|deadline| now >= deadline) {
                return Ok(Event::Wake);
            }
            if now >= until {
                return Err(self.too_late());
            }
            let next = self.passage.deadline().map_or(until, |deadline| deadline.min(until));
            if let Some(message) = self.client.next_event(next - now)? {
                return Ok(Event::Message { from: crate::membership::COORDINATOR, message });
            }
        }
    }

    fn too_late(&self) -> Error {
        let SessionSettings { group, size, .. } = &self.settings;
        let message =
            format!("group {group} has formed no epoch of {} to {} members", size.min_size, size.max_size);
        match &self.trouble {
            Some(trouble) => Error::unavailable(format!("{message} that could connect: {trouble}")),
            None => Error::unavailable(format!("{message} in time: look at the logs of the others")),
        }
    }

    /// Lets the passage take a step, and those that follow from what is done; the world, if that comes of it.
    fn tell(&mut self, event: EventOf<Passage>, until: Duration) -> Result<Option<World>> {
        let mut events = VecDeque::from([event]);
        let mut world = None;
        while let Some(event) = events.pop_front() {
            for action in self.passage.step(event, self.clock.now()) {
                match action {
                    Action::Send { message, .. } => self.client.ask(message),
                    Action::Note(Step::Fence(table)) => self.fence(&table),
                    Action::Note(Step::Connect(table)) => {
                        let epoch = table.epoch;
                        world = self.try_connect(table, until)?;
                        let connected = world.is_some();
                        let turn = if connected { Turn::Connected(epoch) } else { Turn::Unreachable(epoch) };
                        events.push_back(Event::Command(turn));
                    }
                    Action::Note(Step::Fenced) => return Err(fenced(&self.settings.group)),
                    Action::Note(Step::Refused(message)) => return Err(Error::invalid(message)),
                    Action::Persist(_) => {}
                }
            }
        }
        Ok(world)
    }

    /// Keeps whoever is not in `table` from the memory of the worlds before.
    fn fence(&mut self, table: &Table) {
        let until = self.clock.now() + self.timeouts.connect;
        let gone =
            |(member, _): &&(Identity, Holder)| table.rank_of(&member.name, member.incarnation).is_none();
        let unfenced = self.holders.iter().filter(gone).filter_map(|(member, holder)| {
            let error = holder.fence(&self.clock, until).err()?;
            tracing::warn!(member.name, member.host, "cannot be fenced: {error}");
            Some(member.clone())
        });
        self.unfenced = unfenced.collect();
    }

    /// Connects; nothing when the epoch is of no use, but another may be.
    fn try_connect(&mut self, table: Table, until: Duration) -> Result<Option<World>> {
        match self.connect(table, until) {
            Ok(world) => Ok(Some(world)),
            Err(error) => match error.kind() {
                Kind::PeerLost { .. } | Kind::Unavailable | Kind::Closed | Kind::Fenced => {
                    tracing::info!("an epoch could not be connected: {error}");
                    self.trouble = Some(error);
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    }

    fn connect(&mut self, table: Table, until: Duration) -> Result<World> {
        let epoch = table.epoch;
        let ranks = self.settings.order.ranks(&table);
        let members = seats::members(&table, &ranks);
        let own = |member: &Identity| {
            (&member.name, member.incarnation) == (&self.identity.name, self.identity.incarnation)
        };
        let Some(rank) = members.iter().position(own) else {
            return Err(Error::internal(format!("epoch {epoch} is told to a member that is not in it")));
        };
        let alarm = self.watch.alarm(epoch, ranks)?;
        let joined = self.meet(epoch, rank, &members, &alarm, until)?;
        alarm.check()?;
        self.trouble = None;
        let holders = members.iter().cloned().zip(joined.holders);
        self.holders = holders.filter_map(|(member, found)| Some((member, found?))).collect();
        let unfenced = std::mem::take(&mut self.unfenced);
        Ok(World { epoch, rank, members, transport: joined.transport, unfenced })
    }

    fn meet(
        &self,
        epoch: Epoch,
        rank: usize,
        members: &[Identity],
        alarm: &Arc<Alarm>,
        until: Duration,
    ) -> Result<Joined> {
        if members.len() == 1 {
            return Ok(Joined { transport: Box::new(Alone), holders: Vec::new() });
        }
        let SessionSettings { network, secret, group, fingerprint, .. } = &self.settings;
        let place: SocketAddr = members[0].address.parse().map_err(|_| {
            Error::corrupt(format!(
                "{} says it is at {:?}, which is no address",
                members[0].name, members[0].address
            ))
        })?;
        let launch = &Launch {
            master_address: place.ip().to_string(),
            secret: secret.clone(),
            ..Launch::local(rank, members.len(), place.port())
        };
        let trust = Trust {
            secret: secret.clone(),
            tls: tls::Identity::read(&network.tls)?,
            purpose: Purpose::Rendezvous,
            rank,
        };
        let patience = Duration::from_secs(network.rendezvous_timeout_s);
        let terms = Terms {
            launch,
            occasion: Occasion { group: group.clone(), epoch: epoch.0 },
            entrance: (rank == 0).then_some(&self.door),
            trust,
            wish: network.wish(&self.settings.interfaces, place.ip().is_loopback())?,
            transport: self.settings.transport,
            node: &network.node_id,
            fingerprint,
            levels: network.priority_levels,
            timeout: patience.min(until.saturating_sub(self.clock.now())),
            timeouts: self.timeouts,
            clock: &Impatient::new(self.clock, alarm),
        };
        join_world(&terms, network, Some(Arc::clone(alarm)))
    }
}

/// What a person calls the node of this process: by it members of one node are dealt ranks side by side.
fn node_name(network: &NetworkSettings) -> String {
    if network.node_id.is_empty() { host::name() } else { network.node_id.clone() }
}
/// Why a group goes on without a process: membership does not say which.
const FENCED: &str = "which was silent for too long, or whose name another process has taken";

fn fenced(group: &str) -> Error {
    let message = format!("group {group} goes on without this process, {FENCED}");
    Error::new(Kind::Fenced, message)
}
