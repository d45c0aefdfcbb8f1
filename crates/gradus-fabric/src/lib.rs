//! How ranks find, trust and reach each other.
//!
//! - [`Launch`] is who this process is, read from what launchers leave in the environment.
//! - The *rendezvous* is how ranks that know only rank 0's address get to know each other, or all learn why not.
//! - A [`Secret`], and perhaps certificates ([`TlsSettings`]), are what every connection proves on both ends before a
//!   byte of what it says is believed.
//! - [`membership`] is who belongs to a group as of when, kept by a coordinator in a file or in etcd ([`EtcdAddress`]).
//! - [`simulated`] is a transport in virtual time, on which everything that goes wrong follows from a seed.
//! - A [`Transport`] is ordered streams of bytes from each rank to each other, one for each level of priority, over shared
//!   memory, TCP or both, moved without blocking, so that one executor serves all of them.
//!
//! - [`service`] is connections beside those of ranks, proven alike: caches of nodes ask each other for blocks over them.
//!
//! [`connect`] goes the whole way once; a [`Session`] goes it anew for every epoch of a group. Invariants: nothing that comes from outside is believed or waited for without bound;
//! a rank that dies is noticed by all others in bounded time and named; one interface is listened on, beyond loopback only
//! when told and with a secret; no end of a process leaves anything behind, in whatever way it comes.

mod alarm;
mod bell;
mod board;
mod circle;
mod connect;
mod control;
mod credentials;
mod dial;
mod door;
mod doors;
mod etcd;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gate;
mod handover;
mod handshake;
mod holders;
mod host;
mod inbox;
mod interface;
mod launch;
pub mod membership;
mod mesh;
mod neighbours;
mod node;
mod nodes;
mod private;
mod reach;
mod rendezvous;
mod ring;
mod seat;
mod secret;
pub mod service;
mod session;
mod settings;
mod shm;
pub mod simulated;
mod slurm;
mod stream;
mod tcp;
mod tls;
mod transport;
mod trust;

pub use board::{HEADER_WORDS, NOTE_WORDS, Note, STAGING_BYTES, STAGING_SLOTS};
pub use connect::connect;
pub use etcd::EtcdAddress;
pub use host::node_mark;
pub use interface::interface_of;
pub use launch::{COORDINATOR, Launch, RENDEZVOUS_FD};
pub use neighbours::{Location, Neighbours};
pub use seat::Seat;
pub use secret::{SECRET, SECRET_FILE, Secret};
pub use session::{Order, Session, SessionSettings, World};
pub use settings::{NetworkSettings, PeerMemory, TransportKind};
pub use tls::TlsSettings;
pub use transport::{Alone, Direction, Interest, Lane, MOST_LEVELS, Transport};
