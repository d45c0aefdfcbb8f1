//! What a person can choose about the fabric.

use serde::{Deserialize, Serialize};

/// How bytes travel between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransportKind {
    /// Shared memory if all ranks are on one host and can share it, TCP otherwise.
    #[default]
    Auto,
    /// Shared memory: all ranks on one host.
    SharedMemory,
    /// TCP between every two ranks.
    Tcp,
}

/// Times and sizes of rendezvous and transports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FabricSettings {
    /// How long ranks wait for each other at the start, seconds.
    pub rendezvous_timeout_s: u64,
    /// Shared memory from each rank to each other, bytes, a power of two of at least 4096; 0 chooses by world size.
    pub ring_bytes: usize,
    /// Send and receive buffer that the system is asked for on each TCP connection, bytes; 0 leaves it to the system.
    pub socket_buffer_bytes: usize,
}

impl Default for FabricSettings {
    fn default() -> Self {
        Self { rendezvous_timeout_s: 60, ring_bytes: 0, socket_buffer_bytes: 1 << 20 }
    }
}
