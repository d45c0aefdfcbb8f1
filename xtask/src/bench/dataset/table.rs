//! Medians, ratios, and the tables that the measurement ends with.

use super::super::table::median;
use super::arms::{Arm, Engine, Scenario};
use super::process::{Epoch, Failure, Turn};
use super::sets::Set;
use serde_json::{Value, json};
use std::fmt::Write;

/// An arm in one case.
#[derive(Debug)]
pub struct Row {
    /// Which.
    pub arm: Arm,
    /// Workers or threads it ran with.
    pub workers: usize,
    /// Seconds of all epochs, by workers tried; empty where they were found in another case or given.
    pub tried: Vec<(usize, f64)>,
    /// One per round.
    pub turns: Vec<Turn>,
    /// A turn whose times do not count.
    pub watched: Option<Turn>,
    /// Why it has no figures.
    pub missing: Option<Failure>,
    /// What was wrong with what it read.
    pub wrong: Option<String>,
}

/// All arms over one set from one source.
#[derive(Debug)]
pub struct Case {
    /// From where.
    pub scenario: Scenario,
    /// What.
    pub set: Set,
    /// By whom.
    pub rows: Vec<Row>,
}

/// One arm over another in one epoch, round by round.
#[derive(Debug, PartialEq)]
pub struct Ratio {
    /// The other.
    pub over: &'static str,
    /// Median of the rounds' own ratios.
    pub median: f64,
}

impl Row {
    /// Whether it has what others can be held against.
    fn is_there(&self) -> bool {
        self.missing.is_none() && self.wrong.is_none() && !self.turns.is_empty()
    }

    fn epochs(&self, epoch: usize) -> impl Iterator<Item = &Epoch> {
        self.turns.iter().filter_map(move |turn| turn.epochs.get(epoch))
    }

    /// Samples per second of each round.
    fn speeds(&self, epoch: usize) -> Vec<f64> {
        self.epochs(epoch).map(|epoch| epoch.samples as f64 / epoch.seconds).collect()
    }

    fn over(&self, other: &Self, epoch: usize) -> Ratio {
        let (ours, theirs) = (self.speeds(epoch), other.speeds(epoch));
        let ratios = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
        Ratio { over: other.arm.name, median: median(ratios) }
    }

    /// Bytes that the server sent in the median round; `None` without a server.
    fn sent_bytes(&self, epoch: usize) -> Option<f64> {
        let sent: Vec<f64> = self.epochs(epoch).filter_map(|epoch| Some(epoch.sent_bytes? as f64)).collect();
        (!sent.is_empty()).then(|| median(sent))
    }
}

/// What is wrong with the epochs of `turn`; nothing, when each has every sample of the set and their sum.
pub fn wrong(turn: &Turn, set: &Set) -> Option<String> {
    let wrong = |epoch: &&Epoch| (epoch.samples, epoch.bytes, epoch.sum) != (set.samples, set.bytes, set.sum);
    let epoch = turn.epochs.iter().find(wrong)?;
    Some(format!(
        "{} samples of {} bytes, sum {}, where the set has {} of {}, sum {}",
        epoch.samples, epoch.bytes, epoch.sum, set.samples, set.bytes, set.sum
    ))
}

impl Case {
    /// `row` over the fastest peer in `epoch`.
    pub fn against_peer(&self, row: &Row, epoch: usize) -> Option<Ratio> {
        let peers = self.rows.iter().filter(|other| other.arm.is_peer() && other.is_there());
        let fastest = peers.max_by(|a, b| median(a.speeds(epoch)).total_cmp(&median(b.speeds(epoch))))?;
        (row.arm.is_ours() && row.is_there()).then(|| row.over(fastest, epoch))
    }

    /// `row` over plain reads of each number of threads in `epoch`.
    pub fn against_page_cache(&self, row: &Row, epoch: usize) -> Vec<Ratio> {
        let is_ceiling = |other: &&Row| other.arm.engine == Engine::PageCache && other.is_there();
        let ceilings = self.rows.iter().filter(is_ceiling).filter(|_| row.arm.is_ours() && row.is_there());
        ceilings.map(|ceiling| row.over(ceiling, epoch)).collect()
    }

