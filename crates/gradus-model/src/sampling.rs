//! Choosing the next token from logits: greedy, or by chance after temperature, top-k and top-p, in transformers' order.
//!
//! A choice is a pure function of logits, settings and the token's index: randomness is counter-based, so that a text
//! can be written again from any point. Among equal logits the lowest id comes first, everywhere. A logit that is not a
//! number is never chosen while there is another.

use gradus_error::{Error, Result};
use gradus_host::random::Stream;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Parts the stream of sampling from every other use of the same seed ("sampling" in ASCII).
const PURPOSE: u64 = 0x7361_6d70_6c69_6e67;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingSettings {
    /// Divides the logits: lower is surer; 0 takes the likeliest token (greedy).
    pub temperature: f32,
    /// Only this many of the likeliest tokens; 0: all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability (Holtzman et al. 2020); 1: all.
    pub top_p: f32,
    /// Another seed, another text.
    pub seed: u64,
}

impl Default for SamplingSettings {
    fn default() -> Self {
        Self { temperature: 0.7, top_k: 40, top_p: 1.0, seed: 0 }
    }
}

impl SamplingSettings {
    /// Whether the settings make sense.
    ///
    /// # Errors
    /// `Invalid`, naming the key and its range.
    pub fn check(&self) -> Result<()> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            let found = self.temperature;
            return Err(Error::invalid(format!(
                "temperature is {found}: it must be 0 (greedy) or a positive number"
            )));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::invalid(format!(
                "top_p is {}: it must be above 0 and at most 1 (off)",
                self.top_p
            )));
        }
        Ok(())
    }
}

/// The id of the token chosen from `logits[V]`; `draw` is the token's index in its text. 0 where there are no logits.
///
/// Settings that [`SamplingSettings::check`] would refuse are taken as the nearest that it would not.
pub fn sample(logits: &[f32], settings: &SamplingSettings, draw: u64) -> u32 {
    if settings.temperature.is_nan() || settings.temperature <= 0.0 || settings.top_k == 1 {
        return likeliest(logits);
    }
    let mut candidates = top_k(logits, settings.top_k);
    if settings.top_p < 1.0 {
        candidates.sort_unstable_by(likelier_first);
    }
    let best = candidates.iter().copied().min_by(likelier_first).map_or(0.0, |(_, logit)| logit);
    let mut weights: Vec<f64> =
        candidates.iter().map(|(_, logit)| weight(*logit, best, settings.temperature)).collect();
    if settings.top_p < 1.0 {
        weights.truncate(nucleus(&weights, settings.top_p));
    }
    let chosen = choose(&weights, uniform(settings.seed, draw));
    candidates.get(chosen).map_or(0, |(id, _)| *id)
}

/// A token's id and its logit, where that is a number.
type Candidate = (u32, f32);

fn candidates(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    (0..).zip(logits.iter().copied()).filter(|(_, logit)| !logit.is_nan())
}

/// A total order of candidates: greater logits first, lower ids first among equals (0 and -0 are equal).
fn likelier_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

fn likeliest(logits: &[f32]) -> u32 {
    candidates(logits).min_by(likelier_first).map_or(0, |(id, _)| id)
}

/// The `k` likeliest candidates, or all for 0, by id.
fn top_k(logits: &[f32], k: usize) -> Vec<Candidate> {
    let mut all: Vec<Candidate> = candidates(logits).collect();
    if k > 0 && k < all.len() {
        all.select_nth_unstable_by(k - 1, likelier_first);
        all.truncate(k);
        all.sort_unstable_by_key(|(id, _)| *id);
    }
    all
}

/// `exp((logit - best) / temperature)`; the best weigh 1 even where they are infinite.
fn weight(logit: f32, best: f32, temperature: f32) -> f64 {
    if logit == best {
        return 1.0;
    }
    ((f64::from(logit) - f64::from(best)) / f64::from(temperature.min(f32::MAX))).exp()
}

/// How many of the descending weights make the nucleus: each whose predecessors do not yet reach `top_p`, and the first.
fn nucleus(weights: &[f64], top_p: f32) -> usize {
    let enough = f64::from(top_p) * weights.iter().sum::<f64>();
    let mut before = 0.0;
    let reached = weights.iter().position(|weight| {
        let full = before >= enough;
        before += weight;
        full
    });
    reached.unwrap_or(weights.len()).max(1)
}

/// Uniform in [0, 1), by seed and index.
fn uniform(seed: u64, draw: u64) -> f64 {
    let seed_of_sampling = Stream::new(seed, PURPOSE).next_u64();
    Stream::new(seed_of_sampling, draw).next_f64()
}

