//! What runs on a node of the simulated world: the coordinator, or a member with a program around it.

use super::super::coordinator::{Coordinator, CoordinatorNote};
use super::super::member::{Member, MemberCommand, MemberNote};
use super::super::message::{Epoch, GroupSettings, Identity, Reply, Request};
use super::super::planted::Planted;
use super::super::timeouts::Timeouts;
use gradus_host::machine::{Action, ActionOf, Event, EventOf, Machine};
use std::time::Duration;

/// What nodes say to each other.
#[derive(Debug, Clone)]
pub enum Message {
    /// To the coordinator.
    Request(Request),
    /// To a member.
    Reply(Reply),
}

/// What the program on a node wants.
#[derive(Debug, Clone, Copy)]
pub enum Command {
    /// Something of its member.
    Member(MemberCommand),
    /// To act, if it may.
    Act,
    /// To come back, as a new life of the member, after the old one ended.
    Return {
        /// Whether the program around it acknowledges and acts as soon as it may.
        hasty: bool,
    },
}

/// One life of a member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    /// Its group.
    pub group: &'static str,
    /// Its name.
    pub name: String,
    /// Which life.
    pub incarnation: u64,
}

/// What a node tells.
#[derive(Debug, Clone)]
pub enum Note {
    /// The coordinator tells something.
    Coordinator(CoordinatorNote),
    /// A member tells something.
    Member(Who, MemberNote),
    /// A member has acted in an epoch.
    Acted(Who, Epoch),
    /// A new life of a member begins in the same process.
    Returned(Who),
}

/// Who runs on a node.
#[derive(Debug, Clone)]
pub struct Seat {
    pub(super) group: &'static str,
    pub(super) settings: GroupSettings,
    pub(super) name: String,
}

/// A node.
pub enum Node {
    /// The coordinator.
    Coordinator(Coordinator),
    /// A member, and how to make its next life.
    Member {
        /// The machine.
        member: Box<Member>,
        /// Where it belongs.
        seat: Seat,
        /// The spans that it keeps.
        timeouts: Timeouts,
        /// What is wrong with it.
        planted: PlantedBug,
        /// Whether the program around it acknowledges and acts as soon as it may.
        hasty: bool,
    },
}

/// A bug, opaque to the outside.
#[derive(Debug, Clone, Copy)]
pub struct PlantedBug(pub(super) Planted);

impl Node {
    pub(super) fn member(seat: Seat, incarnation: u64, timeouts: Timeouts, planted: Planted) -> Self {
        let identity = Identity {
            name: seat.name.clone(),
            incarnation,
            host: "host".into(),
            address: seat.name.clone(),
        };
        let member = Member::new(seat.group, seat.settings, identity, timeouts).with_planted(planted);
        Self::Member { member: Box::new(member), seat, timeouts, planted: PlantedBug(planted), hasty: false }
    }

    fn who(member: &Member, seat: &Seat) -> Who {
        Who { group: seat.group, name: seat.name.clone(), incarnation: member.identity().incarnation }
    }

    /// A new life in the same process.
    fn come_back(&mut self, in_haste: bool) -> Vec<ActionOf<Self>> {
        let Self::Member { member, seat, timeouts, planted, .. } = self else { return Vec::new() };
        let Who { incarnation, .. } = Self::who(member, seat);
        *self = Self::member(seat.clone(), incarnation + 1, *timeouts, planted.0);
        let Self::Member { member, seat, hasty, .. } = self else { return Vec::new() };
        *hasty = in_haste;
        vec![Action::Note(Note::Returned(Self::who(member, seat)))]
    }

    fn step_member(&mut self, event: EventOf<Self>, now: Duration) -> Vec<ActionOf<Self>> {
        if let Event::Command(Command::Return { hasty }) = event {
            return self.come_back(hasty);
        }
        let Self::Member { member, seat, hasty, .. } = self else { return Vec::new() };
        let who = Self::who(member, seat);
        let event = match event {
            Event::Message { from, message: Message::Reply(message) } => Event::Message { from, message },
            Event::Closed { peer } => Event::Closed { peer },
            Event::Command(Command::Member(command)) => Event::Command(command),
            Event::Command(Command::Act) => return act(member, who, now),
            Event::Wake => Event::Wake,
            Event::Message { .. } | Event::Command(Command::Return { .. }) => return Vec::new(),
        };
        let mut actions = member.step(event, now);
        if let Some(table) = member.proposed().filter(|_| *hasty) {
            let acknowledge = MemberCommand::Acknowledge(table.epoch);
            actions.extend(member.step(Event::Command(acknowledge), now));
        }
        let may_begin =
            actions.iter().any(|action| matches!(action, Action::Note(MemberNote::Active { .. })));
        let acts = if *hasty && may_begin { act(member, who.clone(), now) } else { Vec::new() };
        let told = |action| wrap(action, Message::Request, |note| Note::Member(who.clone(), note));
        actions.into_iter().map(told).chain(acts).collect()
    }
}

fn act(member: &Member, who: Who, now: Duration) -> Vec<ActionOf<Node>> {
    let acts = member.may_act(now).map(|(epoch, _)| Action::Note(Note::Acted(who, epoch)));
    acts.into_iter().collect()
}

fn wrap<M, N>(
    action: Action<M, N>,
    message_of: impl Fn(M) -> Message,
    note_of: impl Fn(N) -> Note,
) -> Action<Message, Note> {
    match action {
        Action::Send { to, message } => Action::Send { to, message: message_of(message) },
        Action::Persist(bytes) => Action::Persist(bytes),
        Action::Note(note) => Action::Note(note_of(note)),
    }
}

fn step_coordinator(machine: &mut Coordinator, event: EventOf<Node>, now: Duration) -> Vec<ActionOf<Node>> {
    let event = match event {
        Event::Message { from, message: Message::Request(message) } => Event::Message { from, message },
        Event::Closed { peer } => Event::Closed { peer },
        Event::Wake => Event::Wake,
        Event::Command(_) | Event::Message { .. } => return Vec::new(),
    };
    let actions = machine.step(event, now).into_iter();
    actions.map(|action| wrap(action, Message::Reply, Note::Coordinator)).collect()
}

impl Machine for Node {
    type Incoming = Message;
    type Outgoing = Message;
    type Command = Command;
    type Note = Note;

    fn step(&mut self, event: EventOf<Self>, now: Duration) -> Vec<ActionOf<Self>> {
        match self {
            Self::Coordinator(machine) => step_coordinator(machine, event, now),
            Self::Member { .. } => self.step_member(event, now),
        }
    }

    fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Coordinator(machine) => machine.deadline(),
            Self::Member { member, .. } => member.deadline(),
        }
    }
}
