//! The machines step by step, where a seed would have to be lucky.

use super::*;
use gradus_host::machine::{Action, ActionOf, Event, Machine, Peer};
use std::time::Duration;

const DETECTION: Duration = Duration::from_secs(8);

fn timeouts() -> Timeouts {
    Timeouts::from(DETECTION).unwrap()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn identity(name: &str, incarnation: u64) -> Identity {
    Identity { name: name.into(), incarnation, host: "h".into(), address: name.into() }
}

fn pair() -> GroupSettings {
    GroupSettings { min_size: 1, max_size: 2, join_window_ms: 0 }
}

/// A coordinator to which requests are said one by one.
struct Desk {
    machine: Coordinator,
    sent: u64,
}

impl Desk {
    fn open() -> Self {
        let mut machine = Coordinator::open(None, timeouts()).unwrap();
        machine.step(Event::Wake, seconds(0));
        Self { machine, sent: 0 }
    }

    fn hear(&mut self, now: u64, from: Peer, wish: Wish) -> Vec<ActionOf<Coordinator>> {
        let message = Request { group: "g".into(), term: 1, wish };
        self.machine.step(Event::Message { from, message }, seconds(now))
    }

    fn join(
        &mut self,
        now: u64,
        from: Peer,
        name: &str,
        settings: GroupSettings,
    ) -> Vec<ActionOf<Coordinator>> {
        self.sent += 1;
        let failure_detection_ms = DETECTION.as_millis() as u64;
        let identity = identity(name, 1);
        self.hear(now, from, Wish::Join { identity, settings, failure_detection_ms, sent: self.sent })
    }

    fn stay(&mut self, now: u64, from: Peer, name: &str, standing: Standing) -> Vec<ActionOf<Coordinator>> {
        self.sent += 1;
        self.hear(now, from, Wish::Stay { name: name.into(), incarnation: 1, sent: self.sent, standing })
    }

    fn acknowledge(&mut self, now: u64, from: Peer, name: &str, epoch: Epoch) -> Vec<ActionOf<Coordinator>> {
        self.stay(now, from, name, acting(epoch, false))
    }

    /// a (peer 1) and b (peer 2) act in epoch 2, which formed when b came second.
    fn with_two() -> Self {
        let mut desk = Self::open();
        desk.join(0, 1, "a", pair());
        desk.join(0, 2, "b", pair());
        desk.acknowledge(0, 1, "a", Epoch(2));
        let actions = desk.acknowledge(0, 2, "b", Epoch(2));
        assert_eq!(said(&actions, |news| matches!(news, News::Go { epoch: Epoch(2) })), [1, 2]);
        desk
    }
}

fn acting(epoch: Epoch, active: bool) -> Standing {
    Standing { known: epoch, acknowledged: epoch, active, broken: Epoch::NONE }
}

/// To whom such news were said.
fn said(actions: &[ActionOf<Coordinator>], such: impl Fn(&News) -> bool) -> Vec<Peer> {
    let heard = |action: &ActionOf<Coordinator>| match action {
        Action::Send { to, message } if such(&message.news) => Some(*to),
        _ => None,
    };
    actions.iter().filter_map(heard).collect()
}

fn has_lease(actions: &[ActionOf<Coordinator>]) -> bool {
    !said(actions, |news| matches!(news, News::Heard { lease: true, .. })).is_empty()
}

#[test]
fn an_epoch_is_stored_before_it_is_told() {
    let actions = Desk::open().join(0, 1, "a", pair());
    let stored = actions.iter().position(|action| matches!(action, Action::Persist(_))).unwrap();
    let told = actions.iter().position(|action| {
        matches!(action, Action::Send { message: Reply { news: News::Page { .. }, .. }, .. })
    });
    assert!(stored < told.unwrap());
}

#[test]
fn a_closed_connection_is_a_death_unless_another_is_opened_soon() {
    let mut desk = Desk::with_two();
    desk.machine.step(Event::Closed { peer: 2 }, seconds(1));
    assert_eq!(desk.machine.deadline(), Some(seconds(3)));
    desk.stay(2, 7, "b", acting(Epoch(2), true));
    desk.stay(2, 1, "a", acting(Epoch(2), true));
    assert_eq!(desk.machine.deadline(), Some(seconds(10)));
    desk.machine.step(Event::Closed { peer: 7 }, seconds(3));
    let actions = desk.machine.step(Event::Wake, seconds(5));
    let is_abort = |news: &News| *news == News::Abort { epoch: Epoch(2), lost: vec![1], left: vec![] };
    assert_eq!(said(&actions, is_abort), [1]);
    // b was heard at 2 s: its lease is surely over 5 s later, and nobody acts without it before.
    let is_go = |news: &News| matches!(news, News::Go { epoch: Epoch(3) });
    assert!(said(&desk.acknowledge(6, 1, "a", Epoch(3)), is_go).is_empty());
    assert_eq!(desk.machine.deadline(), Some(seconds(7)));
    assert_eq!(said(&desk.machine.step(Event::Wake, seconds(7)), is_go), [1]);
}

#[test]
fn a_group_that_becomes_empty_is_not_forgotten_before_all_its_leases_are_over() {
    let mut desk = Desk::with_two();
    desk.machine.step(Event::Closed { peer: 2 }, seconds(1));
    desk.hear(2, 1, Wish::Leave { name: "a".into(), incarnation: 1 });
    // b was heard at 0 s, is buried at 3 s and may act until its lease is surely over, at 5 s.
    desk.machine.step(Event::Wake, seconds(3));
    assert_eq!(desk.machine.deadline(), Some(seconds(5)));
    let is_go = |news: &News| matches!(news, News::Go { epoch: Epoch(4) });
    desk.join(3, 3, "c", GroupSettings::fixed(1));
    assert!(said(&desk.acknowledge(4, 3, "c", Epoch(4)), is_go).is_empty(), "it would act beside b");
    assert_eq!(desk.machine.deadline(), Some(seconds(5)));
    assert_eq!(said(&desk.machine.step(Event::Wake, seconds(5)), is_go), [3]);
    desk.hear(6, 3, Wish::Leave { name: "c".into(), incarnation: 1 });
    assert_eq!(desk.machine.deadline(), None, "nothing is left of the group");
}

#[test]
fn what_a_buried_member_said_long_ago_gives_it_no_lease() {
    let mut desk = Desk::with_two();
    desk.stay(7, 1, "a", acting(Epoch(2), true));
    desk.machine.step(Event::Wake, seconds(8));
    desk.acknowledge(8, 1, "a", Epoch(3));
    // A word of b from before it got its table arrives only now, and brings it back; then b itself wakes.
    let actions = desk.join(9, 2, "b", pair());
    assert!(!has_lease(&actions));
    assert!(
        !has_lease(&desk.stay(9, 2, "b", acting(Epoch(2), true))),
        "it would act in epoch 2 beside epoch 3"
    );
    assert!(has_lease(&desk.stay(9, 1, "a", acting(Epoch(3), true))));
    assert!(has_lease(&desk.acknowledge(9, 2, "b", Epoch(4))));
}

#[test]
fn who_waits_in_reserve_takes_the_place_of_who_leaves() {
    let mut desk = Desk::with_two();
    let waits = desk.join(1, 3, "c", pair());
    assert!(!has_lease(&waits) && said(&waits, |news| matches!(news, News::Page { .. })).is_empty());
    let actions = desk.hear(2, 1, Wish::Leave { name: "a".into(), incarnation: 1 });
    assert_eq!(said(&actions, |news| matches!(news, News::Page { size: 2, .. })), [3, 2]);
}

#[test]
fn a_member_that_does_not_let_go_is_excluded() {
    let mut desk = Desk::with_two();
    let broken = Standing { broken: Epoch(2), ..acting(Epoch(2), true) };
    desk.stay(1, 1, "a", broken);
    desk.acknowledge(2, 1, "a", Epoch(3));
    desk.stay(7, 1, "a", acting(Epoch(3), false));
    desk.stay(7, 2, "b", broken);
    let actions = desk.machine.step(Event::Wake, seconds(9));
    let stuck = |action: &ActionOf<Coordinator>| matches!(action, Action::Note(CoordinatorNote::Lost { member, cause: Cause::Stuck, .. }) if member.name == "b");
    assert!(actions.iter().any(stuck), "{actions:?}");
    assert_eq!(said(&desk.stay(9, 2, "b", broken), |news| *news == News::Fenced), [2]);
}

#[test]
fn a_member_that_does_not_let_go_is_excluded_by_a_coordinator_that_was_started_again_too() {
    let mut desk = Desk::with_two();
    let broken = Standing { broken: Epoch(2), ..acting(Epoch(2), true) };
    let stored = |action| match action {
        Action::Persist(bytes) => Some(bytes),
        _ => None,
    };
    let formed = desk.stay(1, 1, "a", broken).into_iter().find_map(stored).unwrap();
    desk.machine = Coordinator::open(Some(&formed), timeouts()).unwrap();
    desk.machine.step(Event::Wake, seconds(2));
    desk.acknowledge(3, 1, "a", Epoch(3));
    desk.stay(3, 2, "b", broken);
    desk.stay(9, 1, "a", acting(Epoch(3), false));
    desk.stay(9, 2, "b", broken);
    let stuck = |action: &ActionOf<Coordinator>| matches!(action, Action::Note(CoordinatorNote::Lost { member, cause: Cause::Stuck, .. }) if member.name == "b");
    assert!(!desk.machine.step(Event::Wake, seconds(10)).iter().any(stuck), "it has until 11 s");
    assert_eq!(desk.machine.deadline(), Some(seconds(11)));
    assert!(desk.machine.step(Event::Wake, seconds(11)).iter().any(stuck));
}

#[test]
fn a_coordinator_that_hears_of_a_later_term_is_silent() {
    let mut desk = Desk::with_two();
    let message =
        Request { group: "g".into(), term: 2, wish: Wish::Leave { name: "a".into(), incarnation: 1 } };
    let actions = desk.machine.step(Event::Message { from: 1, message }, seconds(1));
    assert_eq!(actions, [Action::Note(CoordinatorNote::Superseded { term: 2 })]);
    assert!(desk.machine.is_superseded() && desk.machine.deadline().is_none());
    assert_eq!(desk.stay(1, 1, "a", acting(Epoch(2), true)), []);
}

#[test]
fn groups_that_do_not_agree_and_other_timeouts_are_refused() {
    let mut desk = Desk::with_two();
    let is_refused = |news: &News| matches!(news, News::Refused { .. });
    assert_eq!(said(&desk.join(1, 3, "c", GroupSettings::fixed(3)), is_refused), [3]);
    let wish = Wish::Join { identity: identity("c", 1), settings: pair(), failure_detection_ms: 1, sent: 1 };
    assert_eq!(said(&desk.hear(1, 3, wish), is_refused), [3]);
    let wish = Wish::Leave { name: "a b".into(), incarnation: 1 };
    assert_eq!(said(&desk.hear(1, 3, wish), is_refused), [3]);
}

/// A member that hears replies one by one.
struct Listener(Member);

impl Listener {
    fn hear(&mut self, now: u64, term: u64, news: News) -> Vec<ActionOf<Member>> {
        let message = Reply { term, incarnation: 1, news };
        self.0.step(Event::Message { from: COORDINATOR, message }, seconds(now))
    }

    fn page(&mut self, now: u64, epoch: u64, first: u32, names: &[&str]) -> Vec<ActionOf<Member>> {
        let members = names.iter().map(|name| identity(name, 1)).collect();
        self.hear(now, 1, News::Page { epoch: Epoch(epoch), size: 3, first, members })
    }

    /// a, b and c act in epoch 5; the lease runs from the word of 10 s to 14 s.
    fn acting() -> Self {
        let mut member = Self(Member::new("g", GroupSettings::fixed(3), identity("a", 1), timeouts()));
        member.page(10, 5, 0, &["a", "b", "c"]);
        member.0.step(Event::Command(MemberCommand::Acknowledge(Epoch(5))), seconds(10));
        member.hear(10, 1, News::Go { epoch: Epoch(5) });
        member.hear(12, 1, News::Heard { sent: 10_000_000_000, lease: true });
        member
    }

    fn acts(&self, now: u64) -> bool {
        self.0.may_act(seconds(now)).is_some()
    }
}

#[test]
fn a_lease_counts_from_when_the_sign_of_life_was_sent() {
    let mut member = Listener::acting();
    assert!(member.acts(13) && !member.acts(14));
    assert!(member.0.step(Event::Wake, seconds(14)).contains(&Action::Note(MemberNote::Isolated)));
    // An answer to the far future is no more than one to now.
    let actions = member.hear(15, 1, News::Heard { sent: u64::MAX, lease: true });
    assert_eq!(actions, [Action::Note(MemberNote::Heard)]);
    assert!(member.acts(18) && !member.acts(19));
}

#[test]
fn a_table_is_known_when_its_last_page_has_come() {
    let mut member = Listener::acting();
    assert_eq!(member.page(10, 7, 2, &["e"]), []);
    assert_eq!(member.page(10, 7, u32::MAX, &["beyond", "all", "ranks"]), []);
    assert_eq!(member.page(10, 6, 0, &["a", "b", "x"]).len(), 2);
    assert_eq!(member.0.proposed().unwrap().epoch, Epoch(6));
    assert_eq!(member.page(10, 7, 0, &["a", "d"]), [], "pages of epoch 7 were given up for those of 6");
    let actions = member.page(10, 7, 2, &["e", "beyond"]);
    assert!(
        matches!(&actions[..], [.., Action::Note(MemberNote::Formed { table, .. })] if table.members.len() == 3)
    );
    assert_eq!(member.page(10, 6, 0, &["a", "b", "x"]), [], "an older table is not believed");
}

#[test]
fn the_lost_are_named_once_and_nothing_goes_on_in_a_broken_epoch() {
    let mut member = Listener::acting();
    let abort = |lost: &[u32]| News::Abort { epoch: Epoch(5), lost: lost.to_vec(), left: vec![] };
    let broken = |rank: usize, name: &str| {
        let lost = vec![(rank, identity(name, 1))];
        [Action::Note(MemberNote::Broken { term: 1, epoch: Epoch(5), lost, left: vec![] })]
    };
    assert_eq!(member.hear(12, 1, abort(&[1])), broken(1, "b"));
    assert_eq!(member.hear(12, 1, abort(&[1, 99])), []);
    assert_eq!(member.hear(12, 1, abort(&[1, 2])), broken(2, "c"));
    assert!(!member.acts(12));
    assert_eq!(member.hear(12, 1, News::Go { epoch: Epoch(5) }), []);
    assert!(!member.acts(12));
}

#[test]
fn who_left_in_good_order_is_not_among_the_lost() {
    let mut desk = Desk::with_two();
    let actions = desk.hear(1, 2, Wish::Leave { name: "b".into(), incarnation: 1 });
    let is_abort = |news: &News| *news == News::Abort { epoch: Epoch(2), lost: vec![], left: vec![1] };
    assert_eq!(said(&actions, is_abort), [1]);
    let mut member = Listener::acting();
    let abort = |lost: &[u32]| News::Abort { epoch: Epoch(5), lost: lost.to_vec(), left: vec![1] };
    let (b, c) = ((1, identity("b", 1)), (2, identity("c", 1)));
    let broken = |lost: &[(usize, Identity)], left: &[(usize, Identity)]| {
        let (lost, left) = (lost.to_vec(), left.to_vec());
        [Action::Note(MemberNote::Broken { term: 1, epoch: Epoch(5), lost, left })]
    };
    assert_eq!(member.hear(12, 1, abort(&[])), broken(&[], &[b]));
    assert_eq!(member.hear(12, 1, abort(&[])), []);
    assert_eq!(member.hear(12, 1, abort(&[2])), broken(&[c], &[]));
    // A table without both tells nothing new of them.
    let actions = member.page(12, 6, 0, &["a", "d", "e"]);
    assert!(matches!(&actions[..], [Action::Note(MemberNote::Formed { .. })]), "{actions:?}");
}

#[test]
fn old_terms_and_other_lives_are_not_believed() {
    let mut member = Listener::acting();
    member.hear(12, 3, News::Heard { sent: 0, lease: true });
    assert_eq!(member.hear(12, 2, News::Fenced), []);
    let message = Reply { term: 3, incarnation: 2, news: News::Fenced };
    assert_eq!(member.0.step(Event::Message { from: COORDINATOR, message }, seconds(12)), []);
    assert!(member.acts(12));
    assert_eq!(member.hear(12, 3, News::Fenced), [Action::Note(MemberNote::Fenced)]);
    assert!(!member.acts(12) && member.0.has_ended());
}

#[test]
fn a_coordinator_with_shorter_spans_than_its_members_does_not_start() {
    let mut desk = Desk::open();
    let actions = desk.join(0, 1, "a", pair());
    let stored = |action| match action {
        Action::Persist(bytes) => Some(bytes),
        _ => None,
    };
    let with_members = actions.into_iter().find_map(stored).unwrap();
    let other = Timeouts::from(DETECTION / 2).unwrap();
    let error = Coordinator::open(Some(&with_members), other).err().unwrap();
    assert_eq!(*error.kind(), gradus_error::Kind::Invalid);
    assert!(error.to_string().contains("8000 ms"), "{error}");
    let mut first = Coordinator::open(None, timeouts()).unwrap();
    let without = first.step(Event::Wake, seconds(0)).into_iter().find_map(stored).unwrap();
    assert_eq!(Coordinator::open(Some(&without), other).unwrap().term(), 2);
    assert_eq!(Coordinator::open(Some(&with_members), timeouts()).unwrap().term(), 2);
}
