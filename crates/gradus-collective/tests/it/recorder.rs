//! The flight recorder over real transports.

use crate::world::{ALL, BOTH, run};
use gradus_collective::flight::{FlightLog, Why, analyse, read_logs};
use gradus_collective::{Buffer, Collective, Memory, Reduction};
use gradus_error::Kind;
use gradus_fabric::NetworkSettings;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn the_last_thousand_operations_are_remembered() {
    let logs = run(2, BOTH[0], &NetworkSettings::default(), |mut communicator| {
        for _ in 0..1100 {
            communicator.barrier().unwrap();
        }
        communicator.all_reduce(&mut [1i64; 1000]).unwrap();
        communicator.flight()
    });
    for log in logs {
        assert_eq!((log.operations.len(), log.forgotten, log.world_size), (1000, 101, 2));
        let last = log.operations.last().unwrap();
        assert_eq!(last.what, "all-reduce number 1100 of 1000 i64 (sum)");
        assert_eq!((last.sequence, last.ranks.as_slice(), last.message), (1100, [0, 1].as_slice(), None));
        assert!(last.bytes_sent >= 8000 && last.bytes_received >= 8000);
        let in_order = |entry: &gradus_collective::flight::FlightEntry| {
            entry.started_us <= entry.first_byte_us.unwrap() && entry.first_byte_us <= entry.done_us
        };
        assert!(log.operations.iter().all(|entry| in_order(entry) && entry.peers.is_empty()));
    }
}

#[test]
fn a_failure_leaves_records_that_name_who_never_came() {
    for kind in ALL {
        let folder = tempfile::tempdir().unwrap();
        run(3, kind, &NetworkSettings::default(), |mut communicator| {
            communicator.record_flight(folder.path().join("flight"), Arc::default());
            communicator.barrier().unwrap();
            if communicator.rank() == 2 {
                // It leaves instead of taking part.
                communicator.dump_flight().unwrap().unwrap();
                return;
            }
            let error = communicator.all_reduce(&mut vec![0f32; 100_000]).unwrap_err();
            assert_eq!(*error.kind(), Kind::PeerLost { rank: 2 }, "{error}");
            assert!(error.to_string().contains("all-reduce number 1 of 100000 f32 (sum)"), "{error}");
        });
        let files = (0..3).map(|rank| folder.path().join("flight").join(FlightLog::file_name(rank)));
        let logs = read_logs(&files.collect::<Vec<_>>()).unwrap();
        let failed: Vec<bool> = logs.iter().map(|log| log.failure.is_some()).collect();
        assert_eq!(failed, [true, true, false]);
        let analysis = analyse(&logs);
        assert_eq!(analysis.culprits.into_iter().collect::<Vec<_>>(), [2]);
        assert!(analysis.waits.iter().any(|wait| wait.on == 2 && wait.why == Why::NeverCame));
    }
}

#[test]
fn a_record_is_written_on_demand_while_others_are_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FlightLog::file_name(0));
    run(2, BOTH[1], &NetworkSettings::default(), |mut communicator| {
        communicator.barrier().unwrap();
        if communicator.rank() == 1 {
            communicator.send(0, &[1u8]).unwrap();
            return;
        }
        let wanted = Arc::new(AtomicBool::new(true));
        communicator.record_flight(folder.path().to_owned(), Arc::clone(&wanted));
        let mut data = [0u8];
        let memory = Memory::InPlace(Buffer::of(&mut data));
        // SAFETY: the data are not touched before they were waited for.
        let handle = unsafe { communicator.start(&Collective::receive(1), memory) }.unwrap();
        communicator.wait(handle).unwrap();
        assert!(!wanted.load(Ordering::Acquire));
    });
    let log = FlightLog::read(&path).unwrap();
    let last = log.operations.last().unwrap();
    assert_eq!((last.message, last.sequence, log.failure), (Some([1, 0]), 0, None));
}

#[test]
fn what_is_in_flight_shows_who_is_awaited() {
    let looked = std::sync::Barrier::new(2);
    run(2, BOTH[0], &NetworkSettings::default(), |mut communicator| {
        let what = Collective::reduce(0, Reduction::Sum);
        if communicator.rank() == 1 {
            looked.wait();
            communicator.run_in_place(&what, &mut [1i32; 10]).unwrap();
            return;
        }
        let mut data = [2i32; 10];
        // SAFETY: the data are not touched before they were waited for.
        let handle = unsafe { communicator.start(&what, Memory::InPlace(Buffer::of(&mut data))) }.unwrap();
        let entry = communicator.flight().operations.swap_remove(0);
        let peer = entry.peers[0];
        assert_eq!(
            (entry.done_us, peer.rank, peer.received, peer.to_receive, peer.awaited),
            (None, 1, 0, 40, 1)
        );
        looked.wait();
        communicator.wait(handle).unwrap();
        assert_eq!(data, [3; 10]);
    });
}

proptest! {
    #[test]
    fn foreign_bytes_are_refused_or_read_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
        let error = FlightLog::parse(&bytes).unwrap_err();
        prop_assert_eq!(error.kind(), &Kind::Corrupt);
        let log = gradus_collective::Communicator::alone().flight();
        let text = serde_json::to_vec(&log).unwrap();
        prop_assert_eq!(FlightLog::parse(&text).unwrap(), log);
        let cut = cut % text.len();
        prop_assert!(FlightLog::parse(&text[..cut]).is_err());
    }
}
