//! Where a connection between member and coordinator begins, on either side: with a proof of the secret that they share.

use super::super::message::Request;
use super::link::Link;
use crate::handshake::Purpose;
use crate::secret::Secret;
use crate::stream::Stream;
use crate::tls::Identity;
use crate::trust::Trust;
use crate::{door, frame};
use gradus_error::{Error, Result};
use std::io::ErrorKind;
use std::net::{TcpListener, ToSocketAddrs};

/// Where members are let in.
pub(super) type Door = door::Door<Arrival>;

/// What the coordinator, number 0, and its members, who are told apart by what they say, bring to a connection.
pub(super) fn trust(secret: Secret, tls: Option<Identity>, number: usize) -> Trust {
    Trust { secret, tls, purpose: Purpose::Membership, rank: number }
}

/// A socket on which members are awaited.
///
/// # Errors
/// `Denied` for an address beyond loopback without a secret. `Invalid` when the address is none, is taken or is not this
/// host's.
pub(super) fn listen(address: &str, secret: &Secret) -> Result<TcpListener> {
    let unusable = |error: std::io::Error| {
        let mend = match error.kind() {
            ErrorKind::AddrInUse => "another program uses it, choose another port",
            _ => "give an address of this host and a port",
        };
        Error::invalid(format!("cannot listen on {address}: {mend}")).with_source(error)
    };
    let found: Vec<_> = address.to_socket_addrs().map_err(unusable)?.collect();
    found.iter().try_for_each(|found| secret.permits(found.ip(), "the coordinator's address"))?;
    TcpListener::bind(&found[..]).map_err(unusable)
}

/// Somebody who was let in, and the first thing it said.
pub(super) struct Arrival {
    pub(super) link: Link,
    pub(super) request: Request,
}

/// Opens the door for members at a listening socket.
///
/// # Errors
/// The system's failure to make a socket or a thread.
pub(super) fn open(listener: TcpListener, trust: Trust) -> Result<Door> {
    Door::open(listener, trust, "members", receive)
}

fn receive(stream: Stream, said: &[u8]) -> Option<Arrival> {
    Some(Arrival { request: frame::decode(said).ok()?, link: Link::new(stream).ok()? })
}
