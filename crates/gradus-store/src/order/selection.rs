//! Some of the samples, evenly over all of them, in the same order in every epoch.

use super::Order;

/// `chosen` of `all` samples: what an evaluation reads that is limited must not leave out all but the first documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    chosen: u64,
    all: u64,
}

impl Selection {
    /// As many as are chosen, of `all`.
    ///
    /// # Panics
    /// If none or more than all are chosen.
    pub fn new(chosen: u64, all: u64) -> Self {
        assert!((1..=all).contains(&chosen), "{chosen} of {all} samples");
        Self { chosen, all }
    }

    fn sample(&self, index: u64) -> u64 {
        // Widened, since the product may exceed 64 bits; the quotient is below `all`.
        (u128::from(index) * u128::from(self.all) / u128::from(self.chosen)) as u64
    }

    /// The least index whose sample is not before this one.
    fn index(&self, sample: u64) -> u64 {
        (u128::from(sample) * u128::from(self.chosen)).div_ceil(u128::from(self.all)) as u64
    }
}

impl Order for Selection {
    fn samples(&self) -> u64 {
        self.chosen
    }

    fn sample_at(&self, position: u64) -> u64 {
        self.sample(position % self.chosen)
    }

    fn next_position(&self, sample: u64, from: u64) -> Option<u64> {
        let index = Some(sample).filter(|sample| *sample < self.all).map(|sample| self.index(sample))?;
        if index >= self.chosen || self.sample(index) != sample {
            return None;
        }
        let epoch = from / self.chosen + u64::from(from % self.chosen > index);
        epoch.checked_mul(self.chosen)?.checked_add(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn chosen_samples_differ_and_reach_over_all() {
        let chosen =
            |order: Selection| (0..order.samples()).map(move |at| order.sample_at(at)).collect::<Vec<_>>();
        assert_eq!(chosen(Selection::new(7, 100)), [0, 14, 28, 42, 57, 71, 85]);
        assert_eq!(chosen(Selection::new(9, 9)), (0..9).collect::<Vec<_>>());
        assert_eq!(Selection::new(u64::MAX, u64::MAX).sample_at(u64::MAX / 2), u64::MAX / 2);
    }

    proptest! {
        #[test]
        fn the_next_position_is_the_first_that_has_the_sample(all in 1u64..60, part in 0u64..60, from in 0u64..200) {
            let order = Selection::new(1 + part % all, all);
            for sample in 0..all + 2 {
                let expected = (from..from + order.samples()).find(|position| order.sample_at(*position) == sample);
                prop_assert_eq!(order.next_position(sample, from), expected);
            }
        }
    }
}
