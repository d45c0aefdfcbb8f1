//! Who waits for whom: several ranks' records, laid side by side.
//!
//! A rank waits in its oldest operation of each priority that is not over, for those whose messages it lacks and for those
//! who do not take its own. Followed from rank to rank, waiting ends at the culprits: ranks that wait for nobody, because
//! they are gone, have left no record, or are busy elsewhere. Where it ends nowhere, ranks wait in a circle.

use super::log::{FlightEntry, FlightLog};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What is known of the one who is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Its record is not there.
    NoRecord,
    /// It has not started that operation.
    NeverCame,
    /// It is in that operation too.
    InIt,
    /// For it that operation is over.
    IsDone,
    /// It does something else in that operation's place.
    DoesOther(String),
}

/// One rank waits for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// Who waits.
    pub rank: usize,
    /// In what.
    pub what: String,
    /// For whom.
    pub on: usize,
    /// And what that one does.
    pub why: Why,
}

/// What records tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Analysis {
    /// What each rank with a record is in, and what it has failed with.
    pub ranks: BTreeMap<usize, (Option<String>, Option<String>)>,
    /// Ranks whose record is not there.
    pub missing: BTreeSet<usize>,
    /// Who waits for whom.
    pub waits: Vec<Wait>,
    /// Those for whom others wait and who wait for nobody.
    pub culprits: BTreeSet<usize>,
    /// Ranks that wait in a circle, when nobody is a culprit.
    pub circle: BTreeSet<usize>,
}

/// The operations that a rank is in, one at each level of priority, the most urgent first.
fn current(log: &FlightLog) -> impl Iterator<Item = &FlightEntry> {
    let mut oldest: BTreeMap<usize, &FlightEntry> = BTreeMap::new();
    for entry in log.operations.iter().filter(|entry| entry.done_us.is_none()) {
        oldest.entry(entry.level).or_insert(entry);
    }
    oldest.into_values().rev()
}

fn same_place(a: &FlightEntry, b: &FlightEntry) -> bool {
    (a.group, a.message, a.sequence) == (b.group, b.message, b.sequence)
}

fn why(entry: &FlightEntry, peer: Option<&FlightLog>) -> Why {
    let Some(log) = peer else { return Why::NoRecord };
    match log.operations.iter().rev().find(|other| same_place(entry, other)) {
        Some(other) if other.what != entry.what => Why::DoesOther(other.what.clone()),
        Some(other) if other.done_us.is_some() => Why::IsDone,
        Some(_) => Why::InIt,
        // What was forgotten was over long ago.
        None if log.operations.first().is_some_and(|first| log.forgotten > 0 && is_older(entry, first)) => {
            Why::IsDone
        }
        None => Why::NeverCame,
    }
}

fn is_older(entry: &FlightEntry, first: &FlightEntry) -> bool {
    (entry.group, entry.message) == (first.group, first.message) && entry.sequence < first.sequence
}

/// Lays records side by side.
pub fn analyse(logs: &[FlightLog]) -> Analysis {
    let by_rank: BTreeMap<usize, &FlightLog> = logs.iter().map(|log| (log.rank, log)).collect();
    let world_size = logs.iter().flat_map(|log| log.operations.iter().flat_map(|entry| &entry.ranks));
    let ranks: BTreeSet<usize> = world_size.copied().chain(by_rank.keys().copied()).collect();
    let mut analysis = Analysis {
        missing: ranks.into_iter().filter(|rank| !by_rank.contains_key(rank)).collect(),
        ..Analysis::default()
    };
    for (rank, log) in &by_rank {
        let doing: Vec<&str> = current(log).map(|entry| entry.what.as_str()).collect();
        let doing = (!doing.is_empty()).then(|| doing.join(" and in "));
        analysis.ranks.insert(*rank, (doing, log.failure.clone()));
        analysis.waits.extend(current(log).flat_map(|entry| waits(*rank, entry, &by_rank)));
    }
    analysis.blame();
    analysis
}

