//! When blocks are used next.
//!
//! What: for a block, the next position after a given one at which a sample that needs the block stands, among the
//! positions that count here. How: for each block asked about, the next position of each of its samples waits in a heap;
//! as the run goes on, a sample whose position has passed is asked for its next one. Why: a cache that lets go of what is
//! used last of all needs this number at every access, and finding it anew means to ask for every sample of the block.
//!
//! Cost: one inverse of the order, or two, for each sample and epoch, however many nodes share the positions and however
//! many blocks the sample lies in, and 8 bytes for each sample of each block that was asked about, for as long as the run lasts.
//!
//! Invariant: the answer depends on the order, the samples and the position alone, not on what was asked before.

use super::Order;
use crate::Block;
use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// How often the samples of a block come round before it counts as not used: what is further off than everything that a
/// cache may keep needs no order among its kind.
const ROUNDS: u32 = 8;

/// Says which positions count.
pub type Mine = Arc<dyn Fn(u64) -> bool + Send + Sync>;

/// The next uses of blocks.
pub struct Uses {
    order: Asked,
    mine: Mine,
    end: u64,
    blocks: BTreeMap<Block, Upcoming>,
}

/// An order, and what it answered last: blocks of one sample ask the same one after another.
struct Asked {
    order: Arc<dyn Order>,
    /// A position, and its sample.
    sample: Option<(u64, u64)>,
    /// A sample, from where its next position was sought, and that.
    next: Option<((u64, u64), Option<u64>)>,
}

/// The next positions of a block's samples.
struct Upcoming {
    /// No position before this one is waiting that should not be.
    from: u64,
    /// The first and the last of the samples.
    ends: [u64; 2],
    /// How far ahead a use counts, once positions are others'. While they are not, the first is much nearer than that.
    ahead: Option<u64>,
    positions: BinaryHeap<Reverse<u64>>,
}

impl Uses {
    /// The uses at the positions of `order` that are `mine`, up to and without `end`.
    pub fn new(order: Arc<dyn Order>, mine: Mine, end: Option<u64>) -> Self {
        let order = Asked { order, sample: None, next: None };
        Self { order, mine, end: end.unwrap_or(u64::MAX), blocks: BTreeMap::new() }
    }

    /// The first position after `after` at which one of `samples`, which are those that need `block`, is used.
    ///
    /// None if there is none for very long: not before the end, or not before the samples have come round about eight
    /// times, which happens where most positions are others'. A later `after` may then have a use again.
    ///
    /// The samples of a block must be the same each time. Asked with growing `after`, as a run does, this costs little;
    /// an earlier `after` costs as much as a new block.
    pub fn next(&mut self, block: Block, samples: Range<u64>, after: u64) -> Option<u64> {
        self.first(block, samples, after.checked_add(1)?)
    }

    /// The first position at or after `from` at which one of `samples` is used: as [`Uses::next`].
    pub fn first(&mut self, block: Block, samples: Range<u64>, from: u64) -> Option<u64> {
        let upcoming = match self.blocks.entry(block) {
            Entry::Vacant(place) => place.insert(Upcoming::new(&mut self.order, samples, from)),
            Entry::Occupied(known) => {
                let upcoming = known.into_mut();
                if upcoming.from > from {
                    *upcoming = Upcoming::new(&mut self.order, samples, from);
                }
                upcoming
            }
        };
        upcoming.next(&mut self.order, &*self.mine, from, self.end)
    }
}

impl Asked {
    fn sample_at(&mut self, position: u64) -> u64 {
        match self.sample {
            Some((asked, sample)) if asked == position => sample,
            _ => {
                let sample = self.order.sample_at(position);
                self.sample = Some((position, sample));
                sample
            }
        }
    }

    fn next_position(&mut self, sample: u64, from: u64) -> Option<u64> {
        match self.next {
            Some((asked, next)) if asked == (sample, from) => next,
            _ => {
                let next = self.order.next_position(sample, from);
                self.next = Some(((sample, from), next));
                next
            }
        }
    }
}

impl Upcoming {
    fn new(order: &mut Asked, samples: Range<u64>, from: u64) -> Self {
        let ends = [samples.start, samples.end.saturating_sub(1)];
        let positions = samples.filter_map(|sample| order.next_position(sample, from)).map(Reverse).collect();
        Self { from, ends, ahead: None, positions }
    }

