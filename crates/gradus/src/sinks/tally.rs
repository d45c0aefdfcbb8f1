//! Sums and means over a run's steps: what its last words and its report state.

use crate::wording;
use gradus_train::{DataWaits, Exposed, Mesh, StepRecord};

/// How much of the smoothed loss is the loss of the steps before: a memory of about ten steps.
const MEMORY: f64 = 0.9;

/// A running mean that forgets; the first values are not drawn towards zero (Kingma and Ba 2015, section 3).
#[derive(Debug, Clone, Default)]
pub struct Smoothed {
    sum: f64,
    weight: f64,
}

impl Smoothed {
    /// Takes a value, unless it is not finite, and returns the mean, `None` before the first.
    pub fn add(&mut self, value: f64) -> Option<f64> {
        if value.is_finite() {
            self.sum = MEMORY * self.sum + (1.0 - MEMORY) * value;
            self.weight = MEMORY * self.weight + (1.0 - MEMORY);
        }
        self.mean()
    }

    /// The mean, `None` before the first value.
    pub fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// Sums over the steps seen.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Steps seen.
    pub steps: u64,
    /// Steps skipped because their gradient was not finite.
    pub skipped: u64,
    /// The first finite loss.
    pub first_loss: Option<f64>,
    /// The loss, smoothed over the last steps.
    pub loss: Smoothed,
    /// Training tokens since the start of the run.
    pub tokens: u64,
    /// Tokens of the steps seen; the count before the first of them is taken from its speed.
    seen_tokens: f64,
    /// Time of the steps seen, seconds.
    pub step_s: f64,
    exposed_s: f64,
    exposed_by_axis_s: Exposed,
    data_waits: DataWaits,
    mfu_s: f64,
}

impl Tally {
    /// Takes a step.
    pub fn add(&mut self, record: &StepRecord) {
        self.steps += 1;
        self.skipped += u64::from(record.skipped);
        if record.loss.is_finite() {
            self.first_loss.get_or_insert(record.loss);
        }
        self.loss.add(record.loss);
        self.tokens = record.tokens;
        if record.step_s.is_finite() {
            self.step_s += record.step_s;
            self.seen_tokens += finite(record.tokens_per_s) * record.step_s;
            self.exposed_s += finite(record.exposed_communication_s);
            if record.exposed_by_axis_s.total().is_finite() {
                self.exposed_by_axis_s += record.exposed_by_axis_s;
            }
            if record.data_wait_by_cause_s.total().is_finite() {
                self.data_waits += record.data_wait_by_cause_s;
            }
            self.mfu_s += finite(record.mfu) * record.step_s;
        }
    }

    /// Tokens per second, over the time spent in steps; not a number before the first.
    pub fn tokens_per_s(&self) -> f64 {
        self.seen_tokens / self.step_s
    }

    /// Share of the steps' time in which compute waited for others; not a number before the first.
    pub fn exposed(&self) -> f64 {
        self.exposed_s / self.step_s
    }

    /// That share by the axis that was waited for, where there are several ranks.
    pub fn exposed_by_axis(&self, mesh: &Mesh) -> String {
        wording::by_axis(&self.exposed_by_axis_s, mesh, self.step_s)
    }

    /// Share of the steps' time in which rank 0 waited for data, with its causes; nothing where it is too little to be
    /// worth a word.
    pub fn data_wait(&self) -> Option<String> {
        wording::data_wait(&self.data_waits, self.step_s)
    }

    /// Model FLOP utilisation, weighted by time; not a number before the first.
    pub fn mfu(&self) -> f64 {
        self.mfu_s / self.step_s
    }
}

fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::examples;
    use super::*;

    #[test]
    fn means_are_weighted_by_time() {
        let mut tally = Tally::default();
        tally.add(&StepRecord { step_s: 3.0, tokens_per_s: 100.0, mfu: 0.1, ..examples::step(1) });
        tally.add(&StepRecord {
            step_s: 1.0,
            tokens_per_s: 300.0,
            mfu: 0.5,
            loss: f64::NAN,
            ..examples::step(2)
        });
        assert!((tally.tokens_per_s() - 150.0).abs() < 1e-9);
        assert!((tally.mfu() - 0.2).abs() < 1e-12);
        assert!((tally.exposed() - 0.004).abs() < 1e-12);
        assert_eq!(tally.exposed_by_axis(&Mesh { pp: 2, ..Mesh::default() }), "pp 0.2%, vote 0.1%");
        assert_eq!((tally.first_loss, tally.loss.mean(), tally.tokens), (Some(8.0), Some(8.0), 8192));
    }

    #[test]
    fn nothing_seen_is_not_a_number() {
        assert!(Tally::default().tokens_per_s().is_nan());
        assert_eq!(Smoothed::default().add(f64::INFINITY), None);
    }

    #[test]
    fn smoothing_starts_at_the_first_value_and_follows() {
        let mut smoothed = Smoothed::default();
        assert_eq!(smoothed.add(5.0), Some(5.0));
        assert!((0..100).map(|_| smoothed.add(1.0).unwrap()).last().unwrap() < 1.001);
    }
}
