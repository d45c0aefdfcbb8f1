//! The samples at the next positions, and where they are: an order computes several side by side in the time of one, and what
//! an index holds of several comes from memory together.

use super::Plan;
use crate::index::SamplePlace;

/// Positions at a time.
const TOGETHER: u64 = 32;

/// What stands at some positions that follow one another.
#[derive(Default)]
pub(super) struct Ahead {
    from: u64,
    samples: Vec<u64>,
    places: Vec<SamplePlace>,
}

impl Ahead {
    /// Where the sample at a position is, which is before the order's end; those behind it are wanted too, as long as they
    /// are read here, or all are.
    pub fn place(&mut self, plan: &Plan, position: u64, all: bool) -> SamplePlace {
        if self.known(position).is_none() {
            self.compute(plan, position, all);
        }
        self.known(position).cloned().unwrap_or_else(|| plan.index.sample(plan.order.sample_at(position)))
    }

    fn known(&self, position: u64) -> Option<&SamplePlace> {
        self.places.get(usize::try_from(position.checked_sub(self.from)?).ok()?)
    }

    fn compute(&mut self, plan: &Plan, position: u64, all: bool) {
        let is_before = |position: &u64| plan.end.is_none_or(|end| *position < end);
        let is_wanted = |position: &u64| is_before(position) && (all || plan.readers.here(*position) > 0);
        let most = position.saturating_add(TOGETHER);
        let count = (position..most).take_while(is_wanted).count().max(1);
        self.samples.resize(count, 0);
        plan.order.samples_from(position, &mut self.samples);
        self.places.clear();
        self.places.extend(self.samples.iter().map(|sample| plan.index.sample(*sample)));
        self.from = position;
    }
}
