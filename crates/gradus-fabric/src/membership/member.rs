//! A member of a group, as a pure machine.
//!
//! It says that it lives, learns tables, acknowledges one when the program around it has let go of the epoch before,
//! and says whether it may act. Invariant: it may act only in the newest epoch that it has acknowledged, once told that
//! all have, until that epoch is broken, the coordinator has not answered a sign of life for a lease, or it is fenced.
//! A lease counts from when the sign of life was *sent*: whoever answered it heard it later.

use super::message::{Epoch, GroupSettings, Identity, News, Reply, Request, Standing, Table, Wish};
use super::planted::Planted;
use super::timeouts::Timeouts;
use gradus_host::machine::{Action, ActionOf, Event, EventOf, Machine, Peer};
use std::collections::BTreeMap;
use std::time::Duration;

/// The coordinator, as a member's peer.
pub const COORDINATOR: Peer = 0;

/// What the program around a member asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberCommand {
    /// Nothing of an older epoch is in flight any more: the one named may begin.
    Acknowledge(Epoch),
    /// The epoch named is of no use, a peer does not answer: form another.
    Abandon(Epoch),
    /// Belong no more.
    Leave,
}

/// What a member tells the program around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberNote {
    /// A new epoch was formed: end what is in flight in the one before, then acknowledge.
    Formed {
        /// The coordinator's term.
        term: u64,
        /// The epoch and its members.
        table: Table,
    },
    /// All have acknowledged the epoch: act.
    Active {
        /// The coordinator's term.
        term: u64,
        /// Which.
        epoch: Epoch,
    },
    /// The epoch is over, and all before it: end what is in flight, unless all who are gone have left in good order.
    Broken {
        /// The coordinator's term.
        term: u64,
        /// Which.
        epoch: Epoch,
        /// Ranks and members that are lost, those not told before; none where a member asked for a new epoch.
        lost: Vec<(usize, Identity)>,
        /// Ranks and members that have left in good order, those not told before: what they had begun they have ended,
        /// so that what is in flight goes on as far as it needs no more from them.
        left: Vec<(usize, Identity)>,
    },
    /// The coordinator was not heard for a lease: pause.
    Isolated,
    /// The coordinator was heard again, and nothing has changed: go on.
    Heard,
    /// The group goes on without this life of the member: stop, and come back as a new one if at all.
    Fenced,
    /// The coordinator refuses the member.
    Refused {
        /// Why, and the mend.
        message: String,
    },
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Member {
    group: String,
    settings: GroupSettings,
    identity: Identity,
    timeouts: Timeouts,
    planted: Planted,
    /// The greatest term heard of.
    term: u64,
    lease_until: Duration,
    isolated: bool,
    /// The newest table in full.
    known: Table,
    /// The table that was acknowledged last, and which of its ranks are known to be gone.
    held: Table,
    gone: Vec<u32>,
    active: bool,
    broken: Epoch,
    /// Pages of a newer table than the one known.
    pages: Pages,
    speak_at: Duration,
    ended: bool,
}

/// A table of which parts have come.
#[derive(Debug, Clone, Default)]
struct Pages {
    epoch: Epoch,
    members: BTreeMap<u32, Identity>,
}

impl Member {
    /// A member that will join `group`.
    pub fn new(group: &str, settings: GroupSettings, identity: Identity, timeouts: Timeouts) -> Self {
        Self {
            group: group.to_owned(),
            settings,
            identity,
            timeouts,
            planted: Planted::Nothing,
            term: 0,
            lease_until: Duration::ZERO,
            isolated: false,
            known: Table::default(),
            held: Table::default(),
            gone: Vec::new(),
            active: false,
            broken: Epoch::NONE,
            pages: Pages::default(),
            speak_at: Duration::ZERO,
            ended: false,
        }
    }

