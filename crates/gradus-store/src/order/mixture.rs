//! Several orders interleaved by weight.
//!
//! What: each position belongs to one component, as often as its weight says, and each component goes through its own
//! positions, with its own epochs, in its own order. How: weights become numbers of slots in a period, which are spread
//! evenly ([`Spread`]); each period begins at a random slot of that pattern. So a component's positions before any other
//! are counted in a few steps, and its local position is that count: its own order, and with it what a cache makes of
//! that order, stays as it is, and every batch is mixed as weighted.
//!
//! Invariants: every period holds the same number of slots of each component; the positions of a component, in order,
//! are its local positions 0, 1, 2, and so on, none left out.

use super::Order;
use super::spread::{Spread, running_sums};
use gradus_error::{Error, Result};
use gradus_host::random::{Stream, philox};
use std::ops::Range;

/// Names the stream that the beginnings of periods are drawn from, apart from every other use of the same seed.
const PURPOSE: u64 = 0x006d_6978_7475_7265;

/// Components by weight. Their samples are numbered one component after another.
#[derive(Debug)]
pub struct Mixture {
    orders: Vec<Box<dyn Order>>,
    /// The first sample of each component, and the number of all samples.
    first_sample: Vec<u64>,
    spread: Spread,
    key: u64,
}

impl Mixture {
    /// The mixture of `components`, each with its weight: a number of any size, 0 for a component that never comes.
    ///
    /// # Errors
    /// `Invalid` if a weight is negative or no number, none is above 0, one is so small beside the others that it gets no
    /// slot of a period, or there are more samples than can be numbered.
    pub fn new(seed: u64, components: Vec<(Box<dyn Order>, f64)>) -> Result<Self> {
        let (orders, weights): (Vec<_>, Vec<_>) = components.into_iter().unzip();
        let first_sample = running_sums(orders.iter().map(|order| order.samples())).ok_or_else(|| {
            Error::invalid("the components of the mixture have more samples than can be numbered")
        })?;
        let spread = Spread::new(&weights)?;
        Ok(Self { orders, first_sample, spread, key: Stream::new(seed, PURPOSE).next_u64() })
    }

    /// The component at a position, and which of the component's own positions that is.
    pub fn component_at(&self, position: u64) -> (usize, u64) {
        let slots = self.spread.slots();
        let turned = (self.beginning(position / slots) + position % slots) % slots;
        let component = self.spread.component_of(turned);
        (component, self.positions_before(component, position))
    }

    /// The samples of a component.
    ///
    /// # Panics
    /// If there is no such component.
    pub fn samples_of(&self, component: usize) -> Range<u64> {
        self.first_sample[component]..self.first_sample[component + 1]
    }

    /// How many of the positions of a period a component has, and how many there are.
    ///
    /// # Panics
    /// If there is no such component.
    pub fn share_of(&self, component: usize) -> (u64, u64) {
        (self.spread.slots_of(component), self.spread.slots())
    }

    /// How many of the positions before `position` a component has.
    ///
    /// # Panics
    /// If there is no such component.
    pub fn positions_before(&self, component: usize, position: u64) -> u64 {
        let (slots, own) = (self.spread.slots(), self.spread.slots_of(component));
        let beginning = self.beginning(position / slots);
        let end = beginning + position % slots;
        let until_end = if end < slots {
            self.spread.count_before(component, end)
        } else {
            own + self.spread.count_before(component, end - slots)
        };
        position / slots * own + until_end - self.spread.count_before(component, beginning)
    }

    /// The slot of the pattern at which a period begins.
    fn beginning(&self, period: u64) -> u64 {
        let words = philox(self.key, u128::from(period));
        let word = u64::from(words[0]) << 32 | u64::from(words[1]);
        // A period has so few slots that the remainder's bias is below one part of 2^43.
        word % self.spread.slots()
    }

    /// The position that is a component's local one.
    fn position_of(&self, component: usize, local: u64) -> Option<u64> {
        let (slots, own) = (self.spread.slots(), self.spread.slots_of(component));
        let (period, rank) = (local / own, local % own);
        let beginning = self.beginning(period);
        let turned_rank = (self.spread.count_before(component, beginning) + rank) % own;
        let slot = (self.spread.slot_of(component, turned_rank) + slots - beginning) % slots;
        period.checked_mul(slots)?.checked_add(slot)
    }
}

impl Order for Mixture {
    fn samples(&self) -> u64 {
        self.first_sample[self.orders.len()]
    }

    fn sample_at(&self, position: u64) -> u64 {
        let (component, local) = self.component_at(position);
        self.first_sample[component] + self.orders[component].sample_at(local)
    }

    fn next_position(&self, sample: u64, from: u64) -> Option<u64> {
        if sample >= self.samples() {
            return None;
        }
        let component = self.first_sample.partition_point(|first| *first <= sample) - 1;
        if self.spread.slots_of(component) == 0 {
            return None;
        }
        let from = self.positions_before(component, from);
        let local = self.orders[component].next_position(sample - self.first_sample[component], from)?;
        self.position_of(component, local)
    }
}
