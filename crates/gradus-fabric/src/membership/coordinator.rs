//! The coordinator of groups, as a pure machine.
//!
//! It keeps the groups of one run or of many, gives each change of a group's members a new epoch, and stores that epoch
//! before anybody hears of it. A coordinator that starts on what an earlier one stored takes the next *term*, assumes
//! that all members of the newest tables live and may act, and goes on; a coordinator that hears of a later term than
//! its own is silent from then on. Invariants: epochs only grow, over all groups, terms and crashes; what is
//! stored is never older than what a member was told.

use super::group::Group;
use super::message::{Epoch, GroupSettings, Identity, News, Reply, Request, Table, Wish};
use super::planted::Planted;
use super::saved::{Saved, SavedGroup};
use super::timeouts::Timeouts;
use gradus_error::{Error, Result};
use gradus_host::machine::{Action, ActionOf, Event, EventOf, Machine, Peer};
use std::collections::BTreeMap;
use std::time::Duration;

/// More groups are refused: each costs memory, and a stranger must not decide how much.
const MOST_GROUPS: usize = 1024;

/// Why a member belongs no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was not heard for too long.
    Silent,
    /// It lives, but did not acknowledge an epoch in time.
    Stuck,
    /// A later life of its name has come.
    Replaced,
    /// It left in good order.
    Left,
}

/// What a coordinator tells the program around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordinatorNote {
    /// It has begun its term.
    Started {
        /// Which.
        term: u64,
    },
    /// Somebody wants to belong.
    Joined {
        /// To which group.
        group: String,
        /// Who.
        member: Identity,
    },
    /// Somebody belongs no more.
    Lost {
        /// To which group.
        group: String,
        /// Who.
        member: Identity,
        /// Why.
        cause: Cause,
    },
    /// A group has a new epoch; its members hear of it now.
    Formed {
        /// Which group.
        group: String,
        /// The epoch and its members.
        table: Table,
    },
    /// All members have acknowledged the epoch and may act.
    Active {
        /// Which group.
        group: String,
        /// Which epoch.
        epoch: Epoch,
    },
    /// It has lost the right to coordinate, and stands by until no other has it. The shell around the machine says so.
    Deposed {
        /// The term that is over.
        term: u64,
    },
    /// Another coordinator has taken over: this one is silent from now on and is to be ended.
    Superseded {
        /// The other one's term.
        term: u64,
    },
}

/// What a group's decisions need of the coordinator, and where they put what is to be done.
pub(super) struct Desk<'a> {
    pub(super) group: &'a str,
    pub(super) now: Duration,
    pub(super) timeouts: &'a Timeouts,
    pub(super) planted: Planted,
    term: u64,
    actions: &'a mut Vec<ActionOf<Coordinator>>,
}

impl Desk<'_> {
    pub(super) fn reply(&mut self, to: Peer, incarnation: u64, news: News) {
        self.actions.push(Action::Send { to, message: Reply { term: self.term, incarnation, news } });
    }

    pub(super) fn note(&mut self, note: CoordinatorNote) {
        self.actions.push(Action::Note(note));
    }
}

/// The machine.
pub struct Coordinator {
    timeouts: Timeouts,
    term: u64,
    last_epoch: Epoch,
    groups: BTreeMap<String, Group>,
    /// Groups of an earlier life, until the first step says what time it is.
    inherited: Option<Vec<SavedGroup>>,
    superseded: bool,
    planted: Planted,
}

impl Coordinator {
    /// A coordinator that goes on from what an earlier one stored, if any did.
    ///
    /// # Errors
    /// `Corrupt` when what was stored is nothing that a coordinator stored; `Invalid` when there are members whose leases
    /// follow from another `failure_detection`.
    pub fn open(stored: Option<&[u8]>, timeouts: Timeouts) -> Result<Self> {
        let saved = stored.map_or_else(|| Ok(Saved::first()), Saved::from_bytes)?;
        check_detection(&saved, &timeouts)?;
        Ok(Self {
            timeouts,
            term: saved.term + 1,
            last_epoch: saved.last_epoch,
            groups: BTreeMap::new(),
            inherited: Some(saved.groups),
            superseded: false,
            planted: Planted::Nothing,
        })
    }

