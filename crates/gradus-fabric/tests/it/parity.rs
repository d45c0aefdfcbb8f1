//! One suite for every way that bytes can go.

use crate::world::{WAYS, pattern, receive, receive_on, run_on, run_on_levels, send_all, send_all_on};
use gradus_error::{Error, Kind};
use gradus_fabric::{Direction, Interest, Lane, Transport};
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

/// Sends `bytes` in calls of two parts each, of lengths that change.
fn send_in_pairs(transport: &mut dyn Transport, peer: usize, bytes: &[u8]) {
    let mut sent = 0;
    for first in [0, 1, 64, 5000, 70_000].into_iter().cycle() {
        let rest = &bytes[sent..];
        let (first, second) = rest.split_at(first.min(rest.len()));
        let count =
            transport.try_send_two(Lane::lowest(peer), first, &second[..second.len().min(200_000)]).unwrap();
        sent += count;
        if sent == bytes.len() {
            return;
        }
        if count == 0 {
            let room = [Interest { lane: Lane::lowest(peer), direction: Direction::Send }];
            transport.wait(&room, Duration::from_secs(1)).unwrap();
        }
    }
}

/// Fills `into`, by turns straight and out of the transport's own memory; whether any of it came straight.
fn receive_both_ways(transport: &mut dyn Transport, peer: usize, into: &mut [u8]) -> bool {
    let (mut filled, mut straight) = (0, false);
    for first in [0, 1, 64, 5000].into_iter().cycle() {
        let rest = &mut into[filled..];
        let (one, other) = rest.split_at_mut(first.min(rest.len()));
        let most = other.len().min(100_000);
        let count = match transport.try_receive_into(Lane::lowest(peer), one, &mut other[..most]).unwrap() {
            Some(count) => {
                straight |= count > 0;
                count
            }
            None => receive_some(transport, peer, &mut rest[..]),
        };
        filled += count;
        if first == 64 && filled < into.len() {
            filled += receive_some(transport, peer, &mut into[filled..]);
        }
        if filled == into.len() {
            return straight;
        }
        if count == 0 {
            let news = [Interest { lane: Lane::lowest(peer), direction: Direction::Receive }];
            transport.wait(&news, Duration::from_secs(1)).unwrap();
        }
    }
    unreachable!("a cycle has no end")
}

fn receive_some(transport: &mut dyn Transport, peer: usize, into: &mut [u8]) -> usize {
    let mut filled = 0;
    let mut take = |from: *const u8, len: usize| {
        let count = len.min(into.len() - filled).min(3000);
        // SAFETY: `len` bytes are readable, of memory that is the transport's; `count` fit.
        unsafe { std::ptr::copy_nonoverlapping(from, into[filled..].as_mut_ptr(), count) };
        filled += count;
        count
    };
    transport.try_receive(Lane::lowest(peer), &mut take).unwrap()
}

#[test]
fn bytes_of_two_places_are_one_stream_however_they_are_taken() {
    for way in WAYS {
        run_on(way, 2, 0, |rank, mut transport| {
            let len = 5_000_001;
            if rank == 0 {
                send_in_pairs(&mut *transport, 1, &pattern(0, 1, len));
                return;
            }
            let mut received = vec![0; len];
            let straight = receive_both_ways(&mut *transport, 0, &mut received);
            assert!(received == pattern(0, 1, len), "{way:?}");
            assert_eq!(straight, transport.name() == "TCP", "{way:?}");
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
            } else {
                // Nothing is awaited from rank 2.
                let error = receive(&mut *transport, 1 - rank, 1).unwrap_err();
                assert_eq!(*error.kind(), Kind::PeerLost { rank: 7 }, "{error}");
            }
            // Who has heard leaves when all have: else it would be missed by who has not.
            transport
        });
    }
}

#[test]
fn waiting_is_bounded() {
    for way in WAYS {
        run_on(way, 2, 0, |rank, mut transport| {
            let interest = [Interest { lane: Lane::lowest(1 - rank), direction: Direction::Receive }];
            let clock = RealClock::new();
            transport.wait(&interest, Duration::from_millis(5)).unwrap();
            assert!(clock.now() < Duration::from_secs(30));
            // Neither leaves before both have waited.
            send_all(&mut *transport, 1 - rank, b"x").unwrap();
            assert_eq!(receive(&mut *transport, 1 - rank, 1).unwrap(), b"x");
        });
    }
}

/// Sends until a lane takes no more; how many bytes it took, which are those of the pattern.
fn fill(transport: &mut dyn Transport, lane: Lane) -> usize {
    let (bytes, mut sent, mut refused) = (pattern(0, lane.level, 64 << 20), 0, 0);
    let clock = RealClock::new();
    // A system may grant more room a little later.
    while refused < 20 {
        let count = transport.try_send(lane, &bytes[sent..]).unwrap();
        sent += count;
        refused = if count == 0 { refused + 1 } else { 0 };
        if count == 0 {
            clock.sleep(Duration::from_millis(1));
        }
    }
    assert!(sent < bytes.len(), "a stream holds a bounded number of bytes");
    sent
}

#[test]
fn a_lane_that_is_full_holds_up_no_other() {
    for way in WAYS {
        run_on_levels(way, (3, 4), 4096, |rank, mut transport| {
            assert_eq!(transport.levels(), 4);
            if rank == 2 {
                return;
            }
            let to = |level| Lane { peer: 1 - rank, level };
            let others = [0, 1, 3];
            if rank == 0 {
                let filled = fill(&mut *transport, to(2));
                for level in others {
                    send_all_on(&mut *transport, to(level), &(filled as u64).to_le_bytes()).unwrap();
                    assert_eq!(receive_on(&mut *transport, to(level), 1).unwrap(), [level as u8]);
                }
                assert_eq!(receive_on(&mut *transport, to(2), 1).unwrap(), [2]);
                return;
            }
            let mut filled = 0;
            for level in others {
                let said = receive_on(&mut *transport, to(level), 8).unwrap();
                filled = u64::from_le_bytes(said.try_into().unwrap()) as usize;
                send_all_on(&mut *transport, to(level), &[level as u8]).unwrap();
            }
            assert!(receive_on(&mut *transport, to(2), filled).unwrap() == pattern(0, 2, filled));
            send_all_on(&mut *transport, to(2), &[2]).unwrap();
        });
    }
}

#[test]
fn who_leaves_is_missed_on_every_lane() {
    for way in WAYS {
        run_on_levels(way, (2, 3), 0, |rank, mut transport| {
            if rank == 1 {
                let error = receive_on(&mut *transport, Lane { peer: 0, level: 2 }, 1).unwrap_err();
                assert_eq!(*error.kind(), Kind::PeerLost { rank: 0 });
            }
        });
    }
}
