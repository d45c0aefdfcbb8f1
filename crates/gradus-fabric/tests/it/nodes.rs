//! Several nodes on one machine.

use crate::world::{Start, receive, run};
use gradus_error::Kind;
use gradus_fabric::TransportKind;

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
