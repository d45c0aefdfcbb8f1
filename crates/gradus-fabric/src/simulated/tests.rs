//! What strikes, and what ranks make of it; what they can do at all, the parity suite shows.

use super::{Conditions, SILENCE, run};
use crate::transport::{Direction, Interest, Lane, Transport};
use gradus_error::{Error, Kind, Result};
use gradus_host::Clock;
use gradus_host::simulation::{Fault, Faults, Recording, Strike, Weather};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// A fault that strikes after a second, on a network that is in order but for it.
fn struck(fault: Fault) -> Conditions {
    struck_by(vec![Strike { at: Duration::from_secs(1), fault }])
}

fn struck_by(strikes: Vec<Strike>) -> Conditions {
    Conditions {
        faults: Faults { strikes, heal: HOUR, ..Faults::none() },
        end: HOUR,
        ..Conditions::default()
    }
}

/// Passes a byte to and fro for ever, or until a deadline.
fn chatter(transport: &mut dyn Transport, clock: &dyn Clock, until: Duration) -> Result<()> {
    let peers: Vec<usize> = (0..transport.world_size()).filter(|peer| *peer != transport.rank()).collect();
    while clock.now() < until {
        for peer in &peers {
            transport.try_send(Lane::lowest(*peer), &[1])?;
            transport.try_receive(Lane::lowest(*peer), &mut |_, len| len)?;
        }
        let interests: Vec<Interest> = peers
            .iter()
            .map(|peer| Interest { lane: Lane::lowest(*peer), direction: Direction::Receive })
            .collect();
        transport.wait(&interests, Duration::from_secs(1))?;
        // Seconds matter here, and each millisecond of them costs real time.
        clock.sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// What each of three ranks comes to, and when.
fn chatter_under(conditions: &Conditions) -> Vec<(Option<Error>, Duration)> {
    let finish = run(3, conditions, |mut transport, clock| {
        let error = chatter(&mut *transport, &*clock, Duration::from_secs(100)).err();
        if let Some(error) = &error {
            transport.abort(error);
        }
        (error, clock.now())
    });
    finish.results
}

fn kinds(outcomes: &[(Option<Error>, Duration)]) -> Vec<Option<Kind>> {
    outcomes.iter().map(|(error, _)| error.as_ref().map(|error| error.kind().clone())).collect()
}

#[test]
fn a_crash_is_told_by_the_kernel_and_a_power_loss_by_silence() {
    for (power_loss, earliest) in [(false, Duration::from_secs(1)), (true, SILENCE)] {
        let outcomes = chatter_under(&struck(Fault::Crash { node: 1, power_loss, down: None }));
        let lost = Some(Kind::PeerLost { rank: 1 });
        assert_eq!(kinds(&outcomes), [lost.clone(), Some(Kind::Closed), lost]);
        let latest = earliest + Duration::from_secs(2);
        assert!(outcomes[0].1 >= earliest && outcomes[0].1 < latest, "{outcomes:?}");
    }
}

#[test]
fn a_short_cut_is_a_delay_and_a_long_one_a_loss() {
    let cut = |seconds| {
        let length = Duration::from_secs(seconds);
        chatter_under(&struck(Fault::Cut { side: vec![2], one_way: false, length }))
    };
    assert_eq!(kinds(&cut(20)), [None, None, None]);
    for outcome in kinds(&cut(60)) {
        assert!(matches!(outcome, Some(Kind::PeerLost { .. })), "{outcome:?}");
    }
}

#[test]
fn two_cuts_are_one_silence_if_they_overlap_and_none_if_between_them_something_is_heard() {
    let cuts = |cuts: [(u64, u64); 2]| {
        let strike = |(start, seconds)| {
            let length = Duration::from_secs(seconds);
            let fault = Fault::Cut { side: vec![2], one_way: false, length };
            Strike { at: Duration::from_secs(start), fault }
        };
        chatter_under(&struck_by(cuts.map(strike).into()))
    };
    assert_eq!(kinds(&cuts([(1, 10), (20, 20)])), [None, None, None]);
    for (error, at) in cuts([(1, 15), (10, 30)]) {
        assert!(
            error.is_some() && at >= SILENCE && at < SILENCE + Duration::from_secs(5),
            "{error:?} {at:?}"
        );
    }
}

#[test]
fn who_stands_still_is_waited_for() {
    let outcomes = chatter_under(&struck(Fault::Pause { node: 0, length: Duration::from_secs(90) }));
    assert_eq!(kinds(&outcomes), [None, None, None]);
    assert!(outcomes[0].1 >= Duration::from_secs(91));
}

#[test]
fn a_connection_that_is_reset_is_a_loss_to_both() {
    let outcomes = chatter_under(&struck(Fault::Reset { node: 0, peer: 1 }));
    assert_eq!(kinds(&outcomes), vec![Some(Kind::PeerLost { rank: 1 }); 3]);
    let told: Vec<bool> = outcomes.iter().map(|(error, _)| error.as_ref().unwrap().is_told()).collect();
    assert_eq!(told, [false, true, true]);
}

#[test]
fn what_is_lost_on_the_way_arrives_later_and_in_order() {
    let weather = Weather { loss: 0.3, ..Faults::none().weather };
    let lossy = Faults { weather, heal: HOUR, ..Faults::none() };
    let arrive = |faults: Faults| {
        let conditions = Conditions { faults, ..Conditions::default() };
        let finish = run(2, &conditions, |mut transport, clock| {
            let len: usize = 3_000_000;
            let (mut done, peer) = (0, 1 - transport.rank());
            while done < len {
                if peer == 1 {
                    let bytes: Vec<u8> = (done..len.min(done + 70_000)).map(|i| (i % 251) as u8).collect();
                    done += transport.try_send(Lane::lowest(1), &bytes).unwrap();
                    transport
                        .wait(&[Interest { lane: Lane::lowest(peer), direction: Direction::Send }], HOUR)
                        .unwrap();
                } else {
                    transport
                        .wait(&[Interest { lane: Lane::lowest(peer), direction: Direction::Receive }], HOUR)
                        .unwrap();
                    let in_order = |from: *const u8, count: usize| {
                        // SAFETY: the transport hands out that many bytes.
                        let bytes = unsafe { std::slice::from_raw_parts(from, count) };
                        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == ((done + i) % 251) as u8));
                        done += count;
                        count
                    };
                    transport.try_receive(Lane::lowest(0), &mut { in_order }).unwrap();
                }
            }
            clock.now()
        });
        finish.results[1]
    };
    let (calm, rough) = (arrive(Faults::none()), arrive(lossy));
    assert!(rough > calm + Duration::from_secs(1), "{calm:?} {rough:?}");
}

#[test]
fn the_same_conditions_give_the_same_trace() {
    let digest = |seed| {
        let fault = Fault::Crash { node: 1, power_loss: false, down: None };
        let conditions = Conditions { seed, recording: Recording::Digest, ..struck(fault) };
        let finish = run(3, &conditions, |mut transport, clock| {
            chatter(&mut *transport, &*clock, Duration::from_secs(5)).is_ok()
        });
        (finish.trace.digest(), finish.results, finish.at)
    };
    assert_eq!(digest(3), digest(3));
    assert_ne!(digest(3).0, digest(4).0);
}

#[test]
fn nobody_gets_beyond_the_end() {
    let conditions = Conditions { end: Duration::from_secs(3), ..Conditions::default() };
    assert_eq!(kinds(&chatter_under(&conditions))[0], Some(Kind::Internal));
}
