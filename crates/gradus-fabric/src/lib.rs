//! How ranks find and reach each other.
//!
//! - [`Launch`] is who this process is, read from what launchers leave in the environment.
//! - The *rendezvous* is how ranks that know only rank 0's address get to know each other, or all learn why not.
//! - A [`Transport`] is an ordered stream of bytes from each rank to each other, over shared memory or TCP, moved
//!   without blocking, so that one executor serves all of them.
//!
//! [`connect`] goes the whole way. Invariants: nothing that comes from outside is believed or waited for without bound;
//! a rank that dies is noticed by all others in bounded time and named; only the interface that leads to rank 0 is
//! listened on; no end of a process leaves anything behind, in whatever way it comes.

mod connect;
mod control;
mod dial;
mod frame;
mod gate;
mod host;
mod launch;
pub mod membership;
mod mesh;
mod rendezvous;
mod ring;
mod settings;
mod shm;
mod slurm;
mod tcp;
mod transport;

pub use connect::connect;
pub use launch::{Launch, RENDEZVOUS_FD};
pub use settings::{NetworkSettings, TransportKind};
pub use transport::{Alone, Direction, Interest, Transport};
