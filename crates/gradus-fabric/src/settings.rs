//! What a person can choose about the fabric.

use crate::interface::Wish;
use crate::launch::INTERFACES;
use crate::membership::Timeouts;
use crate::node::check_id;
use crate::tls::TlsSettings;
use crate::transport::MOST_LEVELS;
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The smallest and the largest ring in shared memory.
pub(crate) const RING_BYTES: std::ops::RangeInclusive<usize> = 4096..=1 << 30;

/// The longest that anybody waits for ranks to come: a day.
const LONGEST_RENDEZVOUS_S: u64 = 24 * 60 * 60;

/// Beyond this no system grants a socket's buffer; the number must fit the 31 bits of `SO_SNDBUF`, which doubles it.
const LARGEST_SOCKET_BUFFER: usize = 1 << 30;

/// The setting that lists interfaces.
pub(crate) const INTERFACE: &str = "network.interface";

/// How bytes travel between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransportKind {
    /// Shared memory between ranks that lie on one node and can share it, TCP between others.
    #[default]
    Auto,
    /// Shared memory: all ranks on one node.
    SharedMemory,
    /// TCP between every two ranks.
    Tcp,
}

/// Whether ranks of one host read each other's private memory through the system (`process_vm_readv`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerMemory {
    /// Where every rank may, and finds it fast when they meet.
    #[default]
    Auto,
    /// Where every rank may.
    Always,
    /// Not at all.
    Never,
}

/// Times and sizes of rendezvous and transports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSettings {
    /// How long a rank may be silent before it is taken for dead, such as `10s`; all other limits on silence are shares of
    /// it ([`Timeouts`]).
    #[serde(with = "as_written")]
    pub failure_detection: Duration,
    /// How long ranks wait for each other at the start, seconds.
    pub rendezvous_timeout_s: u64,
    /// Shared memory from each rank to each other, bytes, a power of two of at least 4096; 0 chooses by world size.
    pub ring_bytes: usize,
    /// Whether ranks of one host read each other's private memory through the system.
    pub peer_memory: PeerMemory,
    /// Levels of priority among collectives, 1 to 4, the same on all ranks. Each has streams of its own between every two
    /// ranks: as many times the shared memory (rings, signals and slots), and over TCP another connection, with its
    /// descriptor and buffers, for each level beyond the first.
    pub priority_levels: usize,
    /// Send and receive buffer that the system is asked for on each TCP connection, bytes; 0 leaves it to the system.
    pub socket_buffer_bytes: usize,
    /// Interfaces to be reached at: names between commas, each the beginning of one (`eth`), exactly (`=eth0`) or all but
    /// these (`^lo,docker`); empty: as `NCCL_SOCKET_IFNAME` says, else the one that leads to rank 0.
    pub interface: String,
    /// The node that this rank lies on, as letters, digits, `.`, `-` and `_`, 64 at most; empty: its host. Ranks share memory
    /// inside a node only. May differ from rank to rank.
    pub node_id: String,
    /// The rack that this rank's node stands in, named like a node; empty: all that name none stand in one. Nodes that share
    /// data ask those of their rack first. May differ from rank to rank.
    pub rack: String,
    /// TLS on every TCP connection.
    pub tls: TlsSettings,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            failure_detection: Duration::from_secs(10),
            rendezvous_timeout_s: 60,
            ring_bytes: 0,
            peer_memory: PeerMemory::default(),
            priority_levels: 1,
            socket_buffer_bytes: 1 << 20,
            interface: String::new(),
            node_id: String::new(),
            rack: String::new(),
            tls: TlsSettings::default(),
        }
    }
}