    /// The same with a bug.
    pub(super) fn with_planted(self, planted: Planted) -> Self {
        Self { planted, ..self }
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The epoch in which it may act at `now`, and until when if nothing changes.
    pub fn may_act(&self, now: Duration) -> Option<(Epoch, Duration)> {
        let leased = now < self.lease_until || self.planted.is(Planted::ForgetsItsLease);
        let acts = !self.ended && leased && self.is_active();
        acts.then_some((self.held.epoch, self.lease_until))
    }

    /// The epoch in which it acts, as long as its lease runs.
    pub fn may_act_in(&self) -> Option<Epoch> {
        self.is_active().then_some(self.held.epoch)
    }

    /// A table that waits to be acknowledged.
    pub fn proposed(&self) -> Option<&Table> {
        let news = self.known.epoch > self.held.epoch && self.broken != self.known.epoch;
        (news && !self.ended).then_some(&self.known)
    }

    /// Whether it was fenced, refused or has left: it says and does nothing any more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    fn is_active(&self) -> bool {
        self.active && self.broken < self.held.epoch
    }

    // What it says.

    fn speak(&mut self, now: Duration) -> ActionOf<Self> {
        self.speak_at = now + self.timeouts.heartbeat;
        let sent = now.as_nanos() as u64;
        let Identity { name, incarnation, .. } = self.identity.clone();
        let wish = match self.known.epoch {
            Epoch::NONE => Wish::Join {
                identity: self.identity.clone(),
                settings: self.settings,
                failure_detection_ms: self.timeouts.detection.as_millis() as u64,
                sent,
            },
            _ => Wish::Stay { name, incarnation, sent, standing: self.standing() },
        };
        self.say(wish)
    }

    fn say(&self, wish: Wish) -> ActionOf<Self> {
        let message = Request { group: self.group.clone(), term: self.term, wish };
        Action::Send { to: COORDINATOR, message }
    }

    fn standing(&self) -> Standing {
        Standing {
            known: self.known.epoch,
            acknowledged: self.held.epoch,
            active: self.active,
            broken: self.broken,
        }
    }

    // What it hears.

    fn hear(&mut self, reply: Reply, now: Duration) -> Vec<ActionOf<Self>> {
        let outdated = reply.term < self.term && !self.planted.is(Planted::BelievesOldTerms);
        if self.ended || outdated || reply.incarnation != self.identity.incarnation {
            return Vec::new();
        }
        self.term = self.term.max(reply.term);
        let term = reply.term;
        match reply.news {
            News::Heard { sent, lease: true } => self.renew(sent, now),
            News::Heard { lease: false, .. } => Vec::new(),
            News::Page { epoch, size, first, members } => self.learn(term, epoch, size, first, members),
            News::Go { epoch } => self.go(term, epoch),
            News::Abort { epoch, lost, left } => self.lose(term, epoch, &lost, &left),
            News::Fenced => self.end(MemberNote::Fenced),
            News::Refused { message } => self.end(MemberNote::Refused { message }),
        }
    }

    fn renew(&mut self, sent: u64, now: Duration) -> Vec<ActionOf<Self>> {
        let lease = Duration::from_nanos(sent).min(now) + self.timeouts.lease;
        self.lease_until = self.lease_until.max(lease);
        let back = self.isolated && now < self.lease_until;
        self.isolated &= !back;
        back.then_some(Action::Note(MemberNote::Heard)).into_iter().collect()
    }

    fn learn(
        &mut self,
        term: u64,
        epoch: Epoch,
        size: u32,
        first: u32,
        members: Vec<Identity>,
    ) -> Vec<ActionOf<Self>> {
        let believes_all = self.planted.is(Planted::BelievesOldEpochs) && epoch != self.known.epoch;
        if epoch <= self.known.epoch && !believes_all || size > self.settings.max_size {
            return Vec::new();
        }
        match self.pages.add(epoch, size, first, members) {
            Some(table) if table.rank_of(&self.identity.name, self.identity.incarnation).is_some() => {
                self.adopt(term, table)
            }
            _ => Vec::new(),
        }
    }

    /// A table that lacks members of the one before says that these are lost.
    fn adopt(&mut self, term: u64, table: Table) -> Vec<ActionOf<Self>> {
        let gone =
            |(_, member): &(usize, &Identity)| table.rank_of(&member.name, member.incarnation).is_none();
        let lost: Vec<u32> =
            self.held.members.iter().enumerate().filter(gone).map(|(rank, _)| rank as u32).collect();
        // Newcomers alone are no reason to break off.
        let mut actions = match lost.is_empty() {
            true => Vec::new(),
            false => self.lose(term, self.held.epoch, &lost, &[]),
        };
        self.known = table.clone();
        actions.push(Action::Note(MemberNote::Formed { term, table }));
        actions
    }

