//! What chance alone would hardly bring together: a member that nobody hears but that may still act, while all others of its
//! group leave, so that the group becomes empty, and come back at once.

use super::super::member::{Member, MemberCommand};
use super::node::{Command, Seat};
use super::{FAILURE_DETECTION, HEAL};
use gradus_host::random::Stream;
use gradus_host::simulation::{Fault, Strike};
use std::time::Duration;

/// Every so many seeds there is haste.
const ONE_OF: u64 = 4;

/// How soon a member that is not heard and whose connection was closed is buried: as soon as it can be.
const BURIED: Duration = FAILURE_DETECTION.checked_div(4).expect("four is not zero");

/// When and where.
pub(super) struct Haste {
    at: Duration,
    node: usize,
    unheard: Seat,
    length: Duration,
}

impl Haste {
    pub(super) fn draw(chance: &mut Stream, seats: &[Seat]) -> Option<Self> {
        if chance.next_below(ONE_OF) != 0 {
            return None;
        }
        let span = |chance: &mut Stream, span: Duration| span.mul_f64(chance.next_f64());
        // Alone nobody comes back, and where one is not enough nobody acts beside it.
        let others = |seat: &Seat| seats.iter().filter(|other| other.group == seat.group).count() > 1;
        let fit = |(_, seat): &(usize, &Seat)| others(seat) && seat.settings.min_size == 1;
        let places: Vec<usize> = seats.iter().enumerate().filter(fit).map(|(place, _)| place).collect();
        let place = *places.get(chance.next_below(places.len().max(1) as u64) as usize)?;
        let at = FAILURE_DETECTION + span(chance, HEAL - FAILURE_DETECTION * 2);
        let length = BURIED + span(chance, FAILURE_DETECTION / 2);
        Some(Self { at, node: place + 1, unheard: seats[place].clone(), length })
    }

    /// The coordinator is told that the member's connection is closed, and no other opens for a while.
    pub(super) fn strikes(&self) -> [Strike; 2] {
        let (at, side, length) = (self.at, vec![self.node], self.length);
        [Fault::Reset { node: 0, peer: self.node }, Fault::Cut { side, one_way: false, length }]
            .map(|fault| Strike { at, fault })
    }

    /// Whether the program around a member is in haste.
    pub(super) fn drives(&self, at: Duration, seat: &Seat) -> bool {
        let now = (self.at..self.at + FAILURE_DETECTION).contains(&at);
        now && seat.group == self.unheard.group && seat.name != self.unheard.name
    }

    /// What a program in haste wants.
    pub(super) fn command(&self, at: Duration, member: &Member) -> Option<Command> {
        let leaves = at < self.at + BURIED;
        match (member.has_ended(), member.proposed()) {
            (true, _) => (!leaves).then_some(Command::Return { hasty: true }),
            (false, _) if leaves => Some(Command::Member(MemberCommand::Leave)),
            (false, Some(table)) => Some(Command::Member(MemberCommand::Acknowledge(table.epoch))),
            (false, None) => Some(Command::Act),
        }
    }
}
