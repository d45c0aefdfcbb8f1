//! Where the coordinator is: at an address of its own, or wherever etcd says that the one is who leads.

use super::super::timeouts::Timeouts;
use super::link::Link;
use crate::dial;
use crate::etcd::{Etcd, EtcdAddress};
use crate::trust::Trust;
use gradus_error::{Error, Kind, Result};
use gradus_host::{Clock, RealClock};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// The key under which the coordinator that leads says where it is.
pub(super) const LEADER: &str = "leader";

/// Characters of an address that is published.
const LONGEST_ADDRESS: usize = 256;

/// Where members find their coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordinatorAddress {
    /// At `host:port`, for as long as the group lives.
    At(String),
    /// At the address that whoever leads has published in etcd; it is looked up anew for every connection.
    Etcd(EtcdAddress),
}

impl CoordinatorAddress {
    /// Reads `host:port`, or an address of etcd with `lookup` for what it does not say ([`EtcdAddress::parse`]).
    ///
    /// # Errors
    /// `Invalid`, naming what cannot be.
    pub fn parse(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        if EtcdAddress::is_meant(text) {
            return EtcdAddress::parse(text, lookup).map(Self::Etcd);
        }
        check_place(text)?;
        Ok(Self::At(text.to_owned()))
    }

    /// Where the coordinator is now, `host:port`; the way to it shows by which interface this host is reached. While nobody
    /// leads this blocks, for `limit` and one last try at most.
    ///
    /// # Errors
    /// Those of etcd; `Unavailable` when nobody leads there, `Corrupt` when it holds no coordinator's address.
    pub(crate) fn place_now(
        &self,
        limit: Duration,
        timeouts: &Timeouts,
        clock: &RealClock,
    ) -> Result<String> {
        match self {
            Self::At(place) => Ok(place.clone()),
            Self::Etcd(address) => {
                let mut etcd = Etcd::open(address, timeouts.connect)?;
                at_first(limit, timeouts, clock, || look_up(address, &mut etcd))
            }
        }
    }
}

impl fmt::Display for CoordinatorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(place) => f.write_str(place),
            Self::Etcd(address) => address.fmt(f),
        }
    }
}

/// Whether a text can be `host:port`; whether that exists shows when it is called.
pub(super) fn check_place(text: &str) -> Result<()> {
    let wrong = || {
        let shown: String = text.chars().take(LONGEST_ADDRESS).collect();
        Error::invalid(format!("{shown:?} is no place of a coordinator: give HOST:PORT, or etcd://..."))
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let plain = host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    let possible = !host.is_empty() && plain && text.len() <= LONGEST_ADDRESS && port.parse::<u16>().is_ok();
    if possible { Ok(()) } else { Err(wrong()) }
}

/// What the coordinator that leads says of itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Published {
    /// Where members reach it, `host:port`.
    pub(super) address: String,
}

impl Published {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a string is always JSON")
    }

    /// # Errors
    /// `Corrupt` when no coordinator has written it.
    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let published: Self = serde_json::from_slice(bytes).map_err(|error| {
            Error::corrupt("it is not where a coordinator says who it is").with_source(error)
        })?;
        check_place(&published.address).map_err(|error| Error::corrupt(error.to_string()))?;
        Ok(published)
    }
}

/// Whether bytes are what a coordinator that leads says of itself.
#[cfg(feature = "fuzzing")]
pub(crate) fn is_published(bytes: &[u8]) -> bool {
    Published::from_bytes(bytes).is_ok()
}

/// A member's way to its coordinator.
pub(super) struct Way {
    place: CoordinatorAddress,
    trust: Trust,
    limit: Duration,
    /// The client of etcd, kept from look to look.
    etcd: Option<Etcd>,
}

