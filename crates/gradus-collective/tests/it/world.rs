//! Ranks as threads of this process, each with its own transport, met over the loopback interface.

use gradus_collective::Communicator;
use gradus_fabric::simulated::{self, Conditions};
use gradus_fabric::{Launch, NetworkSettings, Transport, TransportKind, connect};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::time::Duration;

pub const BOTH: [TransportKind; 2] = [TransportKind::SharedMemory, TransportKind::Tcp];

/// A way for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Real(TransportKind),
    /// Shared memory inside nodes of two ranks, TCP across; in worlds of two, shared memory.
    Nodes,
    /// In virtual time, on a network in order; ranks must not wait for each other by other means.
    Simulated,
}

pub const ALL: [Way; 4] =
    [Way::Real(TransportKind::SharedMemory), Way::Real(TransportKind::Tcp), Way::Nodes, Way::Simulated];

/// The name of the node of a rank where nodes have two.
pub fn node_of(rank: usize) -> String {
    format!("node-{}", rank / 2)
}

impl From<TransportKind> for Way {
    fn from(kind: TransportKind) -> Self {
        Self::Real(kind)
    }
}

/// Longer than any pause of a loaded machine: a test that meets it has found a hang.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn communicator(transport: Box<dyn Transport>) -> Communicator {
    Communicator::new(transport, PATIENCE)
}

/// Runs `body` on every rank; what each returns, by rank.
pub fn run<T: Send>(
    world_size: usize,
    way: impl Into<Way>,
    settings: &NetworkSettings,
    body: impl Fn(Communicator) -> T + Sync,
) -> Vec<T> {
    match way.into() {
        way @ (Way::Real(_) | Way::Nodes) => {
            with_transports(world_size, way, settings, |transport| body(communicator(transport)))
        }
        Way::Simulated => {
            let conditions =
                Conditions { priority_levels: settings.priority_levels, ..Conditions::default() };
            let finish = simulated::run(world_size, &conditions, |transport, clock| {
                body(Communicator::with_clock(transport, PATIENCE, clock))
            });
            finish.results
        }
    }
}

/// Runs `body` on every rank's transport; what each returns, by rank.
pub fn connected<T: Send>(
    world_size: usize,
    kind: TransportKind,
    body: impl Fn(Box<dyn Transport>) -> T + Sync,
) -> Vec<T> {
    with_transports(world_size, kind.into(), &NetworkSettings::default(), body)
}

fn with_transports<T: Send>(
    world_size: usize,
    way: Way,
    settings: &NetworkSettings,
    body: impl Fn(Box<dyn Transport>) -> T + Sync,
) -> Vec<T> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (listener, body) = (&listener, &body);
    std::thread::scope(|scope| {
        let start = |rank: usize| {
            scope.spawn(move || {
                let mut launch = Launch::local(rank, world_size, port);
                launch.rendezvous_fd = (rank == 0).then(|| listener.as_raw_fd());
                let mut settings = settings.clone();
                let kind = match way {
                    Way::Real(kind) => kind,
                    _ => {
                        settings.node_id = node_of(rank);
                        TransportKind::Auto
                    }
                };
                body(connect(&launch, kind, &settings, "tests").unwrap())
            })
        };
        let ranks: Vec<_> = (0..world_size).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What rank `rank` brings: numbers whose sum depends on the order of summation in its last bits.
pub fn contribution(rank: usize, len: usize, round: usize) -> Vec<f32> {
    let value =
        |i: usize| ((i * 2_654_435_761 + rank * 40_503 + round * 97) % 10_007) as f32 * 0.001_37 - 5.0;
    (0..len).map(value).collect()
}

/// The sum over all ranks in double precision.
pub fn reference(world_size: usize, len: usize, round: usize) -> Vec<f64> {
    let mut sum = vec![0.0; len];
    for rank in 0..world_size {
        sum.iter_mut().zip(contribution(rank, len, round)).for_each(|(sum, x)| *sum += f64::from(x));
    }
    sum
}

/// Whether a sum in single precision is as near as it must be: each of the `world_size - 1` additions errs by half a
/// unit in the last place of a partial sum, which is at most `9 * world_size` here; twice that is allowed.
pub fn is_near(got: &[f32], want: &[f64], world_size: usize) -> bool {
    let limit = 9.0 * (world_size * world_size) as f64 * f64::from(f32::EPSILON);
    got.len() == want.len() && got.iter().zip(want).all(|(got, want)| (f64::from(*got) - want).abs() <= limit)
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
