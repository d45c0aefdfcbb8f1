//! Pipeline schedules as data: which rank computes what in which order, and what that makes ranks send each other.
//!
//! A model's layers are cut into *stages*, and a rank computes its stages for one microbatch after another. A
//! [`Schedule`] is the order of these actions on every rank; it is made by a pure function of ranks, stages and
//! microbatches ([`Kind::generate`]), checked ([`check`]), laid out in time ([`simulate`]), and turned into a
//! [`Program`] for each rank ([`lower`]): the computations with what is received before and sent after them, and the
//! memory that each microbatch takes. Programs are rehearsed without a model or a wire ([`rehearse`]).
//!
//! Every generator here computes the backward passes of a stage in the order of microbatches, so gradients are added up
//! in the same order whatever the schedule.
//!
//! Nothing here holds a communicator, a clock or a model.

mod check;
mod formula;
mod generate;
mod lower;
mod message;
mod program;
mod rehearse;
mod schedule;
mod simulate;
#[cfg(test)]
mod tests;

pub use check::check;
pub use generate::Kind;
pub use lower::lower;
pub use message::{Direction, Message};
pub use program::{Instruction, Program, Sharing};
pub use rehearse::rehearse;
pub use schedule::{Action, ActionKind, Schedule, Shape};
pub use simulate::{Costs, Period, StageCosts, Timeline, simulate};
