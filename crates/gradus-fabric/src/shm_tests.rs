//! Two ranks of this process that have met.

use super::*;
use crate::handshake::Purpose;
use crate::launch::Launch;
use crate::membership::Timeouts;
use crate::rendezvous::{Occasion, Terms, meet};
use crate::secret::Secret;
use crate::settings::TransportKind;
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

/// Looks at rank 1 from rank 0, with which it stays connected meanwhile; in the end it gives up, if that is asked of it.
fn beside_a_peer(look: impl FnOnce(&mut SharedMemory, &dyn Fn())) {
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let (order, is_ordered) = channel();
    std::thread::scope(|scope| {
        let door = &door;
        scope.spawn(move || {
            let mut there = connected(1, door);
            // It says nothing else. Should nobody order anything, its end is an answer, too.
            if is_ordered.recv_timeout(LIMIT).is_ok() {
                there.abort(&Error::corrupt("it has enough"));
                let _ = is_ordered.recv_timeout(LIMIT);
            }
        });
        look(&mut connected(0, door), &|| order.send(()).unwrap());
        drop(order);
    });
}

#[test]
fn waiting_for_a_signal_ends_by_the_clock_that_is_given() {
    beside_a_peer(|here, _| {
        let (clock, until) = (SimulatedClock::new(), here.clock.now() + LIMIT * 10);
        clock.advance_to(until);
        let error = here.hear(1, &clock, until).unwrap_err();
        assert_eq!(*error.kind(), Kind::Unavailable, "{error}");
    });
}

#[test]
fn memory_that_a_peer_no_longer_has_names_it_unless_it_says_why() {
    beside_a_peer(|here, gives_up| {
        let name = here.lines.name(1);
        assert!(name.starts_with("rank 1 on ") && name.len() > "rank 1 on ".len(), "{name}");
        let read = |here: &mut SharedMemory| {
            let (neighbours, mut byte) = (here.neighbours(0).unwrap(), 0u8);
            // SAFETY: there is room for one byte. Nobody has memory at the address 0.
            let error = unsafe { neighbours.read_private(1, 0, &raw mut byte, 1) }.unwrap_err();
            assert_eq!(*error.kind(), Kind::PeerLost { rank: 1 });
            here.explain_loss(error)
        };
        let error = read(here);
        assert!(error.to_string().contains(&format!("{name} is gone, or has let go of memory")), "{error}");
        gives_up();
        let end = here.clock.now() + LIMIT;
        while here.lines.check().is_ok() && here.clock.now() < end {
            std::thread::yield_now();
        }
        let error = read(here);
        assert_eq!((error.kind(), error.is_told()), (&Kind::Corrupt, true), "{error}");
        assert!(error.to_string().contains(&format!("{name} gave up")), "{error}");
    });
}
