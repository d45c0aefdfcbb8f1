//! One suite for every way that bytes can go.

use crate::world::{WAYS, pattern, receive, run_on, send_all};
use gradus_error::{Error, Kind};
use gradus_fabric::{Direction, Interest};
use gradus_host::{Clock, RealClock};
use std::time::Duration;

#[test]
fn every_rank_reaches_every_other() {
    for way in WAYS {
        for world_size in 1..=5 {
            run_on(way, world_size, 0, |rank, mut transport| {
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
fn a_stream_longer_than_any_buffer_arrives_whole() {
    for way in WAYS {
        run_on(way, 2, 4096, |rank, mut transport| {
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
    for way in WAYS {
        run_on(way, 3, 0, |rank, mut transport| {
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
    for way in WAYS {
        run_on(way, 3, 0, |rank, mut transport| {
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

#[test]
fn waiting_is_bounded() {
    for way in WAYS {
        run_on(way, 2, 0, |rank, mut transport| {
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
