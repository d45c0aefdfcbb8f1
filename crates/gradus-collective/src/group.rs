//! Which ranks a communicator joins, and how what they do is numbered.

use crate::shape::fnv;
use gradus_error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The basis of groups' numbers: any but 0, which is the group of all.
const BASIS: u64 = 0x9ae1_6a3b_2f90_404f;

/// Some ranks of a transport, in an order of their own.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// The same on all its ranks, and no other group's; 0 for the group of all ranks.
    pub(crate) id: u64,
    /// Its ranks, by their number in the transport.
    pub(crate) ranks: Arc<[usize]>,
    /// This rank's place among them.
    pub(crate) rank: usize,
    /// The priority of what it does.
    pub(crate) level: u8,
    /// Its layout over nodes, and by which knowledge of them.
    pub(crate) layout: Option<(u64, usize)>,
    collectives: u64,
    /// Messages to and from each rank.
    messages: BTreeMap<(usize, bool), u64>,
    /// Groups that were made of the same ranks of this one.
    children: BTreeMap<Vec<usize>, usize>,
}

impl Group {
    /// All ranks of a transport.
    pub(crate) fn world(rank: usize, world_size: usize) -> Self {
        Self::new(0, (0..world_size).collect(), (rank, 0))
    }

    fn new(id: u64, ranks: Arc<[usize]>, (rank, level): (usize, u8)) -> Self {
        Self {
            id,
            ranks,
            rank,
            level,
            layout: None,
            collectives: 0,
            messages: BTreeMap::new(),
            children: BTreeMap::new(),
        }
    }

    /// A group of some of this one's ranks, which become its ranks 0, 1, 2 and so on in that order.
    ///
    /// # Errors
    /// `Invalid` when a rank is named twice, or is none of this group, or this rank is not named.
    pub(crate) fn of(&mut self, ranks: &[usize]) -> Result<Self> {
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        if let Some(stranger) = sorted.last().filter(|last| **last >= self.ranks.len()) {
            return Err(Error::invalid(format!(
                "rank {stranger} is none of a group of {}",
                self.ranks.len()
            )));
        }
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid(format!("rank {} is named twice in a group", twice[0])));
        }
        let Some(rank) = ranks.iter().position(|rank| *rank == self.rank) else {
            return Err(Error::invalid(format!(
                "rank {} is not in the group that it asks for: only its ranks make a group",
                self.rank
            )));
        };
        let made = self.children.entry(ranks.to_vec()).or_default();
        *made += 1;
        let id = fnv(fnv(BASIS ^ self.id, ranks), &[*made]).max(1);
        Ok(Self::new(id, ranks.iter().map(|rank| self.ranks[*rank]).collect(), (rank, self.level)))
    }

    /// A group of all ranks of this one, at another priority. Its number says nothing of that: ranks that name different
    /// ones find out by it.
    pub(crate) fn at_level(&mut self, level: u8) -> Self {
        let all: Vec<usize> = (0..self.ranks.len()).collect();
        Self { level, ..self.of(&all).expect("all ranks of a group are a group") }
    }

    /// The number of the next collective.
    pub(crate) fn next_collective(&mut self) -> u64 {
        count(&mut self.collectives)
    }

    /// The number of the next message to or from a rank.
    pub(crate) fn next_message(&mut self, peer: usize, sends: bool) -> u64 {
        count(self.messages.entry((peer, sends)).or_default())
    }
}

fn count(number: &mut u64) -> u64 {
    *number += 1;
    *number - 1
}

/// The ranks that differ from `rank` along one axis only, for each axis of a mesh. Ranks count along the last axis first.
///
/// # Errors
/// `Invalid` when the mesh has not exactly `world_size` places.
pub(crate) fn axes(sizes: &[usize], rank: usize, world_size: usize) -> Result<Vec<Vec<usize>>> {
    let places = sizes.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    if places != Some(world_size) {
        return Err(Error::invalid(format!(
            "a mesh of {sizes:?} has not {world_size} places: the product of its sizes must be the number of ranks"
        )));
    }
    let mut stride = world_size;
    let axis = |size: &usize| {
        stride /= size;
        let first = rank - rank / stride % size * stride;
        (0..*size).map(|place| first + place * stride).collect()
    };
    Ok(sizes.iter().map(axis).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn ranks_of_a_group_have_numbers_of_their_own() {
        let mut world = Group::world(3, 6);
        let mut odd = world.of(&[5, 3, 1]).unwrap();
        assert_eq!((odd.rank, &*odd.ranks), (1, [5, 3, 1].as_slice()));
        let pair = odd.of(&[1, 2]).unwrap();
        assert_eq!((pair.rank, &*pair.ranks), (0, [3, 1].as_slice()));
        let ids =
            [world.id, odd.id, pair.id, world.of(&[5, 3, 1]).unwrap().id, world.of(&[3, 1]).unwrap().id];
        assert!((0..5).all(|i| (0..i).all(|j| ids[i] != ids[j])), "{ids:x?}");
        assert_eq!(Group::world(5, 6).of(&[5, 3, 1]).unwrap().id, odd.id);
    }

    #[test]
    fn a_priority_is_inherited_and_no_part_of_the_number() {
        let (mut world, mut other) = (Group::world(2, 4), Group::world(2, 4));
        let (mut urgent, less) = (world.at_level(3), other.at_level(1));
        assert_eq!((urgent.id, &urgent.ranks, urgent.rank), (less.id, &less.ranks, 2));
        assert_eq!((urgent.level, less.level, world.level), (3, 1, 0));
        assert_ne!(urgent.id, world.id);
        assert_ne!(urgent.id, world.at_level(3).id);
        assert_eq!(urgent.of(&[2, 0]).unwrap().level, 3);
    }

    #[test]
    fn strangers_and_doubles_are_refused() {
        for ranks in [vec![], vec![0], vec![1, 1], vec![1, 4]] {
            assert_eq!(*Group::world(1, 4).of(&ranks).unwrap_err().kind(), Kind::Invalid, "{ranks:?}");
        }
    }

    #[test]
    fn numbers_count_by_kind() {
        let mut group = Group::world(0, 3);
        assert_eq!([group.next_collective(), group.next_collective()], [0, 1]);
        assert_eq!([group.next_message(1, true), group.next_message(1, true)], [0, 1]);
        assert_eq!([group.next_message(1, false), group.next_message(2, true)], [0, 0]);
    }

    #[test]
    fn axes_of_a_mesh_cross_at_each_rank() {
        assert_eq!(axes(&[2, 3], 4, 6).unwrap(), [vec![1, 4], vec![3, 4, 5]]);
        assert_eq!(axes(&[2, 2, 2], 5, 8).unwrap(), [vec![1, 5], vec![5, 7], vec![4, 5]]);
        assert_eq!(axes(&[], 0, 1).unwrap(), Vec::<Vec<usize>>::new());
        for sizes in [vec![2, 2], vec![0], vec![usize::MAX, 2], vec![]] {
            assert_eq!(*axes(&sizes, 0, 6).unwrap_err().kind(), Kind::Invalid);
        }
    }
}
