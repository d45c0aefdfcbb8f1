//! What ranks need and do not get: memory to share, descriptors. Limits are a process' own, so a process of its own has
//! them, whose threads are the ranks.

use crate::leaks::descriptors;
use crate::world::communicator;
use gradus_error::{Error, Kind};
use gradus_fabric::{Launch, NetworkSettings, TransportKind, connect};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::process::Command;

/// The variable that makes a test play the process with limits.
const ROLE: &str = "GRADUS_TEST_LIMITED";

/// Runs `test` in a process of its own, where [`is_limited`] holds.
fn run_limited(test: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let status = command.args(["--exact", test, "--nocapture"]).env(ROLE, "1").status().unwrap();
    assert!(status.success(), "{status}");
}

fn is_limited() -> bool {
    std::env::var_os(ROLE).is_some()
}

fn limit(resource: Resource, to: u64) {
    let maximum = getrlimit(resource).maximum;
    setrlimit(resource, Rlimit { current: Some(to), maximum }).unwrap();
}

/// Meets as three ranks in threads and computes once; what each comes to.
fn attempt(kind: TransportKind, priority_levels: usize) -> Vec<Result<(), Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, listener) = (listener.local_addr().unwrap().port(), &listener);
    let settings =
        &NetworkSettings { rendezvous_timeout_s: 1, priority_levels, ..NetworkSettings::default() };
    let rank = |rank: usize| {
        let mut launch = Launch::local(rank, 3, port);
        launch.rendezvous_fd = (rank == 0).then(|| listener.as_raw_fd());
        let met = connect(&launch, kind, settings, "tests");
        if rank == 0 {
            // As at the end of a process of its own.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        communicator(met?).all_reduce(&mut [1.0f32; 1000])
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..3).map(|number| scope.spawn(move || rank(number))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// More descriptors than are open, from too few for the first step to too few for the last; then enough.
const MORE: [(u64, bool); 3] = [(3, false), (12, false), (200, true)];

fn few_descriptors(kind: TransportKind) {
    let before = descriptors();
    // With four levels of priority TCP needs more than twice as many.
    for ((more, enough), levels) in MORE.into_iter().flat_map(|row| [(row, 1), (row, 4)]) {
        limit(Resource::Nofile, before.len() as u64 + more);
        let outcomes = attempt(kind, levels);
        assert_eq!(descriptors(), before, "{more} more");
        let errors: Vec<&Error> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert_eq!(errors.is_empty(), enough, "{more} more: {outcomes:?}");
        assert!(errors.iter().all(|error| *error.kind() != Kind::Internal), "{errors:?}");
        let says =
            |error: &&Error| *error.kind() == Kind::Exhausted && error.to_string().contains("ulimit -n");
        assert!(enough || errors.iter().any(says), "{more} more: nobody says what is short: {errors:?}");
    }
}

#[test]
fn too_few_descriptors_for_shared_memory_are_named_and_none_is_left_open() {
    match is_limited() {
        true => few_descriptors(TransportKind::SharedMemory),
        false => {
            run_limited("scarcity::too_few_descriptors_for_shared_memory_are_named_and_none_is_left_open")
        }
    }
}

#[test]
fn too_few_descriptors_for_tcp_are_named_and_none_is_left_open() {
    match is_limited() {
        true => few_descriptors(TransportKind::Tcp),
        false => run_limited("scarcity::too_few_descriptors_for_tcp_are_named_and_none_is_left_open"),
    }
}

#[test]
fn memory_that_cannot_be_shared_is_named_by_all() {
    if !is_limited() {
        return run_limited("scarcity::memory_that_cannot_be_shared_is_named_by_all");
    }
    limit(Resource::Fsize, 1 << 20);
    let before = descriptors();
    for outcome in attempt(TransportKind::SharedMemory, 1) {
        let error = outcome.unwrap_err();
        assert_eq!(*error.kind(), Kind::Exhausted);
        let text = error.to_string();
        assert!(text.contains("gradus-inbox") && text.contains("ulimit -f"), "{text}");
    }
    assert_eq!(descriptors(), before);
    assert!(attempt(TransportKind::Tcp, 1).into_iter().all(|outcome| outcome.is_ok()));
}
