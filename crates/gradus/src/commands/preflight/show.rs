//! What was measured, for a person.

use crate::wording::{brief, counted, printable, ranks_in_words, rate};
use gradus_collective::preflight::{Fault, Pair, Reference, Survey, Verdict};
use std::collections::BTreeSet;

/// Rows of a table that a person still reads; of more pairs the slowest are shown.
const MOST_ROWS: usize = 66;

/// The lines.
pub(super) fn table(survey: &Survey, verdict: &Verdict, transport: &str) -> Vec<String> {
    let mut lines = vec![heading(survey, transport)];
    lines.extend((0..survey.ranks.len()).map(|rank| format!("  {}", seated(survey, rank))));
    lines.extend(verdict.usual.iter().map(usual));
    lines.push(String::new());
    lines.extend(rows(survey));
    lines.push(String::new());
    lines.extend(conclusion(survey, verdict));
    lines
}

fn hosts(survey: &Survey) -> u64 {
    survey.ranks.iter().map(|seated| seated.host_mark).collect::<BTreeSet<_>>().len() as u64
}

fn heading(survey: &Survey, transport: &str) -> String {
    let on = counted(hosts(survey), "host");
    format!(
        "{} on {on}, {}",
        ranks_in_words(survey.ranks.len(), transport),
        counted(survey.pairs.len() as u64, "pair")
    )
}

fn seated(survey: &Survey, rank: usize) -> String {
    let seat = &survey.ranks[rank];
    printable(format!("rank {rank}: {} {}", seat.host, seat.address).trim_end())
}

fn usual(usual: &Reference) -> String {
    let place = if usual.inside { "inside hosts" } else { "between hosts" };
    let (time, one_way) = (brief(usual.round_trip_us / 1e6), rate(usual.bytes_per_s));
    format!("  usual {place}: {time} a round trip, {one_way} one way")
}

fn rows(survey: &Survey) -> Vec<String> {
    let mut pairs: Vec<&Pair> = survey.pairs.iter().collect();
    let slowest = |pair: &Pair| pair.there_bytes_per_s.min(pair.back_bytes_per_s);
    let left_out = pairs.len().saturating_sub(MOST_ROWS);
    if left_out > 0 {
        pairs.sort_by(|a, b| slowest(a).total_cmp(&slowest(b)));
        pairs.truncate(MOST_ROWS);
    }
    let mut lines = vec![format!(
        "  {:<11} {:>10} {:>10} {:>10} {:>12}",
        "ranks", "round trip", "there", "back", "clock"
    )];
    lines.extend(pairs.into_iter().map(row));
    if left_out > 0 {
        lines
            .push(format!("  {}: faster than these; --json has them", counted(left_out as u64, "more pair")));
    }
    lines
}

fn row(pair: &Pair) -> String {
    let ranks = format!("{} - {}", pair.one, pair.other);
    let clock = format!("{:+.3}ms", pair.clock_ahead_ms);
    let [there, back] = [pair.there_bytes_per_s, pair.back_bytes_per_s].map(rate);
    format!("  {ranks:<11} {:>10} {there:>10} {back:>10} {clock:>12}", brief(pair.round_trip_us / 1e6))
}

fn conclusion(survey: &Survey, verdict: &Verdict) -> Vec<String> {
    if verdict.faults.is_empty() {
        let links = counted(survey.pairs.len() as u64, "link");
        return vec![format!(
            "good: of {links} and the clocks of {} none stands out",
            counted(hosts(survey), "host")
        )];
    }
    verdict.faults.iter().map(|fault| format!("bad: {}", describe(survey, fault))).collect()
}

