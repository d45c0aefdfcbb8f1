//! What a run would take, before anything starts: the memory of each rank, the bytes it sends, and a step's time. Pure
//! functions of settings and sizes; nothing is allocated, sent or measured.
//!
//! [`Work`] is what is to be trained, a [`Split`] one way to split it among ranks. [`Sizes`] has their memory as the trainer
//! allocates it, to the byte; [`traffic`] what goes over the links, by the shapes of what is exchanged; [`predict`] how long a
//! step takes on a [`Machine`], by rules that its documentation states; [`search`] goes through all splits, and
//! [`check_memory`] refuses one that does not fit.

mod check;
mod machine;
mod memory;
mod rows;
mod search;
mod slots;
mod split;
#[cfg(test)]
mod tests;
mod time;
mod traffic;

pub use check::check_memory;
pub use machine::{LinkRate, Machine};
pub use memory::{Holding, Memory, Sizes, prepared_in_pairs};
pub use rows::{TrafficRow, When, traffic_rows};
pub use search::{Choice, Search, search};
pub use split::{Split, Work};
pub use time::{StepTime, flow_seconds, predict};
pub use traffic::{Flow, Operation, Phase, StageTraffic, traffic};
