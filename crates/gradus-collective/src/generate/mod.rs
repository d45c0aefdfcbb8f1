//! Generators: pure functions from a rank and its world to steps. One algorithm, one file.
//!
//! Those of all-reduce, reduce, broadcast and barrier work on one buffer, in place. The others make two plans, one for
//! work in place and one for input and output apart.
//!
//! Costs in their headers are for `W` ranks and `n` bytes on equal links: `alpha` seconds for a hop, `beta` seconds to move
//! a byte, `gamma` seconds to add one.

mod binomial_broadcast;
mod binomial_gather;
mod binomial_reduce;
mod binomial_scatter;
mod bruck_all_gather;
mod bruck_all_to_all;
mod chain_broadcast;
mod direct;
mod direct_all_gather;
mod direct_gather;
mod direct_reduce_scatter;
mod dissemination_barrier;
mod double_binary_tree;
mod fold;
mod halving_doubling;
mod pairwise_all_to_all;
mod recursive_doubling;
mod ring;
mod ring_all_gather;
mod ring_reduce_scatter;
mod share;
mod transform;
mod two_level;

pub use binomial_broadcast::binomial_broadcast;
pub use binomial_gather::binomial_gather;
pub use binomial_reduce::binomial_reduce;
pub use binomial_scatter::binomial_scatter;
pub use bruck_all_gather::bruck_all_gather;
pub use bruck_all_to_all::bruck_all_to_all;
pub use chain_broadcast::chain_broadcast;
pub use direct::{direct_all_reduce, direct_broadcast};
pub use direct_all_gather::direct_all_gather;
pub use direct_gather::{direct_gather, direct_scatter};
pub use direct_reduce_scatter::direct_reduce_scatter;
pub use dissemination_barrier::dissemination_barrier;
pub use double_binary_tree::{double_tree_all_reduce, double_tree_broadcast};
pub use halving_doubling::halving_doubling_all_reduce;
pub use pairwise_all_to_all::pairwise_all_to_all;
pub use recursive_doubling::recursive_doubling_all_reduce;
pub use ring::ring_all_reduce;
pub use ring_all_gather::ring_all_gather;
pub use ring_reduce_scatter::ring_reduce_scatter;
pub(crate) use share::share;
pub(crate) use transform::{adds, mirrored, with_span};
pub use two_level::{two_level_all_reduce, two_level_broadcast};

use crate::plan::{Part, Step};
use gradus_memory::Span;

/// What a rank brings: at `place` of its output in place, else at the start of its input.
fn brought(place: Span, in_place: bool) -> Part {
    if in_place { Part::output(place) } else { Part::input(Span::new(0, place.len)) }
}

/// Puts what a rank brings at its place in the output, where it is not there already.
fn keep(place: Span, in_place: bool) -> Option<Step> {
    (!in_place).then(|| Step::copy(brought(place, in_place), Part::output(place)))
}

/// The rank `distance` further on in a circle.
fn after(rank: usize, distance: usize, world_size: usize) -> usize {
    (rank + distance) % world_size
}

/// The rank `distance` further back in a circle.
fn before(rank: usize, distance: usize, world_size: usize) -> usize {
    (rank + world_size - distance % world_size) % world_size
}
