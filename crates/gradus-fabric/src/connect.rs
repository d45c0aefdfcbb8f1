//! From a launch to a transport.

use crate::alarm::Alarm;
use crate::circle::Circle;
use crate::control::Surroundings;
use crate::doors::Member;
use crate::handshake::Purpose;
use crate::holders::Holder;
use crate::host;
use crate::interface::{self, interface_of};
use crate::launch::Launch;
use crate::nodes::Nodes;
use crate::rendezvous::{Occasion, Table, Terms, meet};
use crate::settings::{NetworkSettings, TransportKind};
use crate::shm::SharedMemory;
use crate::tcp::Tcp;
use crate::tls::Identity;
use crate::transport::{Alone, Transport};
use crate::trust::Trust;
use gradus_error::{Error, Result};
use gradus_host::RealClock;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

/// Meets the other ranks and connects to all of them. A world of one meets nobody.
///
/// `fingerprint` says on what terms this rank wants to train; ranks with different ones do not train together. Blocks
/// until all ranks are there or the rendezvous' time is up, and about as long again while they connect.
///
/// # Errors
/// `Invalid` when a setting is impossible, ranks disagree (version, world size, transport, fingerprint), came twice, the port is taken, or the
/// transport asked for cannot serve this world; `Denied` where ranks do not share a secret or an authority, or would be
/// reached beyond loopback without a secret; `Unavailable` naming ranks that did not come; `PeerLost` naming one
/// that left meanwhile; `Exhausted` when there is no memory to share.
pub fn connect(
    launch: &Launch,
    kind: TransportKind,
    settings: &NetworkSettings,
    fingerprint: &str,
) -> Result<Box<dyn Transport>> {
    if launch.world_size == 1 && launch.rank == 0 {
        return Ok(Box::new(Alone));
    }
    if launch.rank >= launch.world_size {
        return Err(Error::invalid(format!(
            "rank {} is not below world size {}",
            launch.rank, launch.world_size
        )));
    }
    settings.check()?;
    let launch = &at_home(launch);
    let trust = Trust {
        secret: launch.secret.clone(),
        tls: Identity::read(&settings.tls)?,
        purpose: Purpose::Rendezvous,
        rank: launch.rank,
    };
    let wish = settings.wish(&launch.interfaces, launch.meets_on_loopback())?;
    // One that nothing fits is refused before anybody is called: rank 0, which refuses it too, may have gone by then.
    if let Some((wish, source)) = &wish {
        wish.choose(&interface::of_this_host()?, IpAddr::V4(Ipv4Addr::UNSPECIFIED), source)?;
    }
    let terms = Terms {
        launch,
        occasion: Occasion::default(),
        entrance: None,
        trust,
        wish,
        transport: kind,
        node: &settings.node_id,
        fingerprint,
        levels: settings.priority_levels,
        timeout: Duration::from_secs(settings.rendezvous_timeout_s),
        timeouts: settings.timeouts()?,
        clock: &RealClock::new(),
    };
    Ok(join_world(&terms, settings, None)?.transport)
}

/// What ranks that have met come to.
pub(crate) struct Joined {
    pub(crate) transport: Box<dyn Transport>,
    /// Those with whom memory is shared, by rank; empty where none is.
    pub(crate) holders: Vec<Option<Holder>>,
}

/// Meets the others and connects to them; `alarm` ends all waiting in the transport when it is raised.
///
/// # Errors
/// As [`connect`]; `Fenced` when the occasion is over.
pub(crate) fn join_world(
    terms: &Terms,
    settings: &NetworkSettings,
    alarm: Option<Arc<Alarm>>,
) -> Result<Joined> {
    let (rank, clock) = (terms.launch.rank, terms.clock);
    let table = meet(terms)?;
    show(rank, &table);
    let until = clock.now() + terms.timeout;
    let spin = has_processor_each(&table, rank);
    if spin {
        host::step_to(place_among_neighbours(&table, rank));
    }
    tracing::debug!(rank, world_size = table.members.len(), spin, "all ranks have come");
    let surroundings = Surroundings { nodes: table.nodes(), timeouts: terms.timeouts, alarm };
    Links { terms, settings, spin, surroundings, until }.join(table)
}

/// What connections are made with.
struct Links<'a> {
    terms: &'a Terms<'a>,
    settings: &'a NetworkSettings,
    spin: bool,
    surroundings: Surroundings,
    until: Duration,
}

