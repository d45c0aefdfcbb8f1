//! Where a connection between member and coordinator begins, on either side: with a proof of the secret that they share.

use super::super::message::Request;
use super::link::Link;
use crate::frame;
use crate::gate::Gate;
use crate::handshake::Purpose;
use crate::secret::Secret;
use crate::tls::Identity;
use crate::trust::Trust;
use gradus_error::{Error, IoContext, Result};
use gradus_host::{Clock, RealClock};
use rustix::net::Shutdown;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Arrivals that wait to be taken in; beyond that callers wait outside.
const MOST_ARRIVALS: usize = 1024;

/// How long the gate may wait at a time, and rest when the system refuses it more descriptors.
const ONE_WAIT: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(100);

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

/// A thread that lets callers in, so that strangers hold up neither members nor their coordinator.
pub(super) struct Door {
    arrivals: Receiver<Arrival>,
    bell: UnixStream,
    listener: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Opens a door at a listening socket.
    ///
    /// # Errors
    /// The system's failure to make a socket or a thread.
    pub(super) fn open(listener: TcpListener, trust: Trust) -> Result<Self> {
        let describe = || "cannot open the door for members".to_owned();
        let (bell, rope) = UnixStream::pair().context(describe)?;
        bell.set_nonblocking(true).context(describe)?;
        rope.set_nonblocking(true).context(describe)?;
        let (sender, arrivals) = sync_channel(MOST_ARRIVALS);
        let gate = OwnedFd::from(listener.try_clone().context(describe)?);
        let thread = std::thread::Builder::new()
            .name("gradus-door".into())
            .spawn(move || let_in(gate, trust, &sender, rope))
            .context(describe)?;
        Ok(Self { arrivals, bell, listener: listener.into(), thread: Some(thread) })
    }

    /// Those who have come since it was last asked.
    pub(super) fn arrivals(&mut self) -> Vec<Arrival> {
        let mut rings = [0; 256];
        while matches!(self.bell.read(&mut rings), Ok(count) if count > 0) {}
        self.arrivals.try_iter().collect()
    }
}

impl AsFd for Door {
    /// Readable when somebody has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Who waits at a socket that is shut down is woken and finds it unusable; the bell, which has ended before, says why.
        let _ = rustix::net::shutdown(&self.bell, Shutdown::Both);
        let _ = rustix::net::shutdown(&self.listener, Shutdown::Both);
        self.arrivals = sync_channel(0).1;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets callers in until nobody takes them any more or the bell's other end is closed.
fn let_in(listener: OwnedFd, trust: Trust, arrivals: &SyncSender<Arrival>, mut rope: UnixStream) {
    let clock = RealClock::new();
    let Ok(mut gate) = Gate::new(listener, trust, &clock) else { return };
    let mut complained = false;
    loop {
        let callers = match gate.arrivals(clock.now() + ONE_WAIT) {
            Ok(callers) => callers,
            Err(_) if has_ended(&mut rope) => return,
            Err(error) => {
                complain_once(&mut complained, &error);
                clock.sleep(REST);
                Vec::new()
            }
        };
        if let Some(shortage) = gate.take_shortage() {
            complain_once(&mut complained, &shortage);
        }
        for caller in callers {
            let Ok(request) = frame::decode(&caller.frame) else { continue };
            let Ok(link) = Link::new(caller.stream) else { continue };
            if arrivals.send(Arrival { link, request }).is_err() {
                return;
            }
            // A bell that is full rings already.
            let _ = rope.write(&[1]);
        }
        if has_ended(&mut rope) {
            return;
        }
    }
}

/// What goes wrong at a door goes wrong with every caller; a person needs to hear of it once.
fn complain_once(complained: &mut bool, error: &Error) {
    if !std::mem::replace(complained, true) {
        tracing::warn!("members may not come in: {error}");
    }
}

/// Whether the other end of a socket was closed.
fn has_ended(socket: &mut UnixStream) -> bool {
    matches!(socket.read(&mut [0]), Ok(0))
}
