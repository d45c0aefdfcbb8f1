//! Points made ready for drawing: what is not finite left out, long series thinned, noise smoothed.

/// A point of a curve.
pub type Point = (f64, f64);

/// A thinned curve has at most four points in each of as many buckets as a figure has room for.
const BUCKETS: usize = 400;

/// The window of the smoothed curve is this part of the whole curve.
const WINDOW_SHARE: f64 = 1.0 / 40.0;

/// Runs of points that follow one another, parted where a value is not finite.
pub fn finite_runs(points: &[Point]) -> Vec<Vec<Point>> {
    let is_finite = |point: &Point| point.0.is_finite() && point.1.is_finite();
    let runs = points.split(|point| !is_finite(point)).filter(|run| !run.is_empty());
    runs.map(<[Point]>::to_vec).collect()
}

/// The same curve to the eye: of each bucket its first, lowest, highest and last point, in their order.
pub fn thinned(points: &[Point]) -> Vec<Point> {
    if points.len() <= BUCKETS * 4 {
        return points.to_vec();
    }
    points.chunks(points.len().div_ceil(BUCKETS)).flat_map(corners).collect()
}

fn corners(bucket: &[Point]) -> Vec<Point> {
    let by_value = |a: &usize, b: &usize| bucket[*a].1.total_cmp(&bucket[*b].1);
    let lowest = (0..bucket.len()).min_by(by_value).unwrap_or(0);
    let highest = (0..bucket.len()).max_by(by_value).unwrap_or(0);
    let mut kept = [0, lowest, highest, bucket.len() - 1];
    kept.sort_unstable();
    let mut corners: Vec<_> = kept.iter().map(|index| bucket[*index]).collect();
    corners.dedup();
    corners
}

/// The mean of the finite values around each point, from as far before it as behind it, so that the curve does not lag.
/// The window grows to a share of the whole curve; it starts at nothing, so that steep first steps stay steep.
pub fn smoothed(points: &[Point]) -> Vec<Point> {
    let finite: Vec<Point> = points.iter().copied().filter(|point| point.1.is_finite()).collect();
    let mut sums = vec![0.0];
    sums.extend(finite.iter().scan(0.0, |sum, point| {
        *sum += point.1;
        Some(*sum)
    }));
    let widest = (finite.len() as f64 * WINDOW_SHARE / 2.0) as usize;
    let mean = |(index, point): (usize, &Point)| {
        let half = widest.min(index / 8);
        let (from, to) = (index - half, (index + half + 1).min(finite.len()));
        (point.0, (sums[to] - sums[from]) / (to - from) as f64)
    };
    finite.iter().enumerate().map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_finite_parts_a_curve() {
        let points = [(0.0, f64::NAN), (1.0, 1.0), (2.0, 2.0), (3.0, f64::INFINITY), (4.0, 4.0)];
        assert_eq!(finite_runs(&points), [vec![(1.0, 1.0), (2.0, 2.0)], vec![(4.0, 4.0)]]);
        assert_eq!(smoothed(&points).len(), 3);
        assert!(finite_runs(&[]).is_empty());
    }

    #[test]
    fn smoothing_follows_a_constant_and_calms_noise() {
        let noisy: Vec<Point> = (0..1000).map(|i| (f64::from(i), 3.0 + f64::from(i % 2) - 0.5)).collect();
        let smooth = smoothed(&noisy);
        assert_eq!((smooth.len(), smooth[0]), (1000, noisy[0]));
        let last = smooth[999].1;
        // The last window has 13 values, of which one more is on one side.
        assert!((last - 3.0).abs() <= 0.5 / 13.0 + 1e-9, "{last}");
    }

    proptest! {
        #[test]
        fn thinning_keeps_the_extremes_and_the_ends(values in proptest::collection::vec(-1e3..1e3f64, 1..5000)) {
            let points: Vec<Point> = values.iter().enumerate().map(|(i, y)| (i as f64, *y)).collect();
            let thin = thinned(&points);
            let extremes = |points: &[Point]| {
                let ys = points.iter().map(|point| point.1);
                (ys.clone().fold(f64::INFINITY, f64::min), ys.fold(f64::NEG_INFINITY, f64::max))
            };
            prop_assert!(thin.len() <= BUCKETS * 4);
            prop_assert_eq!(extremes(&thin), extremes(&points));
            prop_assert_eq!((thin.first(), thin.last()), (points.first(), points.last()));
            prop_assert!(thin.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }
}