impl Links<'_> {
    fn join(&self, mut table: Table) -> Result<Joined> {
        let (rank, world_size) = (self.terms.launch.rank, table.members.len());
        let circle = Circle::around(rank, &table.members);
        match way(self.terms.transport, &table.members)? {
            Way::Inside => {
                let inside = self.inside(&mut table, &circle)?;
                Ok(Joined { holders: inside.holders()?, transport: Box::new(inside) })
            }
            Way::Across => {
                let across = self.across(table, &Circle::alone(rank, world_size))?;
                Ok(Joined { holders: Vec::new(), transport: Box::new(across) })
            }
            Way::Both => {
                let inside = (circle.len() > 1).then(|| self.inside(&mut table, &circle)).transpose()?;
                let nodes = Nodes::new(inside, self.across(table, &circle)?);
                Ok(Joined { holders: nodes.holders()?, transport: Box::new(nodes) })
            }
        }
    }

    fn inside(&self, table: &mut Table, circle: &Circle) -> Result<SharedMemory> {
        let Self { terms, settings, spin, surroundings, until } = self;
        let trust = terms.trust.towards(Purpose::Memory);
        let times = (terms.clock, *until);
        SharedMemory::connect(trust, table, circle, settings, *spin, surroundings.clone(), times)
    }

    fn across(&self, table: Table, circle: &Circle) -> Result<Tcp> {
        let Self { terms, settings, spin, surroundings, until } = self;
        let trust = terms.trust.towards(Purpose::Stream);
        let times = (terms.clock, *until);
        Tcp::connect(trust, table, circle, settings, *spin, surroundings.clone(), times)
    }
}

/// The same launch; ranks that are all on this host and have no secret meet on loopback, whatever name the host has.
pub(crate) fn at_home(launch: &Launch) -> Launch {
    let mut launch = launch.clone();
    let alone = launch.local_world_size == launch.world_size && launch.rendezvous_fd.is_none();
    if launch.secret.is_empty() && alone && !launch.meets_on_loopback() {
        tracing::info!(
            "no secret: the ranks of this host meet on loopback, not at {}",
            launch.master_address
        );
        launch.master_address = "127.0.0.1".to_owned();
    }
    launch
}

fn show(rank: usize, table: &Table) {
    let address = table.doors.address;
    tracing::info!(rank, interface = interface_of(address.ip()), "peers reach this rank at {address}");
}

/// Whether the ranks that share our host have a processor each. Hosts that cannot be told apart by what they share are
/// told apart by address.
fn has_processor_each(table: &Table, rank: usize) -> bool {
    let masks: Vec<&str> = neighbours(table, rank).map(|(_, member)| member.processors.as_str()).collect();
    host::enough_processors(&masks)
}

/// Ranks of our host, this one among them.
fn neighbours(table: &Table, rank: usize) -> impl Iterator<Item = (usize, &Member)> {
    let own = &table.members[rank];
    table.members.iter().enumerate().filter(|(_, member)| match own.host.is_empty() {
        false => member.host == own.host,
        true => member.address.ip() == own.address.ip(),
    })
}

/// How many ranks of our host with the same processors come before this one.
fn place_among_neighbours(table: &Table, rank: usize) -> usize {
    let processors = &table.members[rank].processors;
    let alike = |(other, member): &(usize, &Member)| *other < rank && member.processors == *processors;
    neighbours(table, rank).filter(alike).count()
}

/// How the ranks of a world reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// All by shared memory.
    Inside,
    /// All by TCP.
    Across,
    /// Those of a node by shared memory, others by TCP.
    Both,
}

/// Every rank comes to the same answer: all have the same table.
fn way(kind: TransportKind, members: &[Member]) -> Result<Way> {
    let first = &members[0];
    let stranger = members.iter().position(|member| !first.shares_memory_with(member));
    match (kind, stranger) {
        (TransportKind::Tcp, _) => Ok(Way::Across),
        (TransportKind::Auto | TransportKind::SharedMemory, None) => Ok(Way::Inside),
        (TransportKind::SharedMemory, Some(rank)) => Err(strangers(first, rank, &members[rank])),
        (TransportKind::Auto, Some(_)) if some_share_memory(members) => Ok(Way::Both),
        (TransportKind::Auto, Some(_)) => Ok(Way::Across),
    }
}

/// Whether there are two that share memory.
fn some_share_memory(members: &[Member]) -> bool {
    let mut nodes = BTreeSet::new();
    members.iter().filter(|member| !member.host.is_empty()).any(|one| !nodes.insert((&one.host, &one.node)))
}

/// Why a rank shares no memory with rank 0.
fn strangers(first: &Member, rank: usize, member: &Member) -> Error {
    let why = if !first.host.is_empty() && first.host == member.host {
        let [one, other] = [first, member].map(|member| host::shown(&member.node));
        format!("they lie on different nodes, {one} and {other} (network.node_id, launch.logical_nodes)")
    } else {
        "they run on different hosts, in different network namespaces or as different users".to_owned()
    };
    Error::invalid(format!("ranks 0 and {rank} cannot share memory: {why}; choose transport tcp or auto"))
}
