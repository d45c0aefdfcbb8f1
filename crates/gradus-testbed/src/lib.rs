//! What tests and benchmarks stand on: a real S3 server, and faults put before it.
//!
//! [`S3Server`] serves a folder over S3 on a port of this machine: `s3s` reads requests and checks signatures, `s3s-fs`
//! keeps objects as files, and [`store`](self) reads them itself, so that a ranged GET costs one `pread` of each chunk
//! and `If-Match` is obeyed. [`Faults`] stands before every request: it counts them, and refuses, delays, slows, cuts or
//! shortens them as it is told in mid-run. [`InstanceMetadata`] gives credentials of an instance role.
//!
//! Invariants: which request meets a fault is a function of the seed and of its number; a request is counted before it
//! is answered, and its bytes before the client can have them, so what a client has seen has been counted.

mod body;
mod faults;
mod instance;
mod server;
mod service;
mod store;

pub use faults::{Counts, Faults, Plan, Refusal};
pub use instance::InstanceMetadata;
pub use server::{ACCESS_KEY, S3Server, SECRET_KEY};
