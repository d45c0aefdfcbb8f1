//! Ranks of one process, in virtual time: a transport on which every delay, loss, cut and crash follows from a seed.
//!
//! Each rank is a runner of a [`relay`]: a thread that runs only when it holds the baton, so code that blocks on a
//! [`Transport`] runs here unchanged, and the same [`Conditions`] give the same trace, byte for byte.
//!
//! What is simulated is TCP as the real transport uses it: for every two ranks a stream each way on each lane, reliable and
//! in order, and a line of life beside them. So a message that the network loses is sent again and shows as delay, which
//! keeps back all that was sent behind it; what is cut off arrives when the cut has healed, or never. A stream holds a bounded number of
//! bytes, a rank sends them one after another at its bandwidth, and every call costs its rank some time. Who dies is told
//! of by the kernel that survives it (its connections close), or by nobody (power loss): then the others notice after
//! [`SILENCE`], as they notice a cut that lasts. A rank that stands still ([`Fault::Pause`]) is noticed by nothing here, as
//! in reality: what it was sent waits for it, and who waits for it has a stall limit.
//!
//! Not simulated: rendezvous and trust (their machines have simulations of their own), repeated messages (TCP drops
//! them), ranks that come back (a lost rank ends its world).
//!
//! [`Fault::Pause`]: gradus_host::simulation::Fault::Pause

mod pipe;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

use crate::transport::Transport;
use gradus_host::Clock;
use gradus_host::simulation::{Faults, Finish, Recording, relay};
use std::sync::Arc;
use std::time::Duration;
use transport::Simulated;
use wire::Wire;

pub use wire::SILENCE;

/// Under what ranks run.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// What goes wrong, and when; nodes are ranks.
    pub faults: Faults,
    /// From which the network's chances follow.
    pub seed: u64,
    /// Levels of priority: streams from each rank to each other, at least one.
    pub priority_levels: usize,
    /// Bytes that a stream holds between two ranks, at least one.
    pub stream_bytes: usize,
    /// Bytes that a rank sends in a second, to all others together, at least one.
    pub bandwidth_bytes_per_s: u64,
    /// What a call of the transport costs each rank, by rank; ranks beyond the list's end pay as the last, or a
    /// microsecond. Not zero: who polls would stop the time.
    pub call: Vec<Duration>,
    /// When every call fails: no world should come that far.
    pub end: Duration,
    /// How much is kept of what happened.
    pub recording: Recording,
}

impl Default for Conditions {
    /// Nothing goes wrong, on a network of a gigabyte a second and at most a millisecond.
    fn default() -> Self {
        Self {
            faults: Faults::none(),
            seed: 0,
            priority_levels: 1,
            stream_bytes: 1 << 20,
            bandwidth_bytes_per_s: 1_000_000_000,
            call: Vec::new(),
            end: Duration::from_secs(24 * 60 * 60),
            recording: Recording::Nothing,
        }
    }
}

impl Conditions {
    fn call_of(&self, rank: usize) -> Duration {
        self.call.get(rank).or(self.call.last()).copied().unwrap_or(Duration::from_micros(1))
    }
}

/// Runs `body` as every rank of a world, with its transport and the clock that all share; what each returns, by rank.
///
/// A rank that crashes hears `Closed` from its transport: what it does then is seen by nobody.
///
/// # Panics
/// If a body does.
pub fn run<T: Send>(
    world_size: usize,
    conditions: &Conditions,
    body: impl Fn(Box<dyn Transport>, Arc<dyn Clock>) -> T + Sync,
) -> Finish<T> {
    let wire = Wire::new(world_size, conditions);
    let strikes = |_: &mut Wire, plans: &mut wire::Plans| {
        for strike in &conditions.faults.strikes {
            plans.plan(strike.at, wire::Event::Strike(strike.fault.clone()));
        }
    };
    relay(wire, world_size, conditions.recording, strikes, |runner| {
        let call = conditions.call_of(runner.number());
        let clock: Arc<dyn Clock> = Arc::new(runner.clone());
        let levels = conditions.priority_levels.max(1);
        body(Box::new(Simulated::new(runner, (world_size, levels), call)), clock)
    })
}
