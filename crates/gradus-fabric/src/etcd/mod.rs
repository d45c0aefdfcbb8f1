//! etcd, as far as membership needs it: keys, leases and transactions over the JSON gateway of etcd 3.4 and later.
//!
//! The gateway speaks JSON over HTTP/1.1 with keys and values in base64, so that neither protocol buffers nor an async
//! runtime are needed. What comes back is bounded and checked like any foreign bytes. Every call may be repeated, and
//! may be carried out late, when it was given up: transactions name the revisions that they are built on, so that each does
//! something once at most, and nothing once something newer is there.

mod address;
mod client;
mod wire;

pub use address::EtcdAddress;
#[cfg(feature = "fuzzing")]
pub(crate) use client::is_answer;
pub(crate) use client::{Claim, Etcd, Lease, Written};
