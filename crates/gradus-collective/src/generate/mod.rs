//! Generators: pure functions from a rank and its world to steps. One algorithm, one file.

mod binomial_broadcast;
mod dissemination_barrier;
mod recursive_doubling;
mod ring;

pub use binomial_broadcast::binomial_broadcast;
pub use dissemination_barrier::dissemination_barrier;
pub use recursive_doubling::recursive_doubling_all_reduce;
pub use ring::ring_all_reduce;
