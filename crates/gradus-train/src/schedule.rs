//! The learning rate of a step: a pure function.

use crate::settings::{OptimizerSettings, ScheduleKind};

/// Learning rate of step `step` (from 1) of `total` (0 while not known yet: then no decay has begun).
pub fn learning_rate(settings: &OptimizerSettings, step: u64, total: u64) -> f64 {
    let warmup = settings.warmup_steps;
    if step <= warmup {
        return settings.learning_rate * step as f64 / (warmup + 1) as f64;
    }
    if total == 0 {
        return settings.learning_rate;
    }
    let lowest = settings.final_fraction;
    settings.learning_rate * (lowest + (1.0 - lowest) * height(settings, step, total))
}

/// The schedule's height after warm-up: from 1 down to 0 at the last step.
fn height(settings: &OptimizerSettings, step: u64, total: u64) -> f64 {
    let steps_left = total.saturating_sub(step) as f64;
    match settings.schedule {
        ScheduleKind::Constant => 1.0,
        ScheduleKind::Wsd => {
            let decay_steps = settings.decay_fraction * total as f64;
            if decay_steps > 0.0 { (steps_left / decay_steps).min(1.0) } else { 1.0 }
        }
        ScheduleKind::Cosine => {
            let length = total.saturating_sub(settings.warmup_steps).max(1) as f64;
            0.5 - 0.5 * (std::f64::consts::PI * steps_left / length).cos()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(schedule: ScheduleKind) -> OptimizerSettings {
        OptimizerSettings { learning_rate: 1.0, schedule, warmup_steps: 9, ..Default::default() }
    }

    #[test]
    fn warms_up_linearly_and_reaches_the_full_rate() {
        for kind in [ScheduleKind::Wsd, ScheduleKind::Cosine, ScheduleKind::Constant] {
            assert_eq!(learning_rate(&settings(kind), 1, 100), 0.1);
            assert_eq!(learning_rate(&settings(kind), 5, 0), 0.5);
            assert!((learning_rate(&settings(kind), 10, 100) - 1.0).abs() < 1e-3, "{kind:?}");
        }
    }

    #[test]
    fn wsd_stays_and_decays_over_the_last_part() {
        let settings = settings(ScheduleKind::Wsd);
        assert_eq!(learning_rate(&settings, 70, 100), 1.0);
        assert!((learning_rate(&settings, 85, 100) - 0.5).abs() < 1e-12);
        assert_eq!(learning_rate(&settings, 100, 100), 0.0);
    }

    #[test]
    fn cosine_falls_to_the_final_fraction() {
        let settings = OptimizerSettings { final_fraction: 0.1, ..settings(ScheduleKind::Cosine) };
        assert!((learning_rate(&settings, 100, 100) - 0.1).abs() < 1e-12);
        let middle = learning_rate(&settings, 9 + 91 / 2, 100);
        assert!((middle - 0.55).abs() < 0.02, "{middle}");
    }
}