    /// The same with a bug.
    pub(super) fn with_planted(self, planted: Planted) -> Self {
        let again = u64::from(planted.is(Planted::KeepsItsTerm));
        Self { planted, term: self.term - again, ..self }
    }

    /// Which life of the coordinator this is.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The spans that it goes by.
    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Whether another coordinator has taken over.
    pub fn is_superseded(&self) -> bool {
        self.superseded
    }

    fn begin(&mut self, now: Duration, actions: &mut Vec<ActionOf<Self>>) {
        let Some(inherited) = self.inherited.take() else { return };
        for SavedGroup { name, settings, table } in inherited {
            let desk = self.desk(&name, now, actions);
            let group = Group::restore(settings, table, &desk);
            self.groups.insert(name, group);
        }
        actions.push(Action::Persist(self.saved().to_bytes()));
        actions.push(Action::Note(CoordinatorNote::Started { term: self.term }));
    }

    fn desk<'a>(&'a self, group: &'a str, now: Duration, actions: &'a mut Vec<ActionOf<Self>>) -> Desk<'a> {
        Desk { group, now, timeouts: &self.timeouts, planted: self.planted, term: self.term, actions }
    }

    /// Lets `decide` look at one group.
    fn with_group<T>(
        &mut self,
        name: &str,
        now: Duration,
        actions: &mut Vec<ActionOf<Self>>,
        decide: impl FnOnce(&mut Group, &mut Desk) -> T,
    ) -> Option<T> {
        let mut group = self.groups.remove(name)?;
        let decision = decide(&mut group, &mut self.desk(name, now, actions));
        self.groups.insert(name.to_owned(), group);
        Some(decision)
    }

    fn saved(&self) -> Saved {
        let save = |(name, group): (&String, &Group)| SavedGroup {
            name: name.clone(),
            settings: group.settings,
            table: group.table.clone(),
        };
        let groups = self.groups.iter().map(save).collect();
        Saved::new(self.timeouts.detection.as_millis() as u64, self.term, self.last_epoch, groups)
    }

    // Requests.

    fn hear(&mut self, from: Peer, request: Request, now: Duration, actions: &mut Vec<ActionOf<Self>>) {
        if request.term > self.term {
            self.superseded = true;
            return actions.push(Action::Note(CoordinatorNote::Superseded { term: request.term }));
        }
        if let Err(error) = self.consider(&request, now) {
            let incarnation = request.wish.incarnation();
            let news = News::Refused { message: error.to_string() };
            return self.desk("", now, actions).reply(from, incarnation, news);
        }
        let name = request.group;
        let incarnation = request.wish.incarnation();
        let known =
            self.with_group(&name, now, actions, |group, desk| grant(group, from, request.wish, desk));
        if known.is_none() {
            self.desk(&name, now, actions).reply(from, incarnation, News::Fenced);
        }
        self.settle(&[name], now, actions);
    }

    /// Refuses what cannot be, and makes room for a new group.
    fn consider(&mut self, request: &Request, now: Duration) -> Result<()> {
        request.check()?;
        let Wish::Join { settings, failure_detection_ms, .. } = &request.wish else { return Ok(()) };
        let ours = self.timeouts.detection.as_millis();
        if u128::from(*failure_detection_ms) != ours {
            return Err(Error::invalid(format!(
                "failure_detection is {failure_detection_ms} ms here and {ours} ms at the coordinator: give all the same"
            )));
        }
        self.make_room(&request.group, *settings, now)
    }

    /// Begins a group that nobody is in; one that has just become empty begins anew, but for the leases that still run.
    fn make_room(&mut self, name: &str, settings: GroupSettings, now: Duration) -> Result<()> {
        let begun = Group::new(settings, now, self.last_epoch);
        let group = match self.groups.get(name) {
            Some(group) if !group.is_empty() => return Ok(()),
            Some(emptied) => begun.after(emptied),
            None if self.groups.len() >= MOST_GROUPS => {
                return Err(Error::exhausted(format!("there are {MOST_GROUPS} groups already")));
            }
            None => begun,
        };
        self.groups.insert(name.to_owned(), group);
        Ok(())
    }

    // Consequences.

    fn settle(&mut self, names: &[String], now: Duration, actions: &mut Vec<ActionOf<Self>>) {
        let mut formed = Vec::new();
        for name in names {
            let members = self.with_group(name, now, actions, Group::settle).flatten();
            let Some(members) = members else { continue };
            self.last_epoch = self.last_epoch.next();
            let epoch = self.last_epoch;
            formed.push(name.clone());
            self.with_group(name, now, actions, |group, desk| group.form(epoch, members, desk));
        }
        self.announce(&formed, now, actions);
        for name in names {
            self.with_group(name, now, actions, Group::go);
            let forgets = self.planted.is(Planted::ForgetsEmptiedGroups);
            if self.groups.get(name).is_some_and(|group| group.is_over(now) || forgets && group.is_empty()) {
                self.groups.remove(name);
            }
        }
    }

    fn announce(&mut self, formed: &[String], now: Duration, actions: &mut Vec<ActionOf<Self>>) {
        if formed.is_empty() {
            return;
        }
        let store = Action::Persist(self.saved().to_bytes());
        let early = self.planted.is(Planted::AnnouncesBeforeStoring);
        let place = actions.len();
        for name in formed {
            self.with_group(name, now, actions, |group, desk| group.announce(desk));
        }
        actions.insert(if early { actions.len() } else { place }, store);
    }

    fn all_groups(&self) -> Vec<String> {
        self.groups.keys().cloned().collect()
    }
}

