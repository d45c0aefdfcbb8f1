//! Generators: pure functions from a rank and its world to steps. One algorithm, one file.
//!
//! Costs in their headers are for `W` ranks and `n` bytes on equal links: `alpha` seconds for a hop, `beta` seconds to move
//! a byte, `gamma` seconds to add one.

mod binomial_broadcast;
mod chain_broadcast;
mod direct;
mod dissemination_barrier;
mod double_binary_tree;
mod fold;
mod halving_doubling;
mod recursive_doubling;
mod ring;
mod share;
mod transform;
mod two_level;

pub use binomial_broadcast::binomial_broadcast;
pub use chain_broadcast::chain_broadcast;
pub use direct::{direct_all_reduce, direct_broadcast};
pub use dissemination_barrier::dissemination_barrier;
pub use double_binary_tree::{double_tree_all_reduce, double_tree_broadcast};
pub use halving_doubling::halving_doubling_all_reduce;
pub use recursive_doubling::recursive_doubling_all_reduce;
pub use ring::ring_all_reduce;
pub(crate) use transform::{adds, mirrored, with_span};
pub use two_level::{two_level_all_reduce, two_level_broadcast};
