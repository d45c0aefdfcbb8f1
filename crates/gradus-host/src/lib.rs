//! What a host offers: clock, randomness, disk, processors, descriptors; and a simulated host with its faults. How spans of time and
//! sizes are written stands here too, for every room reads settings.
//!
//! Everything above asks this room for time, sleep and chance, never the standard library (clippy holds that), so that
//! a simulated host can stand in for the real one.

pub mod clock;
pub mod descriptors;
pub mod disk;
pub mod machine;
pub mod processors;
pub mod random;
pub mod simulation;
mod ticks;
pub mod units;

pub use clock::{Clock, RealClock};
pub use ticks::{TickRate, TickScale, Ticks};