fn waits(rank: usize, entry: &FlightEntry, by_rank: &BTreeMap<usize, &FlightLog>) -> Vec<Wait> {
    let wait = |on: usize| {
        let why = why(entry, by_rank.get(&on).copied());
        Wait { rank, what: entry.what.clone(), on, why }
    };
    let lacking = |awaited: bool| {
        let peers = entry.peers.iter();
        peers
            .filter(move |peer| if awaited { peer.awaited > 0 } else { peer.leaving > 0 })
            .map(|peer| peer.rank)
    };
    // Who lacks a message is not held up by one that has not left yet: that may be the same wait, seen from behind.
    let mut on: Vec<usize> = lacking(true).collect();
    if on.is_empty() {
        on.extend(lacking(false));
    }
    on.into_iter().map(wait).collect()
}

impl Analysis {
    /// Finds the ends of waiting.
    fn blame(&mut self) {
        let waiting: BTreeSet<usize> = self.waits.iter().map(|wait| wait.rank).collect();
        let awaited: BTreeSet<usize> = self.waits.iter().map(|wait| wait.on).collect();
        self.culprits = awaited.difference(&waiting).copied().collect();
        let others = self.waits.iter().filter(|wait| matches!(wait.why, Why::DoesOther(_)));
        let disagreeing: Vec<usize> = others.flat_map(|wait| [wait.rank, wait.on]).collect();
        self.culprits.extend(disagreeing);
        if self.culprits.is_empty() {
            self.circle = self.in_circles(&waiting);
        }
    }

    /// The ranks from which waiting leads back to themselves.
    fn in_circles(&self, waiting: &BTreeSet<usize>) -> BTreeSet<usize> {
        waiting.iter().copied().filter(|rank| self.reached_from(*rank).contains(rank)).collect()
    }

    fn reached_from(&self, rank: usize) -> BTreeSet<usize> {
        let (mut reached, mut open) = (BTreeSet::new(), vec![rank]);
        while let Some(from) = open.pop() {
            let next = self.waits.iter().filter(|wait| wait.rank == from).map(|wait| wait.on);
            open.extend(next.filter(|on| reached.insert(*on)));
        }
        reached
    }
}

fn listed(ranks: &BTreeSet<usize>) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, what, on, why } = self;
        write!(f, "rank {rank} waits for rank {on} in {what}: rank {on} ")?;
        match why {
            Why::NoRecord => f.write_str("has left no record"),
            Why::NeverCame => f.write_str("never came to it"),
            Why::InIt => f.write_str("is in it too"),
            Why::IsDone => f.write_str("is done with it"),
            Why::DoesOther(other) => write!(f, "is at {other} instead"),
        }
    }
}

