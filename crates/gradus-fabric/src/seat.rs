//! Where a rank computes: its host and node, and the processors that it may use there.
//!
//! Launchers differ: some bind each rank to processors of its own (Open MPI's mpirun, srun), some let all ranks of a host
//! use all (torchrun, ours). Who shares with whom shows when ranks lay their seats side by side.

use crate::host::{WORDS, mask};
use sha2::{Digest, Sha256};

/// A rank's host, node and processors; as words, to be exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seat([u64; Seat::WORDS]);

impl Seat {
    /// Words of a seat: one for the host, one for the node, the others for its processors.
    pub const WORDS: usize = 2 + WORDS;

    /// This process' own, on a node of that name (empty: its host). Where the system does not tell, it is a host and
    /// processors that nobody shares.
    pub fn of_this_process(node_id: &str) -> Self {
        let host = host();
        let mut words = [0; Self::WORDS];
        (words[0], words[1]) = (host, node(host, node_id));
        words[2..].copy_from_slice(&mask());
        Self(words)
    }

    /// As numbers for a collective.
    pub fn to_words(self) -> [i64; Self::WORDS] {
        self.0.map(u64::cast_signed)
    }

    /// From what another rank sent; any words are a seat.
    pub fn from_words(words: &[i64; Self::WORDS]) -> Self {
        Self(words.map(i64::cast_unsigned))
    }

    /// Ranks by node, as lists in the order of their first ranks. Hosts that do not tell who they are hold one rank each.
    pub fn by_node(all: &[Self]) -> Vec<Vec<usize>> {
        let mut nodes: Vec<(u64, Vec<usize>)> = Vec::new();
        for (rank, seat) in all.iter().enumerate() {
            match nodes.iter_mut().find(|(node, _)| *node == seat.0[1] && *node != 0) {
                Some((_, ranks)) => ranks.push(rank),
                None => nodes.push((seat.0[1], vec![rank])),
            }
        }
        nodes.into_iter().map(|(_, ranks)| ranks).collect()
    }

    /// How many of `all` ranks' seats share processors with this one, whatever their nodes, itself included; at least one.
    pub fn sharers(&self, all: &[Self]) -> usize {
        let overlaps = |other: &&Self| {
            other.0[0] == self.0[0]
                && self.0[2..].iter().zip(&other.0[2..]).any(|(ours, theirs)| ours & theirs != 0)
        };
        all.iter().filter(overlaps).count().max(1)
    }
}

/// The first half of the number that the kernel drew when it started; 0 where it does not tell.
fn host() -> u64 {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = boot.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

/// A number for each node of each host; 0 where the host is unknown.
fn node(host: u64, node_id: &str) -> u64 {
    if host == 0 {
        return 0;
    }
    let digest = Sha256::digest([&host.to_le_bytes(), node_id.as_bytes()].concat());
    u64::from_le_bytes(*digest.first_chunk().expect("a digest has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat_on(host: u64, node_id: &str, processors: u64) -> Seat {
        let mut words = [0; Seat::WORDS];
        (words[0], words[1], words[Seat::WORDS - 1]) = (host, node(host, node_id), processors);
        Seat(words)
    }

    fn seat(host: u64, processors: u64) -> Seat {
        seat_on(host, "", processors)
    }

    #[test]
    fn ranks_share_with_those_whose_processors_overlap_on_their_host() {
        let all = [seat(1, 0b0011), seat(1, 0b0011), seat(1, 0b1100), seat(2, 0b0011)];
        let sharers: Vec<usize> = all.iter().map(|seat| seat.sharers(&all)).collect();
        assert_eq!(sharers, [2, 2, 1, 1]);
        assert_eq!(seat(1, 0).sharers(&all), 1, "who knows nothing is alone");
    }

    #[test]
    fn ranks_of_a_host_are_found_together_and_unknown_hosts_apart() {
        let all = [seat(7, 1), seat(0, 1), seat(3, 1), seat(7, 2), seat(0, 1)];
        assert_eq!(Seat::by_node(&all), [vec![0, 3], vec![1], vec![2], vec![4]]);
    }

    #[test]
    fn nodes_of_a_host_are_apart_and_share_its_processors() {
        let all = [seat_on(7, "a", 1), seat_on(7, "b", 1), seat_on(7, "a", 1), seat_on(3, "a", 1)];
        assert_eq!(Seat::by_node(&all), [vec![0, 2], vec![1], vec![3]]);
        assert_eq!(all[0].sharers(&all), 3);
    }

    #[test]
    fn a_seat_survives_the_wire() {
        let own = Seat::of_this_process("");
        assert_eq!(Seat::from_words(&own.to_words()), own);
        assert_eq!(own.sharers(&[own, own]), 2);
    }
}
