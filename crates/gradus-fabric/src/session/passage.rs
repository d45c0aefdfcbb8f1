//! How a member goes from one epoch's world to the next, as a pure machine.
//!
//! It is told what membership says and what the program wants, and answers with what is to be done, in this order: fence
//! the memory of the world before, acknowledge the new epoch, connect once all have acknowledged. Invariants: an epoch is
//! acknowledged only when the program has let go of the world before and its memory is fenced; nobody connects in an
//! epoch that is broken; an epoch that is of no use to this member (a peer cannot be reached though the coordinator hears
//! it) is abandoned after a time in which membership would have found out who is dead.

use crate::membership::{Epoch, MemberCommand, MemberNote, Table};
use gradus_host::machine::{Action, ActionOf, Event, EventOf, Machine};
use std::time::Duration;

/// What the program asks for and experiences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has let go of its world, and wants another.
    Want,
    /// It is connected in that epoch.
    Connected(Epoch),
    /// Not all could be connected in that epoch.
    Unreachable(Epoch),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Keep those who were in the world before, and are not in this table, from that world's memory.
    Fence(Table),
    /// Connect to the members of this table.
    Connect(Table),
    /// The group goes on without this life of the member.
    Fenced,
    /// The coordinator refuses the member.
    Refused(String),
}

/// The machine.
#[derive(Debug)]
pub(super) struct Passage {
    detection: Duration,
    /// The newest table.
    table: Table,
    /// The epoch that was acknowledged last.
    held: Epoch,
    /// The newest in which all may act.
    active: Epoch,
    /// The newest in which this member was connected.
    connected: Epoch,
    /// The newest that is over.
    broken: Epoch,
    /// Whether the program waits for a world.
    wants: bool,
    abandon_at: Option<Duration>,
    /// What it ended with.
    end: Option<Step>,
}

impl Passage {
    /// A member that has just begun to join; a dead one is found out within `detection`.
    pub(super) fn new(detection: Duration) -> Self {
        Self {
            detection,
            table: Table::default(),
            held: Epoch::NONE,
            active: Epoch::NONE,
            connected: Epoch::NONE,
            broken: Epoch::NONE,
            wants: false,
            abandon_at: None,
            end: None,
        }
    }

    fn hear(&mut self, note: MemberNote) -> Vec<ActionOf<Self>> {
        match note {
            MemberNote::Formed { table, .. } => {
                self.table = table;
                self.accept()
            }
            MemberNote::Active { epoch, .. } if epoch == self.held && self.broken < epoch => {
                self.active = epoch;
                vec![Action::Note(Step::Connect(self.table.clone()))]
            }
            MemberNote::Broken { epoch, .. } => {
                self.broken = self.broken.max(epoch);
                self.abandon_at = None;
                Vec::new()
            }
            MemberNote::Fenced => self.finish(Step::Fenced),
            MemberNote::Refused { message } => self.finish(Step::Refused(message)),
            MemberNote::Active { .. } | MemberNote::Isolated | MemberNote::Heard => Vec::new(),
        }
    }

    /// Lets the newest epoch begin, if it is news and the program is free for it.
    fn accept(&mut self) -> Vec<ActionOf<Self>> {
        if !self.wants || self.table.epoch <= self.held {
            return Vec::new();
        }
        self.held = self.table.epoch;
        self.abandon_at = None;
        let acknowledge = Action::Send {
            to: crate::membership::COORDINATOR,
            message: MemberCommand::Acknowledge(self.held),
        };
        vec![Action::Note(Step::Fence(self.table.clone())), acknowledge]
    }

    fn finish(&mut self, end: Step) -> Vec<ActionOf<Self>> {
        self.end = Some(end.clone());
        vec![Action::Note(end)]
    }

    fn obey(&mut self, turn: Turn, now: Duration) -> Vec<ActionOf<Self>> {
        match turn {
            Turn::Want => self.want(now),
            Turn::Connected(epoch) => {
                self.connected = epoch;
                self.wants = false;
                Vec::new()
            }
            Turn::Unreachable(epoch) => {
                // Most likely a peer is dead, and membership is about to say so.
                self.abandon_at = (self.broken < epoch).then_some(now + self.detection);
                Vec::new()
            }
        }
    }

    fn want(&mut self, now: Duration) -> Vec<ActionOf<Self>> {
        if let Some(end) = &self.end {
            return vec![Action::Note(end.clone())];
        }
        self.wants = true;
        let actions = self.accept();
        let stands = actions.is_empty() && self.active == self.held && self.broken < self.held;
        if stands && self.abandon_at.is_none() {
            // Whoever was connected has lost a peer, of which membership is about to tell; whoever was not has waited.
            let patience = if self.connected == self.held { self.detection } else { Duration::ZERO };
            self.abandon_at = Some(now + patience);
        }
        actions
    }

    fn wake(&mut self, now: Duration) -> Vec<ActionOf<Self>> {
        if self.abandon_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.abandon_at = None;
        self.broken = self.broken.max(self.held);
        let message = MemberCommand::Abandon(self.held);
        vec![Action::Send { to: crate::membership::COORDINATOR, message }]
    }
}

impl Machine for Passage {
    type Incoming = MemberNote;
    type Outgoing = MemberCommand;
    type Command = Turn;
    type Note = Step;

    fn step(&mut self, event: EventOf<Self>, now: Duration) -> Vec<ActionOf<Self>> {
        match event {
            Event::Message { message, .. } => self.hear(message),
            Event::Command(turn) => self.obey(turn, now),
            Event::Closed { .. } => Vec::new(),
            Event::Wake => self.wake(now),
        }
    }

    fn deadline(&self) -> Option<Duration> {
        self.abandon_at
    }
}

#[cfg(test)]
#[path = "passage_tests.rs"]
mod tests;
