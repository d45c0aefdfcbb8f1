//! Slots shared out by weight, and spread evenly.
//!
//! What: weights become numbers of slots in a period, and the slots of each component are spread through it. How: the
//! period is the least in which the weights come out even; failing that a long one, in which the largest remainders
//! round up. The set of components is halved again and again, and the slots of a half are spread through those of the
//! whole as the steps of a line are (Bresenham, "Algorithm for computer control of a digital plotter", IBM Systems
//! Journal 1965). Why: so the slots of a component before any slot are counted, and its n-th slot is found, in as many
//! steps as there are halvings, and each half is never a whole slot from its share.
//!
//! Invariant: `slot_of(component, count_before(component, slot)) == slot` for every slot of the component.

use gradus_error::{Error, Result};
use std::cmp::Ordering;
use std::ops::Range;

/// The longest period tried for one in which the weights come out even.
const EVEN_SLOTS: u64 = 4096;

/// The period where they do not: a share is then off by a millionth of the whole at most.
const SLOTS: u64 = 1 << 20;

/// What a share may be off, in slots, and still come out even: thousands of roundings of a number of 53 bits.
const EVEN: f64 = 1e-9;

/// Which component has which slot of a period.
#[derive(Debug)]
pub(super) struct Spread {
    /// Slots of all components before each, and of all.
    before: Vec<u64>,
}

impl Spread {
    /// # Errors
    /// `Invalid` if a weight is negative or no number, none is above 0, or one is too small for a slot.
    pub(super) fn new(weights: &[f64]) -> Result<Self> {
        let shares = shares(weights)?;
        let counts = (1..=EVEN_SLOTS).find_map(|slots| even(&shares, slots));
        let counts = counts.unwrap_or_else(|| largest_remainders(&shares, SLOTS));
        if let Some(lost) = (0..shares.len()).find(|index| shares[*index] > 0.0 && counts[*index] == 0) {
            return Err(Error::invalid(format!(
                "component {lost} of the mixture (from 0) has the weight {}, less than one part of {SLOTS} of all: \
                 raise it, or make it 0",
                weights[lost]
            )));
        }
        Ok(Self { before: running_sums(counts.into_iter()).unwrap_or_default() })
    }

    /// Slots of a period.
    pub(super) fn slots(&self) -> u64 {
        self.before[self.components()]
    }

    /// Slots of a component in a period.
    pub(super) fn slots_of(&self, component: usize) -> u64 {
        self.slots_of_all(component..component + 1)
    }

    /// The component that has a slot.
    pub(super) fn component_of(&self, mut slot: u64) -> usize {
        let mut all = 0..self.components();
        while let Some((left, right)) = halves(&all) {
            let [before, behind] = [slot, slot + 1].map(|slot| self.left_before(&all, &left, slot));
            (all, slot) = if behind > before { (left, before) } else { (right, slot - before) };
        }
        all.start
    }

    /// Slots of a component, which has some, before a slot, or before the end.
    pub(super) fn count_before(&self, component: usize, mut slot: u64) -> u64 {
        let mut all = 0..self.components();
        while let Some((left, right)) = halves(&all) {
            let before = self.left_before(&all, &left, slot);
            (all, slot) = if left.contains(&component) { (left, before) } else { (right, slot - before) };
        }
        slot
    }

    /// The slot of a component before which it has `count`.
    pub(super) fn slot_of(&self, component: usize, count: u64) -> u64 {
        self.slot_among(0..self.components(), component, count)
    }

    fn slot_among(&self, all: Range<usize>, component: usize, count: u64) -> u64 {
        let Some((left, right)) = halves(&all) else { return count };
        let slots = self.slots_of_all(all);
        if left.contains(&component) {
            // The first slot behind which more of the left half have been.
            let of_left = self.slots_of_all(left.clone());
            ((self.slot_among(left, component, count) + 1) * slots).div_ceil(of_left) - 1
        } else {
            let of_right = self.slots_of_all(right.clone());
            self.slot_among(right, component, count) * slots / of_right
        }
    }

    /// Slots of the left half before a slot of all. A period's square is far from the end of 64 bits.
    fn left_before(&self, all: &Range<usize>, left: &Range<usize>, slot: u64) -> u64 {
        slot * self.slots_of_all(left.clone()) / self.slots_of_all(all.clone())
    }

    fn slots_of_all(&self, components: Range<usize>) -> u64 {
        self.before[components.end] - self.before[components.start]
    }

    fn components(&self) -> usize {
        self.before.len() - 1
    }
}

/// A set of components in two; none for a single one.
fn halves(all: &Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
    let middle = all.start + all.len() / 2;
    (all.len() > 1).then_some((all.start..middle, middle..all.end))
}

