//! Whether a group can act, with whom, and who has which rank: pure functions.

use super::message::{GroupSettings, Identity, Table};
use std::collections::BTreeMap;
use std::time::Duration;

/// Somebody who would belong to the group.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Who.
    pub identity: &'a Identity,
    /// Since when it is there.
    pub since: Duration,
}

/// What is known of a group.
#[derive(Debug, Clone)]
pub struct GroupState<'a> {
    /// All who live and want to belong.
    pub candidates: Vec<Candidate<'a>>,
    /// The newest table, whether it still holds or not.
    pub table: &'a Table,
    /// Whether all of that table are there and nobody found its epoch broken.
    pub holds: bool,
    /// Since when those present wait for others.
    pub open_since: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The group stays as it is.
    Keep,
    /// More must come; `until` is when waiting for those who could come, but need not, is over.
    Wait {
        /// Members that are missing.
        missing: usize,
        /// When to decide anew, if time decides.
        until: Option<Duration>,
    },
    /// A new epoch with these members, by rank.
    Form(Vec<Identity>),
}

/// Whether a new epoch is to be formed.
///
/// A group whose epoch holds changes only to take in newcomers, up to `max_size`; one without an epoch forms one as soon
/// as `min_size` are there. Either waits for the join window to pass, unless the group is full.
pub fn quorum(now: Duration, state: &GroupState<'_>, settings: &GroupSettings) -> Decision {
    let present = state.candidates.len();
    let (least, most) = (settings.min_size as usize, settings.max_size as usize);
    if state.holds && (state.table.members.len() == most || present == state.table.members.len()) {
        return Decision::Keep;
    }
    if present < least {
        return Decision::Wait { missing: least - present, until: None };
    }
    let until = state.open_since + Duration::from_millis(settings.join_window_ms);
    if present < most && now < until {
        return Decision::Wait { missing: 0, until: Some(until) };
    }
    Decision::Form(deal(chosen(state, most), state.table))
}

/// Who belongs: members of the last table first, then who waits longest.
fn chosen<'a>(state: &GroupState<'a>, most: usize) -> Vec<&'a Identity> {
    let mut candidates = state.candidates.clone();
    candidates.sort_by_key(|candidate| {
        let Identity { name, incarnation, .. } = candidate.identity;
        let newcomer = state.table.rank_of(name, *incarnation).is_none();
        (newcomer, candidate.since, name)
    });
    candidates.truncate(most);
    candidates.into_iter().map(|candidate| candidate.identity).collect()
}

