//! The step: buckets go out while the backward pass is under way, and it allocates nothing.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod allocations;
mod overlap;
