//! Collectives as plans.
//!
//! - [`generate`] holds algorithms: pure functions from a rank and its world to the steps of a [`plan`].
//! - [`checker`] proves on symbols that a plan does what it should, for any world and length.
//! - [`choose`] picks the algorithm for a size.
//! - The executor runs plans over any [`gradus_fabric::Transport`], several at a time, without blocking.
//! - [`flight`] remembers what was done lately, and says who waits for whom.
//! - [`Communicator`] is what the trainer holds, [`Collective`] what it asks of it.
//!
//! Invariants: results have the same bits on all ranks; ranks that do not do the same thing get an error that says who
//! does what, never a hang; memory of a collective is touched inside calls to its communicator only.

pub mod checker;
pub mod choose;
mod collective;
mod communicator;
mod core;
pub mod dependencies;
mod element;
mod executor;
pub mod flight;
mod flights;
pub mod generate;
mod group;
mod header;
mod memory;
mod operation;
mod parts;
pub mod plan;
mod select;
mod shape;

pub use collective::Collective;
pub use communicator::{Communicator, Counters, Handle};
pub use element::{Element, Number, Reduction};
pub use half::{bf16, f16};
pub use memory::{Buffer, Memory};
pub use operation::Ready;
pub use parts::Parts;
