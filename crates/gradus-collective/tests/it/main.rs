//! Plans on symbols; communicators over every transport, with ranks as threads and as processes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod algorithms;
mod measure;
mod parity;
mod plans;
mod processes;
mod trouble;
mod two_rings;
mod wide;
mod world;
