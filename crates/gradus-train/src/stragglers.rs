//! Who is waited for: ranks that hold up all others, step after step.
//!
//! A step ends for all ranks at once, in its vote. So what a rank does not wait of it, it works, on whichever axes the others
//! wait for it: directly, or for somebody who waits for it. A rank that waits less than the others do in the mean, by a part
//! of the step, works longer by that part: that is its lag. Several may lag together: a host, or a stage with more layers.
//!
//! Noise must not raise an alarm. Where ranks differ by noise alone, the expected lag of each is zero, whatever the noise. So over a
//! window the mean lag must be six times as large as its standard error, which by Student's t with 31 degrees of
//! freedom has a chance of 6.1 in ten million: of eight ranks one window in 200,000, or 6.5 million steps. (Work that now and
//! then takes much longer makes it rarer: such noise leans to the side of lags, and then the quotient leans to the other.) What
//! is slow for a window is told, then again as long as it lasts, each time after twice as many windows; who has not been
//! named yet is told of at once.

/// When a rank counts as waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Steps that are looked at together.
    pub window: u32,
    /// Its mean lag must be above so many of its standard errors,
    pub errors: f64,
    /// above this part of the mean step,
    pub lag: f64,
    /// and above this, seconds.
    pub least_s: f64,
}

impl Default for Rule {
    fn default() -> Self {
        // A tenth of a step is worth a person's time; a millisecond is what any scheduler may take.
        Self { window: 32, errors: 6.0, lag: 0.1, least_s: 1e-3 }
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

/// How far a rank was behind in the steps of a window.
#[derive(Debug, Clone, Copy, Default)]
struct Lags {
    sum: f64,
    squares: f64,
}

impl Lags {
    fn add(&mut self, lag_s: f64) {
        self.sum += lag_s;
        self.squares += lag_s * lag_s;
    }

    fn mean(&self, steps: f64) -> f64 {
        self.sum / steps
    }

    /// Of the mean of so many.
    fn standard_error(&self, steps: f64) -> f64 {
        let variance = (self.squares - self.sum * self.sum / steps).max(0.0) / (steps - 1.0);
        (variance / steps).sqrt()
    }
}

/// Decides who is waited for: waits of steps in, notices out.
#[derive(Debug, Clone)]
pub struct Stragglers {
    rule: Rule,
    /// Of this window: its steps and their time, and each rank's lags.
    steps: u32,
    steps_s: f64,
    lags: Vec<Lags>,
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
            lags: vec![Lags::default(); ranks],
            windows: 0,
            named: vec![false; ranks],
            again_at: 0,
            pause: 2,
        }
    }

    /// A step took `step_s` seconds, of which each rank has waited as many as `waits` says, by rank.
    pub fn step(&mut self, step_s: f64, waits: &[f64]) -> Option<Notice> {
        let others = waits.len().checked_sub(1).filter(|others| *others > 0)? as f64;
        let sum: f64 = waits.iter().sum();
        for (lags, wait) in self.lags.iter_mut().zip(waits) {
            lags.add((sum - wait) / others - wait);
        }
        self.steps += 1;
        self.steps_s += step_s;
        if self.steps < self.rule.window { None } else { self.conclude() }
    }

    /// Ends a window.
    fn conclude(&mut self) -> Option<Notice> {
        let steps = f64::from(self.steps);
        let mean_step_s = self.steps_s / steps;
        let least_s = self.rule.least_s.max(self.rule.lag * mean_step_s);
        let means: Vec<f64> = self.lags.iter().map(|lags| lags.mean(steps)).collect();
        let is_behind = |rank: &usize| {
            means[*rank] > least_s && means[*rank] > self.rule.errors * self.lags[*rank].standard_error(steps)
        };
        let ranks: Vec<usize> = (0..means.len()).filter(is_behind).collect();
        let lag_s = ranks.iter().map(|rank| means[*rank]).fold(0.0, f64::max);
        self.lags.fill(Lags::default());
        (self.steps, self.steps_s) = (0, 0.0);
        self.windows += 1;
        self.is_to_be_said(&ranks).then_some(Notice { ranks, lag: lag_s / mean_step_s, lag_s })
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
