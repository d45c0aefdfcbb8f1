use super::*;
use crate::alarm::{Alarm, Impatient};
use crate::handshake::Purpose;
use crate::secret::Secret;
use gradus_host::RealClock;

/// Much longer than any pause of a loaded machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// Meets as `rank` of two at a door that outlives the meeting, on the occasion of an epoch.
fn meet_at(door: &TcpListener, rank: usize, epoch: u64, clock: &dyn Clock) -> Result<Table> {
    let launch = Launch::local(rank, 2, dial::own_address(door)?.port());
    let trust = Trust { secret: Secret::default(), tls: None, purpose: Purpose::Rendezvous, rank };
    let terms = Terms {
        launch: &launch,
        occasion: Occasion { group: "g".into(), epoch },
        entrance: (rank == 0).then_some(door),
        trust,
        wish: None,
        transport: TransportKind::Tcp,
        node: "",
        fingerprint: "",
        levels: 1,
        timeout: PATIENCE,
        timeouts: Timeouts::from(Duration::from_secs(10))?,
        clock,
    };
    meet(&terms)
}

#[test]
fn who_comes_for_an_older_epoch_is_told_that_it_is_over_and_keeps_nobody_from_meeting() {
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let clock = RealClock::new();
    let mut jobs = Vec::new();
    for epoch in [7, 8] {
        std::thread::scope(|scope| {
            let zero = scope.spawn(|| meet_at(&door, 0, epoch, &clock).unwrap().job);
            let late = meet_at(&door, 1, epoch - 1, &clock).err().unwrap();
            assert_eq!(*late.kind(), Kind::Fenced, "{late}");
            assert!(late.to_string().contains(&format!("in epoch {epoch}")), "{late}");
            // Who is further on than rank 0 hears no more than an end.
            let early = meet_at(&door, 1, epoch + 1, &clock).err().unwrap();
            assert_eq!(*early.kind(), Kind::PeerLost { rank: 0 }, "{early}");
            let one = meet_at(&door, 1, epoch, &clock).unwrap().job;
            assert_eq!(zero.join().unwrap(), one);
            jobs.push(one);
        });
    }
    assert_ne!(jobs[0], jobs[1], "each epoch has a token of its own");
}

#[test]
fn an_alarm_ends_a_meeting_before_its_time_on_both_sides() {
    for rank in [0, 1] {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let alarm = Alarm::new().unwrap();
        let clock = RealClock::new();
        std::thread::scope(|scope| {
            // The other one never comes, or never answers.
            let waiting = scope.spawn(|| meet_at(&door, rank, 1, &Impatient::new(clock, &alarm)).err());
            alarm.raise(&Error::peer_lost(1 - rank, "the other one is lost"));
            assert!(waiting.join().unwrap().is_some() && clock.now() < PATIENCE / 2);
        });
    }
}