/// Weights as parts of one.
fn shares(weights: &[f64]) -> Result<Vec<f64>> {
    if let Some(index) = weights.iter().position(|weight| !weight.is_finite() || *weight < 0.0) {
        return Err(Error::invalid(format!(
            "component {index} of the mixture (from 0) has the weight {}: choose a number from 0",
            weights[index]
        )));
    }
    let largest = weights.iter().copied().fold(0.0, f64::max);
    if largest == 0.0 {
        return Err(Error::invalid("no component of the mixture has a weight above 0"));
    }
    // Divided by the largest first: the sum of numbers near the end of their range would be none.
    let sum: f64 = weights.iter().map(|weight| weight / largest).sum();
    Ok(weights.iter().map(|weight| weight / largest / sum).collect())
}

/// The slots of each component if the shares of `slots` are whole numbers, and none is lost.
fn even(shares: &[f64], slots: u64) -> Option<Vec<u64>> {
    let one = |share: &f64| {
        let exact = share * slots as f64;
        let whole = exact.round();
        let fine = (exact - whole).abs() <= EVEN && (whole > 0.0 || *share == 0.0);
        fine.then_some(whole as u64)
    };
    shares.iter().map(one).collect()
}

/// Whole numbers in proportion to shares: all are rounded down, and what is left goes to the largest remainders.
fn largest_remainders(shares: &[f64], slots: u64) -> Vec<u64> {
    let exact: Vec<f64> = shares.iter().map(|share| share * slots as f64).collect();
    let mut counts: Vec<u64> = exact.iter().map(|exact| *exact as u64).collect();
    let mut by_remainder: Vec<usize> = (0..shares.len()).collect();
    by_remainder.sort_by(|a, b| exact[*b].fract().partial_cmp(&exact[*a].fract()).unwrap_or(Ordering::Equal));
    let left = slots.saturating_sub(counts.iter().sum()) as usize;
    for index in by_remainder.into_iter().take(left) {
        counts[index] += 1;
    }
    counts
}

/// What comes before each number, and all of them; none if they are more than can be counted.
pub(super) fn running_sums(numbers: impl Iterator<Item = u64>) -> Option<Vec<u64>> {
    let mut sums = vec![0u64];
    for number in numbers {
        sums.push(sums[sums.len() - 1].checked_add(number)?);
    }
    Some(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn counts(weights: &[f64]) -> Vec<u64> {
        let spread = Spread::new(weights).unwrap();
        (0..weights.len()).map(|component| spread.slots_of(component)).collect()
    }

    #[test]
    fn simple_weights_have_short_periods() {
        assert_eq!(counts(&[1.0]), [1]);
        assert_eq!(counts(&[0.7, 0.2, 0.1]), [7, 2, 1]);
        assert_eq!(counts(&[3.0, 0.0, 3.0]), [1, 0, 1]);
        assert_eq!(counts(&[f64::MAX, f64::MAX]), [1, 1]);
    }

    #[test]
    fn odd_weights_are_off_by_less_than_a_slot() {
        let weights = [std::f64::consts::PI, std::f64::consts::E, 1.0, 0.000_01];
        let sum: f64 = weights.iter().sum();
        let counts = counts(&weights);
        assert_eq!(counts.iter().sum::<u64>(), SLOTS);
        for (count, weight) in counts.iter().zip(weights) {
            assert!((*count as f64 - weight / sum * SLOTS as f64).abs() < 1.0, "{counts:?}");
        }
    }

    #[test]
    fn weights_that_are_none_are_refused() {
        let odd: [&[f64]; 6] =
            [&[], &[0.0, 0.0], &[1.0, -1.0], &[f64::NAN], &[1.0, f64::INFINITY], &[1.0, 1e-9]];
        for weights in odd {
            assert_eq!(Spread::new(weights).unwrap_err().kind(), &Kind::Invalid, "{weights:?}");
        }
    }

    proptest! {
        #[test]
        fn slots_are_counted_and_found(weights in prop::collection::vec(0u32..50, 1..9)) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
            let spread = Spread::new(&weights).unwrap();
            let halvings = f64::from(weights.len().next_power_of_two().ilog2());
            let mut seen = vec![0; weights.len()];
            for slot in 0..spread.slots() {
                let component = spread.component_of(slot);
                prop_assert_eq!(spread.slot_of(component, seen[component]), slot);
                seen[component] += 1;
                for (component, seen) in seen.iter().enumerate().filter(|(component, _)| weights[*component] > 0.0) {
                    prop_assert_eq!(spread.count_before(component, slot + 1), *seen);
                    let share = spread.slots_of(component) as f64 / spread.slots() as f64;
                    prop_assert!((*seen as f64 - share * (slot + 1) as f64).abs() <= halvings + 1e-6);
                }
            }
            let whole: Vec<u64> = (0..weights.len()).map(|component| spread.slots_of(component)).collect();
            prop_assert_eq!(seen, whole);
        }
    }
}
