//! Ranks as threads: rendezvous, trust and transports, end to end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod beside;
mod certificates;
mod etcd;
mod etcd_server;
mod meeting;
mod membership;
mod nodes;
mod parity;
mod roles;
mod session;
mod trust;
mod world;