    fn next(&mut self, order: &mut Asked, mine: impl Fn(u64) -> bool, from: u64, end: u64) -> Option<u64> {
        self.from = from;
        loop {
            let horizon = self.ahead.map_or(end, |ahead| from.saturating_add(ahead).min(end));
            let mut first = self.positions.peek_mut()?;
            let position = first.0;
            if position >= horizon {
                return None;
            }
            if position >= from && mine(position) {
                return Some(position);
            }
            if position >= from && self.ahead.is_none() {
                // Samples that never come have no rounds; the one at this position has.
                let rounds = |sample| rounds(order.order.as_ref(), sample);
                let of_ends = self.ends.into_iter().filter_map(rounds).max();
                let of_this = || rounds(order.order.sample_at(position));
                self.ahead = Some(of_ends.or_else(of_this).unwrap_or(0));
                continue;
            }
            let sample = order.sample_at(position);
            match order.next_position(sample, from.max(position + 1)) {
                Some(next) => *first = Reverse(next),
                None => drop(PeekMut::pop(first)),
            }
        }
    }
}

/// How many positions the rounds of a sample take, which is the same wherever they begin, or nearly so; none if it never
/// comes.
fn rounds(order: &dyn Order, sample: u64) -> Option<u64> {
    let mut end = order.next_position(sample, 0)?.saturating_add(1);
    for _ in 0..ROUNDS {
        end = order.next_position(sample, end).map_or(u64::MAX, |position| position.saturating_add(1));
    }
    Some(end)
}

impl fmt::Debug for Uses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uses")
            .field("order", &self.order.order)
            .field("blocks", &self.blocks.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::tests::{Case, any_case};
    use gradus_host::random::philox;
    use proptest::prelude::*;

    /// One of `nodes` of equal parts, at random.
    fn one_of(nodes: u32) -> Mine {
        Arc::new(move |position| philox(5, u128::from(position))[0].is_multiple_of(nodes))
    }

    fn uses(case: &Case, nodes: u32, end: Option<u64>) -> Uses {
        Uses::new(case.order().into(), one_of(nodes), end)
    }

    #[test]
    fn a_run_that_ends_uses_nothing_behind_its_end() {
        let order = Arc::new(crate::order::Sequential::new(10));
        let mut uses = Uses::new(order, one_of(1), Some(14));
        let next: Vec<_> = [0, 3, 12, 13].map(|after| uses.next(Block(0), 3..5, after)).to_vec();
        assert_eq!(next, [Some(3), Some(4), Some(13), None]);
        assert_eq!(uses.next(Block(0), 3..5, u64::MAX), None);
        let first: Vec<_> = [0, 3, 13, 14].map(|from| uses.first(Block(0), 3..5, from)).to_vec();
        assert_eq!(first, [Some(3), Some(3), Some(13), None]);
    }

    #[test]
    fn positions_of_others_are_searched_within_bounds() {
        let mut uses = Uses::new(Arc::new(crate::order::Sequential::new(10)), Arc::new(|_| false), None);
        assert_eq!((0..1000).find_map(|after| uses.next(Block(0), 0..10, after)), None);
        // The search stands where the horizon was at the last question.
        assert!(uses.blocks[&Block(0)].positions.iter().all(|position| position.0 < 1200));
    }

    proptest! {
        #[test]
        fn the_next_use_is_the_first(
            case in any_case(), nodes in 1u32..4, start: u64, samples in 0u64..20, steps in prop::collection::vec(0u64..50, 1..60),
            end in prop::option::of(0u64..3000),
        ) {
            let order = case.order();
            let start = start % order.samples();
            let range = start..(start + samples).min(order.samples());
            let mut kept = uses(&case, nodes, end);
            let mut after = 0;
            for step in steps {
                after += step;
                let next = kept.next(Block(3), range.clone(), after);
                prop_assert_eq!(next, uses(&case, nodes, end).next(Block(3), range.clone(), after));
                let is_use = |position: &u64| range.contains(&order.sample_at(*position)) && one_of(nodes)(*position);
                // Where few of the samples ever come, they have come round eight times much sooner.
                let ends = [range.start, range.end.saturating_sub(1)];
                let ahead = ends.into_iter().filter_map(|sample| rounds(order.as_ref(), sample)).max();
                let far = ahead.unwrap_or(0).min(3 * order.samples());
                let searched = next.map_or(after + far, |next| next + 1).min(end.unwrap_or(u64::MAX));
                prop_assert_eq!((after + 1..searched).find(is_use), next);
            }
        }

        #[test]
        fn going_back_changes_nothing(case in any_case(), afters in prop::collection::vec(0u64..500, 1..20)) {
            let mut kept = uses(&case, 2, None);
            let range = 0..case.order().samples().min(7);
            for after in afters {
                let expected = uses(&case, 2, None).next(Block(1), range.clone(), after);
                prop_assert_eq!(kept.next(Block(1), range.clone(), after), expected);
            }
        }
    }
}
