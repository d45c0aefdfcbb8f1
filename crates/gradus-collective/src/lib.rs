//! Collectives as plans.
//!
//! - [`generate`] holds algorithms: pure functions from a rank and its world to the steps of a [`plan`].
//! - [`algorithm`] names them with their parameters, as data.
//! - [`checker`] proves on symbols that a plan does what it should, for any world and length.
//! - [`fingerprint`] does so for thousands of ranks, by hashes of symbols.
//! - [`cost`] predicts what a plan takes on given links.
//! - [`preflight`] measures every pair of ranks and names those that stand out.
//! - [`tuner`] measures links and chooses algorithms by price; [`choose`] does so where nothing was measured.
//! - [`one_sided`] is what ranks of one host do instead, which reach each other's memory.
//! - The executor runs plans over any [`gradus_fabric::Transport`], several at a time, without blocking.
//! - [`simulation`] runs whole programs of collectives in virtual time, under every fault that a seed can draw.
//! - [`flight`] remembers what was done lately, and says who waits for whom.
//! - [`Communicator`] is what the trainer holds, [`Collective`] what it asks of it.
//!
//! Invariants: results have the same bits on all ranks; ranks that do not do the same thing get an error that says who
//! does what, never a hang; memory of a collective is touched inside calls to its communicator only,
//! and, where it is registered, by peers that are in the same collective.

pub mod algorithm;
pub mod checker;
pub mod choose;
mod collective;
mod communicator;
mod core;
pub mod cost;
pub mod dependencies;
mod element;
mod executor;
pub mod fingerprint;
pub mod flight;
mod flights;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod generate;
mod graph;
mod group;
mod header;
mod memory;
pub mod one_sided;
mod operation;
mod parts;
pub mod plan;
pub mod preflight;
mod select;
mod shape;
pub mod simulation;
mod threads;
pub mod tuner;

pub use collective::Collective;
pub use communicator::{Communicator, Counters, Handle};
pub use element::{Element, Number, Reduction};
pub use half::{bf16, f16};
pub use memory::{Buffer, Memory};
pub use operation::Ready;
pub use parts::Parts;
pub use threads::{run_as_threads, run_as_threads_apart};
