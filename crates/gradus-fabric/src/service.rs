//! Connections beside those of ranks: one process of each node listens at an address, and they call each other.
//!
//! What they speak is their own affair. That they are who they say is held here, as on every other connection: the run's
//! secret is proven on both ends, inside TLS where certificates are given, before a byte of what is said is believed, and a
//! proof for a service is none for anything else. Each side then says one message, the caller first; after that the
//! connection carries bytes and never blocks.
//!
//! Invariant: nobody listens, or calls, beyond loopback without a secret; who does not know it holds up nobody.

use crate::door::Door;
use crate::frame::{self, Reader};
use crate::gate::frame_until;
use crate::handshake::Purpose;
use crate::launch::Launch;
use crate::secret::Secret;
use crate::settings::NetworkSettings;
pub use crate::stream::Moved;
use crate::stream::Stream;
use crate::tls::Identity;
use crate::trust::Trust;
use crate::{connect, dial, reach, tcp};
use gradus_error::{Error, IoContext, Result};
use gradus_host::Clock;
use rustix::event::PollFlags;
use rustix::net::Shutdown;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// What a process brings to every connection of its service.
#[derive(Clone)]
pub struct Keys(Trust);

impl Keys {
    /// The secret, and the certificates that the settings name; `number` is what this process is called in refusals.
    ///
    /// # Errors
    /// `Invalid` when a file of TLS is missing or is not what it should be, `Denied` when others can read the key.
    pub fn new(secret: &Secret, network: &NetworkSettings, number: usize) -> Result<Self> {
        let tls = Identity::read(&network.tls)?;
        Ok(Self(Trust { secret: secret.clone(), tls, purpose: Purpose::Service, rank: number }))
    }
}

/// The place, as `HOST:PORT`, by the way to which [`Listener::open`] finds the address that the ranks of a launch are reached
/// at: that of rank 0, or loopback for ranks of one host without a secret.
pub fn meeting_place(launch: &Launch) -> String {
    let Launch { master_address: address, master_port: port, .. } = connect::at_home(launch);
    // An IPv6 address goes in brackets before a port.
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Where a process is called.
pub struct Listener {
    door: Door<Arrival>,
    address: SocketAddr,
}

/// One who has called, and proven that it knows the secret.
pub struct Arrival {
    /// The way to it.
    pub connection: Connection,
    /// What it said first, for [`understand`].
    pub said: Vec<u8>,
}

impl Listener {
    /// Listens at one address, a free port of it: the one from which `place` (`HOST:PORT`, known to all; nothing is sent
    /// there) is reached, unless the settings or `listed`, as `NCCL_SOCKET_IFNAME` lists interfaces, wish for another.
    ///
    /// # Errors
    /// `Invalid` when no interface fits, `Denied` for an address beyond loopback without a secret; the system's failure.
    pub fn open(keys: &Keys, network: &NetworkSettings, listed: &str, place: &str) -> Result<Self> {
        let listener = reach::listen(network, listed, &keys.0.secret, place)?;
        let address = dial::own_address(&listener)?;
        let receive = |stream, said: &[u8]| {
            Some(Arrival { connection: Connection::new(stream).ok()?, said: said.to_owned() })
        };
        Ok(Self { door: Door::open(listener, keys.0.clone(), "peers of this node", receive)?, address })
    }

    /// Where that is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Those who have come since it was last asked.
    pub fn arrivals(&mut self) -> Vec<Arrival> {
        self.door.arrivals()
    }
}

impl AsFd for Listener {
    /// Readable when somebody has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.door.as_fd()
    }
}

/// Calls who listens at `address`, says `first` and waits for its answer, until `until` at most; `whom` names who should be
/// there. Blocks.
///
/// # Errors
/// `Unavailable` when nobody is reached or answers in time; `Denied` when the secret or a certificate is not accepted, or
/// the address is beyond loopback and there is no secret; `Invalid` when versions differ or only one side speaks TLS;
/// `Corrupt` when what is there is none of ours; `Closed` when it hangs up.
pub fn call(
    keys: &Keys,
    address: SocketAddr,
    whom: &str,
    first: &impl Serialize,
    clock: &dyn Clock,
    until: Duration,
) -> Result<(Connection, Vec<u8>)> {
    keys.0.secret.permits(address.ip(), whom)?;
    let socket =
        dial::try_once(address, clock, until).context(|| format!("cannot reach {whom} at {address}"))?;
    let mut connection = Connection::new(keys.0.call(socket.into(), whom, clock, until)?)?;
    connection.say(first).map_err(|error| error.within(whom))?;
    // Under TLS it may be held here.
    dial::finish(&mut connection.0, clock, until).map_err(|error| error.within(whom))?;
    match frame_until(&mut connection.0, &mut Reader::default(), clock, until) {
        Ok(Some(answer)) => Ok((connection, answer)),
        Ok(None) if clock.now() < until => {
            Err(Error::closed(format!("{whom} hung up before it had answered")))
        }
        Ok(None) => Err(Error::unavailable(format!("{whom} did not answer in time"))),
        Err(error) => Err(error.within(whom)),
    }
}

/// A message of either side's beginning.
///
/// # Errors
/// `Corrupt` when it is none of this kind.
pub fn understand<T: DeserializeOwned>(said: &[u8]) -> Result<T> {
    frame::decode(said)
}

/// One end of a connection, on which nothing blocks.
pub struct Connection(Stream);

impl Connection {
    fn new(stream: Stream) -> Result<Self> {
        tcp::tune(&stream, 0)?;
        Ok(Self(stream))
    }

    /// Says the one message with which this side begins.
    ///
    /// # Errors
    /// `Invalid` when it is longer than 64 KiB, `Closed` when the connection is lost.
    pub fn say(&mut self, message: &impl Serialize) -> Result<()> {
        frame::send(&mut self.0, &frame::encode(message)?)
    }

    /// Moves what has arrived into the front of `into`, which must not be empty.
    ///
    /// # Errors
    /// What TLS finds wrong, the system's failure.
    pub fn receive(&mut self, into: &mut [u8]) -> Result<Moved> {
        self.0.receive(into)
    }

    /// Takes bytes from the front of `first`, which must not be empty, and then of `second`.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn send(&mut self, first: &[u8], second: &[u8]) -> Result<Moved> {
        self.0.send_two(first, second)
    }

    /// Moves what was taken and is still held here, encrypted.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn flush(&mut self) -> Result<()> {
        self.0.flush().map(drop)
    }

    /// What to wait for besides `interest`, so that what is held moves on.
    pub fn news(&self, interest: PollFlags) -> PollFlags {
        self.0.news(interest)
    }

    /// Ends it for both sides, also for who waits at it.
    pub fn shut(&self) {
        // One that has ended already needs no other end.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
