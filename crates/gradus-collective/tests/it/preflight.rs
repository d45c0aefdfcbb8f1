//! A world's links, surveyed by threads over real transports.

use crate::world::connected;
use gradus_collective::preflight::{Seated, Survey, survey};
use gradus_error::Kind;
use gradus_fabric::TransportKind;
use gradus_fabric::simulated::{self, Conditions};
use gradus_host::simulation::{Faults, Weather};
use gradus_host::{Clock, RealClock};
use std::sync::Barrier;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

/// A real clock whose calendar is ahead.
struct Ahead {
    clock: RealClock,
    by: Duration,
}

impl Clock for Ahead {
    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn calendar(&self) -> Duration {
        self.clock.calendar() + self.by
    }

    fn sleep(&self, duration: Duration) {
        self.clock.sleep(duration);
    }
}

/// Surveys ranks of which each claims a host, and whose clocks are ahead by so many seconds.
fn of_world(kind: TransportKind, hosts: &[u64], seconds: &[u64]) -> Survey {
    let mut found = connected(hosts.len(), kind, |mut transport| {
        let rank = transport.rank();
        let clock = Ahead { clock: RealClock::new(), by: Duration::from_secs(seconds[rank]) };
        let own = Seated { host_mark: hosts[rank], host: format!("host {rank}"), address: String::new() };
        survey(&mut *transport, &own, &clock, PATIENCE).unwrap()
    });
    assert!(found[1..].iter().all(Option::is_none), "rank 0 alone is told");
    found.remove(0).unwrap()
}

#[test]
fn every_pair_is_measured_wherever_ranks_sit() {
    for kind in [TransportKind::SharedMemory, TransportKind::Tcp] {
        for hosts in [&[1, 1][..], &[1, 2], &[1, 1, 2], &[1, 2, 1, 2, 3]] {
            let Survey { ranks, pairs } = of_world(kind, hosts, &vec![0; hosts.len()]);
            let marks: Vec<u64> = ranks.iter().map(|seated| seated.host_mark).collect();
            assert_eq!(marks, hosts);
            let met: Vec<_> = pairs.iter().map(|pair| (pair.one, pair.other)).collect();
            let all = (0..hosts.len()).flat_map(|one| (one + 1..hosts.len()).map(move |other| (one, other)));
            assert_eq!(met, all.collect::<Vec<_>>());
            for pair in pairs {
                let possible = |value: f64| value > 0.0 && value.is_finite();
                assert!(possible(pair.round_trip_us) && possible(pair.clock_error_ms), "{pair:?}");
                assert!(possible(pair.there_bytes_per_s) && possible(pair.back_bytes_per_s), "{pair:?}");
            }
        }
    }
}

#[test]
fn clocks_are_found_as_far_apart_as_they_are() {
    let seconds = [7, 0, 10];
    for pair in of_world(TransportKind::Tcp, &[1, 2, 3], &seconds).pairs {
        let apart_ms = (seconds[pair.other] as f64 - seconds[pair.one] as f64) * 1e3;
        // The calendar itself may be set right meanwhile, by NTP.
        let off_ms = (pair.clock_ahead_ms - apart_ms).abs();
        assert!(off_ms <= pair.clock_error_ms + 1.0, "{pair:?}");
    }
}

/// What is measured in virtual time of a link of so much bandwidth and so long a way.
fn of_link(bandwidth_bytes_per_s: u64, delay: Duration) -> f64 {
    let weather = Weather { shortest_delay: delay, longest_delay: delay, ..Faults::none().weather };
    let conditions = Conditions {
        faults: Faults { weather, heal: Duration::MAX, ..Faults::none() },
        bandwidth_bytes_per_s,
        stream_bytes: 64 << 20,
        ..Conditions::default()
    };
    let finish = simulated::run(2, &conditions, |mut transport, clock| {
        let host_mark = transport.rank() as u64;
        let own = Seated { host_mark, host: String::new(), address: String::new() };
        survey(&mut *transport, &own, &*clock, PATIENCE).unwrap()
    });
    let pair = finish.results.into_iter().flatten().next().unwrap().pairs[0];
    assert!(pair.round_trip_us >= 2e6 * delay.as_secs_f64(), "{pair:?}");
    assert!((pair.there_bytes_per_s / pair.back_bytes_per_s - 1.0).abs() < 0.05, "{pair:?}");
    pair.there_bytes_per_s
}

#[test]
fn bandwidth_is_found_whatever_the_way() {
    for bandwidth in [1_000_000, 10_000_000, 100_000_000] {
        for delay_us in [10, 1000, 25_000, 100_000] {
            let found = of_link(bandwidth, Duration::from_micros(delay_us)) / bandwidth as f64;
            assert!((0.9..1.1).contains(&found), "{found} of {bandwidth} B/s over {delay_us} us");
        }
    }
}

#[test]
fn a_rank_that_does_not_take_part_is_named() {
    let done = Barrier::new(2);
    let errors = connected(2, TransportKind::Tcp, |mut transport| {
        let own = Seated { host_mark: 1, host: String::new(), address: String::new() };
        let brief = Duration::from_millis(200);
        let error = (transport.rank() == 0)
            .then(|| survey(&mut *transport, &own, &RealClock::new(), brief).unwrap_err());
        done.wait();
        error
    });
    let error = errors[0].as_ref().unwrap();
    assert!(*error.kind() == Kind::Unavailable && error.to_string().contains("rank 1"), "{error}");
}
