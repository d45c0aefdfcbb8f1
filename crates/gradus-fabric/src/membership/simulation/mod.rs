//! Membership in a simulated world: a coordinator, one or two groups, a checker that looks on.
//!
//! [`run`] draws from a seed who is there, what goes wrong and what the programs around the members want, lets some
//! seconds of virtual time pass, and reports every invariant of [`crate::membership`] that did not hold. The same seed
//! gives the same run.

mod checker;
mod haste;
mod node;
#[cfg(test)]
mod tests;

use super::coordinator::Coordinator;
use super::member::MemberCommand;
use super::message::GroupSettings;
use super::planted::Planted;
use super::timeouts::Timeouts;
use checker::Checker;
use gradus_error::Result;
use gradus_host::random::Stream;
use gradus_host::simulation::{
    Fault, FaultSettings, Faults, Happening, Recording, Scenario, Strike, Trace, World,
};
use haste::Haste;
use node::{Command, Message, Node, Seat, Who};
use std::time::Duration;

/// The setting from which all spans of the simulated members follow.
const FAILURE_DETECTION: Duration = Duration::from_secs(1);

/// Until when things go wrong.
const HEAL: Duration = Duration::from_secs(8);

/// How long all may take to be together again: to find the dead, to wait for those who could come, to wait for leases
/// and acknowledgements, twice over, and the hour of ghosts.
const RECOVERY: Duration = Duration::from_secs(7);

/// The longest pause, cut or restart: several times what it takes to be declared dead.
const LONGEST_FAULT: Duration = Duration::from_secs(3);

/// The longest that a message travels.
const LONGEST_DELAY: Duration = Duration::from_millis(80);

/// The purposes of the streams that say who is there, and who is in haste; the world's own purposes are small numbers.
const CAST: u64 = 1000;
const HASTE: u64 = 1001;

/// Lives that one process can give its member.
const LIVES_OF_A_PROCESS: u64 = 1 << 20;

/// What came of a seed.
pub struct Report {
    /// What must not have happened, with its time; empty when all is well.
    pub violations: Vec<String>,
    /// Who took part.
    pub cast: String,
    /// What went wrong on purpose.
    pub faults: Faults,
    /// How many epochs were formed.
    pub epochs: usize,
    /// What happened.
    pub trace: Trace,
}

/// Runs a seed.
pub fn run(seed: u64, recording: Recording) -> Report {
    run_planted(seed, recording, Planted::Nothing)
}

fn run_planted(seed: u64, recording: Recording, planted: Planted) -> Report {
    let seats = draw_cast(&mut Stream::new(seed, CAST));
    let haste = Haste::draw(&mut Stream::new(seed, HASTE), &seats);
    let mut faults = Faults::draw(seed, &fault_settings(seats.len() + 1));
    faults.strikes.extend(haste.iter().flat_map(Haste::strikes));
    faults.strikes.sort_by_key(|strike| strike.at);
    let cast = format!("{seats:?}");
    let group = Groups { haste, ..Groups::new(seats, &faults, planted) };
    let end = HEAL + RECOVERY;
    let outcome = World::new(group, faults.clone(), seed, recording).run(end);
    let Groups { mut checker, seats, .. } = outcome.scenario;
    checker.demand_progress(end, &seats, end - FAILURE_DETECTION);
    Report { epochs: checker.epochs(), violations: checker.violations(), cast, faults, trace: outcome.trace }
}

fn fault_settings(nodes: usize) -> FaultSettings {
    FaultSettings { nodes, expendable: 1, heal: HEAL, longest: LONGEST_FAULT, longest_delay: LONGEST_DELAY }
}

/// A group of a fixed size, an elastic one, or both, some with a member in reserve.
fn draw_cast(chance: &mut Stream) -> Vec<Seat> {
    let which = chance.next_below(3);
    let mut seats = Vec::new();
    if which != 1 {
        let size = 1 + chance.next_below(3) as u32;
        let reserve = chance.next_below(3) / 2;
        seats.extend(draw_group("fixed", GroupSettings::fixed(size), u64::from(size) + reserve));
    }
    if which != 0 {
        let min_size = 1 + chance.next_below(2) as u32;
        let max_size = min_size + 1 + chance.next_below(2) as u32;
        let settings = GroupSettings { min_size, max_size, join_window_ms: chance.next_below(700) };
        let nodes = u64::from(min_size) + chance.next_below(u64::from(max_size - min_size) + 2);
        seats.extend(draw_group("elastic", settings, nodes));
    }
    seats
}

