//! Ranks on hosts that are far from each other, or on thin links: TCP through a delay line, and through `tbf` shaping.

use crate::delay_line::DelayLine;
use crate::faults::cut_off;
use crate::namespaces::{Namespaces, tool};
use crate::parity::exercise;
use crate::processes::{Rank, transport_as_rank};
use crate::world::communicator;
use gradus_fabric::TransportKind;
use std::time::Duration;

const HOSTS: usize = 3;

/// Five milliseconds each way: hosts some hundred kilometres apart.
const DELAY: Duration = Duration::from_millis(5);

/// Everything that a communicator can do; whether this process was started as a rank for it.
fn exercised() -> bool {
    let Some(transport) = transport_as_rank() else { return false };
    let mut communicator = communicator(transport);
    let bits = exercise(&mut communicator);
    // FNV-1a of all results; a sum over equal ones is the world size times each.
    let hash = bits.iter().fold(0x811c_9dc5_u32, |hash, word| (hash ^ word).wrapping_mul(0x0100_0193));
    let mut own = [f64::from(hash)];
    communicator.all_reduce(&mut own).unwrap();
    assert_eq!(own[0], f64::from(hash) * communicator.world_size() as f64);
    true
}

/// Runs `test` as a rank on every host; all must end well.
fn exercise_on(hosts: &Namespaces, test: &str) {
    let start = |rank| Rank::start(hosts.command(rank, rank, HOSTS, 29400), test, TransportKind::Tcp);
    let mut ranks: Vec<Rank> = (0..HOSTS).map(start).collect();
    let ends: Vec<bool> = ranks.iter_mut().map(|rank| rank.end().success()).collect();
    assert_eq!(ends, [true; HOSTS]);
}

#[test]
fn hosts_far_apart_on_a_line_that_loses_agree_to_the_bit() {
    if exercised() {
        return;
    }
    let Some(hosts) = Namespaces::apart(HOSTS) else { return };
    let line = DelayLine::between(&hosts, HOSTS, DELAY, 500);
    exercise_on(&hosts, "far::hosts_far_apart_on_a_line_that_loses_agree_to_the_bit");
    assert!(line.lost() > 0, "the line has lost nothing");
}

#[test]
fn hosts_on_thin_links_agree_to_the_bit() {
    if exercised() {
        return;
    }
    let Some(hosts) = Namespaces::joined(HOSTS) else { return };
    for host in 0..HOSTS {
        let name = hosts.name(host);
        tool(&format!("tc -n {name} qdisc add dev way root tbf rate 100mbit burst 64kb latency 20ms"));
    }
    exercise_on(&hosts, "far::hosts_on_thin_links_agree_to_the_bit");
}

#[test]
fn a_far_host_cut_off_in_the_middle_ends_the_wait_of_all() {
    let test = "far::a_far_host_cut_off_in_the_middle_ends_the_wait_of_all";
    cut_off(
        test,
        &["all-reduce", "all-to-all"],
        || {
            let hosts = Namespaces::apart(HOSTS)?;
            let line = DelayLine::between(&hosts, HOSTS, DELAY, 0);
            Some((hosts, line))
        },
        |(hosts, _)| hosts,
        |(_, line), victim| line.cut(victim),
    );
}