impl fmt::Display for Analysis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rank, (doing, failure)) in &self.ranks {
            write!(f, "rank {rank}: {}", doing.as_deref().unwrap_or("in no collective"))?;
            if let Some(failure) = failure {
                write!(f, "; failed: {failure}")?;
            }
            writeln!(f)?;
        }
        if !self.missing.is_empty() {
            writeln!(f, "no record of rank {}", listed(&self.missing))?;
        }
        self.waits.iter().try_for_each(|wait| writeln!(f, "{wait}"))?;
        match (self.culprits.is_empty(), self.circle.is_empty()) {
            (false, _) => writeln!(f, "look at rank {} first", listed(&self.culprits)),
            (true, false) => writeln!(f, "ranks {} wait for each other in a circle", listed(&self.circle)),
            (true, true) => writeln!(f, "nobody waits"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flight::PeerState;

    fn entry(sequence: u64, awaits: &[usize], done: bool) -> FlightEntry {
        let peer = |rank: &usize| PeerState {
            rank: *rank,
            sent: 0,
            to_send: 0,
            received: 0,
            to_receive: 4,
            awaited: 1,
            leaving: 0,
        };
        FlightEntry {
            group: 0,
            message: None,
            sequence,
            what: format!("all-reduce number {sequence}"),
            ranks: vec![0, 1, 2],
            level: 0,
            started_us: 1,
            first_byte_us: None,
            done_us: done.then_some(2),
            bytes_sent: 0,
            bytes_received: 0,
            peers: awaits.iter().map(peer).collect(),
        }
    }

    fn log(rank: usize, operations: Vec<FlightEntry>) -> FlightLog {
        FlightLog { operations, ..FlightLog::new(rank, 3) }
    }

    fn set(ranks: &[usize]) -> BTreeSet<usize> {
        ranks.iter().copied().collect()
    }

    #[test]
    fn who_never_came_is_the_culprit() {
        let logs = [
            log(0, vec![entry(0, &[], true), entry(1, &[1], false)]),
            log(1, vec![entry(0, &[], true), entry(1, &[2], false)]),
            log(2, vec![entry(0, &[], true)]),
        ];
        let analysis = analyse(&logs);
        assert_eq!((analysis.culprits.clone(), analysis.missing.clone()), (set(&[2]), set(&[])));
        let whys: Vec<_> = analysis.waits.iter().map(|wait| (wait.rank, wait.on, wait.why.clone())).collect();
        assert_eq!(whys, [(0, 1, Why::InIt), (1, 2, Why::NeverCame)]);
        let text = analysis.to_string();
        assert!(text.contains("rank 2: in no collective") && text.contains("look at rank 2 first"), "{text}");
    }

    #[test]
    fn who_left_no_record_is_the_culprit() {
        let logs = [log(0, vec![entry(4, &[1], false)]), log(2, vec![entry(4, &[0, 1], false)])];
        let analysis = analyse(&logs);
        assert_eq!((analysis.culprits, analysis.missing), (set(&[1]), set(&[1])));
        assert!(analysis.waits.iter().filter(|wait| wait.on == 1).all(|wait| wait.why == Why::NoRecord));
    }

    #[test]
    fn ranks_at_different_things_are_both_culprits() {
        let mut other = entry(1, &[0], false);
        other.what = "barrier number 1".to_owned();
        let analysis = analyse(&[log(0, vec![entry(1, &[1], false)]), log(1, vec![other])]);
        assert_eq!(analysis.culprits, set(&[0, 1]));
        assert_eq!(analysis.waits[0].why, Why::DoesOther("barrier number 1".to_owned()));
    }

    #[test]
    fn what_is_urgent_is_named_beside_what_it_has_overtaken() {
        let urgent = |awaits| FlightEntry {
            level: 2,
            what: "barrier number 2 at priority 2".into(),
            ..entry(2, awaits, false)
        };
        let logs = [
            log(0, vec![entry(0, &[1], false), entry(1, &[1], false), urgent(&[2])]),
            log(1, vec![entry(0, &[0], false), urgent(&[2])]),
            log(2, vec![entry(0, &[0], false)]),
        ];
        let analysis = analyse(&logs);
        let text = analysis.to_string();
        assert!(
            text.contains("rank 0: barrier number 2 at priority 2 and in all-reduce number 0\n"),
            "{text}"
        );
        assert!(
            text.contains("rank 1 waits for rank 2 in barrier number 2 at priority 2: rank 2 never came"),
            "{text}"
        );
    }

    #[test]
    fn a_circle_is_called_so() {
        let logs = [log(0, vec![entry(0, &[1], false)]), log(1, vec![entry(0, &[0], false)])];
        let mut logs = logs.to_vec();
        logs.push(log(2, vec![entry(0, &[0], false)]));
        let analysis = analyse(&logs);
        assert_eq!((analysis.culprits, analysis.circle), (set(&[]), set(&[0, 1])));
    }

    #[test]
    fn what_is_forgotten_was_done() {
        let mut late = log(1, vec![entry(5000, &[], true)]);
        late.forgotten = 5000;
        let analysis = analyse(&[log(0, vec![entry(10, &[1], false)]), late]);
        assert_eq!(analysis.waits[0].why, Why::IsDone);
        assert_eq!(analyse(&[]), Analysis::default());
        assert_eq!(
            analyse(&[log(0, vec![entry(0, &[], true)])]).to_string().lines().last(),
            Some("nobody waits")
        );
    }
}