/// The index at which the running sum passes `uniform` of the whole. One of weight zero is never chosen while there is
/// another.
fn choose(weights: &[f64], uniform: f64) -> usize {
    let target = uniform * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let passed = weights.iter().position(|weight| {
        sum += weight;
        sum > target
    });
    // Rounding may leave the sum at the target, never above the whole: then it is the last that weighs anything.
    passed.or_else(|| weights.iter().rposition(|weight| *weight > 0.0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn settings(temperature: f32, top_k: usize, top_p: f32) -> SamplingSettings {
        SamplingSettings { temperature, top_k, top_p, seed: 1 }
    }

    fn counts(logits: &[f32], settings: &SamplingSettings, draws: u64) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for draw in 0..draws {
            counts[sample(logits, settings, draw) as usize] += 1.0;
        }
        counts
    }

    /// Pearson's statistic of 20,000 draws against the expected probabilities; zero-probability tokens must not occur.
    fn assert_distributed(logits: &[f32], settings: &SamplingSettings, expected: &[f64]) {
        let draws = 20_000;
        let counts = counts(logits, settings, draws);
        let mut statistic = 0.0;
        for (count, probability) in counts.iter().zip(expected) {
            let wanted = probability * draws as f64;
            assert!(*probability > 0.0 || *count == 0.0, "{counts:?}");
            statistic += if wanted > 0.0 { (count - wanted).powi(2) / wanted } else { 0.0 };
        }
        // Beyond 18.5 with three degrees of freedom lies a chance of 0.0003; the seed is fixed, so it is met once.
        assert!(statistic < 18.5, "{statistic}: {counts:?}");
    }

    #[test]
    fn draws_follow_the_softmax_of_logits_over_temperature() {
        let probabilities = [0.1f64, 0.2, 0.3, 0.4];
        let logits = probabilities.map(|p| p.ln() as f32);
        assert_distributed(&logits, &settings(1.0, 0, 1.0), &probabilities);
        let roots = probabilities.map(f64::sqrt);
        let sum: f64 = roots.iter().sum();
        assert_distributed(&logits, &settings(2.0, 0, 1.0), &roots.map(|root| root / sum));
    }

    #[test]
    fn top_k_and_top_p_keep_the_likeliest() {
        let logits = [0.1f64, 0.2, 0.3, 0.4].map(|p| p.ln() as f32);
        assert_distributed(&logits, &settings(1.0, 2, 1.0), &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        assert_distributed(&logits, &settings(1.0, 0, 0.65), &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        assert_distributed(&logits, &settings(1.0, 0, 0.75), &[0.0, 2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0]);
        // Top-k comes first: 0.4 is 4/7 of what it leaves.
        assert_distributed(&logits, &settings(1.0, 2, 0.5), &[0.0, 0.0, 0.0, 1.0]);
        // Temperature comes first: at 1/2 the squares, of which 0.16 / 0.3 is more than half.
        assert_distributed(&logits, &settings(0.5, 0, 0.5), &[0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn equal_logits_fall_to_the_lowest_id() {
        let logits = [0.0, 2.0, -0.0, 2.0, 2.0];
        assert_eq!(sample(&logits, &settings(0.0, 0, 1.0), 3), 1);
        let kept: Vec<_> = top_k(&logits, 2).iter().map(|(id, _)| *id).collect();
        assert_eq!(kept, [1, 3]);
        let kept: Vec<_> = top_k(&[0.0, -0.0, 0.0], 1).iter().map(|(id, _)| *id).collect();
        assert_eq!(kept, [0]);
    }

    #[test]
    fn what_is_no_number_is_not_chosen() {
        let (nan, infinite) = (f32::NAN, f32::INFINITY);
        for temperature in [0.0, 1.0] {
            for top_p in [1.0, 0.9] {
                let settings = settings(temperature, 0, top_p);
                for draw in 0..20 {
                    assert_eq!(sample(&[nan, 1.0, nan], &settings, draw), 1);
                    assert_eq!(sample(&[5.0, infinite, nan, -infinite], &settings, draw), 1);
                    assert_eq!(sample(&[-infinite, -infinite, 0.0], &settings, draw), 2);
                }
                assert_eq!(sample(&[nan, nan], &settings, 0), 0);
                assert_eq!(sample(&[], &settings, 0), 0);
            }
        }
    }

    #[test]
    fn a_choice_depends_on_seed_and_index_only() {
        let logits = vec![0.0; 1000];
        let text = |seed: u64| -> Vec<u32> {
            let settings = SamplingSettings { seed, ..settings(1.0, 0, 1.0) };
            (0..20).map(|draw| sample(&logits, &settings, draw)).collect()
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
        assert!(text(1).windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn settings_are_checked_and_complete() {
        SamplingSettings::default().check().unwrap();
        settings(0.0, 0, 1.0).check().unwrap();
        let bad =
            [(-1.0, 1.0), (f32::NAN, 1.0), (f32::INFINITY, 1.0), (1.0, 0.0), (1.0, 1.1), (1.0, f32::NAN)];
        for (temperature, top_p) in bad {
            assert_eq!(*settings(temperature, 0, top_p).check().unwrap_err().kind(), Kind::Invalid);
        }
        let parsed: SamplingSettings = serde_json::from_str(r#"{"top_k": 5}"#).unwrap();
        assert_eq!(parsed, SamplingSettings { top_k: 5, ..Default::default() });
        assert!(serde_json::from_str::<SamplingSettings>(r#"{"top_q": 5}"#).is_err());
    }

    proptest! {
        #[test]
        fn the_choice_is_always_a_candidate(
            logits in proptest::collection::vec(proptest::num::f32::ANY, 1..50),
            temperature in proptest::num::f32::ANY,
            k in 0usize..60,
            top_p in proptest::num::f32::ANY,
            draw in any::<u64>(),
        ) {
            let chosen = sample(&logits, &settings(temperature, k, top_p), draw);
            let mut order: Vec<_> = candidates(&logits).collect();
            order.sort_by(likelier_first);
            let kept = if k == 0 { order.len() } else { k.min(order.len()) };
            prop_assert!(order.is_empty() && chosen == 0 || order[..kept].iter().any(|(id, _)| *id == chosen));
        }
    }
}
