use super::*;
use std::os::unix::net::UnixStream;

fn stream(socket: UnixStream) -> Stream {
    Stream::plain(socket.into()).unwrap()
}

fn surroundings(alarm: Option<Arc<Alarm>>) -> Surroundings {
    let nodes = ["near", "far", "further"].map(str::to_owned).into();
    let timeouts = Timeouts::from(Duration::from_secs(10)).unwrap();
    Surroundings { nodes, timeouts, alarm }
}

/// Lines of rank 0 to ranks 1 and 2, and the other ends.
fn lines() -> (Lines, UnixStream, UnixStream) {
    let pair = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Line::to_local_process(stream(ours)), theirs)
    };
    let ((one, first), (two, second)) = (pair(), pair());
    (Lines::new(0, vec![None, Some(one), Some(two)], surroundings(None)), first, second)
}

fn other_end(rank: usize, socket: UnixStream) -> Lines {
    Lines::new(rank, vec![Some(Line::new(stream(socket)))], surroundings(None))
}

#[test]
fn a_line_that_closes_without_a_word_is_a_death() {
    let (mut ours, first, _second) = lines();
    ours.check().unwrap();
    drop(first);
    for _ in 0..2 {
        let error = ours.check().unwrap_err();
        assert_eq!(*error.kind(), Kind::PeerLost { rank: 1 });
        assert!(error.to_string().contains("rank 1 on far"), "{error}");
    }
}

#[test]
fn an_alarm_wakes_whoever_watches_and_says_why() {
    let alarm = Arc::new(Alarm::new().unwrap());
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let line = Line::to_local_process(stream(ours));
    let mut lines = Lines::new(0, vec![None, Some(line)], surroundings(Some(Arc::clone(&alarm))));
    lines.check().unwrap();
    lines.heed().unwrap();
    alarm.raise(&Error::peer_lost(1, "rank 1 is silent"));
    poll(&mut lines.watched(), None).unwrap();
    for error in [lines.heed(), lines.check()] {
        assert_eq!(*error.unwrap_err().kind(), Kind::PeerLost { rank: 1 });
    }
}

#[test]
fn who_has_let_go_of_its_lines_is_seen_to_by_its_neighbours() {
    let pair = UnixStream::pair().unwrap();
    let lines = [pair.0, pair.1].map(|end| {
        let line = Line::to_local_process(stream(end));
        Lines::new(0, vec![None, Some(line)], surroundings(None))
    });
    let [ours, theirs] = lines;
    let holders = [ours.holders().unwrap(), theirs.holders().unwrap()];
    let clock = gradus_host::RealClock::new();
    let fence = |end: usize| holders[end][1].as_ref().unwrap().fence(&clock, gradus_host::Clock::now(&clock));
    assert_eq!(*fence(0).unwrap_err().kind(), Kind::Unavailable);
    drop(theirs);
    fence(0).unwrap();
    assert_eq!(*fence(1).unwrap_err().kind(), Kind::Unavailable, "the other end is still held");
    drop(ours);
    fence(1).unwrap();
}

#[test]
fn a_goodbye_is_no_failure_until_the_peer_is_needed() {
    let (mut ours, first, _second) = lines();
    drop(other_end(1, first));
    ours.check().unwrap();
    assert!(ours.has_left(1) && !ours.has_left(2));
    assert_eq!(*ours.explain(1).kind(), Kind::PeerLost { rank: 1 });
}

#[test]
fn a_reason_counts_before_a_death() {
    let (mut ours, first, second) = lines();
    drop(first);
    let mut theirs = other_end(2, second);
    theirs.give_up(&Error::invalid("other length"));
    drop(theirs);
    let error = ours.check().unwrap_err();
    assert!(*error.kind() == Kind::Invalid && error.is_told());
    assert!(error.to_string().contains("rank 2 on further gave up: other length"), "{error}");
}

#[test]
fn every_kind_survives_the_wire() {
    let kinds = [
        Kind::Invalid,
        Kind::Denied,
        Kind::Unavailable,
        Kind::Exhausted,
        Kind::PeerLost { rank: 5 },
        Kind::Fenced,
        Kind::Corrupt,
        Kind::Closed,
        Kind::Internal,
    ];
    for kind in kinds {
        let (mut ours, first, _second) = lines();
        other_end(1, first).give_up(&Error::new(kind.clone(), "x".repeat(100_000)));
        assert_eq!(*ours.check().unwrap_err().kind(), kind);
    }
}

#[test]
fn a_reason_too_long_for_a_frame_arrives_as_far_as_one_holds() {
    let (mut ours, first, _second) = lines();
    // Each takes six bytes of JSON, more than any other.
    other_end(1, first).give_up(&Error::invalid("\u{1}".repeat(100_000)));
    let error = ours.check().unwrap_err();
    assert!(*error.kind() == Kind::Invalid && error.is_told());
    assert_eq!(error.to_string().matches('\u{1}').count(), REASON_CHARS);
}

#[test]
fn a_line_with_nonsense_is_no_goodbye() {
    let (mut ours, first, _second) = lines();
    frame::send(&mut stream(first), &frame::encode(&"nonsense").unwrap()).unwrap();
    assert_eq!(*ours.check().unwrap_err().kind(), Kind::Corrupt);
}
