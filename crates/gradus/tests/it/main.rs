//! The program itself, as a person or a launcher runs it: real processes, real files.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod bad_input;
mod coordinator;
mod corpus;
mod hosts;
mod preflight;
mod program;
mod ranks;
mod resume;
