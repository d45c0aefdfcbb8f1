//! From times of messages to figures of links.

use crate::cost::{Link, LinkFigures};
use gradus_error::{Error, Result};

/// How long something of that many bytes took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Bytes.
    pub bytes: u64,
    /// Seconds.
    pub seconds: f64,
}

/// What was measured; a level that was not is empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measurements {
    /// One way between two ranks of a node: half of a round trip.
    pub inside: Vec<Sample>,
    /// The same between two nodes.
    pub across: Vec<Sample>,
    /// Adding bytes to others, on one rank.
    pub adding: Vec<Sample>,
}

/// Figures of links from what was measured. What one pair of ranks cannot tell is assumed: that it fills its node's network
/// card, that the memory bus has no limit, and that a message's overhead is part of its latency. A level that was not
/// measured is taken to be like the other one; where neither was, like the default.
///
/// # Errors
/// Those of [`fit_link`], naming the level.
pub fn fit(measurements: &Measurements) -> Result<LinkFigures> {
    let Measurements { inside, across, adding } = measurements;
    let of = |what: &str, samples: &[Sample]| {
        let link = (!samples.is_empty()).then(|| fit_link(samples)).transpose();
        link.map_err(|error| error.within(what))
    };
    let default = LinkFigures::default();
    let (near, far) = (of("links inside nodes", inside)?, of("links between nodes", across)?);
    let added = of("adding", adding)?;
    let far_bandwidth = far.map(|link| link.bandwidth_bytes_per_s);
    let figures = LinkFigures {
        inside: near.or(far).unwrap_or(default.inside),
        across: far.or(near).unwrap_or(default.across),
        reduction_bytes_per_s: added.map_or(default.reduction_bytes_per_s, |link| link.bandwidth_bytes_per_s),
        nic_bytes_per_s: far_bandwidth,
        bus_bytes_per_s: None,
        ..default
    };
    figures.validate()?;
    Ok(figures)
}

/// Latency and bandwidth of a link: the line through the fastest sample of each size that errs least, each error in parts
/// of its sample (Hockney, "The communication challenge for MPP", Parallel Computing 1994, has the model). The fastest,
/// because what else a machine does only ever adds; for the same reason a message counts as no slower than larger ones
/// were. Where that leaves no latency to be seen, or nothing but latency, all time is taken for bandwidth.
///
/// # Errors
/// `Invalid` for fewer than two sizes, or times that no link has.
pub fn fit_link(samples: &[Sample]) -> Result<Link> {
    let points = fastest(samples)?;
    if points.len() < 2 {
        return Err(Error::invalid("times of two sizes at least are needed to tell latency from bandwidth"));
    }
    let (alpha, beta) = match line(&points) {
        (alpha, beta) if alpha >= 0.0 && beta > 0.0 => (alpha, beta),
        _ => (0.0, slope(&points)),
    };
    let bandwidth_bytes_per_s = 1.0 / beta;
    if !(bandwidth_bytes_per_s > 0.0 && bandwidth_bytes_per_s.is_finite() && alpha.is_finite()) {
        return Err(Error::invalid(format!("{beta} s a byte: no link is like that, measure again")));
    }
    Ok(Link { latency_us: alpha * 1e6, bandwidth_bytes_per_s, message_overhead_us: 0.0 })
}

/// The fastest of each size and all larger ones, by size.
fn fastest(samples: &[Sample]) -> Result<Vec<Sample>> {
    if let Some(wrong) = samples.iter().find(|sample| !(sample.seconds > 0.0 && sample.seconds.is_finite())) {
        return Err(Error::invalid(format!(
            "{} bytes took {} s, which is no time",
            wrong.bytes, wrong.seconds
        )));
    }
    let mut sorted = samples.to_vec();
    sorted.sort_by(|one, other| one.bytes.cmp(&other.bytes).then(one.seconds.total_cmp(&other.seconds)));
    sorted.dedup_by_key(|sample| sample.bytes);
    let mut least = f64::INFINITY;
    for sample in sorted.iter_mut().rev() {
        least = least.min(sample.seconds);
        sample.seconds = least;
    }
    Ok(sorted)
}

