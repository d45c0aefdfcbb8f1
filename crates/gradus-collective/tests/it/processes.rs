//! Ranks as processes: this test binary, started again with an environment that makes a test play one rank.

use crate::parity::exercise;
use crate::world::{communicator, node_of};
use gradus_collective::Communicator;
use gradus_fabric::{Launch, NetworkSettings, RENDEZVOUS_FD, Secret, Transport, TransportKind, connect};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

/// The variable that turns a test into a rank, and says over which transport.
const ROLE: &str = "GRADUS_TEST_RANK";

/// How processes of one host reach each other; those of one left to choose lie on nodes of two.
pub const KINDS: [TransportKind; 3] = [TransportKind::SharedMemory, TransportKind::Tcp, TransportKind::Auto];

/// A rank that does not outlive its test.
pub struct Rank {
    pub child: Child,
    output: BufReader<ChildStdout>,
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rank {
    /// Starts a rank of `test`, which must begin with [`as_rank`] or [`transport_as_rank`].
    pub fn start(mut command: Command, test: &str, kind: TransportKind) -> Self {
        command.args(["--exact", test, "--nocapture"]).env(ROLE, name(kind)).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// Waits for its end, for two minutes at most.
    pub fn end(&mut self) -> ExitStatus {
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let limit = Timespec { tv_sec: 120, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ended, 1, "a rank hangs");
        self.child.wait().unwrap()
    }

    /// Reads what it says up to a line that begins with `word`; what follows on that line.
    pub fn says(&mut self, word: &str) -> Option<String> {
        self.output
            .by_ref()
            .lines()
            .find_map(|line| Some(line.unwrap().strip_prefix(word)?.trim().to_owned()))
    }
}

fn name(kind: TransportKind) -> &'static str {
    match kind {
        TransportKind::SharedMemory => "shared-memory",
        TransportKind::Tcp => "tcp",
        TransportKind::Auto => "nodes",
    }
}

/// Starts the ranks of a world on this host.
pub fn start(test: &str, world_size: usize, kind: TransportKind, more: &[(&str, &str)]) -> Vec<Rank> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", world_size.to_string());
        command.env("MASTER_PORT", port.to_string()).env_remove("MASTER_ADDR").env_remove("LOCAL_RANK");
        command.envs(more.iter().copied());
        if rank == 0 {
            // The listening socket becomes the child's standard input: no port is free for others meanwhile.
            command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap()))).env(RENDEZVOUS_FD, "0");
        }
        Rank::start(command, test, kind)
    };
    (0..world_size).map(start).collect()
}

/// The communicator of this process, if it was started as a rank.
fn as_rank() -> Option<Communicator> {
    transport_as_rank().map(communicator)
}

/// The transport of this process, if it was started as a rank.
pub fn transport_as_rank() -> Option<Box<dyn Transport>> {
    let role = std::env::var(ROLE).ok()?;
    let kind = KINDS.into_iter().find(|kind| name(*kind) == role).unwrap();
    let variable = |name: &str| std::env::var(name).ok();
    let launch = Launch::from_environment(&variable).unwrap().unwrap();
    let launch = Launch { secret: Secret::from_environment(&variable).unwrap(), ..launch };
    let mut settings = NetworkSettings::default();
    if kind == TransportKind::Auto {
        settings.node_id = node_of(launch.rank);
    }
    Some(connect(&launch, kind, &settings, "tests").unwrap())
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
    for kind in KINDS {
        for world_size in 2..=5 {
            let mut ranks =
                start("processes::processes_agree_to_the_bit_over_every_transport", world_size, kind, &[]);
            let ends: Vec<bool> = ranks.iter_mut().map(|rank| rank.end().success()).collect();
            assert_eq!(ends, vec![true; world_size], "{kind:?}");
        }
    }
}
