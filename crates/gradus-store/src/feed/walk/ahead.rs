//! The samples at the next positions, computed together: an order computes several side by side in the time of one.

use super::Plan;

/// Positions at a time.
const TOGETHER: u64 = 32;

/// What stands at some positions that follow one another.
#[derive(Default)]
pub(super) struct Ahead {
    from: u64,
    samples: Vec<u64>,
}

impl Ahead {
    /// The sample at a position, which is before the order's end; those behind it are wanted too, as long as they are read
    /// here, or all are.
    pub fn sample(&mut self, plan: &Plan, position: u64, all: bool) -> u64 {
        let known = |ahead: &Self| {
            let at = usize::try_from(position.checked_sub(ahead.from)?).ok()?;
            ahead.samples.get(at).copied()
        };
        known(self).unwrap_or_else(|| {
            let is_before = |position: &u64| plan.end.is_none_or(|end| *position < end);
            let is_wanted = |position: &u64| is_before(position) && (all || plan.readers.here(*position) > 0);
            let most = position.saturating_add(TOGETHER);
            let count = (position..most).take_while(is_wanted).count().max(1);
            self.samples.resize(count, 0);
            plan.order.samples_from(position, &mut self.samples);
            self.from = position;
            self.samples[0]
        })
    }
}
