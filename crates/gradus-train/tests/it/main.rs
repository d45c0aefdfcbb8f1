//! The step, against itself on one rank: however it is split it learns the same, and it allocates nothing. And
//! what it learns by Muon.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod allocations;
mod failing;
mod golden_muon;
mod halves;
mod muon;
mod one_order;
mod resumed;
mod splits;
