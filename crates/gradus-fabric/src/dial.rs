//! The system's side of the rendezvous: sockets, names, ports.

use crate::gate::{await_news, nap};
use crate::launch::{Launch, RENDEZVOUS_FD};
use crate::stream::{Moved, Stream};
use gradus_error::{Error, IoContext, Result};
use gradus_host::{Clock, random};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::time::Duration;

/// The pause before the second try to reach rank 0; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long one try may take: a packet lost at the start is sent again after one second, then two.
const ONE_TRY: Duration = Duration::from_secs(5);

/// The pause before a host that the system calls unreachable is tried again.
const HOST_PAUSE: Duration = Duration::from_millis(100);

/// How long a peer may leave its connection full.
const STUCK: Duration = Duration::from_secs(10);

/// The socket at which rank 0 is awaited: the one handed on, or a new one at the master's address only.
///
/// # Errors
/// `Invalid` when the port is taken, the address is not this host's, or what was handed on is no listening socket;
/// `Denied` when others can reach it and there is no secret.
pub(crate) fn entrance(launch: &Launch) -> Result<TcpListener> {
    if let Some(fd) = launch.rendezvous_fd {
        let listener = inherited(fd)?;
        launch.secret.permits(own_address(&listener)?.ip(), RENDEZVOUS_FD)?;
        return Ok(listener);
    }
    let Launch { master_address: address, master_port: port, .. } = launch;
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::AddrInUse => Error::invalid(format!(
            "port {port} of {address} is in use by another program: set MASTER_PORT to a free one"
        ))
        .with_source(error),
        ErrorKind::AddrNotAvailable => Error::invalid(format!(
            "{address} is no address of this host, on which rank 0 runs: set MASTER_ADDR to one that is"
        ))
        .with_source(error),
        _ => Error::io(format!("rank 0 cannot listen on {address}:{port} (MASTER_ADDR, MASTER_PORT)"), error),
    };
    let places: Vec<SocketAddr> = (address.as_str(), *port).to_socket_addrs().map_err(failed)?.collect();
    permit(launch, &places)?;
    TcpListener::bind(&places[..]).map_err(failed)
}

/// Whether all places of rank 0 may be spoken to.
fn permit(launch: &Launch, places: &[SocketAddr]) -> Result<()> {
    places.iter().try_for_each(|place| launch.secret.permits(place.ip(), "MASTER_ADDR"))
}

/// A copy of the socket behind a number that the environment names; the number itself stays whose it is.
fn inherited(fd: i32) -> Result<TcpListener> {
    let wrong = || Error::invalid(format!("{RENDEZVOUS_FD} is {fd}, which is no listening socket: unset it"));
    if fd < 0 {
        return Err(wrong());
    }
    // SAFETY: borrowed for one call that copies whatever the number names, and fails if it names nothing.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let copy = rustix::io::fcntl_dupfd_cloexec(borrowed, 3).map_err(|error| match error {
        Errno::MFILE => Error::io(format!("cannot take over {RENDEZVOUS_FD}"), error.into()),
        _ => wrong().with_source(error),
    })?;
    match sockopt::socket_acceptconn(&copy) {
        Ok(true) => Ok(copy.into()),
        _ => Err(wrong()),
    }
}

/// Where a socket listens.
///
/// # Errors
/// The system's failure.
pub(crate) fn own_address(listener: &TcpListener) -> Result<SocketAddr> {
    listener.local_addr().context(|| "cannot read a socket's own address".to_owned())
}

/// Connects to rank 0, again and again until `until`.
///
/// # Errors
/// `Unavailable` with the last try's failure; `Denied` when it is on another host and there is no secret; `Exhausted` when
/// this process may open no more connections.
pub(crate) fn reach(launch: &Launch, clock: &dyn Clock, until: Duration) -> Result<TcpStream> {
    let mut pause = FIRST_PAUSE;
    loop {
        // Names are looked up anew each time: they may become known only as hosts come up.
        let error = match (launch.master_address.as_str(), launch.master_port).to_socket_addrs() {
            Err(error) => error,
            Ok(places) => {
                let places: Vec<SocketAddr> = places.collect();
                permit(launch, &places)?;
                match try_once(&places[..], clock, until) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => error,
                }
            }
        };
        if is_shortage(&error) {
            return Err(Error::io("cannot open a connection to rank 0", error));
        }
        if clock.now() + pause >= until {
            let Launch { rank, master_address: address, master_port: port, .. } = launch;
            return Err(Error::unavailable(format!(
                "rank {rank} cannot reach rank 0 at {address}:{port} (MASTER_ADDR, MASTER_PORT): is it running there?"
            ))
            .with_source(error));
        }
        clock.sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether this process could not even try: waiting for the other side would not help.
fn is_shortage(error: &std::io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|short| error.raw_os_error() == Some(short.raw_os_error()))
}

