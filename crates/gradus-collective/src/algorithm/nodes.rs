//! Which ranks share a node.

use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The ranks of a world, by node: every rank is in one node, and no node is empty. Recorded as lists of ranks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Vec<usize>>", into = "Vec<Vec<usize>>")]
pub struct Nodes {
    members: Vec<Vec<usize>>,
    /// Node, and index in it, of each rank.
    places: Vec<(usize, usize)>,
}

impl Nodes {
    /// Nodes of `ranks_per_node` ranks that follow each other; the last has what is left.
    ///
    /// # Panics
    /// If either is zero.
    pub fn even(world_size: usize, ranks_per_node: usize) -> Self {
        assert!(world_size > 0 && ranks_per_node > 0, "a node has ranks");
        let ranks: Vec<usize> = (0..world_size).collect();
        let members: Vec<Vec<usize>> = ranks.chunks(ranks_per_node).map(<[usize]>::to_vec).collect();
        Self::try_from(members).expect("chunks hold every rank once")
    }

    /// Ranks, node by node.
    pub fn members(&self) -> &[Vec<usize>] {
        &self.members
    }

    /// Ranks of the world.
    pub fn world_size(&self) -> usize {
        self.places.len()
    }

    /// The node of a rank, and its index there.
    ///
    /// # Panics
    /// If the rank is none of the world.
    pub fn place(&self, rank: usize) -> (usize, usize) {
        self.places[rank]
    }

    /// Whether two ranks share a node.
    pub fn are_together(&self, one: usize, other: usize) -> bool {
        self.places[one].0 == self.places[other].0
    }

    /// Ranks of the smallest node.
    pub fn smallest(&self) -> usize {
        self.members.iter().map(Vec::len).min().expect("a world has a node")
    }

    /// Ranks of the largest node.
    pub fn largest(&self) -> usize {
        self.members.iter().map(Vec::len).max().expect("a world has a node")
    }

    /// How these ranks, which become 0, 1, 2 and so on, lie on the nodes.
    ///
    /// # Panics
    /// If one is none of the world, or there is none.
    pub(crate) fn of(&self, ranks: &[usize]) -> Self {
        let mut members = vec![Vec::new(); self.members.len()];
        ranks.iter().enumerate().for_each(|(place, rank)| members[self.places[*rank].0].push(place));
        members.retain(|ranks| !ranks.is_empty());
        Self::try_from(members).expect("every rank of the group is on one node")
    }

    /// The rank of that index in each node.
    ///
    /// # Panics
    /// If the smallest node has no such rank.
    pub(crate) fn speakers(&self, index: usize) -> Vec<usize> {
        self.members.iter().map(|ranks| ranks[index]).collect()
    }
}

impl TryFrom<Vec<Vec<usize>>> for Nodes {
    type Error = Error;

    /// # Errors
    /// `Invalid` when a node is empty, or the ranks are not those from 0 on, each once.
    fn try_from(members: Vec<Vec<usize>>) -> Result<Self> {
        let world_size = members.iter().map(Vec::len).sum();
        let mut places = vec![None; world_size];
        for (node, ranks) in members.iter().enumerate() {
            if ranks.is_empty() {
                return Err(Error::invalid(format!("node {node} has no ranks: leave it out")));
            }
            for (index, rank) in ranks.iter().enumerate() {
                let place = places.get_mut(*rank).filter(|place| place.is_none());
                *place.ok_or_else(|| misplaced(*rank, world_size))? = Some((node, index));
            }
        }
        // As many ranks as places, no rank twice: no place is left.
        let places: Vec<_> = places.into_iter().flatten().collect();
        if places.is_empty() {
            return Err(Error::invalid("nodes of a world without ranks"));
        }
        Ok(Self { members, places })
    }
}

impl From<Nodes> for Vec<Vec<usize>> {
    fn from(nodes: Nodes) -> Self {
        nodes.members
    }
}

fn misplaced(rank: usize, world_size: usize) -> Error {
    Error::invalid(format!("rank {rank} is in two nodes, or none of a world of {world_size}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn every_rank_is_in_one_node() {
        let nodes = Nodes::even(7, 3);
        assert_eq!(nodes.members(), [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
        assert_eq!((nodes.place(4), nodes.smallest(), nodes.largest()), ((1, 1), 1, 3));
        for bad in [vec![], vec![vec![0], vec![]], vec![vec![0, 0]], vec![vec![0, 2]], vec![vec![0], vec![0]]]
        {
            assert_eq!(*Nodes::try_from(bad).unwrap_err().kind(), Kind::Invalid);
        }
        assert!(Nodes::try_from(vec![vec![2, 0], vec![1]]).is_ok());
    }

    #[test]
    fn a_group_lies_on_the_nodes_of_its_ranks() {
        let nodes = Nodes::even(6, 2);
        assert_eq!(nodes.of(&[5, 1, 0]).members(), [vec![1, 2], vec![0]]);
        assert_eq!(nodes.of(&[3, 2]), Nodes::even(2, 2));
        assert_eq!(nodes.of(&[0, 2, 4]), Nodes::even(3, 1));
    }
}
