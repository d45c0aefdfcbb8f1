//! Looks at everything that happens in a simulated world, and says what must not have.

use super::super::coordinator::CoordinatorNote;
use super::super::member::MemberNote;
use super::super::message::{Epoch, Identity, Table};
use super::node::{Note, Seat, Who};
use std::collections::BTreeMap;
use std::time::Duration;

/// What goes wrong once goes wrong again; the first ones tell enough.
const MOST_VIOLATIONS: usize = 10;

/// What is known of one life of a member.
#[derive(Debug, Clone, Default)]
struct Belief {
    term: u64,
    known: Epoch,
}

/// What is known of a node.
#[derive(Debug, Clone, Default)]
struct Watched {
    /// The life that runs on it, while one does.
    lives: Option<Who>,
    acted: Option<(Duration, Epoch)>,
}

/// The onlooker.
pub(super) struct Checker {
    /// How long the coordinator may take to declare a dead member.
    bound: Duration,
    violations: Vec<String>,
    tables: BTreeMap<(String, Epoch), Table>,
    last_formed: Epoch,
    last_term: u64,
    /// The newest epoch of each group in which anybody acted.
    acted: BTreeMap<&'static str, Epoch>,
    beliefs: BTreeMap<Who, Belief>,
    nodes: Vec<Watched>,
    /// Since when the coordinator could do its work.
    coordinating_since: Option<Duration>,
    /// Whom the coordinator believes to be alive, since when.
    present: BTreeMap<(String, String, u64), Duration>,
    /// Who died, when.
    dead: BTreeMap<(String, String, u64), Duration>,
}

impl Checker {
    pub(super) fn new(nodes: usize, bound: Duration) -> Self {
        Self {
            bound,
            violations: Vec::new(),
            tables: BTreeMap::new(),
            last_formed: Epoch::NONE,
            last_term: 0,
            acted: BTreeMap::new(),
            beliefs: BTreeMap::new(),
            nodes: vec![Watched::default(); nodes],
            coordinating_since: None,
            present: BTreeMap::new(),
            dead: BTreeMap::new(),
        }
    }

    pub(super) fn violations(self) -> Vec<String> {
        self.violations
    }

    /// Epochs that were formed.
    pub(super) fn epochs(&self) -> usize {
        self.tables.len()
    }

    pub(super) fn blame(&mut self, at: Duration, what: impl std::fmt::Display) {
        if self.violations.len() < MOST_VIOLATIONS {
            self.violations.push(format!("at {:.6} s: {what}", at.as_secs_f64()));
        }
    }

    // Lives.

    pub(super) fn begins(&mut self, node: usize, who: Option<Who>) {
        self.nodes[node].lives = who;
    }

    /// The coordinator can do its work from now on; a new one has to learn who is there.
    pub(super) fn coordinates(&mut self, at: Duration, anew: bool) {
        self.coordinating_since = Some(at);
        if anew {
            self.present.clear();
        }
    }

    pub(super) fn coordinates_no_more(&mut self) {
        self.coordinating_since = None;
    }

    /// The process on a node has ended, and is dead or another's ghost.
    pub(super) fn ends(&mut self, at: Duration, node: usize, dead: bool) {
        if let Some(who) = self.nodes[node].lives.take().filter(|_| dead) {
            self.dead.insert((who.group.to_owned(), who.name, who.incarnation), at);
        }
    }

    // Notes.

    pub(super) fn note(&mut self, at: Duration, node: usize, note: &Note) {
        match note {
            Note::Coordinator(note) => self.coordinator(at, note),
            Note::Member(who, note) => self.member(at, who, note),
            Note::Acted(who, epoch) => {
                self.nodes[node].acted = Some((at, *epoch));
                self.acts(at, who, *epoch);
            }
            Note::Returned(who) => self.nodes[node].lives = Some(who.clone()),
        }
        self.look_for_undeclared(at);
    }

    /// What a ghost of a node does counts as well; what it says of itself does not.
    pub(super) fn ghost(&mut self, at: Duration, note: &Note) {
        match note {
            Note::Acted(who, epoch) => self.acts(at, who, *epoch),
            Note::Coordinator(CoordinatorNote::Formed { group, table }) => self.one_table(at, group, table),
            _ => {}
        }
    }

    fn coordinator(&mut self, at: Duration, note: &CoordinatorNote) {
        match note {
            CoordinatorNote::Joined { group, member } => self.is_present(at, group, member),
            CoordinatorNote::Lost { group, member, .. } => {
                self.present.remove(&(group.clone(), member.name.clone(), member.incarnation));
            }
            CoordinatorNote::Formed { group, table } => {
                self.formed(at, group, table);
                table.members.iter().for_each(|member| self.is_present(at, group, member));
            }
            CoordinatorNote::Superseded { term } => {
                self.blame(at, format_args!("the coordinator stops for term {term}"))
            }
            CoordinatorNote::Started { term } => self.begins_term(at, *term),
            CoordinatorNote::Active { .. } | CoordinatorNote::Deposed { .. } => {}
        }
    }

