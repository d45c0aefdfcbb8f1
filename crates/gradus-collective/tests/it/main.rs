//! Plans on symbols; communicators over every transport, with ranks as threads and as processes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod algorithms;
mod epochs;
mod groups;
mod measure;
mod operations;
mod parity;
mod plans;
mod processes;
mod recorder;
mod shares;
mod trouble;
mod two_rings;
mod wide;
mod world;