impl NetworkSettings {
    /// Whether every value is possible.
    ///
    /// # Errors
    /// `Invalid`, naming the key and its range.
    pub fn check(&self) -> Result<()> {
        self.timeouts()?;
        let Self { rendezvous_timeout_s: timeout, ring_bytes: ring, socket_buffer_bytes: buffer, .. } = self;
        let levels = &self.priority_levels;
        if !(1..=LONGEST_RENDEZVOUS_S).contains(timeout) {
            return Err(Error::invalid(format!(
                "network.rendezvous_timeout_s is {timeout}: give 1 to {LONGEST_RENDEZVOUS_S} (a day)"
            )));
        }
        if *ring != 0 && !(ring.is_power_of_two() && RING_BYTES.contains(ring)) {
            return Err(Error::invalid(format!(
                "network.ring_bytes is {ring}: give 0 or a power of two from {} to 1 GiB",
                RING_BYTES.start()
            )));
        }
        if !(1..=MOST_LEVELS).contains(levels) {
            return Err(Error::invalid(format!(
                "network.priority_levels is {levels}: give 1 to {MOST_LEVELS}"
            )));
        }
        if *buffer > LARGEST_SOCKET_BUFFER {
            return Err(Error::invalid(format!(
                "network.socket_buffer_bytes is {buffer}: give at most 1 GiB"
            )));
        }
        if !self.interface.is_empty() {
            Wish::parse(&self.interface, INTERFACE)?;
        }
        check_id("network.node_id", &self.node_id)?;
        check_id("network.rack", &self.rack)?;
        self.tls.check()
    }

    /// The spans of time that follow from `failure_detection`.
    ///
    /// # Errors
    /// `Invalid`, naming the key and its range.
    pub fn timeouts(&self) -> Result<Timeouts> {
        let named = |error: Error| Error::new(error.kind().clone(), format!("network.{error}"));
        Timeouts::from(self.failure_detection).map_err(named)
    }

    /// What is wished about interfaces, and where that was said. `listed`, as [`INTERFACES`] lists them, counts where the
    /// settings are silent and ranks do not meet on loopback.
    ///
    /// # Errors
    /// `Invalid` when it cannot be understood.
    pub(crate) fn wish(&self, listed: &str, on_loopback: bool) -> Result<Option<(Wish, &'static str)>> {
        let (list, source) = match (self.interface.is_empty(), on_loopback) {
            (false, _) => (self.interface.as_str(), INTERFACE),
            (true, false) => (listed, INTERFACES),
            (true, true) => return Ok(None),
        };
        if list.is_empty() {
            return Ok(None);
        }
        Ok(Some((Wish::parse(list, source)?, source)))
    }
}

/// A span of time as a person writes it.
mod as_written {
    use gradus_host::units::{parse_duration, show_duration};
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&show_duration(*span))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        parse_duration(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_named() {
        let default = NetworkSettings::default;
        default().check().unwrap();
        let tls = TlsSettings { key: "key.pem".into(), ..TlsSettings::default() };
        let wrong = [
            ("failure_detection", NetworkSettings { failure_detection: Duration::ZERO, ..default() }),
            ("failure_detection", NetworkSettings { failure_detection: Duration::MAX, ..default() }),
            ("network.interface", NetworkSettings { interface: "^".into(), ..default() }),
            ("network.node_id", NetworkSettings { node_id: "a node".into(), ..default() }),
            ("network.rack", NetworkSettings { rack: "a/rack".into(), ..default() }),
            ("network.tls.certificate", NetworkSettings { tls, ..default() }),
            ("rendezvous_timeout_s", NetworkSettings { rendezvous_timeout_s: 0, ..default() }),
            ("rendezvous_timeout_s", NetworkSettings { rendezvous_timeout_s: u64::MAX, ..default() }),
            ("ring_bytes", NetworkSettings { ring_bytes: 5000, ..default() }),
            ("ring_bytes", NetworkSettings { ring_bytes: 1 << 31, ..default() }),
            ("priority_levels", NetworkSettings { priority_levels: 0, ..default() }),
            ("priority_levels", NetworkSettings { priority_levels: MOST_LEVELS + 1, ..default() }),
            ("socket_buffer_bytes", NetworkSettings { socket_buffer_bytes: usize::MAX, ..default() }),
        ];
        for (key, settings) in wrong {
            let error = settings.check().unwrap_err();
            assert_eq!(*error.kind(), gradus_error::Kind::Invalid);
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
