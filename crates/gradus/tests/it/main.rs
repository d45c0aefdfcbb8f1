//! The program itself, as a person or a launcher runs it: real processes, real files.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod bad_input;
mod buckets;
mod coordinator;
mod corpus;
mod data_faults;
mod datasets;
#[path = "../../../gradus-collective/tests/it/delay_line.rs"]
mod delay_line;
#[path = "../../../gradus-fabric/tests/it/etcd_server.rs"]
#[allow(dead_code, reason = "shared with the tests of membership, which need more of it")]
mod etcd_server;
mod far;
mod hosts;
mod members;
mod meshes;
mod mixtures;
#[path = "../../../gradus-collective/tests/it/namespaces.rs"]
#[allow(dead_code, reason = "shared with the tests of collectives, which need more of it")]
mod namespaces;
mod nodes;
mod preflight;
mod program;
mod quickstart;
mod ranks;
mod resume;
mod watching;