/// The error for a peer that could not be connected to: it is lost, unless the want is ours.
pub(crate) fn unreachable(rank: usize, peer: usize, place: &str, error: std::io::Error) -> Error {
    let what = format!("rank {rank} cannot reach rank {peer} {place}");
    if is_shortage(&error) {
        return Error::io(what, error);
    }
    Error::peer_lost(peer, what).with_source(error)
}

/// Tries each address of a name once; again for as long as one try may take where the system calls a host unreachable: for
/// some seconds it says so of one that was cut off and is there again.
pub(crate) fn try_once(
    place: impl ToSocketAddrs,
    clock: &dyn Clock,
    until: Duration,
) -> std::io::Result<TcpStream> {
    let until_again = until.min(clock.now() + ONE_TRY);
    loop {
        match try_each(&place, clock, until) {
            Err(error) if error.kind() == ErrorKind::HostUnreachable && clock.now() < until_again => {
                clock.sleep(HOST_PAUSE);
            }
            tried => return tried,
        }
    }
}

fn try_each(place: &impl ToSocketAddrs, clock: &dyn Clock, until: Duration) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::from(ErrorKind::NotFound);
    for address in place.to_socket_addrs()? {
        let left = until.saturating_sub(clock.now()).clamp(Duration::from_millis(1), ONE_TRY);
        match TcpStream::connect_timeout(&address, left) {
            // A port in the range that the system hands out can be connected to itself while nobody listens there.
            Ok(stream) if stream.local_addr()? == address => last = ErrorKind::ConnectionRefused.into(),
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sends everything, waiting for room as long as there is some now and then.
///
/// # Errors
/// `Closed` when the other side is gone, or has taken nothing for long.
pub(crate) fn send_all(stream: &mut Stream, bytes: &[u8], clock: &dyn Clock) -> Result<()> {
    let (mut sent, mut until) = (0, clock.now() + STUCK);
    while sent < bytes.len() {
        match stream.send(&bytes[sent..])? {
            Moved::Bytes(count) => (sent, until) = (sent + count, clock.now() + STUCK),
            Moved::Nothing if clock.now() < until => await_news(stream, PollFlags::OUT, clock, until),
            Moved::Nothing | Moved::Ended => return Err(Error::closed("nobody takes what is sent")),
        }
    }
    finish(stream, clock, until)
}

/// Waits until `until` at most for what a connection holds to be on its way.
///
/// # Errors
/// `Closed` when it is not by then.
pub(crate) fn finish(stream: &mut Stream, clock: &dyn Clock, until: Duration) -> Result<()> {
    while !stream.flush()? {
        if clock.now() >= until {
            return Err(Error::closed("nobody takes what is sent"));
        }
        await_news(stream, PollFlags::OUT, clock, until);
    }
    Ok(())
}

/// A listening Unix socket in the abstract namespace, which leaves nothing behind, and its name, which nobody guesses.
///
/// # Errors
/// The system's failure.
pub(crate) fn local_door() -> Result<(Option<UnixListener>, String)> {
    let name = format!("gradus-{:016x}{:016x}", random::seed_from_system(), random::seed_from_system());
    let describe = || "cannot open a Unix socket".to_owned();
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).context(describe)?;
    Ok((Some(UnixListener::bind_addr(&address).context(describe)?), name))
}

/// Connects to a socket that [`local_door`] opened.
pub(crate) fn reach_local(name: &str, limit: Duration) -> std::result::Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Connecting blocks while the other side has many callers to let in; zero would mean for ever.
    let limit = limit.max(Duration::from_millis(1));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(limit))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Ok(socket)
}

/// Waits until a socket has something to read, or has ended.
///
/// # Errors
/// `Unavailable` when it has not by `until`.
pub(crate) fn wait_readable(socket: &OwnedFd, clock: &dyn Clock, until: Duration) -> Result<()> {
    loop {
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&nap(until, clock))) {
            Ok(0) if clock.now() < until => {}
            Ok(0) => return Err(Error::unavailable("nothing arrived in time")),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("cannot wait for a socket", error.into())),
        }
    }
}
