//! Worlds that were made up.

use super::super::Seated;
use super::*;
use proptest::prelude::*;

/// A world of hosts, by rank, in which all links of a kind are alike.
fn world(hosts: &[u64]) -> Survey {
    let seated = |mark: &u64| Seated { host_mark: *mark, host: format!("h{mark}"), address: String::new() };
    let ranks: Vec<Seated> = hosts.iter().map(seated).collect();
    let pair = |one: usize, other: usize| {
        let inside = hosts[one] == hosts[other];
        Pair {
            one,
            other,
            round_trip_us: if inside { 1.0 } else { 80.0 },
            there_bytes_per_s: if inside { 5e9 } else { 1e9 },
            back_bytes_per_s: if inside { 5e9 } else { 1e9 },
            clock_ahead_ms: 0.5,
            clock_error_ms: 0.04,
        }
    };
    let pairs = (0..hosts.len()).flat_map(|one| (one + 1..hosts.len()).map(move |other| (one, other)));
    Survey { pairs: pairs.map(|(one, other)| pair(one, other)).collect(), ranks }
}

/// Changes the links of a rank, or those between two.
fn change(survey: &mut Survey, ranks: &[usize], how: impl Fn(&mut Pair)) {
    let concerned = |pair: &&mut Pair| ranks.iter().all(|rank| [pair.one, pair.other].contains(rank));
    survey.pairs.iter_mut().filter(concerned).for_each(how);
}

fn slow(pair: &mut Pair) {
    pair.there_bytes_per_s /= 10.0;
    pair.back_bytes_per_s /= 10.0;
}

fn faults(survey: &Survey) -> Vec<Fault> {
    judge(survey, &Limits::default()).faults
}

#[test]
fn a_world_whose_links_are_alike_has_no_fault() {
    for hosts in [&[][..], &[1], &[1, 1], &[1, 2], &[1, 1, 2, 2, 3], &[1, 2, 3, 4, 5, 6, 7]] {
        assert_eq!(faults(&world(hosts)), []);
    }
    let usual = judge(&world(&[1, 1, 2]), &Limits::default()).usual;
    assert_eq!(usual[0], Reference { inside: true, round_trip_us: 1.0, bytes_per_s: 5e9 });
    assert_eq!(usual[1], Reference { inside: false, round_trip_us: 80.0, bytes_per_s: 1e9 });
}

#[test]
fn a_rank_whose_links_are_all_slow_is_named_even_among_three() {
    for count in 3..8 {
        let hosts: Vec<u64> = (0..count).collect();
        for bad in 0..hosts.len() {
            let mut survey = world(&hosts);
            change(&mut survey, &[bad], slow);
            let [Fault::Rank { rank, inside: false, bad: count, of, best_bytes_per_s, .. }] =
                faults(&survey)[..]
            else {
                panic!("{:?}", faults(&survey));
            };
            assert_eq!((rank, count, of, best_bytes_per_s), (bad, hosts.len() - 1, hosts.len() - 1, 1e8));
        }
    }
}

#[test]
fn one_bad_link_among_good_ones_is_named_by_its_ends() {
    let mut survey = world(&[1, 2, 3, 4]);
    change(&mut survey, &[1, 3], slow);
    let slow = |from, to| Fault::Slow { from, to, bytes_per_s: 1e8, usual_bytes_per_s: 1e9 };
    assert_eq!(faults(&survey), [slow(1, 3), slow(3, 1)]);
    let mut survey = world(&[1, 2, 3, 4]);
    change(&mut survey, &[0, 2], |pair| pair.round_trip_us = 1000.0);
    let far = Fault::Far { one: 0, other: 2, round_trip_us: 1000.0, usual_round_trip_us: 80.0 };
    assert_eq!(faults(&survey), [far]);
}

#[test]
fn of_two_ranks_the_worse_way_is_named() {
    let mut survey = world(&[1, 2]);
    survey.pairs[0].back_bytes_per_s = 4e8;
    let back = Fault::Slow { from: 1, to: 0, bytes_per_s: 4e8, usual_bytes_per_s: 1e9 };
    assert_eq!(faults(&survey), [back]);
}

