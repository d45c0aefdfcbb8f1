//! Plans on symbols; communicators over every transport, with ranks as threads and as processes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod algorithms;
#[path = "../../../gradus-fabric/tests/it/beside.rs"]
mod beside;
mod delay_line;
mod epochs;
mod far;
mod faults;
mod groups;
mod leaks;
mod measure;
mod namespaces;
mod one_sided;
mod operations;
mod parity;
mod plans;
mod preflight;
mod priorities;
mod processes;
mod recorder;
mod scarcity;
mod shares;
mod trouble;
mod two_rings;
mod wide;
mod world;
