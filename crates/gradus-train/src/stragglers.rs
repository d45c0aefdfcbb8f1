//! Who is waited for: ranks that hold up all others, step after step.
//!
//! A step ends for all ranks at once, in its vote. So what a rank does not wait of it, it works, on whichever axes the others
//! wait for it: directly, or for somebody who waits for it. A rank that waits less than ranks usually do, by a part of
//! the step, works longer by that part: that is its lag. What ranks usually do is the upper median of their waits, so up to
//! half of them may be slow together: a host, or a stage with more layers.
//!
//! Noise must not raise an alarm. Of independent noise no rank lags behind the median in more than every second step, so that it
//! does in 29 of 32 has a chance of (1 + 32 + 496 + 4,960) / 2^32, or 1.3 in a million, at the very most: of eight ranks one false alarm
//! in some three million steps, were noise always more than a tenth of a step. What is slow for a window is told, then again as
//! long as it lasts, each time after twice as many windows; who has not been named yet is told of at once.

/// When a rank counts as waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Steps that are looked at together.
    pub window: u32,
    /// In how many of them it must lag.
    pub needed: u32,
    /// By more than this part of the step.
    pub lag: f64,
    /// And by more than this, seconds.
    pub least_s: f64,
}

impl Default for Rule {
    fn default() -> Self {
        // A tenth of a step is worth a person's time; a millisecond is what any scheduler may take.
        Self { window: 32, needed: 29, lag: 0.1, least_s: 1e-3 }
    }
}

/// Who is waited for.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// Who.
    pub ranks: Vec<usize>,
    /// The largest of their mean lags, as a part of the mean step.
    pub lag: f64,
    /// The same in seconds.
    pub lag_s: f64,
}

/// Decides who is waited for: waits of steps in, notices out.
#[derive(Debug, Clone)]
pub struct Stragglers {
    rule: Rule,
    /// Of this window: its steps and their time; how often each rank lagged, and by how much in all.
    steps: u32,
    steps_s: f64,
    lagged: Vec<u32>,
    lags_s: Vec<f64>,
    /// Room to find a median.
    sorted: Vec<f64>,
    /// Windows before, who was named in them, when they may be named again, and how long it was quiet before.
    windows: u64,
    named: Vec<bool>,
    again_at: u64,
    pause: u64,
}

impl Stragglers {
    /// Nobody is waited for yet.
    pub fn new(ranks: usize, rule: Rule) -> Self {
        Self {
            rule,
            steps: 0,
            steps_s: 0.0,
            lagged: vec![0; ranks],
            lags_s: vec![0.0; ranks],
            sorted: Vec::with_capacity(ranks),
            windows: 0,
            named: vec![false; ranks],
            again_at: 0,
            pause: 2,
        }
    }

    /// A step took `step_s` seconds, of which each rank has waited as many as `waits` says, by rank.
    pub fn step(&mut self, step_s: f64, waits: &[f64]) -> Option<Notice> {
        let usual = self.upper_median(waits)?;
        for (rank, wait) in waits.iter().enumerate() {
            let lag_s = usual - wait;
            self.lags_s[rank] += lag_s;
            self.lagged[rank] += u32::from(lag_s > self.rule.least_s && lag_s > self.rule.lag * step_s);
        }
        self.steps += 1;
        self.steps_s += step_s;
        if self.steps < self.rule.window { None } else { self.conclude() }
    }

    /// None for a single rank, which nobody waits for.
    fn upper_median(&mut self, waits: &[f64]) -> Option<f64> {
        if waits.len() < 2 {
            return None;
        }
        self.sorted.clear();
        self.sorted.extend_from_slice(waits);
        let middle = waits.len() / 2;
        Some(*self.sorted.select_nth_unstable_by(middle, f64::total_cmp).1)
    }

    /// Ends a window.
    fn conclude(&mut self) -> Option<Notice> {
        let needed = self.rule.needed;
        let behind = |rank: &usize| self.lagged[*rank] >= needed;
        let ranks: Vec<usize> = (0..self.lagged.len()).filter(behind).collect();
        let lag_s = ranks.iter().map(|rank| self.lags_s[*rank]).fold(0.0, f64::max);
        let notice = Notice { lag: lag_s / self.steps_s, lag_s: lag_s / f64::from(self.steps), ranks };
        self.lagged.fill(0);
        self.lags_s.fill(0.0);
        (self.steps, self.steps_s) = (0, 0.0);
        self.windows += 1;
        self.is_to_be_said(&notice.ranks).then_some(notice)
    }

    fn is_to_be_said(&mut self, ranks: &[usize]) -> bool {
        let is_new = ranks.iter().any(|rank| !self.named[*rank]);
        if ranks.is_empty() || (!is_new && self.windows < self.again_at) {
            return false;
        }
        self.pause = if is_new { 2 } else { 2 * self.pause };
        self.again_at = self.windows + self.pause;
        ranks.iter().for_each(|rank| self.named[*rank] = true);
        true
    }
}

#[cfg(test)]
mod tests;
