//! Collectives as plans.
//!
//! - [`generate`] holds algorithms: pure functions from a rank and its world to the steps of a [`plan`].
//! - [`algorithm`] names them with their parameters, as data.
//! - [`checker`] proves on symbols that a plan does what it should, for any world and length.
//! - [`fingerprint`] does so for thousands of ranks, by hashes of symbols.
//! - [`cost`] predicts what a plan takes on given links.
//! - [`tuner`] measures links and chooses algorithms by price; [`choose`] does so where nothing was measured.
//! - The executor runs plans over any [`gradus_fabric::Transport`], several at a time, without blocking.
//! - [`Communicator`] is what the trainer holds.
//!
//! Invariants: results have the same bits on all ranks; ranks that do not do the same thing get an error that says who
//! does what, never a hang; memory of a collective is touched inside calls to its communicator only.

pub mod algorithm;
pub mod checker;
pub mod choose;
mod communicator;
pub mod cost;
pub mod dependencies;
mod executor;
pub mod fingerprint;
pub mod generate;
mod graph;
mod header;
mod operation;
pub mod plan;
pub mod tuner;

pub use communicator::{Communicator, Counters, Handle};