    fn go(&mut self, term: u64, epoch: Epoch) -> Vec<ActionOf<Self>> {
        if epoch != self.held.epoch || self.active || self.broken >= epoch {
            return Vec::new();
        }
        self.active = true;
        vec![Action::Note(MemberNote::Active { term, epoch })]
    }

    fn lose(&mut self, term: u64, epoch: Epoch, lost: &[u32], left: &[u32]) -> Vec<ActionOf<Self>> {
        let table = if epoch == self.held.epoch { &self.held } else { &self.known };
        if epoch != table.epoch || epoch == Epoch::NONE || epoch < self.broken {
            return Vec::new();
        }
        let told_before = self.broken == epoch;
        let before = if told_before { std::mem::take(&mut self.gone) } else { Vec::new() };
        let named = |ranks: &[u32]| -> Vec<(usize, Identity)> {
            let new = ranks.iter().filter(|rank| !before.contains(rank));
            new.filter_map(|rank| Some((*rank as usize, table.members.get(*rank as usize)?.clone())))
                .collect()
        };
        let (lost, left) = (named(lost), named(left));
        self.gone = before;
        self.gone.extend(lost.iter().chain(&left).map(|(rank, _)| *rank as u32));
        self.broken = self.broken.max(epoch);
        if told_before && lost.is_empty() && left.is_empty() {
            return Vec::new();
        }
        vec![Action::Note(MemberNote::Broken { term, epoch, lost, left })]
    }

    fn end(&mut self, note: MemberNote) -> Vec<ActionOf<Self>> {
        self.ended = true;
        vec![Action::Note(note)]
    }

    // What it is asked for, and what time brings.

    fn obey(&mut self, command: MemberCommand, now: Duration) -> Vec<ActionOf<Self>> {
        match command {
            MemberCommand::Acknowledge(epoch)
                if self.proposed().is_some_and(|table| table.epoch == epoch) =>
            {
                self.held = self.known.clone();
                self.active = false;
                self.gone.clear();
            }
            MemberCommand::Abandon(epoch) if epoch == self.held.epoch && self.broken < epoch => {
                self.broken = epoch;
                self.gone.clear();
            }
            MemberCommand::Leave if !self.ended => {
                self.ended = true;
                let Identity { name, incarnation, .. } = self.identity.clone();
                return vec![self.say(Wish::Leave { name, incarnation })];
            }
            _ => return Vec::new(),
        }
        vec![self.speak(now)]
    }

    fn wake(&mut self, now: Duration) -> Vec<ActionOf<Self>> {
        let mut actions = Vec::new();
        if now >= self.speak_at {
            actions.push(self.speak(now));
        }
        if self.is_active() && !self.isolated && now >= self.lease_until {
            self.isolated = true;
            actions.push(Action::Note(MemberNote::Isolated));
        }
        actions
    }
}

impl Pages {
    /// Takes a page in; the whole table once nothing is missing. Only the newest epoch's pages are kept.
    fn add(&mut self, epoch: Epoch, size: u32, first: u32, members: Vec<Identity>) -> Option<Table> {
        if epoch != self.epoch {
            *self = Self { epoch, members: BTreeMap::new() };
        }
        let ranks = (u64::from(first)..).map(u32::try_from).map_while(|rank| rank.ok());
        self.members.extend(ranks.zip(members).filter(|(rank, _)| *rank < size));
        let whole = self.members.len() == size as usize;
        whole.then(|| Table { epoch, members: std::mem::take(&mut self.members).into_values().collect() })
    }
}

impl Machine for Member {
    type Incoming = Reply;
    type Outgoing = Request;
    type Command = MemberCommand;
    type Note = MemberNote;

    fn step(&mut self, event: EventOf<Self>, now: Duration) -> Vec<ActionOf<Self>> {
        if self.ended {
            return Vec::new();
        }
        match event {
            Event::Message { message, .. } => self.hear(message, now),
            Event::Command(command) => self.obey(command, now),
            // The way to the coordinator is open anew with the next word.
            Event::Closed { .. } => vec![self.speak(now)],
            Event::Wake => self.wake(now),
        }
    }

    fn deadline(&self) -> Option<Duration> {
        let lease = (self.is_active() && !self.isolated).then_some(self.lease_until);
        let next = lease.map_or(self.speak_at, |lease| lease.min(self.speak_at));
        (!self.ended).then_some(next)
    }
}
