//! Arenas, ranges and the flat layout.
//!
//! A [`Span`] names elements of a device's memory, an [`Arena`] is that memory on a host, a [`Layout`] says which
//! tensor lies where, and a [`RawRange`] is host memory handed to a collective. [`Segment`]s and [`SharedHeap`]s are memory
//! that processes share, and [`pages`] are for what comes and goes. Offsets live only in memory: what is
//! stored for long names tensors.

mod arena;
mod heap;
mod layout;
pub mod pages;
pub mod red_zone;
mod region;
mod segment;
mod span;

pub use arena::Arena;
pub use heap::{HeapRange, PeerHeap, SharedHeap};
pub use layout::{Layout, LayoutBuilder, Tensor};
pub use segment::Segment;
pub use span::{RawRange, Span};