/// Deals ranks: a name that had one below the new size keeps it; the others fill the gaps, ordered by host, so that ranks
/// of one host are neighbours.
fn deal(members: Vec<&Identity>, last: &Table) -> Vec<Identity> {
    let former: BTreeMap<&str, usize> =
        last.members.iter().enumerate().map(|(rank, member)| (member.name.as_str(), rank)).collect();
    let mut ranks: Vec<Option<&Identity>> = vec![None; members.len()];
    let mut others = Vec::new();
    for member in members {
        match former.get(member.name.as_str()).and_then(|rank| ranks.get_mut(*rank)) {
            Some(place) => *place = Some(member),
            None => others.push(member),
        }
    }
    others.sort_by_key(|member| (&member.host, &member.address, &member.name));
    let mut others = others.into_iter();
    ranks.into_iter().filter_map(|place| place.or_else(|| others.next())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Epoch;
    use proptest::prelude::*;

    fn identity(name: u32, incarnation: u64) -> Identity {
        let host = format!("host{}", name % 2);
        Identity { name: name.to_string(), incarnation, host, address: format!("at{name}") }
    }

    fn table(names: &[u32]) -> Table {
        Table { epoch: Epoch(1), members: names.iter().map(|name| identity(*name, 1)).collect() }
    }

    fn decide(now: u64, present: &[Identity], table: &Table, holds: bool, sizes: (u32, u32)) -> Decision {
        let candidate =
            |(place, identity)| Candidate { identity, since: Duration::from_millis(place as u64) };
        let state = GroupState {
            candidates: present.iter().enumerate().map(candidate).collect(),
            table,
            holds,
            open_since: Duration::ZERO,
        };
        let settings = GroupSettings { min_size: sizes.0, max_size: sizes.1, join_window_ms: 100 };
        quorum(Duration::from_millis(now), &state, &settings)
    }

    fn names(decision: Decision) -> Vec<String> {
        let Decision::Form(members) = decision else { panic!("{decision:?} forms nothing") };
        members.into_iter().map(|member| member.name).collect()
    }

    #[test]
    fn a_group_forms_when_it_is_full_or_its_window_has_passed() {
        let (none, some) = (Table::default(), [identity(1, 1), identity(2, 1), identity(3, 1)]);
        let wait =
            |missing, until: Option<u64>| Decision::Wait { missing, until: until.map(Duration::from_millis) };
        assert_eq!(decide(0, &some[..1], &none, false, (2, 3)), wait(1, None));
        assert_eq!(decide(99, &some[..2], &none, false, (2, 3)), wait(0, Some(100)));
        assert_eq!(names(decide(100, &some[..2], &none, false, (2, 3))), ["2", "1"]);
        assert_eq!(names(decide(0, &some, &none, false, (2, 3))), ["2", "1", "3"]);
    }

    #[test]
    fn a_group_that_holds_changes_for_newcomers_only() {
        let (two, some) = (table(&[1, 2]), [identity(1, 1), identity(2, 1), identity(3, 1)]);
        assert_eq!(decide(500, &some[..2], &two, true, (2, 3)), Decision::Keep);
        assert_eq!(decide(500, &some, &two, true, (2, 2)), Decision::Keep);
        assert_eq!(names(decide(0, &some, &two, true, (2, 3))), ["1", "2", "3"]);
        // Broken, it forms anew with the same members.
        assert_eq!(names(decide(500, &some[..2], &two, false, (2, 3))), ["1", "2"]);
    }

    #[test]
    fn survivors_keep_their_ranks_and_a_name_that_returns_takes_its_own() {
        let old = table(&[4, 3, 2, 1]);
        let present = [identity(9, 1), identity(1, 1), identity(4, 1), identity(2, 1)];
        assert_eq!(names(decide(500, &present, &old, false, (2, 4))), ["4", "9", "2", "1"]);
        assert_eq!(names(decide(500, &present[1..], &old, false, (2, 4))), ["4", "1", "2"]);
        let returned = [identity(4, 1), identity(3, 2), identity(2, 1), identity(1, 1)];
        assert_eq!(names(decide(500, &returned, &old, false, (2, 4))), ["4", "3", "2", "1"]);
    }

    #[test]
    fn who_has_a_place_goes_before_who_waits() {
        let present = [identity(7, 1), identity(8, 1), identity(1, 1), identity(2, 1)];
        assert_eq!(names(decide(500, &present, &table(&[1, 2, 3]), false, (2, 3))), ["1", "2", "7"]);
    }

    proptest! {
        #[test]
        fn everybody_has_one_rank_and_survivors_keep_theirs(
            old in proptest::collection::btree_set(0..12u32, 0..8),
            present in proptest::collection::btree_set(0..12u32, 0..8),
            least in 1..5u32, more in 0..5u32, now in 0..200u64,
        ) {
            let old = table(&old.into_iter().collect::<Vec<_>>());
            let present: Vec<Identity> = present.into_iter().map(|name| identity(name, 1)).collect();
            let decision = decide(now, &present, &old, false, (least, least + more));
            prop_assert_eq!(&decision, &decide(now, &present, &old, false, (least, least + more)));
            if let Decision::Form(members) = decision {
                prop_assert!((least as usize..=(least + more) as usize).contains(&members.len()));
                let mut unique: Vec<_> = members.iter().map(|member| &member.name).collect();
                unique.sort();
                unique.dedup();
                prop_assert_eq!(unique.len(), members.len());
                for (rank, member) in old.members.iter().enumerate().take(members.len()) {
                    let kept = members.contains(member);
                    prop_assert!(!kept || members[rank] == *member);
                }
            } else {
                prop_assert!(present.len() < (least + more) as usize || present.len() < least as usize);
            }
        }
    }
}
