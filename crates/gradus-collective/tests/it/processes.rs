//! Ranks as processes: this test binary, started again with an environment that makes a test play one rank.

use crate::parity::exercise;
use crate::world::{BOTH, communicator};
use gradus_collective::{Collective, Communicator, Reduction};
use gradus_error::{Error, Kind};
use gradus_fabric::{Launch, NetworkSettings, RENDEZVOUS_FD, TransportKind, connect};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

/// The variable that turns a test into a rank, and says over which transport.
const ROLE: &str = "GRADUS_TEST_RANK";

/// A rank that does not outlive its test.
struct Rank(Child);

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Rank {
    /// Waits for its end, for two minutes at most; whether it ended well.
    fn ends_well(&mut self) -> bool {
        let process = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty()).unwrap();
        let limit = Timespec { tv_sec: 120, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ended, 1, "a rank hangs");
        self.0.wait().unwrap().success()
    }
}

fn name(kind: TransportKind) -> &'static str {
    if kind == TransportKind::Tcp { "tcp" } else { "shared-memory" }
}

/// Starts the ranks of `test`, which must begin with [`as_rank`].
fn start(test: &str, world_size: usize, kind: TransportKind, more: &[(&str, &str)]) -> Vec<Rank> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(ROLE, name(kind)).stdout(Stdio::piped());
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", world_size.to_string());
        command.env("MASTER_PORT", port.to_string()).env_remove("MASTER_ADDR").env_remove("LOCAL_RANK");
        command.envs(more.iter().copied());
        if rank == 0 {
            // The listening socket becomes the child's standard input: no port is free for others meanwhile.
            command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap()))).env(RENDEZVOUS_FD, "0");
        }
        Rank(command.spawn().unwrap())
    };
    (0..world_size).map(start).collect()
}

/// The communicator of this process, if it was started as a rank.
fn as_rank() -> Option<Communicator> {
    let kind =
        if std::env::var(ROLE).ok()? == "tcp" { TransportKind::Tcp } else { TransportKind::SharedMemory };
    let launch = Launch::from_environment(&|name| std::env::var(name).ok()).unwrap().unwrap();
    Some(communicator(connect(&launch, kind, &NetworkSettings::default(), "tests").unwrap()))
}

#[test]
fn processes_agree_to_the_bit_over_every_transport() {
    if let Some(mut communicator) = as_rank() {
        let bits = exercise(&mut communicator);
        // FNV-1a of all results; a sum over equal ones is the world size times each.
        let hash = bits.iter().fold(0x811c_9dc5_u32, |hash, word| (hash ^ word).wrapping_mul(0x0100_0193));
        let mut own = [f64::from(hash)];
        communicator.all_reduce(&mut own).unwrap();
        assert_eq!(own[0], f64::from(hash) * communicator.world_size() as f64);
        return;
    }
    for kind in BOTH {
        for world_size in 2..=5 {
            let mut ranks =
                start("processes::processes_agree_to_the_bit_over_every_transport", world_size, kind, &[]);
            let ends: Vec<bool> = ranks.iter_mut().map(Rank::ends_well).collect();
            assert_eq!(ends, vec![true; world_size], "{kind:?}");
        }
    }
}

/// The rank that is killed.
const VICTIM: usize = 1;

/// Elements that each rank brings for each other: more than a ring or a socket holds, so that a rank whose peer is gone
/// cannot be done.
const LEN: usize = 400_000;

/// What survivors are in when their peer dies, by name, one after the other for ever.
fn endless(communicator: &mut Communicator, what: &str) -> Error {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let what = match what {
        "all-reduce" => Collective::all_reduce(Reduction::Max),
        "reduce" => Collective::reduce(0, Reduction::Sum),
        "broadcast" => Collective::broadcast(VICTIM),
        "reduce-scatter" => Collective::reduce_scatter(Reduction::Sum),
        "all-gather" => Collective::all_gather(),
        "gather" => Collective::gather(0),
        "scatter" => Collective::scatter(VICTIM),
        "all-to-all" => Collective::all_to_all(),
        "barrier" => Collective::barrier(),
        // Around the circle, so that everybody meets the victim sooner or later.
        _ if rank % 2 == 0 => Collective::send((rank + 1) % world_size),
        _ => Collective::receive(rank - 1),
    };
    let only_own = what == Collective::gather(0) && rank != 0
        || what == Collective::scatter(VICTIM) && rank != VICTIM
        || what == Collective::barrier();
    let len = if only_own { LEN } else { LEN * world_size };
    let mut data = vec![1i32; len];
    for round in 0.. {
        let result = communicator.run_in_place(&what, &mut data);
        // Ranks that only send or only receive, and are not the victim's neighbours, hear of it here.
        if let Err(error) = result.and_then(|()| communicator.barrier()) {
            return error;
        }
        if round == 3 {
            println!("\nin full swing");
        }
    }
    unreachable!("rounds have no end")
}

/// The variable that names a collective.
const WHAT: &str = "GRADUS_TEST_COLLECTIVE";

const ALL: [&str; 10] = [
    "all-reduce",
    "reduce",
    "broadcast",
    "reduce-scatter",
    "all-gather",
    "gather",
    "scatter",
    "all-to-all",
    "barrier",
    "message",
];

#[test]
fn a_rank_killed_in_any_collective_is_named_by_every_survivor() {
    if let Some(mut communicator) = as_rank() {
        let what = std::env::var(WHAT).unwrap();
        let error = endless(&mut communicator, &what);
        assert_eq!(*error.kind(), Kind::PeerLost { rank: VICTIM }, "{error}");
        let text = error.to_string();
        assert!(text.contains("number ") && (text.contains(&what) || text.contains("barrier")), "{text}");
        assert_eq!(*communicator.barrier().unwrap_err().kind(), Kind::PeerLost { rank: VICTIM });
        return;
    }
    for kind in BOTH {
        for (index, what) in ALL.iter().enumerate() {
            // Messages pass between pairs.
            let world_size = if *what == "message" { 4 } else { 2 + index % 3 };
            let test = "processes::a_rank_killed_in_any_collective_is_named_by_every_survivor";
            let mut ranks = start(test, world_size, kind, &[(WHAT, what)]);
            let output = ranks[VICTIM].0.stdout.take().unwrap();
            assert!(BufReader::new(output).lines().any(|line| line.unwrap() == "in full swing"), "{what}");
            ranks[VICTIM].0.kill().unwrap();
            let ends: Vec<bool> = ranks.iter_mut().map(Rank::ends_well).collect();
            let wanted: Vec<bool> = (0..world_size).map(|rank| rank != VICTIM).collect();
            assert_eq!(ends, wanted, "{kind:?} {what}");
        }
    }
}
