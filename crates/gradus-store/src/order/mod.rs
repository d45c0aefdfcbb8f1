//! The order of samples is a function.
//!
//! What: an [`Order`] says which sample stands at which position, and at which position a sample comes next. Positions
//! count on through all epochs without end. How: every order is a bijection per epoch with its inverse, in O(1) memory
//! ([`SampleOrder`]). Why: every rank knows the whole future, so that a cache knows what it will need; resuming needs one
//! number, the position; and a change of world size neither repeats nor drops a sample, since who computes a position has
//! no say in what stands there.
//!
//! Invariant: `next_position(sample, from)` is the least position at or after `from` with `sample_at(position) == sample`.

mod blockwise;
mod epochs;
mod mixture;
mod permutation;
mod portions;
mod selection;
mod settings;
mod spread;
mod uses;

pub use blockwise::Blockwise;
pub use epochs::{Sequential, Shuffled};
pub use mixture::Mixture;
pub use permutation::{SampleOrder, position_of, sample_at};
pub use portions::Portions;
pub use selection::Selection;
pub use settings::{OrderSettings, Shuffle};
pub use uses::{Mine, Uses};

use std::fmt::Debug;

#[cfg(test)]
mod tests;

/// Which sample stands at which position, and the other way round, in time and memory that do not grow with either.
pub trait Order: Send + Sync + Debug {
    /// Number of samples that are ordered; they are numbered from 0.
    fn samples(&self) -> u64;

    /// The sample at a position that counts on through all epochs.
    fn sample_at(&self, position: u64) -> u64;

    /// The samples at `from` and the positions behind it, as many as there is room for. They are the same as one by one, and
    /// come faster where each is a chain of computations: several go on side by side.
    fn samples_from(&self, from: u64, samples: &mut [u64]) {
        samples.iter_mut().zip(from..).for_each(|(sample, position)| *sample = self.sample_at(position));
    }

    /// The first position at or after `from` at which `sample` stands; none if it never comes: it is no sample of this
    /// order, has no weight in it, or would stand beyond the last position that can be counted.
    fn next_position(&self, sample: u64, from: u64) -> Option<u64>;
}
