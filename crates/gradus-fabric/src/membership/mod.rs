//! Who belongs to a group, as of which epoch.
//!
//! A [`Coordinator`] keeps groups; [`Member`]s join, give signs of life, and learn *epochs*: numbered states of their
//! group's members. A new epoch follows every change. All of it is two pure machines ([`gradus_host::machine`]): they
//! run behind a thin shell in production and, with every fault that a seed can draw, under [`simulation`]. Every
//! timeout follows from one setting ([`Timeouts`]).
//!
//! Invariants, each held by the simulation's checker:
//! - an epoch of a group has one table;
//! - epochs only grow, over all crashes of the coordinator, and so do its terms;
//! - no member acts in an epoch after any member has acted in a later one of its group;
//! - no member believes a coordinator of an older term than it has heard of, nor an older table than it has;
//! - a dead member is declared dead within `failure_detection`;
//! - when the network heals, every living member is soon in its group.

mod coordinator;
mod group;
mod member;
mod message;
mod planted;
mod quorum;
mod saved;
mod shell;
pub mod simulation;
#[cfg(test)]
mod tests;
mod timeouts;

pub use coordinator::{Cause, Coordinator, CoordinatorNote};
pub use member::{COORDINATOR, Member, MemberCommand, MemberNote};
pub use message::{Epoch, GroupSettings, Identity, News, Reply, Request, Standing, Table, Wish};
pub use quorum::{Candidate, Decision, GroupState, quorum};
#[cfg(feature = "fuzzing")]
pub(crate) use shell::is_published;
pub use shell::{
    ClientSettings, CoordinatorAddress, CoordinatorServer, CoordinatorSettings, Engine, MembershipClient,
};
pub use timeouts::Timeouts;