    /// The table: a line for each arm, missing ones too, and below it the ratios of ours.
    pub fn render(&self) -> String {
        let mut text = format!(
            "\n{}, {} samples, {} MB\n{:<24} {:<7} {:>7}",
            self.scenario.name(),
            self.set.samples,
            self.set.bytes / 1_000_000,
            "samples/s (slowest-fastest)",
            "shuffle",
            "workers"
        );
        for epoch in 1..=self.scenario.epochs() {
            let _ = write!(text, " {:>22}", format!("epoch {epoch}"));
        }
        let _ = writeln!(text, " {:>7} {:>7}  MB sent", "own MB", "MB");
        for row in &self.rows {
            text.push_str(&self.line(row));
        }
        for row in &self.rows {
            text.push_str(&self.ratios(row));
        }
        text
    }

    fn line(&self, row: &Row) -> String {
        let name = row.arm.name;
        if let Some(failure) = &row.missing {
            return format!("{name:<27} {}\n", self.without_figures(failure));
        }
        if let Some(what) = &row.wrong {
            return format!("{name:<27} WRONG: {what}\n");
        }
        let mut text = format!("{name:<27} {:<7} {:>7}", row.arm.shuffle, row.workers);
        for epoch in 0..self.scenario.epochs() {
            let speeds = row.speeds(epoch);
            let slowest = speeds.iter().copied().fold(f64::NAN, f64::min);
            let fastest = speeds.iter().copied().fold(f64::NAN, f64::max);
            let figure = format!("{:.0} ({slowest:.0}-{fastest:.0})", median(speeds));
            let _ = write!(text, " {figure:>22}");
        }
        let memory = row.watched.as_ref().and_then(|turn| turn.memory);
        let megabytes =
            |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| (bytes / 1_000_000).to_string());
        let (own, whole) = (memory.map(|memory| memory.own), memory.map(|memory| memory.whole));
        let sent = (0..self.scenario.epochs()).filter_map(|epoch| row.sent_bytes(epoch));
        let sent: Vec<String> = sent.map(|bytes| format!("{:.0}", bytes / 1e6)).collect();
        let _ = writeln!(text, " {:>7} {:>7}  {}", megabytes(own), megabytes(whole), sent.join(" + "));
        text
    }

    fn without_figures(&self, failure: &Failure) -> String {
        match failure {
            Failure::Broken(reason) => format!("missing: {reason}"),
            Failure::Slow(patience) => {
                let fewer = self.set.samples as f64 / patience.as_secs_f64();
                format!("given up: an epoch takes more than {} s, < {fewer:.0}", patience.as_secs())
            }
        }
    }

    /// Of an arm of ours, a line for each epoch.
    fn ratios(&self, row: &Row) -> String {
        let mut text = String::new();
        for epoch in 0..self.scenario.epochs() {
            let held = self.against_peer(row, epoch).into_iter().chain(self.against_page_cache(row, epoch));
            let held: Vec<String> =
                held.map(|ratio| format!("{:.2} of {}", ratio.median, ratio.over)).collect();
            if !held.is_empty() {
                let _ = writeln!(text, "{}, epoch {}: {}", row.arm.name, epoch + 1, held.join("; "));
            }
        }
        text
    }

    /// The same as data, with every answer.
    pub fn as_json(&self) -> Value {
        json!({
            "scenario": self.scenario.name(),
            "samples": self.set.samples,
            "bytes": self.set.bytes,
            "sum": self.set.sum,
            "made_with": self.set.facts,
            "cache_bytes": self.scenario.cache_bytes(&self.set),
            "latency_ms": self.scenario.latency_ms(),
            "arms": self.rows.iter().map(|row| self.row_as_json(row)).collect::<Vec<_>>(),
        })
    }

    fn row_as_json(&self, row: &Row) -> Value {
        let ratio = |ratio: Ratio| json!({ "over": ratio.over, "median": ratio.median });
        let epoch = |epoch: usize| {
            json!({
                "median_samples_per_s": median(row.speeds(epoch)),
                "median_sent_bytes": row.sent_bytes(epoch),
                "against_peer": self.against_peer(row, epoch).map(ratio),
                "against_page_cache":
                    self.against_page_cache(row, epoch).into_iter().map(ratio).collect::<Vec<_>>(),
            })
        };
        let epochs: Vec<Value> = (0..self.scenario.epochs()).map(epoch).collect();
        let memory = row.watched.as_ref().and_then(|turn| turn.memory);
        json!({
            "arm": row.arm.name,
            "shuffle": row.arm.shuffle,
            "workers": row.workers,
            "seconds_by_workers_tried": row.tried,
            "missing": row.missing.as_ref().map(|failure| self.without_figures(failure)),
            "wrong": row.wrong,
            "epochs": epochs,
            "own_bytes": memory.map(|memory| memory.own),
            "whole_bytes": memory.map(|memory| memory.whole),
            "rounds": row.turns.iter().map(turn_as_json).collect::<Vec<_>>(),
        })
    }
}

