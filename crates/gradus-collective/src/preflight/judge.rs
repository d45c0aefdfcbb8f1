//! Which links and ranks stand out: a pure function of what was measured.
//!
//! What is usual is not known beforehand, so links are held against others of their kind: inside hosts, or between them.
//! The median of all links would not do: one bad host spoils two of the three links that three hosts have. Therefore each
//! rank counts with its *best* link, of which a bad one elsewhere takes nothing away, and the usual figure is the median of
//! these. A rank most of whose links are bad is named instead of the links.

use super::{Pair, Survey};
use serde::{Deserialize, Serialize};

/// How far from the usual is bad.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// A link with less than this share of the usual bandwidth is slow. Half: what a card that has fallen back to its next lower
    /// speed, or a path that is shared by two, loses at least; below what noise takes from the best of several tries.
    pub bandwidth_share: f64,
    /// A link whose round trip takes more than so many times the usual is far. Four: a further switch or another rack takes less
    /// than twice, another site or a path through a processor that sleeps takes more.
    pub latency_factor: f64,
    /// And it must take so much more, microseconds: schedulers and interrupts alone take some tens.
    pub latency_slack_us: f64,
    /// A host whose clock is further than this from the median, milliseconds, keeps no common time: NTP keeps hosts within a few.
    pub clock_apart_ms: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bandwidth_share: 0.5, latency_factor: 4.0, latency_slack_us: 50.0, clock_apart_ms: 100.0 }
    }
}

/// What links of a kind usually have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// Whether these are links inside hosts, or between them.
    pub inside: bool,
    /// A round trip, microseconds.
    pub round_trip_us: f64,
    /// Bandwidth one way.
    pub bytes_per_s: f64,
}

/// What stands out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A link has too little bandwidth, one way.
    Slow {
        /// From whom.
        from: usize,
        /// To whom.
        to: usize,
        /// What it has.
        bytes_per_s: f64,
        /// What is usual.
        usual_bytes_per_s: f64,
    },
    /// A link takes too long.
    Far {
        /// Between whom.
        one: usize,
        /// And whom.
        other: usize,
        /// What a round trip takes.
        round_trip_us: f64,
        /// What is usual.
        usual_round_trip_us: f64,
    },
    /// More than half of a rank's links of one kind are slow or far.
    Rank {
        /// Which.
        rank: usize,
        /// Whether these are links inside its host.
        inside: bool,
        /// How many of them.
        bad: usize,
        /// Out of how many.
        of: usize,
        /// The best bandwidth that it has one way, and what is usual.
        best_bytes_per_s: f64,
        /// What is usual.
        usual_bytes_per_s: f64,
        /// The shortest round trip that it has.
        best_round_trip_us: f64,
        /// What is usual.
        usual_round_trip_us: f64,
    },
    /// A host's clock is apart from the others'.
    Clock {
        /// The host's first rank.
        rank: usize,
        /// How far it is ahead, milliseconds; less than zero when it is behind.
        ahead_ms: f64,
        /// By how much that may be wrong.
        error_ms: f64,
    },
    /// The clocks of two hosts are apart, and no more hosts agree with the one than with the other.
    Clocks {
        /// The first rank of the host that is behind.
        behind: usize,
        /// The first rank of the host that is ahead.
        ahead: usize,
        /// How far they are apart, milliseconds.
        apart_ms: f64,
        /// By how much that may be wrong.
        error_ms: f64,
    },
}

/// What came of a survey.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What is usual, for each kind of links that there is.
    pub usual: Vec<Reference>,
    /// What is not.
    pub faults: Vec<Fault>,
}

/// Holds every link against the usual of its kind, and every clock against the others.
pub fn judge(survey: &Survey, limits: &Limits) -> Verdict {
    let mut verdict = Verdict { usual: Vec::new(), faults: Vec::new() };
    for inside in [true, false] {
        let of_kind = |pair: &&Pair| survey.is_inside(pair.one, pair.other) == inside;
        let links = Links { inside, pairs: survey.pairs.iter().filter(of_kind).collect() };
        if let Some(usual) = links.usual(survey.ranks.len()) {
            verdict.faults.extend(links.faults(&usual, limits, survey.ranks.len()));
            verdict.usual.push(usual);
        }
    }
    verdict.faults.extend(clocks(survey, limits));
    verdict
}

/// All links of a kind.
struct Links<'a> {
    inside: bool,
    pairs: Vec<&'a Pair>,
}

