//! One group as its coordinator sees it.
//!
//! A group *gathers* until there is a quorum, *forms* an epoch (its table is announced and every member acknowledges
//! it), and is *active* until a member is lost or finds the epoch broken; then it gathers again. Invariant: nobody is
//! told to act in an epoch before all its members have acknowledged it (none of them acts in an older one any more)
//! and the leases of all who were excluded since have ended; from then on nobody is given a lease for an older one,
//! whatever it is late to say.

use super::coordinator::{Cause, CoordinatorNote, Desk};
use super::message::{Epoch, GroupSettings, Identity, News, Standing, Table, pages};
use super::planted::Planted;
use super::quorum::{Candidate, Decision, GroupState, quorum};
use gradus_host::machine::Peer;
use std::collections::BTreeMap;
use std::time::Duration;

/// Who waits in reserve, beyond those that a group can have; more are refused.
const MOST_IN_RESERVE: usize = 1024;

/// The way to a member that has not spoken to this life of the coordinator.
const NOBODY: Peer = Peer::MAX;

/// Somebody who lives and wants to belong.
struct Present {
    identity: Identity,
    peer: Peer,
    since: Duration,
    /// The newest sign of life, by the member's own clock.
    sent: u64,
    /// When it came.
    heard: Duration,
    /// When the member is taken for dead.
    silent_at: Duration,
    /// When it must have acknowledged the newest epoch, if it acts in no older one that still holds.
    acknowledge_by: Option<Duration>,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Gathering,
    Forming,
    Active,
}

/// The members of a group, and its newest epoch.
pub(super) struct Group {
    pub(super) settings: GroupSettings,
    pub(super) table: Table,
    present: BTreeMap<String, Present>,
    phase: Phase,
    /// Ranks of the table that are lost.
    lost: Vec<u32>,
    /// Ranks of the table that have left in good order.
    left: Vec<u32>,
    open_since: Duration,
    /// When the leases of all who were excluded have ended.
    go_from: Duration,
    /// The newest epoch in which anybody may have acted: there are no leases for older ones.
    newest_gone: Epoch,
    /// When time alone changes the quorum's decision.
    decide_at: Option<Duration>,
}

impl Group {
    /// A group without members; `newest` is the newest epoch that a group of that name may have had.
    pub(super) fn new(settings: GroupSettings, now: Duration, newest: Epoch) -> Self {
        Self {
            settings,
            table: Table::default(),
            present: BTreeMap::new(),
            phase: Phase::Gathering,
            lost: Vec::new(),
            left: Vec::new(),
            open_since: now,
            go_from: now,
            newest_gone: newest,
            decide_at: None,
        }
    }

    /// A group as an earlier life of the coordinator left it: its members may live, and may act.
    pub(super) fn restore(settings: GroupSettings, table: Table, desk: &Desk) -> Self {
        let mut group = Self::new(settings, desk.now, table.epoch);
        for identity in &table.members {
            group.insert(NOBODY, identity.clone(), 0, desk);
        }
        let phase = if table.members.is_empty() { Phase::Gathering } else { Phase::Forming };
        Self { table, phase, go_from: desk.now + desk.timeouts.lease_over, ..group }
    }

    /// This group in the place of one of the same name that has become empty: whoever was excluded from that one is waited for.
    pub(super) fn after(self, emptied: &Self) -> Self {
        Self { go_from: self.go_from.max(emptied.go_from), ..self }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// Whether nothing need be known of it any more: nobody is in it, and nobody who was can act.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        self.is_empty() && now >= self.go_from
    }

    // What members want.

    pub(super) fn join(
        &mut self,
        from: Peer,
        identity: Identity,
        settings: GroupSettings,
        sent: u64,
        desk: &mut Desk,
    ) {
        if let Some(message) = self.objection(&identity, settings, desk.group) {
            return desk.reply(from, identity.incarnation, News::Refused { message });
        }
        let known = self.present.get(&identity.name).map(|present| present.identity.incarnation);
        match known {
            Some(newer) if newer > identity.incarnation => {
                return desk.reply(from, identity.incarnation, News::Fenced);
            }
            Some(same) if same == identity.incarnation => {}
            older => {
                older.is_some().then(|| self.remove(&identity.name, Cause::Replaced, desk));
                self.welcome(from, &identity, desk);
            }
        }
        self.hear(from, &identity.name, sent, Standing::default(), desk);
    }

    fn objection(&self, identity: &Identity, settings: GroupSettings, group: &str) -> Option<String> {
        if settings != self.settings {
            return Some(format!(
                "{} wants group {group} as {settings:?}, the others as {:?}: start all alike",
                identity.name, self.settings
            ));
        }
        let full = self.present.len() >= self.settings.max_size as usize + MOST_IN_RESERVE;
        let unknown = !self.present.contains_key(&identity.name);
        (full && unknown)
            .then(|| format!("group {group} has {} members and waiting already", self.present.len()))
    }

