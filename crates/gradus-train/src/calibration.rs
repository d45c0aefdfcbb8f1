//! A wall time becomes a number of steps, once.

/// Steps that are timed before the run's length is decided.
pub(crate) const CALIBRATION_STEPS: usize = 20;
/// Of these the first are left out: caches, page faults and clock speeds settle in them.
const SETTLING_STEPS: usize = 5;
/// Part of the time that is planned for: evaluations, checkpoints and the last sample take the rest.
const PLANNED_PART: f64 = 0.96;

/// Steps of a run that shall take `duration_s`, from the times of its first steps.
///
/// The median step stands for all that follow; what has passed counts as it was.
pub(crate) fn total_steps(duration_s: f64, step_times_s: &[f64]) -> u64 {
    let done = step_times_s.len() as u64;
    let spent: f64 = step_times_s.iter().sum();
    let mut settled: Vec<f64> = step_times_s.iter().skip(SETTLING_STEPS).copied().collect();
    settled.sort_by(f64::total_cmp);
    let Some(median) = settled.get(settled.len() / 2).filter(|median| **median > 0.0) else {
        return done.max(1);
    };
    let left = (duration_s * PLANNED_PART - spent).max(0.0) / median;
    done + left as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_decides_and_a_slow_start_counts_as_spent() {
        let mut times = vec![0.125; 20];
        times[0] = 2.0;
        // 100 s * 0.96 = 96 s, 4.375 s spent, 733 more steps of an eighth of a second.
        assert_eq!(total_steps(100.0, &times), 20 + 733);
        assert_eq!(total_steps(1.0, &times), 20);
        assert_eq!(total_steps(1.0, &[]), 1);
    }
}