fn turn_as_json(turn: &Turn) -> Value {
    let epoch = |epoch: &Epoch| json!({ "answer": epoch.answer, "sent_bytes": epoch.sent_bytes });
    turn.epochs.iter().map(epoch).collect()
}

#[cfg(test)]
mod tests {
    use super::super::arms::ARMS;
    use super::*;
    use std::path::PathBuf;
    use std::time::Duration;

    fn epoch(seconds: f64, sent_bytes: Option<u64>) -> Epoch {
        Epoch { seconds, samples: 100, bytes: 800, sum: 9, sent_bytes, answer: Value::Null }
    }

    fn row(name: &str, rounds: &[f64]) -> Row {
        let arm = *ARMS.iter().find(|arm| arm.name == name).unwrap();
        let turn = |seconds: &f64| Turn {
            epochs: vec![epoch(*seconds, Some(4_000_000)), epoch(seconds / 2.0, Some(0))],
            memory: None,
        };
        let turns = rounds.iter().map(turn).collect();
        Row { arm, workers: 1, tried: Vec::new(), turns, watched: None, missing: None, wrong: None }
    }

    fn case(rows: Vec<Row>) -> Case {
        let (folder, facts) = (PathBuf::new(), Value::Null);
        let set = Set { folder, samples: 100, bytes: 800, sum: 9, facts };
        Case { scenario: Scenario::S3, set, rows }
    }

    #[test]
    fn ratios_are_taken_round_by_round_against_the_fastest_peer_that_is_right() {
        let mut torch = row("torch", &[0.01, 0.01, 0.01]);
        torch.wrong = Some("a sum".to_owned());
        let rows = vec![
            row("gradus whole", &[1.0, 2.0, 4.0]),
            row("litdata", &[2.0, 2.0, 12.0]),
            row("streaming", &[9.0, 9.0, 9.0]),
            torch,
            row("page cache, 1 thread", &[0.5, 0.5, 2.0]),
        ];
        let case = case(rows);
        let ours = &case.rows[0];
        assert_eq!(case.against_peer(ours, 0), Some(Ratio { over: "litdata", median: 2.0 }));
        let ceiling = Ratio { over: "page cache, 1 thread", median: 0.5 };
        assert_eq!(case.against_page_cache(ours, 1), [ceiling]);
        assert_eq!(case.against_peer(&case.rows[1], 0), None);
        let text = case.render();
        assert!(
            text.contains("gradus whole, epoch 1: 2.00 of litdata; 0.50 of page cache, 1 thread\n"),
            "{text}"
        );
        assert!(text.contains("WRONG: a sum") && text.contains("4 + 0\n"), "{text}");
    }

    #[test]
    fn an_arm_without_figures_keeps_its_line() {
        let mut ours = row("gradus blocks", &[]);
        ours.missing = Some(Failure::Broken("no such command".to_owned()));
        let mut slow = row("streaming", &[]);
        slow.missing = Some(Failure::Slow(Duration::from_secs(20)));
        let text = case(vec![ours, row("litdata", &[1.0]), slow]).render();
        assert!(text.contains("given up: an epoch takes more than 20 s, < 5\n"), "{text}");
        assert!(text.contains("gradus blocks               missing: no such command\n"), "{text}");
        assert!(!text.contains("epoch 1:"), "{text}");
    }

    #[test]
    fn an_epoch_that_lacks_a_sample_or_has_another_sum_is_wrong() {
        let case = case(Vec::new());
        let mut turn = Turn { epochs: vec![epoch(1.0, None), epoch(1.0, None)], memory: None };
        assert_eq!(wrong(&turn, &case.set), None);
        turn.epochs[1].sum = 8;
        assert!(wrong(&turn, &case.set).is_some_and(|what| what.contains("sum 8")));
        turn.epochs[1].sum = 9;
        turn.epochs[0].samples = 99;
        assert!(wrong(&turn, &case.set).is_some());
    }
}