/// Members keep the leases that they were given: a coordinator that waits for shorter ones would let others act beside them.
fn check_detection(saved: &Saved, timeouts: &Timeouts) -> Result<()> {
    let ours = timeouts.detection.as_millis();
    let theirs = saved.failure_detection_ms;
    if saved.groups.is_empty() || u128::from(theirs) == ours {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the members that it knows keep a failure_detection of {theirs} ms, this coordinator one of {ours} ms: start all \
         coordinators with that of the members"
    )))
}

/// Does what a member of a group wants.
fn grant(group: &mut Group, from: Peer, wish: Wish, desk: &mut Desk) {
    match wish {
        Wish::Join { identity, settings, sent, .. } => group.join(from, identity, settings, sent, desk),
        Wish::Stay { name, incarnation, sent, standing } => {
            group.stay(from, (&name, incarnation), sent, standing, desk);
        }
        Wish::Leave { name, incarnation } => group.leave(&name, incarnation, desk),
    }
}

impl Machine for Coordinator {
    type Incoming = Request;
    type Outgoing = Reply;
    type Command = ();
    type Note = CoordinatorNote;

    fn step(&mut self, event: EventOf<Self>, now: Duration) -> Vec<ActionOf<Self>> {
        let mut actions = Vec::new();
        self.begin(now, &mut actions);
        if self.superseded {
            return actions;
        }
        match event {
            Event::Message { from, message } => self.hear(from, message, now, &mut actions),
            Event::Closed { peer } => {
                for name in self.all_groups() {
                    self.with_group(&name, now, &mut actions, |group, desk| group.closed(peer, desk));
                }
            }
            Event::Command(()) | Event::Wake => self.settle(&self.all_groups(), now, &mut actions),
        }
        actions
    }

    fn deadline(&self) -> Option<Duration> {
        if self.superseded {
            return None;
        }
        if self.inherited.is_some() {
            return Some(Duration::ZERO);
        }
        self.groups.values().filter_map(Group::deadline).min()
    }
}