    fn begins_term(&mut self, at: Duration, term: u64) {
        let newest = self.last_term;
        self.last_term = newest.max(term);
        if term <= newest {
            self.blame(at, format_args!("term {term} begins after {newest}"));
        }
    }

    fn is_present(&mut self, at: Duration, group: &str, member: &Identity) {
        let key = (group.to_owned(), member.name.clone(), member.incarnation);
        self.present.entry(key).or_insert(at);
    }

    fn formed(&mut self, at: Duration, group: &str, table: &Table) {
        let newest = self.last_formed;
        self.last_formed = newest.max(table.epoch);
        if table.epoch <= newest {
            self.blame(at, format_args!("epoch {} of {group} comes after {newest}", table.epoch));
        }
        self.one_table(at, group, table);
    }

    fn one_table(&mut self, at: Duration, group: &str, table: &Table) {
        let first = self.tables.entry((group.to_owned(), table.epoch)).or_insert_with(|| table.clone());
        if *first != *table {
            let text = format!("epoch {} of {group} has two tables: {first:?} and {table:?}", table.epoch);
            self.blame(at, text);
        }
    }

    fn member(&mut self, at: Duration, who: &Who, note: &MemberNote) {
        match note {
            MemberNote::Formed { term, table } => {
                self.one_table(at, who.group, table);
                self.believes(at, who, *term);
                self.learns(at, who, table.epoch);
            }
            MemberNote::Active { term, .. } | MemberNote::Broken { term, .. } => {
                self.believes(at, who, *term)
            }
            MemberNote::Refused { message } => self.blame(at, format_args!("{who:?} was refused: {message}")),
            MemberNote::Isolated | MemberNote::Heard | MemberNote::Fenced => {}
        }
    }

    fn believes(&mut self, at: Duration, who: &Who, term: u64) {
        let belief = self.beliefs.entry(who.clone()).or_default();
        let older = term < belief.term;
        belief.term = belief.term.max(term);
        if older {
            self.blame(at, format_args!("{who:?} believes a coordinator of old term {term}"));
        }
    }

    fn learns(&mut self, at: Duration, who: &Who, epoch: Epoch) {
        let belief = self.beliefs.entry(who.clone()).or_default();
        let older = epoch <= belief.known;
        belief.known = belief.known.max(epoch);
        if older {
            self.blame(at, format_args!("{who:?} believes the table of old epoch {epoch}"));
        }
    }

    /// Nobody acts in an epoch once anybody has acted in a later one.
    fn acts(&mut self, at: Duration, who: &Who, epoch: Epoch) {
        let newest = self.acted.entry(who.group).or_default();
        let newer = *newest;
        *newest = newer.max(epoch);
        if epoch < newer {
            self.blame(at, format_args!("{who:?} acts in epoch {epoch} after somebody acted in {newer}"));
        }
    }

    fn look_for_undeclared(&mut self, at: Duration) {
        let Some(coordinating) = self.coordinating_since else { return };
        let overdue = self.dead.iter().find(|(who, died)| {
            let since = self.present.get(who).map(|known| known.max(*died).max(&coordinating).to_owned());
            since.is_some_and(|since| at > since + self.bound)
        });
        if let Some((who, died)) = overdue.map(|(who, died)| (who.clone(), *died)) {
            self.dead.remove(&who);
            self.blame(at, format_args!("{who:?} died at {died:?} and is not declared dead"));
        }
    }

    // The end.

    /// After everything has healed, all who live act together, as many as their group may have.
    pub(super) fn demand_progress(&mut self, at: Duration, seats: &[Seat], lately: Duration) {
        let mut groups: Vec<&Seat> = seats.iter().collect();
        groups.dedup_by_key(|seat| seat.group);
        for Seat { group, settings, .. } in groups {
            let of_group = |watched: &&Watched| watched.lives.as_ref().is_some_and(|who| who.group == *group);
            let alive: Vec<&Watched> = self.nodes.iter().filter(of_group).collect();
            let acting: Vec<Epoch> = alive
                .iter()
                .filter_map(|node| node.acted)
                .filter(|(when, _)| *when >= lately)
                .map(|(_, epoch)| epoch)
                .collect();
            let expected = match alive.len() {
                few if few < settings.min_size as usize => 0,
                enough => enough.min(settings.max_size as usize),
            };
            let together = acting.iter().all(|epoch| Some(epoch) == self.acted.get(group));
            let (alive, acting) = (alive.len(), acting.len());
            if acting != expected || !together {
                self.blame(
                    at,
                    format_args!("{alive} of {group} live, {acting} act ({expected} should, together)"),
                );
            }
        }
    }
}
