//! Links measured over real transports: everybody holds the same figures.

use crate::world::{BOTH, PATIENCE, connected};
use gradus_collective::algorithm::Nodes;
use gradus_collective::tuner::measure;
use gradus_error::Kind;
use gradus_host::RealClock;
use std::time::Duration;

#[test]
fn all_ranks_hold_the_same_figures() {
    for kind in BOTH {
        for (world_size, ranks_per_node) in [(1, 1), (2, 1), (3, 2), (4, 4)] {
            let nodes = Nodes::even(world_size, ranks_per_node);
            let all = connected(world_size, kind, |mut transport| {
                let figures = measure(&mut *transport, &nodes, &RealClock::new(), PATIENCE).unwrap();
                // The transport is as it was.
                measure(&mut *transport, &nodes, &RealClock::new(), PATIENCE).unwrap();
                figures
            });
            all[0].validate().unwrap();
            assert!(all.iter().all(|figures| *figures == all[0]), "{kind:?} {all:?}");
            assert_eq!(all[0].nic_bytes_per_s.is_some(), ranks_per_node < world_size);
        }
    }
}

#[test]
fn who_does_not_measure_is_named() {
    let met = std::sync::Barrier::new(2);
    let results = connected(2, BOTH[0], |mut transport| {
        let idle = transport.rank() == 1;
        let patience = Duration::from_millis(50);
        let nodes = Nodes::even(2, 2);
        let result = (!idle).then(|| measure(&mut *transport, &nodes, &RealClock::new(), patience));
        met.wait();
        result
    });
    let error = results[0].as_ref().unwrap().as_ref().unwrap_err();
    assert_eq!(*error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("rank 1"), "{error}");
}

#[test]
fn nodes_of_another_world_are_refused() {
    let results = connected(1, BOTH[0], |mut transport| {
        measure(&mut *transport, &Nodes::even(2, 1), &RealClock::new(), PATIENCE).map(|_| ())
    });
    assert_eq!(*results[0].as_ref().unwrap_err().kind(), Kind::Invalid);
}
