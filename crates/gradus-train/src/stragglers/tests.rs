//! Steps drawn by seed, with ranks that are slow and with noise alone.

use super::*;
use gradus_host::random::Stream;

/// Noise of a step's work, as a part of it.
#[derive(Debug, Clone, Copy)]
enum Noise {
    /// Anything up to this, all alike.
    Even(f64),
    /// Mostly little, now and then a lot.
    Exponential(f64),
    /// Nothing, but one rank in so many takes half as long again.
    Hiccups(u64),
}

impl Noise {
    fn draw(self, draws: &mut Stream) -> f64 {
        match self {
            Self::Even(most) => most * draws.next_f64(),
            Self::Exponential(mean) => -mean * (1.0 - draws.next_f64()).ln(),
            Self::Hiccups(one_in) => f64::from(u8::from(draws.next_below(one_in) == 0)) * 0.5,
        }
    }
}

const NOISES: [Noise; 7] = [
    Noise::Even(0.0),
    Noise::Even(0.2),
    Noise::Even(1.0),
    Noise::Exponential(0.1),
    Noise::Exponential(1.0),
    Noise::Hiccups(40),
    Noise::Hiccups(4),
];

/// Time that a step's work takes without noise, and that all ranks wait for bytes whoever is slow.
const WORK_S: f64 = 0.05;
const SENDING_S: f64 = 0.004;

/// Notices of so many windows, in which rank r works `slowness(r)` longer, each with its step.
fn notices(
    rule: Rule,
    ranks: usize,
    windows: u32,
    noise: Noise,
    seed: u64,
    slowness: impl Fn(usize, u32) -> f64,
) -> Vec<(u32, Notice)> {
    let (mut machine, mut draws) = (Stragglers::new(ranks, rule), Stream::new(seed, 7));
    let mut found = Vec::new();
    for step in 0..windows * rule.window {
        let mut work = |rank| WORK_S * (1.0 + slowness(rank, step) + noise.draw(&mut draws));
        let works: Vec<f64> = (0..ranks).map(&mut work).collect();
        let step_s = works.iter().copied().fold(0.0, f64::max) + SENDING_S;
        let waits: Vec<f64> = works.iter().map(|work| step_s - work).collect();
        found.extend(machine.step(step_s, &waits).map(|notice| (step, notice)));
    }
    found
}

/// Notices of runs in which nobody is slow.
fn false_alarms(rule: Rule) -> usize {
    let mut count = 0;
    for noise in NOISES {
        for ranks in [1, 2, 3, 4, 8, 32] {
            count += notices(rule, ranks, 1000, noise, ranks as u64, |_, _| 0.0).len();
        }
    }
    count
}

#[test]
fn noise_alone_raises_no_alarm() {
    assert_eq!(false_alarms(Rule::default()), 0);
}

#[test]
fn rules_that_fire_on_noise_are_found_by_the_same_runs() {
    let good = Rule::default();
    let hasty = Rule { window: 3, ..good };
    let lax = Rule { errors: 2.0, ..good };
    for (name, rule) in [("hasty", hasty), ("lax", lax)] {
        let count = false_alarms(rule);
        assert!(count > 30, "{name}: {count}");
    }
}

#[test]
fn slow_ranks_are_named_and_nobody_else() {
    let rule = Rule::default();
    for ranks in [2, 3, 4, 8, 16] {
        for noise in [
            Noise::Even(0.0),
            Noise::Even(0.1),
            Noise::Even(0.5),
            Noise::Exponential(0.1),
            Noise::Hiccups(64),
        ] {
            for seed in 0..20 {
                let slow = seed as usize % ranks;
                let slowness = |rank: usize, _| if rank == slow { 0.4 } else { 0.0 };
                let found = notices(rule, ranks, 4, noise, seed, slowness);
                let what = format!("{ranks} ranks, {noise:?}, seed {seed}: {found:?}");
                let (step, first) = found.first().expect(&what);
                assert!(*step < 2 * rule.window, "{what}");
                assert!(found.iter().all(|(_, notice)| notice.ranks == [slow]), "{what}");
                // 0.4 of 1.4 and what is sent; noise makes steps longer, and lags shorter or longer.
                assert!((0.15..0.4).contains(&first.lag) && (first.lag_s - 0.02).abs() < 0.01, "{what}");
            }
        }
    }
}

#[test]
fn several_ranks_may_be_slow_and_the_slowest_counts() {
    let slowness = |rank: usize, _| if rank >= 2 { 0.25 * rank as f64 } else { 0.0 };
    let found = notices(Rule::default(), 4, 1, Noise::Even(0.05), 3, slowness);
    assert_eq!(found[0].1.ranks, [2, 3]);
    // Of ranks that wait 0.75, 0.75, 0.25 and 0 of the work, the others of the last wait 7/12 in the mean.
    assert!((found[0].1.lag_s - 7.0 / 12.0 * WORK_S).abs() < 0.003, "{found:?}");
}

#[test]
fn little_lags_and_short_ones_are_nobody_s_business() {
    let slowness = |rank: usize, _| if rank == 1 { 0.08 } else { 0.0 };
    assert!(notices(Rule::default(), 4, 50, Noise::Even(0.02), 5, slowness).is_empty());
    let mut machine = Stragglers::new(2, Rule::default());
    assert!(
        (0..1000).all(|_| machine.step(0.002, &[0.0, 9e-4]).is_none()),
        "half a step, but no millisecond"
    );
    assert!((0..1000).all(|_| Stragglers::new(1, Rule::default()).step(1.0, &[0.0]).is_none()));
}

#[test]
fn what_lasts_is_said_ever_less_often_and_what_is_new_at_once() {
    let rule = Rule::default();
    let slowness = |rank: usize, step| match rank {
        1 => 0.5,
        2 if step >= 10 * rule.window => 0.5,
        _ => 0.0,
    };
    let found = notices(rule, 5, 32, Noise::Even(0.0), 1, slowness);
    let windows: Vec<_> =
        found.iter().map(|(step, notice)| (step / rule.window, notice.ranks.len())).collect();
    assert_eq!(windows, [(0, 1), (2, 1), (6, 1), (10, 2), (12, 2), (16, 2), (24, 2)]);
}