impl Way {
    /// A way that takes `limit` to go, at most; with etcd as long again to look up where to.
    ///
    /// # Errors
    /// Those of files that TLS with etcd needs.
    pub(super) fn new(place: CoordinatorAddress, trust: Trust, limit: Duration) -> Result<Self> {
        let etcd = match &place {
            CoordinatorAddress::At(_) => None,
            CoordinatorAddress::Etcd(address) => Some(Etcd::open(address, limit)?),
        };
        Ok(Self { place, trust, limit, etcd })
    }

    /// Whether the coordinator may be elsewhere the next time.
    pub(super) fn may_lead_elsewhere(&self) -> bool {
        self.etcd.is_some()
    }

    /// Connects to the coordinator. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when it, or etcd, cannot be reached, or nobody leads; `Denied` when it has another secret or certificate, or
    /// is beyond loopback while there is no secret; `Corrupt` when etcd holds no coordinator's address.
    pub(super) fn reach(&mut self) -> Result<Link> {
        let place = self.look_up()?;
        let clock = RealClock::new();
        let until = clock.now() + self.limit;
        let failed = |error| {
            Error::unavailable(format!(
                "cannot reach the coordinator at {place}: is `gradus coordinator` running there?"
            ))
            .with_source(error)
        };
        let found: Vec<SocketAddr> = place.to_socket_addrs().map_err(failed)?.collect();
        for address in &found {
            self.trust.secret.permits(address.ip(), "the coordinator's address")?;
        }
        let socket = dial::try_once(&found[..], &clock, until).map_err(failed)?;
        let whom = format!("the coordinator at {place}");
        Link::new(self.trust.call(socket.into(), &whom, &clock, until)?)
    }

    fn look_up(&mut self) -> Result<String> {
        match (&self.place, &mut self.etcd) {
            (CoordinatorAddress::At(place), _) => Ok(place.clone()),
            (CoordinatorAddress::Etcd(address), Some(etcd)) => look_up(address, etcd),
            (CoordinatorAddress::Etcd(_), None) => unreachable!("a way by etcd has a client of it"),
        }
    }
}

/// Where the one who leads says that it is.
fn look_up(place: &EtcdAddress, etcd: &mut Etcd) -> Result<String> {
    let published = etcd.get(&place.key(LEADER))?.ok_or_else(|| {
        Error::unavailable(format!(
            "no coordinator leads by {place}: start `gradus coordinator --rdzv` with that address, or mend its prefix"
        ))
    })?;
    let within = |error: Error| error.within(format!("key {LEADER:?} of {place} is of no use"));
    Ok(Published::from_bytes(&published).map_err(within)?.address)
}

/// Tries for `limit`, which a coordinator that is just being started may need. What waiting does not mend ends it.
pub(super) fn at_first<T>(
    limit: Duration,
    timeouts: &Timeouts,
    clock: &RealClock,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let until = clock.now().saturating_add(limit);
    loop {
        match attempt() {
            Err(error) if matches!(error.kind(), Kind::Denied | Kind::Invalid | Kind::Corrupt) => {
                return Err(error);
            }
            Err(_) if clock.now() < until => {
                clock.sleep(timeouts.heartbeat.min(until.saturating_sub(clock.now())));
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn places_are_told_apart() {
        let parse = |text: &str| CoordinatorAddress::parse(text, &|_| None);
        assert_eq!(parse("host:1").unwrap(), CoordinatorAddress::At("host:1".into()));
        assert_eq!(parse("[::1]:1").unwrap().to_string(), "[::1]:1");
        assert!(matches!(parse("etcd://host/p").unwrap(), CoordinatorAddress::Etcd(_)));
        for wrong in
            ["", "host", ":1", "host:", "host:x", "http://host:1", "a b:1", "etcd://", "etcds://host"]
        {
            assert_eq!(*parse(wrong).unwrap_err().kind(), Kind::Invalid, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_others_wrote_into_etcd_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60), place in ".{0,20}") {
            prop_assert!(Published::from_bytes(&bytes).is_err());
            let written = Published { address: place.clone() }.to_bytes();
            prop_assert_eq!(Published::from_bytes(&written).is_ok(), check_place(&place).is_ok());
        }
    }
}
