//! Two ranks of this process that have met.

use super::*;
use crate::handshake::Purpose;
use crate::launch::Launch;
use crate::membership::Timeouts;
use crate::rendezvous::{Occasion, Terms, meet};
use crate::secret::Secret;
use crate::settings::TransportKind;
use gradus_error::Kind;
use gradus_host::simulation::SimulatedClock;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::mpsc::channel;

/// How long to wait for what must come.
const LIMIT: Duration = Duration::from_secs(60);

/// The transport of a rank of two; rank 0 is met at `door`.
fn connected(rank: usize, door: &TcpListener) -> SharedMemory {
    let clock = RealClock::new();
    let port = door.local_addr().unwrap().port();
    let launch =
        &Launch { rendezvous_fd: (rank == 0).then(|| door.as_raw_fd()), ..Launch::local(rank, 2, port) };
    let trust = Trust { secret: Secret::default(), tls: None, purpose: Purpose::Rendezvous, rank };
    let timeouts = Timeouts::from(Duration::from_secs(10)).unwrap();
    let terms = Terms {
        launch,
        occasion: Occasion::default(),
        entrance: None,
        trust: trust.clone(),
        wish: None,
        transport: TransportKind::SharedMemory,
        node: "",
        fingerprint: "",
        levels: 1,
        timeout: LIMIT,
        timeouts,
        clock: &clock,
    };
    let mut table = meet(&terms).unwrap();
    let surroundings = Surroundings { nodes: table.nodes(), timeouts, alarm: None };
    let trust = trust.towards(Purpose::Memory);
    let settings = NetworkSettings::default();
    let circle = Circle::around(rank, &table.members);
    SharedMemory::connect(
        trust,
        &mut table,
        &circle,
        &settings,
        false,
        surroundings,
        (&clock, clock.now() + LIMIT),
    )
    .unwrap()
}

/// Looks at rank 1 from rank 0, with which it stays connected meanwhile.
fn beside_a_peer(look: impl FnOnce(&mut SharedMemory)) {
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let (done, is_done) = channel();
    std::thread::scope(|scope| {
        let door = &door;
        scope.spawn(move || {
            let there = connected(1, door);
            // It says nothing. Should nobody be done with it, its end is an answer, too.
            let _ = is_done.recv_timeout(LIMIT);
            drop(there);
        });
        look(&mut connected(0, door));
        done.send(()).unwrap();
    });
}

#[test]
fn waiting_for_a_signal_ends_by_the_clock_that_is_given() {
    beside_a_peer(|here| {
        let (clock, until) = (SimulatedClock::new(), here.clock.now() + LIMIT * 10);
        clock.advance_to(until);
        let error = here.hear(1, &clock, until).unwrap_err();
        assert_eq!(*error.kind(), Kind::Unavailable, "{error}");
    });
}

#[test]
fn memory_that_a_peer_no_longer_has_names_it_and_its_host() {
    beside_a_peer(|here| {
        let host = here.lines.name(1);
        assert!(host.starts_with("rank 1 on ") && host.len() > "rank 1 on ".len(), "{host}");
        let (neighbours, mut byte) = (here.neighbours(0).unwrap(), 0u8);
        // SAFETY: there is room for one byte. Nobody has memory at the address 0.
        let error = unsafe { neighbours.read_private(1, 0, &raw mut byte, 1) }.unwrap_err();
        assert_eq!(*error.kind(), Kind::PeerLost { rank: 1 });
        assert!(error.to_string().contains(&format!("{host} is gone, or has let go of memory")), "{error}");
    });
}
