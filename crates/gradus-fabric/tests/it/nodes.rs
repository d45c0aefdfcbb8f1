//! Several nodes on one machine.

use crate::certificates::Authority;
use crate::world::{Start, Way, on, pattern, receive, run, run_on_levels};
use gradus_error::{Error, Kind, Result};
use gradus_fabric::{Direction, Interest, Lane, Transport, TransportKind};
use std::time::Duration;

/// Puts each rank on a node of its own.
fn apart(rank: usize, start: &mut Start) {
    start.settings.node_id = ["a", "b.1"][rank].to_owned();
}

#[test]
fn ranks_on_different_nodes_of_a_host_share_no_memory() {
    run(2, apart, |_, transport| {
        let mut transport = transport.unwrap();
        assert_eq!(transport.name(), "TCP");
        assert!(transport.neighbours(0).is_none());
    });
}

#[test]
fn ranks_are_named_with_the_nodes_that_they_lie_on() {
    run(2, apart, |rank, transport| {
        let mut transport = transport.unwrap();
        if rank == 0 {
            let error = receive(&mut *transport, 1, 1).unwrap_err();
            assert_eq!(*error.kind(), Kind::PeerLost { rank: 1 });
            assert!(error.to_string().contains("rank 1 on b.1"), "{error}");
        }
    });
}

#[test]
fn shared_memory_asked_for_between_nodes_is_refused_with_the_reason() {
    let asked = |rank: usize, start: &mut Start| {
        apart(rank, start);
        start.kind = TransportKind::SharedMemory;
    };
    run(2, asked, |_, transport| {
        let error = transport.err().expect("they share no memory");
        let named = ["ranks 0 and 1", "a and b.1", "network.node_id"];
        let told = named.iter().all(|words| error.to_string().contains(words));
        assert!(*error.kind() == Kind::Invalid && told, "{error}");
    });
}

#[test]
fn one_name_on_all_ranks_keeps_them_together() {
    let together = |_: usize, start: &mut Start| start.settings.node_id = "a".to_owned();
    let names = run(3, together, |_, transport| transport.unwrap().name());
    assert_eq!(names, ["shared memory"; 3]);
}

/// Two nodes of two ranks.
const PAIRS: Way = Way::Nodes { lacking: 0 };

#[test]
fn ranks_of_a_node_share_memory_and_others_are_reached_by_tcp() {
    for lacking in [0, 1] {
        let names = run(4, on(Way::Nodes { lacking }), |_, transport| {
            let mut transport = transport.unwrap();
            // What ranks do without streams they do in worlds of one node only.
            assert!(transport.neighbours(0).is_none() && transport.address().is_some());
            transport.name()
        });
        assert_eq!(names, ["shared memory and TCP"; 4]);
    }
    let tcp = |rank: usize, start: &mut Start| {
        on(PAIRS)(rank, start);
        start.kind = TransportKind::Tcp;
    };
    assert_eq!(run(4, tcp, |_, transport| transport.unwrap().name()), ["TCP"; 4]);
    let shared = |rank: usize, start: &mut Start| {
        on(PAIRS)(rank, start);
        start.kind = TransportKind::SharedMemory;
    };
    for error in run(4, shared, |_, transport| transport.err().expect("they lie on two nodes")) {
        assert!(error.to_string().contains("ranks 0 and 2"), "{error}");
    }
}

/// Bytes of one lane and way: more than any ring or socket holds.
const LONG: usize = 3_000_001;

/// What goes on one lane, one way.
struct Flow {
    lane: Lane,
    out: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
}

impl Flow {
    fn advance(&mut self, transport: &mut dyn Transport) -> Result<usize> {
        let sent = transport.try_send(self.lane, &self.out[self.sent..])?;
        self.sent += sent;
        let received = &mut self.received;
        if received.len() == LONG {
            // Who has sent all may have left.
            return Ok(sent);
        }
        let count = transport.try_receive(self.lane, &mut |from, len| {
            // SAFETY: the transport hands out `len` valid bytes.
            received.extend((0..len).map(|i| unsafe { from.add(i).read() }));
            len
        })?;
        Ok(sent + count)
    }

    fn interests(&self) -> impl Iterator<Item = Interest> {
        let ways = [(Direction::Send, self.sent < LONG), (Direction::Receive, self.received.len() < LONG)];
        let lane = self.lane;
        ways.into_iter().filter(|(_, open)| *open).map(move |(direction, _)| Interest { lane, direction })
    }
}

#[test]
fn long_streams_go_to_all_on_all_lanes_at_once() {
    run_on_levels(PAIRS, (4, 2), 4096, exchange_long);
}

#[test]
fn long_streams_go_to_all_under_tls_too() {
    let files = Authority::new().member();
    let secured = |rank: usize, start: &mut Start| {
        on(PAIRS)(rank, start);
        start.settings.priority_levels = 2;
        start.settings.tls = files.settings.clone();
    };
    run(4, secured, |rank, transport| exchange_long(rank, transport.unwrap()));
}

/// Everything to and from everybody at once.
fn exchange_long(rank: usize, mut transport: Box<dyn Transport>) {
    let lanes = (0..4).filter(|peer| *peer != rank).flat_map(|peer| [0, 1].map(|level| Lane { peer, level }));
    let flow = |lane: Lane| {
        let out = pattern(rank, lane.peer + 4 * lane.level, LONG);
        Flow { lane, out, sent: 0, received: Vec::new() }
    };
    let mut flows: Vec<Flow> = lanes.map(flow).collect();
    loop {
        let moved: usize = flows.iter_mut().map(|flow| flow.advance(&mut *transport).unwrap()).sum();
        let open: Vec<Interest> = flows.iter().flat_map(Flow::interests).collect();
        if open.is_empty() {
            break;
        }
        if moved == 0 {
            transport.wait(&open, Duration::from_secs(60)).unwrap();
        }
    }
    for Flow { lane, received, .. } in flows {
        assert!(received == pattern(lane.peer, rank + 4 * lane.level, LONG), "{lane:?}");
    }
}

/// What a rank that waits for another one hears when a third one ends.
fn hear(rank: usize, waits_for: usize, transport: &mut dyn Transport) -> Error {
    let error = receive(transport, waits_for, 1).unwrap_err();
    assert!(error.to_string().contains("on node-1"), "rank {rank}: {error}");
    error
}

#[test]
fn who_gives_up_is_heard_on_both_nodes_and_who_leaves_is_missed_there() {
    // Whom each rank waits for: one on its own node, and one on the other. Rank 3 does something.
    for waits_for in [[1, 0, 1], [2, 2, 0]] {
        // Who has heard hands its transport on and leaves when all have: it would be missed.
        run_on_levels(PAIRS, (4, 1), 0, |rank, mut transport| {
            if rank == 3 {
                transport.abort(&Error::peer_lost(7, "rank 7 has burnt down"));
            } else {
                let error = hear(rank, waits_for[rank], &mut *transport);
                assert_eq!(*error.kind(), Kind::PeerLost { rank: 7 }, "{error}");
            }
            transport
        });
    }
    run_on_levels(PAIRS, (4, 1), 0, |rank, mut transport| {
        (rank < 3).then(|| {
            let error = hear(rank, 3, &mut *transport);
            assert_eq!(*error.kind(), Kind::PeerLost { rank: 3 }, "{error}");
            transport
        })
    });
}
