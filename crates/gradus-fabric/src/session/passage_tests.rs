use super::*;
use crate::membership::{COORDINATOR, Identity};

const DETECTION: Duration = Duration::from_secs(8);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn table(epoch: u64, names: &[&str]) -> Table {
    let member = |name: &&str| Identity {
        name: (*name).into(),
        incarnation: 1,
        host: "h".into(),
        address: "a".into(),
    };
    Table { epoch: Epoch(epoch), members: names.iter().map(member).collect() }
}

fn formed(epoch: u64, names: &[&str]) -> MemberNote {
    MemberNote::Formed { term: 1, table: table(epoch, names) }
}

fn active(epoch: u64) -> MemberNote {
    MemberNote::Active { term: 1, epoch: Epoch(epoch) }
}

fn broken(epoch: u64) -> MemberNote {
    MemberNote::Broken { term: 1, epoch: Epoch(epoch), lost: vec![], left: vec![] }
}

fn fence(epoch: u64, names: &[&str]) -> ActionOf<Passage> {
    Action::Note(Step::Fence(table(epoch, names)))
}

fn connect(epoch: u64, names: &[&str]) -> ActionOf<Passage> {
    Action::Note(Step::Connect(table(epoch, names)))
}

fn say(message: MemberCommand) -> ActionOf<Passage> {
    Action::Send { to: COORDINATOR, message }
}

fn acknowledge(epoch: u64) -> ActionOf<Passage> {
    say(MemberCommand::Acknowledge(Epoch(epoch)))
}

fn abandon(epoch: u64) -> ActionOf<Passage> {
    say(MemberCommand::Abandon(Epoch(epoch)))
}

struct Traveller(Passage);

impl Traveller {
    fn hear(&mut self, message: MemberNote) -> Vec<ActionOf<Passage>> {
        self.0.step(Event::Message { from: COORDINATOR, message }, seconds(0))
    }

    fn turn(&mut self, now: u64, turn: Turn) -> Vec<ActionOf<Passage>> {
        self.0.step(Event::Command(turn), seconds(now))
    }

    fn wake(&mut self, now: u64) -> Vec<ActionOf<Passage>> {
        self.0.step(Event::Wake, seconds(now))
    }

    /// Connected with b and c in epoch 1.
    fn settled() -> Self {
        let mut traveller = Self(Passage::new(DETECTION));
        assert_eq!(traveller.turn(0, Turn::Want), []);
        let all = ["a", "b", "c"];
        assert_eq!(traveller.hear(formed(1, &all)), [fence(1, &all), acknowledge(1)]);
        assert_eq!(traveller.hear(active(1)), [connect(1, &all)]);
        assert_eq!(traveller.turn(0, Turn::Connected(Epoch(1))), []);
        traveller
    }
}

#[test]
fn nothing_is_acknowledged_before_the_program_has_let_go() {
    let mut traveller = Traveller::settled();
    assert_eq!(traveller.hear(broken(1)), []);
    assert_eq!(traveller.hear(formed(2, &["a", "b"])), []);
    assert_eq!(traveller.turn(3, Turn::Want), [fence(2, &["a", "b"]), acknowledge(2)]);
    assert_eq!(traveller.0.deadline(), None);
    assert_eq!(traveller.hear(active(2)), [connect(2, &["a", "b"])]);
}

#[test]
fn an_epoch_that_comes_while_another_is_awaited_takes_its_place() {
    let mut traveller = Traveller::settled();
    traveller.hear(broken(1));
    traveller.turn(3, Turn::Want);
    traveller.hear(formed(2, &["a", "b"]));
    assert_eq!(traveller.hear(formed(3, &["a"])), [fence(3, &["a"]), acknowledge(3)]);
    assert_eq!(traveller.hear(active(2)), []);
    assert_eq!(traveller.hear(broken(3)), []);
    assert_eq!(traveller.hear(active(3)), [], "nobody connects in an epoch that is broken");
}

#[test]
fn an_epoch_of_no_use_is_abandoned_when_membership_would_have_told_of_a_death() {
    let mut traveller = Traveller::settled();
    assert_eq!(traveller.turn(3, Turn::Want), []);
    assert_eq!((traveller.0.deadline(), traveller.wake(10)), (Some(seconds(11)), vec![]));
    assert_eq!(traveller.turn(10, Turn::Want), [], "asking again changes nothing");
    assert_eq!(traveller.wake(11), [abandon(1)]);
    assert_eq!((traveller.0.deadline(), traveller.wake(20)), (None, vec![]));

    traveller.hear(formed(2, &["a", "b", "c"]));
    traveller.hear(active(2));
    assert_eq!(traveller.turn(30, Turn::Unreachable(Epoch(2))), []);
    assert_eq!(traveller.hear(broken(2)), []);
    assert_eq!((traveller.0.deadline(), traveller.wake(40)), (None, vec![]), "membership was faster");

    traveller.hear(formed(3, &["a", "b", "c"]));
    traveller.hear(active(3));
    assert_eq!(traveller.turn(50, Turn::Want), [], "it did not connect, and gave up waiting");
    assert_eq!(traveller.wake(50), [abandon(3)]);
}

#[test]
fn what_has_ended_stays_ended() {
    for (note, step) in [
        (MemberNote::Fenced, Step::Fenced),
        (MemberNote::Refused { message: "no".into() }, Step::Refused("no".into())),
    ] {
        let mut traveller = Traveller::settled();
        assert_eq!(traveller.hear(note), [Action::Note(step.clone())]);
        assert_eq!(traveller.turn(1, Turn::Want), [Action::Note(step)]);
    }
}