    fn welcome(&mut self, from: Peer, identity: &Identity, desk: &mut Desk) {
        let nobody_waits = match self.phase {
            Phase::Gathering => self.present.is_empty(),
            Phase::Forming | Phase::Active => self.present.len() == self.table.members.len(),
        };
        if nobody_waits {
            self.open_since = desk.now;
        }
        self.insert(from, identity.clone(), 0, desk);
        desk.note(CoordinatorNote::Joined { group: desk.group.to_owned(), member: identity.clone() });
    }

    fn insert(&mut self, peer: Peer, identity: Identity, sent: u64, desk: &Desk) {
        let present = Present {
            peer,
            since: desk.now,
            sent,
            heard: desk.now,
            silent_at: desk.now + desk.timeouts.detection,
            acknowledge_by: None,
            standing: Standing::default(),
            identity,
        };
        self.present.insert(present.identity.name.clone(), present);
    }

    pub(super) fn stay(
        &mut self,
        from: Peer,
        (name, incarnation): (&str, u64),
        sent: u64,
        standing: Standing,
        desk: &mut Desk,
    ) {
        match self.present.get(name) {
            Some(present) if present.identity.incarnation == incarnation => {
                self.hear(from, name, sent, standing, desk);
            }
            _ => desk.reply(from, incarnation, News::Fenced),
        }
    }

    pub(super) fn leave(&mut self, name: &str, incarnation: u64, desk: &mut Desk) {
        if self.present.get(name).is_some_and(|present| present.identity.incarnation == incarnation) {
            self.remove(name, Cause::Left, desk);
        }
    }

    /// A connection broke: whoever was on it lives only if it comes back soon.
    pub(super) fn closed(&mut self, peer: Peer, desk: &Desk) {
        let soon = desk.now + desk.timeouts.reconnect;
        for present in self.present.values_mut().filter(|present| present.peer == peer) {
            present.silent_at = present.silent_at.min(soon);
        }
    }

    /// A sign of life; an older one than the newest says nothing.
    fn hear(&mut self, from: Peer, name: &str, sent: u64, standing: Standing, desk: &mut Desk) {
        let Some(present) = self.present.get_mut(name).filter(|present| sent > present.sent) else { return };
        present.peer = from;
        present.sent = sent;
        present.heard = desk.now;
        present.silent_at = desk.now + desk.timeouts.detection;
        present.standing = standing;
        let incarnation = present.identity.incarnation;
        let seated = self.table.rank_of(name, incarnation).is_some();
        let lease = seated && standing.acknowledged >= self.newest_gone;
        desk.reply(from, incarnation, News::Heard { sent, lease });
        if self.phase != Phase::Gathering && seated && standing.broken == self.table.epoch {
            self.break_epoch(desk);
        }
        if seated {
            self.press(name, desk);
        }
        if !desk.planted.is(Planted::SaysOnce) {
            self.tell_what_lacks(name, desk);
        }
    }

    /// Whoever has nothing to go on with must acknowledge in time; an earlier life of the coordinator may have known by when.
    fn press(&mut self, name: &str, desk: &Desk) {
        let (forming, epoch) = (self.phase == Phase::Forming, self.table.epoch);
        let Some(present) = self.present.get_mut(name) else { return };
        let Standing { acknowledged, broken, .. } = present.standing;
        if forming && acknowledged < epoch && broken >= acknowledged {
            present.acknowledge_by.get_or_insert(desk.now + desk.timeouts.abort);
        }
    }

    fn tell_what_lacks(&self, name: &str, desk: &mut Desk) {
        let (Some(present), Some(_)) = (self.present.get(name), self.rank_of(name)) else { return };
        let Standing { known, acknowledged, active, broken } = present.standing;
        let epoch = self.table.epoch;
        match self.phase {
            Phase::Gathering if known == epoch && broken != epoch => self.send(present, self.abort(), desk),
            Phase::Forming | Phase::Active if known < epoch => {
                pages(&self.table).for_each(|page| self.send(present, page, desk));
            }
            Phase::Active if acknowledged == epoch && !active => self.send(present, News::Go { epoch }, desk),
            _ => {}
        }
    }

    fn send(&self, to: &Present, news: News, desk: &mut Desk) {
        desk.reply(to.peer, to.identity.incarnation, news);
    }

    /// Says the same to all members of the table that are there.
    fn send_to_all(&self, news: &News, desk: &mut Desk) {
        self.seated().for_each(|present| self.send(present, news.clone(), desk));
    }

    /// Members of the table that are there.
    fn seated(&self) -> impl Iterator<Item = &Present> {
        let find = |identity: &Identity| {
            self.present.get(&identity.name).filter(|there| there.identity == *identity)
        };
        self.table.members.iter().filter_map(find)
    }

    /// The rank of a name that is there, in this life of it.
    fn rank_of(&self, name: &str) -> Option<usize> {
        let present = self.present.get(name)?;
        self.table.rank_of(name, present.identity.incarnation)
    }

    // What becomes of the epoch.

