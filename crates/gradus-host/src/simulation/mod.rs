//! A simulated world: nodes that are pure machines, on a network, disks and clocks whose every fault follows from a
//! seed.
//!
//! - [`Scenario`] says which [`Machine`](crate::machine::Machine) runs on each node and sees all that happens;
//! - [`Faults`] is the list of what goes wrong and when, as data, drawn from the seed;
//! - [`World`] lets virtual time pass from event to event until the end, and keeps a [`Trace`];
//! - [`relay`] does the same for programs that block, over a [`Course`] of their own making, which may have the same
//!   [`Network`] in it.
//!
//! After [`Faults::heal`] the network is perfect and nobody fails any more, so that progress can be demanded and not
//! only safety. Invariants: the same seed gives the same trace, byte for byte; nothing here reads a real clock, and
//! every number drawn comes from one root seed through a stream of its own for each purpose.

mod clock;
mod disk;
mod faults;
mod network;
mod process;
mod queue;
mod relay;
#[cfg(test)]
mod tests;
mod trace;
mod world;

pub use clock::SimulatedClock;
pub use disk::{SimulatedDisk, Step};
pub use faults::{Fault, FaultSettings, Faults, Strike, Weather};
pub use network::Network;
pub use relay::{Course, Finish, Plans, Runner, relay};
pub use trace::{Recording, Trace};
pub use world::{Happening, Outcome, Scenario, World};

/// What a number is drawn for: each purpose has a stream of its own, so that a new draw for one changes no other.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Faults = 1,
    Network = 2,
    Disk = 3,
    Application = 4,
    Clocks = 5,
}

impl Purpose {
    fn stream(self, seed: u64) -> crate::random::Stream {
        crate::random::Stream::new(seed, self as u64)
    }
}
