//! Where a rank is reached by its peers: sockets that it opens afresh for every meeting, and what it says of them.

use crate::rendezvous::Terms;
use crate::settings::TransportKind;
use crate::{dial, host, interface};
use gradus_error::{IoContext, Result};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;

/// A rank, as all others know it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Where it listens for its peers.
    pub(crate) address: SocketAddr,
    /// What a person calls its host.
    pub(crate) name: String,
    /// Which ranks it can share memory with: those with the same one, not empty, on the same node.
    pub(crate) host: String,
    /// The node that it lies on, if that is not the host itself.
    #[serde(default)]
    pub(crate) node: String,
    /// Its processors.
    pub(crate) processors: String,
    /// Name of its Unix socket in the abstract namespace, empty if it has none.
    pub(crate) socket: String,
}

impl Member {
    /// Whether the two can share memory. A rank that can share none does so with nobody, itself included.
    pub(crate) fn shares_memory_with(&self, other: &Self) -> bool {
        !self.host.is_empty() && self.host == other.host && self.node == other.node
    }
}

/// The sockets at which a rank's peers find it.
pub(crate) struct Doors {
    pub(crate) tcp: TcpListener,
    /// Where that is.
    pub(crate) address: SocketAddr,
    /// For peers that can share memory, if this process can.
    pub(crate) local: Option<UnixListener>,
    socket: String,
    host: String,
    node: String,
}

impl Doors {
    /// Opens them: TCP at one address only, `here` or the one that is wished for.
    ///
    /// # Errors
    /// `Invalid` when no interface fits the wish, `Denied` for an address beyond loopback without a secret; the system's
    /// failure.
    pub(crate) fn open(here: IpAddr, terms: &Terms) -> Result<Self> {
        let here = match &terms.wish {
            Some((wish, source)) => wish.choose(&interface::of_this_host()?, here, source)?.address,
            None => here,
        };
        terms.trust.secret.permits(here, "the address to be reached at")?;
        let tcp = TcpListener::bind((here, 0)).context(|| format!("cannot listen on {here}"))?;
        let address = dial::own_address(&tcp)?;
        let host = if terms.transport == TransportKind::Tcp { String::new() } else { host::identity() };
        let (local, socket) = if host.is_empty() { (None, String::new()) } else { dial::local_door()? };
        Ok(Self { tcp, address, local, socket, host, node: terms.node.to_owned() })
    }

    /// What others are told of them.
    pub(crate) fn member(&self) -> Member {
        let Self { address, host, node, socket, .. } = self;
        Member {
            address: *address,
            name: host::name(),
            host: host.clone(),
            node: node.clone(),
            processors: host::processors(),
            socket: socket.clone(),
        }
    }
}