    fn remove(&mut self, name: &str, cause: Cause, desk: &mut Desk) {
        let rank = self.rank_of(name);
        let Some(gone) = self.present.remove(name) else { return };
        let member = gone.identity;
        desk.note(CoordinatorNote::Lost { group: desk.group.to_owned(), member, cause });
        let Some(rank) = rank else { return };
        // Who leaves has said that it acts no more; of all others one knows only when their lease ends.
        if cause != Cause::Left && !desk.planted.is(Planted::GoesBeforeLeasesEnd) {
            self.go_from = self.go_from.max(gone.heard + desk.timeouts.lease_over);
        }
        let ranks = if cause == Cause::Left { &mut self.left } else { &mut self.lost };
        ranks.push(rank as u32);
        self.break_epoch(desk);
    }

    fn abort(&self) -> News {
        News::Abort { epoch: self.table.epoch, lost: self.lost.clone(), left: self.left.clone() }
    }

    fn break_epoch(&mut self, desk: &mut Desk) {
        if self.phase != Phase::Gathering {
            self.phase = Phase::Gathering;
            self.open_since = desk.now;
        }
        self.send_to_all(&self.abort(), desk);
    }

    /// Finds out who is dead or stuck, and whether a new epoch is to be formed, with whom.
    pub(super) fn settle(&mut self, desk: &mut Desk) -> Option<Vec<Identity>> {
        if !desk.planted.is(Planted::DeclaresNobody) {
            self.bury(desk);
        }
        self.decide_at = None;
        match quorum(desk.now, &self.state(), &self.settings) {
            Decision::Form(members) => return Some(members),
            Decision::Wait { until, .. } => self.decide_at = until,
            Decision::Keep => {}
        }
        None
    }

    fn bury(&mut self, desk: &mut Desk) {
        let doomed: Vec<(String, Cause)> =
            self.present.values().filter_map(|present| self.doom(present, desk.now)).collect();
        doomed.into_iter().for_each(|(name, cause)| self.remove(&name, cause, desk));
    }

    fn doom(&self, present: &Present, now: Duration) -> Option<(String, Cause)> {
        let stuck = || self.must_acknowledge(present).is_some_and(|until| now >= until);
        let cause = if now >= present.silent_at {
            Cause::Silent
        } else if stuck() {
            Cause::Stuck
        } else {
            return None;
        };
        Some((present.identity.name.clone(), cause))
    }

    fn must_acknowledge(&self, present: &Present) -> Option<Duration> {
        let late = self.phase == Phase::Forming && present.standing.acknowledged < self.table.epoch;
        present.acknowledge_by.filter(|_| late)
    }

    fn state(&self) -> GroupState<'_> {
        let candidates = self
            .present
            .values()
            .map(|present| Candidate { identity: &present.identity, since: present.since });
        GroupState {
            candidates: candidates.collect(),
            table: &self.table,
            holds: self.phase != Phase::Gathering,
            open_since: self.open_since,
        }
    }

    pub(super) fn form(&mut self, epoch: Epoch, members: Vec<Identity>, desk: &mut Desk) {
        let acknowledge_by = (self.phase == Phase::Gathering).then_some(desk.now + desk.timeouts.abort);
        self.table = Table { epoch, members };
        self.lost.clear();
        self.left.clear();
        self.phase = Phase::Forming;
        for present in self.present.values_mut() {
            present.acknowledge_by = acknowledge_by;
        }
    }

    pub(super) fn announce(&self, desk: &mut Desk) {
        desk.note(CoordinatorNote::Formed { group: desk.group.to_owned(), table: self.table.clone() });
        pages(&self.table).for_each(|page| self.send_to_all(&page, desk));
    }

    /// Lets members act, once all have acknowledged and nobody who was excluded can act any more.
    pub(super) fn go(&mut self, desk: &mut Desk) {
        if !self.may_go(desk) {
            return;
        }
        let epoch = self.table.epoch;
        self.phase = Phase::Active;
        self.newest_gone = epoch;
        self.send_to_all(&News::Go { epoch }, desk);
        desk.note(CoordinatorNote::Active { group: desk.group.to_owned(), epoch });
    }

    fn may_go(&self, desk: &Desk) -> bool {
        let acknowledged = self.all_acknowledged() || desk.planted.is(Planted::GoesWithoutAcknowledgements);
        self.phase == Phase::Forming && acknowledged && desk.now >= self.go_from
    }

    fn all_acknowledged(&self) -> bool {
        self.seated().all(|present| present.standing.acknowledged == self.table.epoch)
    }

    /// When time alone changes something.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let silent = self.present.values().map(|present| present.silent_at);
        let stuck = self.present.values().filter_map(|present| self.must_acknowledge(present));
        let go = (self.phase == Phase::Forming && self.all_acknowledged()).then_some(self.go_from);
        let over = self.is_empty().then_some(self.go_from);
        silent.chain(stuck).chain(go).chain(over).chain(self.decide_at).min()
    }
}
