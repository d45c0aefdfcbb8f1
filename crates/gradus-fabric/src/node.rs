//! Which node a rank lies on: its host, or a part of it that was given a name.
//!
//! Ranks of one host that lie on different nodes share no memory, and are far from each other for all who ask which ranks
//! are near. So worlds of several nodes can be had on one machine, as tests and rehearsals need them. Processors stay
//! those of the host: what is shared there is shared whatever it is called. Nodes of different hosts are different ones,
//! even under one name.

use crate::host;
use crate::launch::Launch;
use gradus_error::{Error, Result};

/// Characters of a node's name: as many as a host's that are shown.
const LONGEST_ID: usize = 64;

/// Whether a node can be called so; nothing stands for the host itself.
///
/// # Errors
/// `Invalid`, naming the key.
pub(crate) fn check_id(key: &str, id: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if id.len() <= LONGEST_ID && id.chars().all(plain) {
        return Ok(());
    }
    let start: String = id.chars().take(LONGEST_ID).collect();
    Err(Error::invalid(format!(
        "{key} is {start:?}, of {} characters: give at most {LONGEST_ID} letters, digits, `.`, `-` and `_`",
        id.chars().count()
    )))
}

impl Launch {
    /// The node of this rank, where the ranks of its host lie on so many logical nodes, in even runs: `named`, or what the
    /// host is called, followed by a dot and a number. With one node it is `named` as it is: empty for the host itself.
    ///
    /// # Errors
    /// `Invalid`, naming the key, for more nodes than ranks, none, or a name that no node can have.
    pub fn node_id(&self, named: &str, logical_nodes: usize) -> Result<String> {
        let (local_rank, ranks) = (self.local_rank, self.local_world_size.max(1));
        if !(1..=ranks).contains(&logical_nodes) {
            return Err(Error::invalid(format!(
                "launch.logical_nodes is {logical_nodes}: give 1 to {ranks}, the number of ranks on this host"
            )));
        }
        check_id("network.node_id", named)?;
        if logical_nodes == 1 {
            return Ok(named.to_owned());
        }
        // Whatever a launcher says of its ranks, the product fits.
        let number = local_rank as u128 * logical_nodes as u128 / ranks as u128;
        let number = format!(".{number}");
        let room = LONGEST_ID - number.len();
        if named.len() > room {
            return Err(Error::invalid(format!(
                "network.node_id is {named:?}: with launch.logical_nodes a number follows it, so give at most {room} characters"
            )));
        }
        let name = if named.is_empty() { host::name() } else { named.to_owned() };
        Ok(name.chars().take(room).chain(number.chars()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    fn dealt(ranks: usize, nodes: usize) -> Vec<String> {
        let id = |rank| Launch::local(rank, ranks, 1).node_id("n", nodes).unwrap();
        (0..ranks).map(id).collect()
    }

    #[test]
    fn local_ranks_lie_in_even_runs_on_logical_nodes() {
        assert_eq!(dealt(4, 2), ["n.0", "n.0", "n.1", "n.1"]);
        assert_eq!(dealt(5, 3), ["n.0", "n.0", "n.1", "n.1", "n.2"]);
        assert_eq!(dealt(3, 3), ["n.0", "n.1", "n.2"]);
        assert_eq!(dealt(2, 1), ["n", "n"]);
        let last = usize::MAX - 1;
        let id = Launch::local(last, usize::MAX, 1).node_id("", usize::MAX).unwrap();
        assert!(id.len() <= LONGEST_ID && id.ends_with(&format!(".{last}")), "{id}");
    }

    #[test]
    fn a_node_without_a_name_is_called_after_its_host() {
        let rank = Launch::local(3, 4, 1);
        assert_eq!(rank.node_id("", 1).unwrap(), "");
        assert_eq!(rank.node_id("", 2).unwrap(), format!("{}.1", host::name()));
    }

    #[test]
    fn impossible_nodes_name_their_key() {
        let rank = Launch::local(0, 4, 1);
        let long = "x".repeat(LONGEST_ID);
        check_id("network.node_id", &long).unwrap();
        let cases = [
            ("", 0, "launch.logical_nodes"),
            ("", 5, "launch.logical_nodes"),
            ("a b", 1, "network.node_id"),
            ("\u{e9}", 1, "network.node_id"),
            (long.as_str(), 2, "network.node_id"),
        ];
        for (named, nodes, key) in cases {
            let error = rank.node_id(named, nodes).unwrap_err();
            assert!(*error.kind() == Kind::Invalid && error.to_string().contains(key), "{error}");
        }
        assert!(check_id("network.node_id", &"x".repeat(LONGEST_ID + 1)).is_err());
    }
}
