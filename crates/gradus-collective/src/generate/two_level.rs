//! Inside nodes, then across them, then inside again (Karonis et al., "Exploiting Hierarchy in Parallel Computer Networks
//! to Optimize Collective Operation Performance", IPDPS 2000): what crosses between nodes is a node's sum, not each
//! rank's, so slow links carry the buffer once and not once for every rank.
//!
//! The all-reduce has *lanes*: each lane sums one share of the buffer to one rank of every node, and these sum it across.
//! With one lane a node's first rank speaks for it; with as many as a node has ranks, all of them share the work, and
//! the node's way out if there are several. Nodes may be of unequal size; a node has as many lanes as the smallest has
//! ranks. Each level is any algorithm for its ranks; across may be two-level again.
//!
//! Cost, with `S` ranks to a node, `L` lanes and `N` nodes: that of a reduce and a broadcast inside, of `n` bytes to `L`
//! roots, and of an all-reduce of `n/L` bytes across, `L` of them sharing a node's way out.

use super::share::share;
use super::transform::{embedded, mirrored};
use crate::algorithm::{AllReduce, Nodes, Spread};
use crate::plan::Step;
use gradus_memory::Span;

/// The steps of `rank`: a sum of `len` elements over all ranks of `nodes`. `lanes` is brought to what the smallest node
/// can fill, one at least.
pub fn two_level_all_reduce(
    rank: usize,
    nodes: &Nodes,
    lanes: usize,
    inside: &Spread,
    across: &AllReduce,
    len: usize,
) -> Vec<Step> {
    let (node, index) = nodes.place(rank);
    let members = &nodes.members()[node];
    let lanes = lanes.clamp(1, nodes.smallest());
    let share = |lane: usize| share(Span::new(0, len), lanes, lane);
    let spread = |lane: usize| inside.broadcast(index, members.len(), share(lane).len, lane);
    let mut steps: Vec<Step> =
        (0..lanes).flat_map(|lane| embedded(mirrored(spread(lane)), members, share(lane).start)).collect();
    if index < lanes {
        let speakers = nodes.speakers(index);
        let summed = across.steps(node, speakers.len(), share(index).len);
        steps.extend(embedded(summed, &speakers, share(index).start));
    }
    steps.extend((0..lanes).flat_map(|lane| embedded(spread(lane), members, share(lane).start)));
    steps
}

/// The steps of `rank`: `len` elements of `root` to all ranks of `nodes`: to one rank of every node, and from there to
/// the rest of it. In the root's own node that one is the root.
pub fn two_level_broadcast(
    rank: usize,
    nodes: &Nodes,
    inside: &Spread,
    across: &Spread,
    len: usize,
    root: usize,
) -> Vec<Step> {
    let (node, index) = nodes.place(rank);
    let (root_node, root_index) = nodes.place(root);
    let speaker = if node == root_node { root_index } else { 0 };
    let mut steps = Vec::new();
    if index == speaker {
        let mut speakers = nodes.speakers(0);
        speakers[root_node] = root;
        steps.extend(embedded(across.broadcast(node, speakers.len(), len, root_node), &speakers, 0));
    }
    let members = &nodes.members()[node];
    steps.extend(embedded(inside.broadcast(index, members.len(), len, speaker), members, 0));
    steps
}