/// Start and slope by least squares, each point weighted by one over its time squared.
fn line(points: &[Sample]) -> (f64, f64) {
    let [mut w, mut wx, mut wt, mut wxx, mut wxt] = [0.0; 5];
    for Sample { bytes, seconds } in points {
        let (x, weight) = (*bytes as f64, seconds.powi(-2));
        w += weight;
        wx += weight * x;
        wt += weight * seconds;
        wxx += weight * x * x;
        wxt += weight * x * seconds;
    }
    let beta = (w * wxt - wx * wt) / (w * wxx - wx * wx);
    ((wt - beta * wx) / w, beta)
}

/// The slope of the line through the origin, with the same weights.
fn slope(points: &[Sample]) -> f64 {
    let ratio = |sample: &Sample| sample.bytes as f64 / sample.seconds;
    points.iter().map(ratio).sum::<f64>() / points.iter().map(|sample| ratio(sample).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn samples(alpha: f64, beta: f64, noise: &[f64]) -> Vec<Sample> {
        let sizes = [8u64, 1 << 10, 1 << 14, 1 << 18, 1 << 22];
        let time =
            |bytes: u64, noise: f64| Sample { bytes, seconds: (alpha + bytes as f64 * beta) * (1.0 + noise) };
        noise.iter().flat_map(|noise| sizes.map(|bytes| time(bytes, *noise))).collect()
    }

    #[test]
    fn a_link_is_found_beneath_what_else_goes_on() {
        let link = fit_link(&samples(3e-6, 0.2e-9, &[0.8, 0.0, 3.0])).unwrap();
        assert!(
            (link.latency_us - 3.0).abs() < 1e-6 && (link.bandwidth_bytes_per_s - 5e9).abs() < 1.0,
            "{link:?}"
        );
    }

    #[test]
    fn what_tells_nothing_is_refused() {
        let sample = |bytes, seconds| Sample { bytes, seconds };
        for bad in [
            vec![],
            vec![sample(8, 1.0), sample(8, 2.0)],
            vec![sample(8, 1.0), sample(9, f64::NAN)],
            vec![sample(8, 1.0), sample(9, 0.0)],
            vec![sample(0, 1e-320), sample(u64::MAX, 1e-320)],
        ] {
            assert_eq!(*fit_link(&bad).unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn small_messages_that_were_held_up_tell_nothing() {
        let sample = |bytes, seconds| Sample { bytes, seconds };
        let link = fit_link(&[sample(8, 2.0), sample(1 << 10, 3.0), sample(1 << 20, 1.0)]).unwrap();
        assert_eq!(link.latency_us, 0.0);
        assert!((link.bandwidth_bytes_per_s / f64::from(1 << 20) - 1.0).abs() < 0.01, "{link:?}");
    }

    #[test]
    fn levels_that_were_not_measured_are_like_the_other_or_the_default() {
        assert_eq!(fit(&Measurements::default()).unwrap().inside, LinkFigures::default().inside);
        let inside = samples(2e-6, 1e-9, &[0.0]);
        let figures = fit(&Measurements { inside, ..Measurements::default() }).unwrap();
        assert_eq!(figures.inside, figures.across);
        assert_eq!(figures.nic_bytes_per_s, None);
    }

    proptest! {
        #[test]
        fn any_link_is_found(alpha in 0.0f64..1e-3, bandwidth in 1e6f64..1e12) {
            let link = fit_link(&samples(alpha, 1.0 / bandwidth, &[0.0])).unwrap();
            prop_assert!((link.bandwidth_bytes_per_s / bandwidth - 1.0).abs() < 1e-3);
            prop_assert!((link.latency_us - alpha * 1e6).abs() < 1e-3 + alpha * 1e3);
        }

        #[test]
        fn no_samples_panic(times in proptest::collection::vec((any::<u64>(), any::<f64>()), 0..6)) {
            let samples: Vec<Sample> = times.iter().map(|(bytes, seconds)| Sample { bytes: *bytes, seconds: *seconds }).collect();
            if let Ok(link) = fit_link(&samples) {
                prop_assert!(link.bandwidth_bytes_per_s > 0.0 && link.latency_us >= 0.0);
            }
        }
    }
}