#[test]
fn links_are_held_against_their_kind_and_some_microseconds_are_nothing() {
    let mut survey = world(&[1, 1, 2, 2]);
    // Between hosts a tenth of what is usual inside is usual; inside it is not.
    change(&mut survey, &[0, 1], slow);
    assert_eq!(faults(&survey).len(), 2);
    let mut survey = world(&[1, 1, 1, 1]);
    change(&mut survey, &[0, 1], |pair| pair.round_trip_us = 50.0);
    assert_eq!(faults(&survey), []);
    change(&mut survey, &[0, 1], |pair| pair.round_trip_us = 52.0);
    assert!(matches!(faults(&survey)[..], [Fault::Far { one: 0, other: 1, .. }]));
}

#[test]
fn where_no_clock_has_a_majority_both_are_named() {
    let mut survey = world(&[1, 1, 2]);
    for (offset_ms, behind, ahead) in [(5000.0, 0, 2), (-5000.0, 2, 0)] {
        change(&mut survey, &[0, 2], |pair| pair.clock_ahead_ms = offset_ms);
        let found = faults(&survey);
        let apart_ms = 5000.0;
        assert_eq!(found, [Fault::Clocks { behind, ahead, apart_ms, error_ms: 0.04 }]);
    }
    // Two hosts against two others.
    let mut survey = world(&[1, 2, 3, 4]);
    for rank in [2, 3] {
        change(&mut survey, &[0, rank], |pair| pair.clock_ahead_ms = 5000.0);
    }
    let found = faults(&survey);
    assert!(found.len() == 2 && found.iter().all(|fault| matches!(fault, Fault::Clocks { .. })), "{found:?}");
}

#[test]
fn a_clock_that_is_apart_is_named_by_its_host() {
    let mut survey = world(&[1, 2, 2, 3]);
    for rank in [1, 2] {
        change(&mut survey, &[0, rank], |pair| pair.clock_ahead_ms = 1000.0);
    }
    let [Fault::Clock { rank: 1, ahead_ms, .. }] = faults(&survey)[..] else {
        panic!("{:?}", faults(&survey))
    };
    assert!((ahead_ms - 999.5).abs() < 1e-9, "{ahead_ms}");
    // Rank 0's own, when all others are ahead of it.
    let mut survey = world(&[1, 2, 3]);
    change(&mut survey, &[0], |pair| pair.clock_ahead_ms = 5000.0);
    assert!(matches!(faults(&survey)[..], [Fault::Clock { rank: 0, ahead_ms: -5000.0, .. }]));
    // What may be wrong by more than it is apart tells nothing.
    change(&mut survey, &[0], |pair| pair.clock_error_ms = 6000.0);
    change(&mut survey, &[0, 1], |pair| pair.clock_ahead_ms = 0.0);
    assert_eq!(faults(&survey), []);
}

proptest! {
    #[test]
    fn whoever_is_made_worse_is_found_and_nobody_else(
        hosts in proptest::collection::vec(0u64..5, 3..12), seed in 0usize..1000, noise in proptest::collection::vec(0.8f64..1.25, 66)
    ) {
        let mut survey = world(&hosts);
        for (pair, noise) in survey.pairs.iter_mut().zip(noise) {
            pair.there_bytes_per_s *= noise;
            pair.round_trip_us /= noise;
        }
        prop_assert_eq!(faults(&survey), vec![]);
        let chosen = seed % survey.pairs.len();
        let Pair { one, other, .. } = survey.pairs[chosen];
        let alone = survey.pairs.iter().filter(|pair| survey.is_inside(pair.one, pair.other) == survey.is_inside(one, other));
        prop_assume!(alone.count() > 3);
        slow(&mut survey.pairs[chosen]);
        let found = faults(&survey);
        prop_assert!(!found.is_empty());
        for fault in found {
            let named = match fault {
                Fault::Slow { from, to, .. } => vec![from, to],
                Fault::Rank { rank, .. } => vec![rank],
                _ => vec![usize::MAX],
            };
            prop_assert!(named.iter().all(|rank| [one, other].contains(rank)), "{:?}", fault);
        }
    }
}
