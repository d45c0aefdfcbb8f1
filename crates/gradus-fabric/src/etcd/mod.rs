//! etcd, as far as membership needs it: keys, leases and transactions over the JSON gateway of etcd 3.4 and later.
//!
//! The gateway speaks JSON over HTTP/1.1 with keys and values in base64, so that neither protocol buffers nor an async
//! runtime are needed. What comes back is bounded and checked like any foreign bytes. Every call may be repeated: who
//! calls uses transactions that do the same twice as once.

mod address;
mod client;
mod wire;

pub use address::EtcdAddress;
#[cfg(feature = "fuzzing")]
pub(crate) use client::is_answer;
pub(crate) use client::{Claim, Etcd, Lease};
