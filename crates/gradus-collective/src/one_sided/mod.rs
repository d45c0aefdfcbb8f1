//! Collectives among ranks that reach each other's memory: no stream, no copy that is not the result.
//!
//! A [`Program`] is one rank's [`Act`]s, carried out one after the other. Ranks tell each other how far they are by
//! *signals*; between them they read what others show (their buffers, or bytes that they have staged) and write what is
//! theirs to write. What one rank does before a signal, another sees after it has heard it.
//!
//! Signals between two ranks go in turns: each has heard the other's last one before it signals again. That keeps one
//! rank from overwriting what the other has not read, of signals as well as of memory. The
//! [`checker`](crate::checker::one_sided) holds generators to it, and finds accesses that no signal keeps apart.

mod act;
mod all_reduce;
mod barrier;
mod kind;
mod meeting;
mod slots;

pub use act::{Act, INLINE_BYTES, Place, Program, Store};
pub use all_reduce::{Sum, flat_all_reduce, pull_all_reduce, push_all_reduce, staged_all_reduce};
pub use barrier::flat_barrier;
pub use kind::{MOST_AT_ONCE, OneSided, Reach};
pub(crate) use meeting::{Agenda, Awaits, Companion, Meeting, Past, Surroundings};
pub(crate) use slots::Slots;