fn describe(survey: &Survey, fault: &Fault) -> String {
    let named = |rank: usize| seated(survey, rank);
    match *fault {
        Fault::Slow { from, to, bytes_per_s, usual_bytes_per_s } => format!(
            "{} to {}: {}, usual is {}",
            named(from),
            named(to),
            rate(bytes_per_s),
            rate(usual_bytes_per_s)
        ),
        Fault::Far { one, other, round_trip_us, usual_round_trip_us } => format!(
            "{} and {}: {} a round trip, usual is {}",
            named(one),
            named(other),
            brief(round_trip_us / 1e6),
            brief(usual_round_trip_us / 1e6)
        ),
        Fault::Rank {
            rank,
            inside,
            bad,
            of,
            best_bytes_per_s,
            usual_bytes_per_s,
            best_round_trip_us,
            usual_round_trip_us,
        } => format!(
            "{}: {bad} of its {of} links {} are slow or far, the best {} and {} a round trip; usual are {} and {}",
            named(rank),
            if inside { "inside its host" } else { "to other hosts" },
            rate(best_bytes_per_s),
            brief(best_round_trip_us / 1e6),
            rate(usual_bytes_per_s),
            brief(usual_round_trip_us / 1e6)
        ),
        Fault::Clock { rank, ahead_ms, error_ms } => format!(
            "{}: its clock is {:.1} ms {} most others' (to {error_ms:.1} ms)",
            named(rank),
            ahead_ms.abs(),
            if ahead_ms < 0.0 { "behind" } else { "ahead of" }
        ),
        Fault::Clocks { behind, ahead, apart_ms, error_ms } => format!(
            "{} and {}: their clocks are {apart_ms:.1} ms apart (to {error_ms:.1} ms), the second is ahead; too few hosts to \
             tell which is wrong",
            named(behind),
            named(ahead)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_collective::preflight::{Limits, Seated, judge};

    fn survey(count: usize) -> Survey {
        let ranks = (0..count as u64).map(|host_mark| Seated {
            host_mark,
            host: format!("node{host_mark}\x1b[2J"),
            address: "10.0.0.1:5".into(),
        });
        let pair = |one: usize, other: usize| Pair {
            one,
            other,
            round_trip_us: 80.0,
            there_bytes_per_s: 1e9 + other as f64,
            back_bytes_per_s: 1e9,
            clock_ahead_ms: -0.25,
            clock_error_ms: 0.04,
        };
        let pairs = (0..count).flat_map(|one| (one + 1..count).map(move |other| pair(one, other)));
        Survey { pairs: pairs.collect(), ranks: ranks.collect() }
    }

    fn text(survey: &Survey) -> String {
        table(survey, &judge(survey, &Limits::default()), "tcp").join("\n")
    }

    #[test]
    fn a_good_world_reads_well() {
        let text = text(&survey(2));
        assert!(text.starts_with("2 ranks over TCP on 2 hosts, 1 pair\n  rank 0: node0"), "{text}");
        assert!(text.contains("  usual between hosts: 80.0us a round trip, 1.00GB/s one way"), "{text}");
        assert!(text.contains("  0 - 1           80.0us   1.00GB/s   1.00GB/s     -0.250ms"), "{text}");
        assert!(text.ends_with("good: of 1 link and the clocks of 2 hosts none stands out"), "{text}");
        assert!(!text.contains('\x1b'), "what others call themselves moves no cursor");
    }

    #[test]
    fn what_is_bad_is_named_with_its_host() {
        let mut slow = survey(4);
        slow.pairs[0].there_bytes_per_s = 1e8;
        slow.pairs[5].round_trip_us = 2000.0;
        slow.pairs[1].clock_ahead_ms = 400.0;
        let text = text(&slow);
        for named in [
            "10.0.0.1:5: 100MB/s, usual is 1.00GB/s",
            "2.00ms a round trip, usual is 80.0us",
            "its clock is 400.0 ms ahead of most others'",
        ] {
            assert!(text.contains(named), "{named:?} in {text}");
        }
    }

    #[test]
    fn of_many_pairs_the_slowest_are_shown() {
        let mut many = survey(20);
        let last = many.pairs.len() - 1;
        many.pairs[last].back_bytes_per_s = 9e8;
        let text = text(&many);
        assert!(text.contains("  18 - 19 ") && text.contains("124 more pairs: faster"), "{text}");
    }
}
