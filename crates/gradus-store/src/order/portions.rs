//! Some samples of each of several components, in proportion to weights: what an evaluation of a mixture reads.
//!
//! Invariant: every epoch has the same samples in the same order, component after component, and of each component some
//! that are evenly spread over all it has.

use super::spread::running_sums;
use super::{Order, Selection};

/// See the module. Samples are numbered one component after another, those that are not chosen too.
#[derive(Debug)]
pub struct Portions {
    parts: Vec<Selection>,
    /// The first position of each component, and the number of all; the first sample, and the number of all.
    first_position: Vec<u64>,
    first_sample: Vec<u64>,
}

impl Portions {
    /// At most `most` samples of components that have so many samples and such a weight each, as many of each as its weight
    /// says: fewer in all, where one has no more. Each gives one at least. `None` where no component has samples; one
    /// that has none is left out of the reckoning.
    pub fn new(most: u64, components: &[(u64, f64)]) -> Option<Self> {
        let weights: f64 =
            components.iter().filter(|(samples, _)| *samples > 0).map(|(_, weight)| weight).sum();
        let part = |weight: f64| weight / weights;
        let whole = |(samples, weight): &(u64, f64)| (*samples > 0).then(|| *samples as f64 / part(*weight));
        let all = components.iter().filter_map(whole).fold(most as f64, f64::min);
        let chosen = |(samples, weight): (u64, f64)| {
            // To the nearest: what is lost by rounding is less than a sample.
            let wanted = (all * part(weight)).round() as u64;
            Selection::new(wanted.clamp(1, samples), samples)
        };
        let present = components.iter().copied().filter(|(samples, _)| *samples > 0);
        let parts: Vec<Selection> = present.clone().map(chosen).collect();
        let first_position = running_sums(parts.iter().map(Order::samples))?;
        let first_sample = running_sums(present.map(|(samples, _)| samples))?;
        (!parts.is_empty()).then_some(Self { parts, first_position, first_sample })
    }

    /// How many are chosen of each component that has samples.
    pub fn chosen(&self) -> impl Iterator<Item = u64> {
        self.parts.iter().map(Order::samples)
    }
}

/// Which of the runs that begin at `first` holds a number that one of them does.
fn run_of(first: &[u64], number: u64) -> usize {
    first.partition_point(|first| *first <= number) - 1
}

impl Order for Portions {
    fn samples(&self) -> u64 {
        self.first_position[self.parts.len()]
    }

    fn sample_at(&self, position: u64) -> u64 {
        let position = position % self.samples();
        let part = run_of(&self.first_position, position);
        self.first_sample[part] + self.parts[part].sample_at(position - self.first_position[part])
    }

    fn next_position(&self, sample: u64, from: u64) -> Option<u64> {
        if sample >= self.first_sample[self.parts.len()] {
            return None;
        }
        let part = run_of(&self.first_sample, sample);
        let within = self.parts[part].next_position(sample - self.first_sample[part], 0)?;
        let (at, all) = (self.first_position[part] + within, self.samples());
        let epoch = from / all + u64::from(from % all > at);
        epoch.checked_mul(all)?.checked_add(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn components_are_evaluated_as_they_are_weighted() {
        let chosen = |most, components: &[(u64, f64)]| -> Vec<u64> {
            Portions::new(most, components).unwrap().chosen().collect()
        };
        assert_eq!(chosen(100, &[(1000, 0.7), (500, 0.3)]), [70, 30]);
        assert_eq!(chosen(100, &[(1000, 7.0), (500, 3.0)]), [70, 30]);
        // The second has no more, and so there are fewer of the first.
        assert_eq!(chosen(100, &[(1000, 0.7), (15, 0.3)]), [35, 15]);
        assert_eq!(chosen(u64::MAX, &[(7, 1.0)]), [7]);
        assert_eq!(chosen(10, &[(1000, 0.5), (0, 0.25), (500, 0.25)]), [7, 3]);
        assert_eq!(chosen(10, &[(1000, 1e6), (500, 1.0)]), [10, 1]);
        assert!(Portions::new(10, &[(0, 1.0)]).is_none());
    }

    proptest! {
        #[test]
        fn the_next_position_is_the_first_that_has_the_sample(
            components in prop::collection::vec((0u64..20, 0.1f64..10.0), 1..4), most in 1u64..60, from in 0u64..100,
        ) {
            let Some(order) = Portions::new(most, &components) else { return Ok(()) };
            let samples: u64 = components.iter().map(|(samples, _)| samples).sum();
            for sample in 0..samples + 2 {
                let expected = (from..from + order.samples()).find(|position| order.sample_at(*position) == sample);
                prop_assert_eq!(order.next_position(sample, from), expected);
            }
        }
    }
}
