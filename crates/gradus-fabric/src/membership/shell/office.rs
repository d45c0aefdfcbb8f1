//! What gives a coordinator the right to coordinate, and keeps what it must not forget: a file, or etcd.

use super::super::coordinator::Coordinator;
use super::super::timeouts::Timeouts;
use super::leadership::{Candidate, Leadership};
use super::place::check_place;
use super::state_file::StateFile;
use crate::etcd::EtcdAddress;
use gradus_error::{Error, Kind, Result};
use gradus_host::RealClock;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where a coordinator's state outlives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// Nowhere: for a coordinator that ends together with all its members, as a launcher's does.
    Nothing,
    /// In a file of this host, on which one coordinator runs.
    File(PathBuf),
    /// In etcd, on which any number of coordinators run, of which one leads.
    Etcd {
        /// The cluster and the prefix of its keys.
        address: EtcdAddress,
        /// Where members reach this coordinator, `host:port`; where it listens, if not given.
        advertise: Option<String>,
    },
}

/// An engine that was opened.
pub(super) enum Opened {
    /// Nothing, and a coordinator that begins.
    Nothing(Box<Coordinator>),
    /// A file, which is this process' for as long as it is open, and a coordinator that goes on from what it held.
    File(StateFile, Box<Coordinator>),
    /// A candidate among others.
    Etcd(Box<Candidate>),
}

impl Engine {
    /// Opens the engine for a coordinator that listens at `listening`.
    ///
    /// # Errors
    /// `Denied` for a file that another coordinator uses, `Corrupt` for one that none wrote, `Invalid` when members could not be
    /// told where to come, or those of files.
    pub(super) fn open(self, listening: SocketAddr, timeouts: Timeouts, clock: RealClock) -> Result<Opened> {
        match self {
            Self::Nothing => Ok(Opened::Nothing(Box::new(Coordinator::open(None, timeouts)?))),
            Self::File(path) => {
                let (file, stored) = StateFile::open(&path)?;
                let within = |error: Error| error.within(format!("{} is of no use", path.display()));
                let machine = Coordinator::open(stored.as_deref(), timeouts).map_err(within)?;
                Ok(Opened::File(file, Box::new(machine)))
            }
            Self::Etcd { address, advertise } => {
                let published = published(advertise, listening)?;
                Ok(Opened::Etcd(Box::new(Candidate::new(address, published, timeouts, clock)?)))
            }
        }
    }
}

/// What members are told. An address that stands for all of a host's is none that others could call.
fn published(advertise: Option<String>, listening: SocketAddr) -> Result<String> {
    match advertise {
        Some(place) => check_place(&place).map(|()| place).map_err(|error| error.within("--advertise")),
        None if listening.ip().is_unspecified() => Err(Error::invalid(format!(
            "it listens on {listening}, which says to nobody where that is: give --advertise HOST:PORT, where members \
             reach it, or listen at one address"
        ))),
        None => Ok(listening.to_string()),
    }
}

/// The right to coordinate.
pub(super) enum Office {
    /// For good.
    Nothing,
    /// For as long as the file is open.
    File(StateFile),
    /// For as long as a lease runs.
    Etcd(Box<Leadership>),
    /// For good, and whoever stores takes so long, by that clock.
    #[cfg(test)]
    Slow(gradus_host::simulation::SimulatedClock, Duration),
}

impl Office {
    /// Until when the right is surely this process' own; `None` for good.
    pub(super) fn until(&self) -> Option<Duration> {
        match self {
            Self::Etcd(leadership) => Some(leadership.until()),
            _ => None,
        }
    }

    /// Replaces what is stored, whole and durable. Blocks.
    ///
    /// # Errors
    /// `Fenced` when the right is lost; else those of the engine, and the old content stays.
    pub(super) fn replace(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::File(file) => file.replace(bytes),
            Self::Etcd(leadership) => leadership.replace(bytes),
            #[cfg(test)]
            Self::Slow(clock, span) => {
                gradus_host::Clock::sleep(clock, *span);
                Ok(())
            }
        }
    }

    /// What it means that a member has heard of a later term than the one in office.
    pub(super) fn superseded(&mut self) -> Error {
        match self {
            Self::Etcd(leadership) => match leadership.confirm() {
                Ok(()) => Error::corrupt(
                    "members have heard of a later term than etcd knows: its keys were removed or set back. Restart the \
                     members, under another prefix",
                ),
                Err(error) => error,
            },
            _ => Error::new(Kind::Fenced, "another coordinator has taken over: this one stops"),
        }
    }
}
