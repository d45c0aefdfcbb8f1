//! Ranks as threads of this process: a world to try things in, without launcher and processes.

use crate::communicator::Communicator;
use gradus_error::{IoContext, Result};
use gradus_fabric::{Launch, NetworkSettings, PeerMemory, Transport, TransportKind, connect};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Runs `body` on every rank of a world over shared memory, each in a thread; what each returns, by rank.
///
/// # Errors
/// The system's failure to listen on the loopback interface or to share memory.
///
/// # Panics
/// If `body` does.
pub fn run_as_threads<T: Send>(
    world_size: usize,
    stall_limit: Duration,
    body: impl Fn(Communicator) -> T + Sync,
) -> Result<Vec<T>> {
    run(&NetworkSettings::default(), world_size, stall_limit, body)
}

/// As [`run_as_threads`], but no rank reads another's private memory: what is in it has to be sent. Else ranks do whichever
/// they find to be faster.
///
/// # Errors
/// As [`run_as_threads`].
///
/// # Panics
/// If `body` does.
pub fn run_as_threads_apart<T: Send>(
    world_size: usize,
    stall_limit: Duration,
    body: impl Fn(Communicator) -> T + Sync,
) -> Result<Vec<T>> {
    let settings = NetworkSettings { peer_memory: PeerMemory::Never, ..NetworkSettings::default() };
    run(&settings, world_size, stall_limit, body)
}

fn run<T: Send>(
    settings: &NetworkSettings,
    world_size: usize,
    stall_limit: Duration,
    body: impl Fn(Communicator) -> T + Sync,
) -> Result<Vec<T>> {
    let describe = || "cannot listen on the loopback interface".to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").context(describe)?;
    let port = listener.local_addr().context(describe)?.port();
    let rank = |number| {
        let transport = meet(settings, number, world_size, (port, &listener))?;
        Ok(body(Communicator::new(transport, stall_limit)))
    };
    let rank = &rank;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world_size).map(|number| scope.spawn(move || rank(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank does not panic")).collect()
    })
}

fn meet(
    settings: &NetworkSettings,
    rank: usize,
    world_size: usize,
    (port, door): (u16, &TcpListener),
) -> Result<Box<dyn Transport>> {
    let mut launch = Launch::local(rank, world_size, port);
    launch.rendezvous_fd = (rank == 0).then(|| door.as_raw_fd());
    connect(&launch, TransportKind::SharedMemory, settings, "threads")
}
