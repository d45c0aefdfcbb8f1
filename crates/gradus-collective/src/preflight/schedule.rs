//! Who measures with whom, when.

use std::collections::BTreeMap;

/// Rounds of pairs: every two ranks meet once, the lower first, and no *host* is in two pairs of a round, for what goes on at
/// once on a host shares its network card and its processors.
///
/// Hosts meet as in a tournament (the circle method), and when two hosts meet, their ranks do, one pair after the other. Last, pairs
/// inside hosts, all hosts at once.
pub fn rounds(host_marks: &[u64]) -> Vec<Vec<(usize, usize)>> {
    let mut hosts: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (rank, mark) in host_marks.iter().enumerate() {
        hosts.entry(*mark).or_default().push(rank);
    }
    let hosts: Vec<Vec<usize>> = hosts.into_values().collect();
    let mut rounds = Vec::new();
    for meetings in tournament(hosts.len()) {
        side_by_side(meetings.iter().map(|(one, other)| across(&hosts[*one], &hosts[*other])), &mut rounds);
    }
    side_by_side(hosts.iter().map(|ranks| inside(ranks)), &mut rounds);
    rounds
}

/// Appends as many rounds as the longest of some queues has pairs.
fn side_by_side(queues: impl Iterator<Item = Vec<(usize, usize)>>, rounds: &mut Vec<Vec<(usize, usize)>>) {
    let queues: Vec<_> = queues.collect();
    let longest = queues.iter().map(Vec::len).max().unwrap_or(0);
    rounds.extend(
        (0..longest).map(|turn| queues.iter().filter_map(|queue| queue.get(turn).copied()).collect()),
    );
}

fn across(one: &[usize], other: &[usize]) -> Vec<(usize, usize)> {
    one.iter().flat_map(|a| other.iter().map(|b| (*a.min(b), *a.max(b)))).collect()
}

fn inside(ranks: &[usize]) -> Vec<(usize, usize)> {
    let later = |place: usize| ranks[place + 1..].iter();
    ranks.iter().enumerate().flat_map(|(place, a)| later(place).map(|b| (*a, *b))).collect()
}

/// Every two of `count` meet once, each at most once a round: one stays, the others go round in a circle, and those opposite
/// each other meet. Where the number is odd, who meets nobody rests.
fn tournament(count: usize) -> Vec<Vec<(usize, usize)>> {
    let circle = (count + count % 2).saturating_sub(1);
    let round = |turn: usize| {
        let opposite = |place: usize| (turn + circle - place) % circle;
        let mut meetings: Vec<(usize, usize)> = (0..circle)
            .map(|place| (place, opposite(place)))
            .filter(|(place, other)| place < other)
            .collect();
        // The one opposite itself meets the one that stays, if there is one.
        let single = (0..circle).find(|place| opposite(*place) == *place);
        meetings.extend(single.filter(|_| circle < count).map(|place| (place, circle)));
        meetings
    };
    (0..circle).map(round).filter(|meetings| !meetings.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn four_hosts_meet_in_three_rounds_of_two() {
        let rounds = rounds(&[10, 20, 30, 40]);
        assert_eq!(rounds.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
    }

    #[test]
    fn nobody_is_alone_with_itself() {
        assert_eq!(rounds(&[]), Vec::<Vec<_>>::new());
        assert_eq!(rounds(&[7]), Vec::<Vec<_>>::new());
        assert_eq!(rounds(&[7, 7]), [[(0, 1)]]);
        assert_eq!(rounds(&[9, 7]), [[(0, 1)]]);
    }

    proptest! {
        #[test]
        fn every_pair_meets_once_and_no_host_is_busy_twice(marks in proptest::collection::vec(0u64..9, 0..24)) {
            let mut met = BTreeSet::new();
            for round in rounds(&marks) {
                let mut busy = BTreeSet::new();
                for (one, other) in round {
                    prop_assert!(one < other && met.insert((one, other)));
                    let hosts = BTreeSet::from([marks[one], marks[other]]);
                    prop_assert!(hosts.into_iter().all(|host| busy.insert(host)));
                }
            }
            prop_assert_eq!(met.len(), marks.len() * marks.len().saturating_sub(1) / 2);
        }

        #[test]
        fn hosts_of_one_rank_take_as_few_rounds_as_can_be(count in 2u64..40) {
            let marks: Vec<u64> = (0..count).collect();
            prop_assert_eq!(rounds(&marks).len() as u64, count + count % 2 - 1);
        }
    }
}