fn draw_group(group: &'static str, settings: GroupSettings, nodes: u64) -> impl Iterator<Item = Seat> {
    (0..nodes).map(move |number| Seat { group, settings, name: format!("{group}-{number}") })
}

/// Within which time a dead member must be declared: detection by a clock that is 1% slow, what is still on its way from
/// the dead, and the disk.
fn declaration_bound(faults: &Faults) -> Duration {
    let slowness = |strike: &Strike| match strike.fault {
        Fault::Slow { delay, .. } => delay,
        _ => Duration::ZERO,
    };
    let slow: Duration = faults.strikes.iter().map(slowness).sum();
    FAILURE_DETECTION * 102 / 100 + LONGEST_DELAY * 2 + slow
}

/// The scenario: node 0 coordinates, each other node has a seat.
struct Groups {
    seats: Vec<Seat>,
    timeouts: Timeouts,
    planted: Planted,
    haste: Option<Haste>,
    checker: Checker,
}

impl Groups {
    fn new(seats: Vec<Seat>, faults: &Faults, planted: Planted) -> Self {
        let checker = Checker::new(seats.len() + 1, declaration_bound(faults));
        let timeouts = Timeouts::from(FAILURE_DETECTION).expect("a second is possible");
        Self { seats, timeouts, planted, haste: None, checker }
    }

    fn open_coordinator(&self, stored: Option<&[u8]>) -> Result<Node> {
        Ok(Node::Coordinator(Coordinator::open(stored, self.timeouts)?.with_planted(self.planted)))
    }

    fn seat_member(&mut self, node: usize, life: u64) -> Node {
        let seat = self.seats[node - 1].clone();
        let incarnation = life * LIVES_OF_A_PROCESS;
        let who = Who { group: seat.group, name: seat.name.clone(), incarnation };
        self.checker.begins(node, Some(who));
        Node::member(seat, incarnation, self.timeouts, self.planted)
    }

    /// The coordinator's fate decides from when the dead must be declared.
    fn follow_coordinator(&mut self, at: Duration, happening: &Happening<'_, Self>) {
        match happening {
            Happening::Started => self.checker.coordinates(at, true),
            Happening::Resumed => self.checker.coordinates(at, false),
            Happening::Crashed | Happening::TakenOver | Happening::Paused => {
                self.checker.coordinates_no_more()
            }
            _ => {}
        }
    }
}

impl Scenario for Groups {
    type Machine = Node;
    type Message = Message;

    fn nodes(&self) -> usize {
        self.seats.len() + 1
    }

    fn start(&mut self, node: usize, life: u64, stored: Option<&[u8]>) -> Result<Node> {
        if node == 0 { self.open_coordinator(stored) } else { Ok(self.seat_member(node, life)) }
    }

    fn command(&mut self, at: Duration, machine: &Node, chance: &mut Stream) -> Option<Command> {
        let Node::Member { member, seat, .. } = machine else { return None };
        if let Some(haste) = self.haste.as_ref().filter(|haste| haste.drives(at, seat)) {
            return haste.command(at, member);
        }
        let whim = chance.next_below(200);
        if member.has_ended() {
            return (whim < 100).then_some(Command::Return { hasty: false });
        }
        if at < HEAL && whim == 0 {
            return Some(Command::Member(MemberCommand::Leave));
        }
        match (member.proposed(), member.may_act_in()) {
            (Some(table), _) if whim < 100 => Some(Command::Member(MemberCommand::Acknowledge(table.epoch))),
            (_, Some(epoch)) if at < HEAL && whim > 197 => {
                Some(Command::Member(MemberCommand::Abandon(epoch)))
            }
            _ => Some(Command::Act),
        }
    }

    fn observe(&mut self, at: Duration, node: usize, happening: Happening<'_, Self>) {
        if node == 0 {
            self.follow_coordinator(at, &happening);
        }
        match happening {
            Happening::Failed(error) => {
                self.checker.blame(at, format_args!("node {node} cannot start: {error}"))
            }
            Happening::Crashed => self.checker.ends(at, node, true),
            Happening::TakenOver => self.checker.ends(at, node, false),
            Happening::Noted(note) => self.checker.note(at, node, note),
            Happening::GhostNoted(note) => self.checker.ghost(at, note),
            Happening::Started | Happening::Paused | Happening::Resumed => {}
        }
    }
}
