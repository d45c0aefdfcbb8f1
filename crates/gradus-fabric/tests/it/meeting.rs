//! How ranks meet, or learn why not.

use crate::world::{Start, run};
use gradus_error::{Error, Kind};
use gradus_fabric::{Launch, NetworkSettings, TransportKind, connect};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

#[test]
fn auto_is_shared_memory_on_one_host() {
    let names = run(2, |_, _| {}, |_, transport| transport.unwrap().name());
    assert_eq!(names, ["shared memory"; 2]);
}

/// Runs two ranks that cannot meet, and returns what both say.
fn quarrel(change: impl Fn(usize, &mut Start) + Sync) -> Vec<Error> {
    let change = |rank: usize, start: &mut Start| {
        start.settings.rendezvous_timeout_s = 30;
        change(rank, start);
    };
    run(3, change, |_, transport| transport.err().expect("these ranks cannot meet"))
}

#[test]
fn ranks_that_disagree_all_hear_who() {
    let errors = quarrel(|rank, start| start.fingerprint = if rank == 1 { "A" } else { "B" }.into());
    assert!(
        errors.iter().all(|e| *e.kind() == Kind::Invalid && e.to_string().contains("rank 1")),
        "{errors:?}"
    );
    let errors = quarrel(|rank, start| start.launch.world_size += rank / 2);
    assert!(
        errors.iter().all(|e| *e.kind() == Kind::Invalid && e.to_string().contains("rank 2")),
        "{errors:?}"
    );
    let errors = quarrel(|rank, start| start.launch.rank = rank.min(1));
    assert!(
        errors.iter().all(|e| *e.kind() == Kind::Invalid && e.to_string().contains("rank 1")),
        "{errors:?}"
    );
    let errors =
        quarrel(|rank, start| start.kind = if rank == 1 { TransportKind::Tcp } else { TransportKind::Auto });
    assert!(
        errors.iter().all(|e| *e.kind() == Kind::Invalid && e.to_string().contains("rank 1")),
        "{errors:?}"
    );
    let errors = quarrel(|rank, start| start.settings.priority_levels = if rank == 1 { 2 } else { 3 });
    let named = ["rank 1", "network.priority_levels 2", "rank 0 with 3"];
    let names_all = |e: &Error| named.iter().all(|part| e.to_string().contains(part));
    assert!(errors.iter().all(|e| *e.kind() == Kind::Invalid && names_all(e)), "{errors:?}");
}

#[test]
fn a_missing_rank_is_named_to_all_who_came() {
    let late = |rank: usize, start: &mut Start| {
        start.settings.rendezvous_timeout_s = 1;
        start.launch.world_size = 4;
        start.launch.rank = rank;
    };
    let errors = run(3, late, |_, transport| transport.err().expect("rank 3 never comes"));
    assert!(
        errors.iter().all(|e| *e.kind() == Kind::Unavailable && e.to_string().contains("rank 3")),
        "{errors:?}"
    );
}

#[test]
fn a_rank_alone_gives_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let settings = NetworkSettings { rendezvous_timeout_s: 1, ..NetworkSettings::default() };
    let error = connect(&Launch::local(1, 2, port), TransportKind::Auto, &settings, "").err().unwrap();
    assert_eq!(*error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("MASTER_PORT"), "{error}");
}

#[test]
fn a_port_in_use_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let launch = Launch::local(0, 2, port);
    let error = connect(&launch, TransportKind::Auto, &NetworkSettings::default(), "").err().unwrap();
    assert_eq!(*error.kind(), Kind::Invalid);
    assert!(
        error.to_string().contains("MASTER_PORT") && error.to_string().contains(&port.to_string()),
        "{error}"
    );
}

#[test]
fn a_descriptor_that_does_not_listen_is_refused() {
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    for fd in [ours.as_raw_fd(), -1, 1_000_000] {
        let launch = Launch { rendezvous_fd: Some(fd), ..Launch::local(0, 2, 1) };
        let error = connect(&launch, TransportKind::Auto, &NetworkSettings::default(), "").err().unwrap();
        assert_eq!(*error.kind(), Kind::Invalid, "{error}");
    }
}

#[test]
fn strangers_hold_nobody_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut strangers: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    strangers[1].write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    strangers[2].write_all(&[9, 0, 0, 0]).unwrap();
    strangers[3].write_all(b"\x02\0\0\0{}").unwrap();
    drop(strangers.pop());
    let with_listener = |rank: usize, start: &mut Start| {
        start.launch.master_port = address.port();
        start.launch.rendezvous_fd = (rank == 0).then(|| listener.as_raw_fd());
    };
    let names = run(3, with_listener, |_, transport| transport.unwrap().name());
    assert_eq!(names, ["shared memory"; 3]);
    // The entrance is closed to whoever comes later, though the test still holds the descriptor.
    assert!(TcpStream::connect(address).is_err());
    let mut rest = Vec::new();
    assert!(matches!(strangers[0].read_to_end(&mut rest), Ok(0) | Err(_)));
}

#[test]
fn a_stranger_instead_of_rank_zero_is_no_rank_zero() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers: [&[u8]; 3] = [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x02\0\0\0{}", b""];
    for answer in answers {
        let error = std::thread::scope(|scope| {
            scope.spawn(|| listener.accept().unwrap().0.write_all(answer).unwrap());
            connect(&Launch::local(1, 2, port), TransportKind::Auto, &NetworkSettings::default(), "")
                .err()
                .unwrap()
        });
        assert!(matches!(error.kind(), Kind::Corrupt | Kind::PeerLost { rank: 0 }), "{error}");
    }
}
