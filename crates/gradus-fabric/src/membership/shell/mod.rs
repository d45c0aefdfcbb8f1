//! The thin shell around membership's machines: sockets, a file or etcd, the real clock.
//!
//! [`CoordinatorServer`] drives a [`Coordinator`](super::Coordinator) in one loop over non-blocking sockets, for as long as
//! its engine gives it the right to; a
//! [`MembershipClient`] drives a [`Member`](super::Member) in a small thread. Neither decides anything: they carry
//! events in and actions out. Connections may break at any time and are made anew with the next word; what was lost with
//! one is said again, for the machines rely on nothing that is said once.

mod attentive_clock;
mod client;
mod door;
mod hall;
mod leadership;
mod link;
mod office;
mod place;
mod server;
mod state_file;
mod term;

pub use client::{ClientSettings, MembershipClient};
pub use office::Engine;
pub use place::CoordinatorAddress;
#[cfg(feature = "fuzzing")]
pub(crate) use place::is_published;
pub use server::{CoordinatorServer, CoordinatorSettings};