impl Links<'_> {
    fn of_rank(&self, rank: usize) -> impl Iterator<Item = &Pair> {
        self.pairs.iter().copied().filter(move |pair| [pair.one, pair.other].contains(&rank))
    }

    /// The best round trip and bandwidth of a rank; `None` if it has no link of this kind.
    fn best(&self, rank: usize) -> Option<(f64, f64)> {
        let round_trip = self.of_rank(rank).map(|pair| pair.round_trip_us).min_by(f64::total_cmp)?;
        let bandwidths = self.of_rank(rank).flat_map(|pair| [pair.there_bytes_per_s, pair.back_bytes_per_s]);
        Some((round_trip, bandwidths.max_by(f64::total_cmp)?))
    }

    fn usual(&self, world_size: usize) -> Option<Reference> {
        let (round_trips, bandwidths): (Vec<f64>, Vec<f64>) =
            (0..world_size).filter_map(|rank| self.best(rank)).unzip();
        let round_trip_us = better_median(round_trips, |a, b| a.total_cmp(b))?;
        let bytes_per_s = better_median(bandwidths, |a, b| b.total_cmp(a))?;
        Some(Reference { inside: self.inside, round_trip_us, bytes_per_s })
    }

    fn faults(&self, usual: &Reference, limits: &Limits, world_size: usize) -> Vec<Fault> {
        let blamed: Vec<usize> =
            (0..world_size).filter(|rank| self.is_blamed(*rank, usual, limits)).collect();
        let mut faults: Vec<Fault> =
            blamed.iter().filter_map(|rank| self.rank_fault(*rank, usual, limits)).collect();
        let unexplained = |pair: &&&Pair| !blamed.contains(&pair.one) && !blamed.contains(&pair.other);
        faults
            .extend(self.pairs.iter().filter(unexplained).flat_map(|pair| pair_faults(pair, usual, limits)));
        faults
    }

    fn count(&self, rank: usize, usual: &Reference, limits: &Limits) -> (usize, usize) {
        let bad = self.of_rank(rank).filter(|pair| !pair_faults(pair, usual, limits).is_empty());
        (bad.count(), self.of_rank(rank).count())
    }

    /// One link alone cannot tell which of its ends is to blame.
    fn is_blamed(&self, rank: usize, usual: &Reference, limits: &Limits) -> bool {
        let (bad, of) = self.count(rank, usual, limits);
        of >= 2 && bad * 2 > of
    }

    fn rank_fault(&self, rank: usize, usual: &Reference, limits: &Limits) -> Option<Fault> {
        let (bad, of) = self.count(rank, usual, limits);
        let (best_round_trip_us, best_bytes_per_s) = self.best(rank)?;
        Some(Fault::Rank {
            rank,
            inside: self.inside,
            bad,
            of,
            best_bytes_per_s,
            usual_bytes_per_s: usual.bytes_per_s,
            best_round_trip_us,
            usual_round_trip_us: usual.round_trip_us,
        })
    }
}

fn pair_faults(pair: &Pair, usual: &Reference, limits: &Limits) -> Vec<Fault> {
    let Pair { one, other, round_trip_us, there_bytes_per_s, back_bytes_per_s, .. } = *pair;
    let slow = |from, to, bytes_per_s| {
        let fault = Fault::Slow { from, to, bytes_per_s, usual_bytes_per_s: usual.bytes_per_s };
        (bytes_per_s < usual.bytes_per_s * limits.bandwidth_share).then_some(fault)
    };
    let most_us =
        (usual.round_trip_us * limits.latency_factor).max(usual.round_trip_us + limits.latency_slack_us);
    let far = Fault::Far { one, other, round_trip_us, usual_round_trip_us: usual.round_trip_us };
    let faults = [
        slow(one, other, there_bytes_per_s),
        slow(other, one, back_bytes_per_s),
        (round_trip_us > most_us).then_some(far),
    ];
    faults.into_iter().flatten().collect()
}

/// The clocks of hosts, each by its first rank, against their median; all are measured against rank 0's.
fn clocks(survey: &Survey, limits: &Limits) -> Vec<Fault> {
    let first_of_host = |rank: &usize| (0..*rank).all(|earlier| !survey.is_inside(earlier, *rank));
    let ahead_of_first = |rank: usize| match rank {
        0 => Some((0, 0.0, 0.0)),
        rank => {
            let pair = survey.pairs.iter().find(|pair| pair.one == 0 && pair.other == rank)?;
            Some((rank, pair.clock_ahead_ms, pair.clock_error_ms))
        }
    };
    let clocks: Vec<_> = (0..survey.ranks.len()).filter(first_of_host).filter_map(ahead_of_first).collect();
    against_median(&clocks, limits)
}

/// Which of some clocks (rank, how far ahead, how far that may be wrong) are apart from their median. Where most are not near it
/// nobody knows whose is wrong, and both are named.
fn against_median(clocks: &[(usize, f64, f64)], limits: &Limits) -> Vec<Fault> {
    let aheads = clocks.iter().map(|(_, ahead, _)| *ahead).collect();
    let Some(median) = better_median(aheads, |a, b| b.total_cmp(a)) else { return Vec::new() };
    let Some((usual, _, usual_error)) = clocks.iter().find(|(_, ahead, _)| *ahead == median) else {
        return Vec::new();
    };
    let is_apart =
        |clock: &&(usize, f64, f64)| (clock.1 - median).abs() > limits.clock_apart_ms + clock.2 + usual_error;
    let apart: Vec<_> = clocks.iter().filter(is_apart).collect();
    let is_majority = (clocks.len() - apart.len()) * 2 > clocks.len();
    let fault = |&(rank, ahead, error_ms): &(usize, f64, f64)| {
        let ahead_ms = ahead - median;
        let (behind, ahead) = if ahead_ms < 0.0 { (rank, *usual) } else { (*usual, rank) };
        let error = error_ms + usual_error;
        match is_majority {
            true => Fault::Clock { rank, ahead_ms, error_ms },
            false => Fault::Clocks { behind, ahead, apart_ms: ahead_ms.abs(), error_ms: error },
        }
    };
    apart.into_iter().map(fault).collect()
}

/// The median; of an even number the one of both in the middle that comes first by `order`.
fn better_median(mut values: Vec<f64>, order: impl Fn(&f64, &f64) -> std::cmp::Ordering) -> Option<f64> {
    values.sort_by(order);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
