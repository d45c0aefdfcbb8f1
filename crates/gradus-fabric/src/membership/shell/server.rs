//! A coordinator as a program: it listens, comes into office and serves its term, or, with etcd, its terms.

use super::super::coordinator::{Coordinator, CoordinatorNote};
use super::super::timeouts::Timeouts;
use super::door::{self, listen, trust};
use super::hall::Hall;
use super::leadership::Candidate;
use super::office::{Engine, Office, Opened};
use super::term::Term;
use crate::secret::Secret;
use crate::tls::{Identity, TlsSettings};
use gradus_error::{Error, IoContext, Kind, Result};
use gradus_host::{Clock, RealClock};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

/// How soon at most a coordinator that stands by looks again whether nobody leads: etcd is asked each time.
const SOONEST_LOOK: Duration = Duration::from_millis(100);

/// Reasons for which etcd is not to be had that a person is told, until it is.
const MOST_REASONS: usize = 16;

/// What a coordinator needs.
#[derive(Debug, Clone)]
pub struct CoordinatorSettings {
    /// Where it listens, `host:port`, port 0 for any.
    pub listen: String,
    /// What keeps its state.
    pub engine: Engine,
    /// The spans, the same as its members'.
    pub timeouts: Timeouts,
    /// What members know too; the empty one serves on loopback only.
    pub secret: Secret,
    /// TLS on members' connections.
    pub tls: TlsSettings,
}

/// A coordinator that serves members over TCP.
pub struct CoordinatorServer {
    engine: Opened,
    hall: Hall,
    address: SocketAddr,
    timeouts: Timeouts,
    clock: RealClock,
}

impl CoordinatorServer {
    /// Listens, and reads what an earlier coordinator stored in a file; of etcd nothing is asked yet.
    ///
    /// # Errors
    /// `Invalid` for an address that cannot be listened on or that members could not be told, for files of TLS that are of no use,
    /// and for another `failure_detection` than that of the members in the file; `Denied` for an address beyond loopback
    /// without a secret or a file that another coordinator uses; `Corrupt` for a file that no coordinator wrote; or the
    /// system's failure.
    pub fn open(settings: CoordinatorSettings) -> Result<Self> {
        let CoordinatorSettings { listen: place, engine, timeouts, secret, tls } = settings;
        let clock = RealClock::new();
        let trust = trust(secret.clone(), Identity::read(&tls)?, 0);
        let listener = listen(&place, &secret)?;
        let address = listener.local_addr().context(|| "cannot read a socket's own address".to_owned())?;
        let engine = engine.open(address, timeouts, clock)?;
        let hall = Hall::new(door::open(listener, trust)?, timeouts.detection * 4, clock);
        Ok(Self { engine, hall, address, timeouts, clock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is readable, telling `observe` what comes to pass. With etcd it stands by while another leads.
    ///
    /// # Errors
    /// `Fenced` when another coordinator has taken over a file; `Corrupt` when etcd's keys were set back or are no coordinator's;
    /// `Invalid`, `Denied` or `Exhausted` when the engine does not let it; or the system's failure to wait or to store.
    pub fn run(self, stop: impl AsFd, mut observe: impl FnMut(&CoordinatorNote)) -> Result<()> {
        let Self { engine, mut hall, timeouts, clock, .. } = self;
        let mut candidate = match engine {
            Opened::Etcd(candidate) => candidate,
            Opened::Nothing(machine) => {
                return Term::new(*machine, Office::Nothing, &mut hall, clock, &mut observe).run(&stop);
            }
            Opened::File(file, machine) => {
                return Term::new(*machine, Office::File(file), &mut hall, clock, &mut observe).run(&stop);
            }
        };
        while let Some((office, machine)) = stand_by(&mut candidate, &mut hall, timeouts, clock, &stop)? {
            let term = machine.term();
            match Term::new(machine, office, &mut hall, clock, &mut observe).run(&stop) {
                Err(error) if *error.kind() == Kind::Fenced => {
                    tracing::warn!(term, "{error}: it stands by");
                    observe(&CoordinatorNote::Deposed { term });
                }
                ended => return ended,
            }
        }
        Ok(())
    }
}

/// Waits until nobody else leads; `None` is to stop. Whoever comes meanwhile is sent away, to look for the one who leads.
fn stand_by(
    candidate: &mut Candidate,
    hall: &mut Hall,
    timeouts: Timeouts,
    clock: RealClock,
    stop: &impl AsFd,
) -> Result<Option<(Office, Coordinator)>> {
    let place = candidate.address().to_string();
    let mut said = BTreeSet::new();
    loop {
        hall.dismiss();
        match candidate.campaign() {
            Ok(Some((leadership, stored))) => {
                let within = |error: Error| error.within(format!("the state in {place} is of no use"));
                let machine = Coordinator::open(stored.as_deref(), timeouts).map_err(within)?;
                return Ok(Some((Office::Etcd(Box::new(leadership)), machine)));
            }
            Ok(None) => said.clear(),
            Err(error) if *error.kind() == Kind::Unavailable => {
                let reason = error.to_string();
                // A cluster has a reason for each of its members, by turns.
                if said.len() < MOST_REASONS && !said.contains(&reason) {
                    tracing::warn!("{reason}: trying again and again");
                    said.insert(reason);
                }
            }
            Err(error) => return Err(error),
        }
        let look_again = clock.now() + timeouts.heartbeat.max(SOONEST_LOOK);
        while clock.now() < look_again {
            if hall.wait(stop, Some(look_again))?.is_none() {
                return Ok(None);
            }
            hall.dismiss();
        }
    }
}
