//! The ranks of a world that share memory with this one, and those that do not.

use crate::doors::Member;

/// This rank, and those of its node.
pub(crate) struct Circle {
    rank: usize,
    world_size: usize,
    /// In ascending order, this one among them: a rank's index is its place.
    ranks: Vec<usize>,
}

impl Circle {
    /// Those that can share memory with `rank`.
    pub(crate) fn around(rank: usize, members: &[Member]) -> Self {
        let shares = |peer: &usize| *peer == rank || members[rank].shares_memory_with(&members[*peer]);
        let ranks = (0..members.len()).filter(shares).collect();
        Self { rank, world_size: members.len(), ranks }
    }

    /// One that shares memory with nobody.
    pub(crate) fn alone(rank: usize, world_size: usize) -> Self {
        Self { rank, world_size, ranks: vec![rank] }
    }

    /// Ranks that share it, this one among them.
    pub(crate) fn len(&self) -> usize {
        self.ranks.len()
    }

    /// Whether that is the whole world.
    pub(crate) fn is_whole(&self) -> bool {
        self.ranks.len() == self.world_size
    }

    /// The place of one of them.
    pub(crate) fn place(&self, rank: usize) -> usize {
        self.ranks.binary_search(&rank).expect("only those of a circle have places in it")
    }

    /// As many lines to each rank of the circle, and none to others: by rank.
    pub(crate) fn lines_inside(&self, lines: usize) -> Vec<usize> {
        self.lines(|peer| if self.ranks.binary_search(&peer).is_ok() { lines } else { 0 })
    }

    /// As many lines to each rank that is not of the circle, and none to others: by rank.
    pub(crate) fn lines_outside(&self, lines: usize) -> Vec<usize> {
        self.lines(|peer| if self.ranks.binary_search(&peer).is_err() { lines } else { 0 })
    }

    fn lines(&self, to: impl Fn(usize) -> usize) -> Vec<usize> {
        (0..self.world_size).map(|peer| if peer == self.rank { 0 } else { to(peer) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member((host, node): (&str, &str)) -> Member {
        Member {
            address: "127.0.0.1:1".parse().unwrap(),
            name: String::new(),
            host: host.into(),
            node: node.into(),
            processors: String::new(),
            socket: String::new(),
        }
    }

    #[test]
    fn circles_are_ranks_of_one_node_of_one_host() {
        let places = [("h", "a"), ("h", "b"), ("h", "a"), ("i", "a"), ("", "a"), ("", "a"), ("h", "a")];
        let members = places.map(member);
        let ranks = |rank: usize| Circle::around(rank, &members).ranks;
        assert_eq!([0, 2, 6].map(ranks), [[0, 2, 6]; 3]);
        // Who can share no memory does so with nobody, whoever is in the same case.
        assert_eq!([1, 3, 4, 5].map(ranks), [[1], [3], [4], [5]]);
    }

    #[test]
    fn each_peer_is_inside_or_outside() {
        let members = [("h", "a"), ("h", "b"), ("h", "a"), ("h", "b")].map(member);
        let circle = Circle::around(2, &members);
        assert_eq!((circle.lines_inside(1), circle.lines_outside(3)), (vec![1, 0, 0, 0], vec![0, 3, 0, 3]));
        assert_eq!((circle.len(), circle.place(0), circle.place(2), circle.is_whole()), (2, 0, 1, false));
        assert_eq!(Circle::alone(1, 3).lines_outside(2), [2, 0, 2]);
        assert!(Circle::around(0, &[member(("h", "")), member(("h", ""))]).is_whole());
    }
}
