//! Ranks as threads: rendezvous and transports, end to end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "it/membership.rs"]
mod membership;

use gradus_error::{Error, Kind, Result};
use gradus_fabric::{Direction, Interest, Launch, NetworkSettings, Transport, TransportKind, connect};
use gradus_host::{Clock, RealClock};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

const BOTH: [TransportKind; 2] = [TransportKind::SharedMemory, TransportKind::Tcp];

/// What a rank starts with; tests change it.
struct Start {
    launch: Launch,
    kind: TransportKind,
    settings: NetworkSettings,
    fingerprint: String,
}

/// Starts ranks as threads; `change` sees what each starts with, `body` runs with what it comes to.
fn run<T: Send>(
    world_size: usize,
    change: impl Fn(usize, &mut Start) + Sync,
    body: impl Fn(usize, Result<Box<dyn Transport>>) -> T + Sync,
) -> Vec<T> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::scope(|scope| {
        let start = |rank: usize| {
            let mut launch = Launch::local(rank, world_size, port);
            launch.rendezvous_fd = (rank == 0).then(|| listener.as_raw_fd());
            let mut start = Start {
                launch,
                kind: TransportKind::Auto,
                settings: NetworkSettings::default(),
                fingerprint: "same".into(),
            };
            change(rank, &mut start);
            let (change_done, body) = (start, &body);
            scope.spawn(move || {
                let Start { launch, kind, settings, fingerprint } = change_done;
                body(rank, connect(&launch, kind, &settings, &fingerprint))
            })
        };
        let ranks: Vec<_> = (0..world_size).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn of_kind(kind: TransportKind) -> impl Fn(usize, &mut Start) + Sync {
    move |_, start| start.kind = kind
}

fn send_all(transport: &mut dyn Transport, peer: usize, bytes: &[u8]) -> Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        sent += transport.try_send(peer, &bytes[sent..])?;
        if sent < bytes.len() {
            transport.wait(&[Interest { peer, direction: Direction::Send }], Duration::from_secs(1))?;
        }
    }
    Ok(())
}

fn receive(transport: &mut dyn Transport, peer: usize, len: usize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        transport.try_receive(peer, &mut |from, available| {
            let count = available.min(len - out.len());
            // SAFETY: the transport hands out `available` valid bytes.
            out.extend((0..count).map(|i| unsafe { from.add(i).read() }));
            count
        })?;
        if out.len() == len {
            return Ok(out);
        }
        transport.wait(&[Interest { peer, direction: Direction::Receive }], Duration::from_secs(1))?;
    }
}

fn pattern(from: usize, to: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + from * 7 + to * 13) as u8).collect()
}

#[test]
fn every_rank_reaches_every_other() {
    for kind in BOTH {
        for world_size in 1..=5 {
            run(world_size, of_kind(kind), |rank, transport| {
                let mut transport = transport.unwrap();
                assert_eq!((transport.rank(), transport.world_size()), (rank, world_size));
                let peers = (0..world_size).filter(|peer| *peer != rank);
                for peer in peers.clone() {
                    send_all(&mut *transport, peer, &pattern(rank, peer, 1000)).unwrap();
                }
                for peer in peers {
                    assert_eq!(receive(&mut *transport, peer, 1000).unwrap(), pattern(peer, rank, 1000));
                }
            });
        }
    }
}

#[test]
fn auto_is_shared_memory_on_one_host() {
    let names = run(2, |_, _| {}, |_, transport| transport.unwrap().name());
    assert_eq!(names, ["shared memory"; 2]);
}

#[test]
fn a_stream_longer_than_any_buffer_arrives_whole() {
    for kind in BOTH {
        let small_rings = |_: usize, start: &mut Start| {
            start.kind = kind;
            start.settings.ring_bytes = 4096;
        };
        run(2, small_rings, |rank, transport| {
            let mut transport = transport.unwrap();
            let len = 3_000_001;
            match rank {
                0 => send_all(&mut *transport, 1, &pattern(0, 1, len)).unwrap(),
                _ => assert_eq!(receive(&mut *transport, 0, len).unwrap(), pattern(0, 1, len)),
            }
        });
    }
}

#[test]
fn who_leaves_in_good_order_is_missed_only_when_needed() {
    for kind in BOTH {
        run(3, of_kind(kind), |rank, transport| {
            let mut transport = transport.unwrap();
            match rank {
                0 => send_all(&mut *transport, 1, b"last words").unwrap(),
                1 => {
                    assert_eq!(receive(&mut *transport, 0, 10).unwrap(), b"last words");
                    // Rank 2 leaves once it has seen that rank 0 has left.
                    let error = receive(&mut *transport, 2, 1).unwrap_err();
                    assert_eq!(*error.kind(), Kind::PeerLost { rank: 2 });
                }
                _ => {
                    let error = receive(&mut *transport, 0, 1).unwrap_err();
                    assert_eq!(*error.kind(), Kind::PeerLost { rank: 0 });
                }
            }
        });
    }
}

#[test]
fn who_gives_up_tells_everybody_why() {
    for kind in BOTH {
        run(3, of_kind(kind), |rank, transport| {
            let mut transport = transport.unwrap();
            if rank == 2 {
                transport.abort(&Error::peer_lost(7, "rank 7 has burnt down"));
                return;
            }
            // Nothing is awaited from rank 2.
            let error = receive(&mut *transport, 1 - rank, 1).unwrap_err();
            assert_eq!(*error.kind(), Kind::PeerLost { rank: 7 }, "{error}");
        });
    }
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

#[test]
fn waiting_is_bounded() {
    for kind in BOTH {
        run(2, of_kind(kind), |rank, transport| {
            let mut transport = transport.unwrap();
            let interest = [Interest { peer: 1 - rank, direction: Direction::Receive }];
            let clock = RealClock::new();
            transport.wait(&interest, Duration::from_millis(5)).unwrap();
            assert!(clock.now() < Duration::from_secs(30));
            // Neither leaves before both have waited.
            send_all(&mut *transport, 1 - rank, b"x").unwrap();
            assert_eq!(receive(&mut *transport, 1 - rank, 1).unwrap(), b"x");
        });
    }
}
