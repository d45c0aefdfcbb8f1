//! Two binary trees at once, each for every other block (Sanders, Speck and Traeff, "Two-tree algorithms for full
//! bandwidth broadcast, reduction and scan", Parallel Computing 2009): who is a leaf in one tree is an inner rank in the
//! other, so all ranks send and receive alike, in `log2 W` hops, however large the buffer.
//!
//! The first tree is numbered in order: a label's children lie as far to its sides as half its lowest set bit. The
//! second is the first with all labels shifted by one, which turns odd labels, the leaves, into even ones.
//!
//! Streams carry messages of both trees, up and down. Every message has a *beat*, later than those of the messages that
//! it needs, and the same at both ends; steps are listed by beat. So the earliest message that is not over can always
//! move, and blocks follow each other up and down the trees without waiting for the ones before to come back.
//!
//! Cost, with `B` blocks of `b` bytes: broadcast `(log2 W + B/2)(alpha + 2 b beta)` about; all-reduce
//! `(2 log2 W + B/2)(alpha + b (2 beta + gamma))` about, so some `n (2 beta + gamma)` for large `n`.

use crate::plan::Step;
use gradus_memory::Span;

/// The steps of `rank`: a sum of `len` elements over `world_size` ranks, in blocks of `block` elements at most. Every
/// element is summed up one tree and copied down the same. A message is sent even where all is empty.
///
/// # Panics
/// If `block` is zero.
pub fn double_tree_all_reduce(rank: usize, world_size: usize, len: usize, block: usize) -> Vec<Step> {
    let trees = Trees { count: world_size, feeder: None };
    let height = world_size.ilog2() as usize;
    in_order(trees.edges(rank + 1), len, block, |&Edge { peer, depth, upward, .. }, span| {
        let up = if upward { Step::send(peer, span) } else { Step::receive_reduce(peer, span) };
        let down = if upward { Step::receive(peer, span) } else { Step::send(peer, span) };
        vec![(height - depth, up), (height + depth, down)]
    })
}

/// The steps of `rank`: `len` elements of `root` to all ranks, in blocks of `block` elements at most. The root stands
/// outside and feeds both trees. A message is sent even where all is empty.
///
/// # Panics
/// If `block` is zero.
pub fn double_tree_broadcast(
    rank: usize,
    world_size: usize,
    len: usize,
    root: usize,
    block: usize,
) -> Vec<Step> {
    let trees = Trees { count: world_size - 1, feeder: Some(root) };
    let edges = match (rank + world_size - root) % world_size {
        0 => trees.edges_of_root(),
        place => trees.edges(place),
    };
    in_order(edges, len, block, |&Edge { peer, depth, upward, .. }, span| {
        vec![(depth, if upward { Step::receive(peer, span) } else { Step::send(peer, span) })]
    })
}

/// What a rank does on its edges with every block, by beat.
fn in_order(
    edges: [Vec<Edge>; 2],
    len: usize,
    block: usize,
    on_edge: impl Fn(&Edge, Span) -> Vec<(usize, Step)>,
) -> Vec<Step> {
    // Two blocks at least, that both trees work.
    let block = block.min(len.div_ceil(2)).max(usize::from(block > 0));
    let mut messages = Vec::new();
    for index in 0..len.div_ceil(block).max(1) {
        let span = Span::new(index * block, block.min(len - index * block));
        for edge in &edges[index % 2] {
            let steps = on_edge(edge, span).into_iter();
            messages.extend(steps.map(|(beat, step)| ((index + beat, index, edge.child), step)));
        }
    }
    messages.sort_by_key(|(when, _)| *when);
    messages.into_iter().map(|(_, step)| step).collect()
}

/// A rank's connection in one tree.
struct Edge {
    peer: usize,
    /// Label and depth of its lower end.
    child: usize,
    depth: usize,
    /// Whether the peer is above.
    upward: bool,
}

/// Two trees over the places `1..=count`.
struct Trees {
    count: usize,
    /// A rank outside, above both tops. Places are then counted from it, else from rank 0.
    feeder: Option<usize>,
}

impl Trees {
    fn edges(&self, place: usize) -> [Vec<Edge>; 2] {
        [0, 1].map(|tree| self.edges_in(tree, (place + tree - 1) % self.count + 1))
    }

    fn edges_of_root(&self) -> [Vec<Edge>; 2] {
        let top = self.count.checked_ilog2().map(|bits| 1 << bits);
        [0, 1].map(|tree| top.map(|top| self.edge(tree, top, top, false)).into_iter().collect())
    }

    fn edges_in(&self, tree: usize, label: usize) -> Vec<Edge> {
        let above = match (parent(label, self.count), self.feeder) {
            (Some(parent), _) => Some(self.edge(tree, parent, label, true)),
            (None, Some(peer)) => Some(Edge { peer, child: label, depth: 0, upward: true }),
            (None, None) => None,
        };
        let below = children(label, self.count).map(|child| self.edge(tree, child, child, false));
        above.into_iter().chain(below).collect()
    }

    /// The edge to the rank that is `peer` in a tree.
    fn edge(&self, tree: usize, peer: usize, child: usize, upward: bool) -> Edge {
        let place = (peer + self.count - 1 - tree) % self.count + 1;
        let peer = self.feeder.map_or(place - 1, |root| (root + place) % (self.count + 1));
        Edge { peer, child, depth: depth(child, self.count), upward }
    }
}

/// The labels above a label in a tree without end.
fn above(label: usize) -> impl Iterator<Item = usize> {
    let up = |label: &usize| {
        let bit = 1 << label.trailing_zeros();
        Some((label & !bit) | (bit << 1))
    };
    std::iter::successors(Some(label), up).skip(1)
}

/// The label above in the tree of `1..=count`: the nearest one that is there. The top has none.
fn parent(label: usize, count: usize) -> Option<usize> {
    above(label).take_while(|label| *label < 2 * count).find(|label| *label <= count)
}

fn depth(label: usize, count: usize) -> usize {
    std::iter::successors(Some(label), |label| parent(*label, count)).count() - 1
}

/// The labels below: the left one is always there, the right one is the nearest to the perfect tree's that is.
fn children(label: usize, count: usize) -> impl Iterator<Item = usize> {
    let height = label.trailing_zeros();
    let left = (height > 0).then(|| label - (1 << (height - 1)));
    let right = (0..height).rev().map(move |bit| label + (1 << bit)).find(|right| *right <= count);
    left.into_iter().chain(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_is_its_children_s_parent_and_half_of_them_are_leaves() {
        for count in 1..=300 {
            let tops = (1..=count).filter(|label| parent(*label, count).is_none());
            assert_eq!(tops.collect::<Vec<_>>(), [1 << count.ilog2()]);
            for label in 1..=count {
                assert!(children(label, count).all(|child| parent(child, count) == Some(label)));
                assert!(children(label, count).count() <= label.trailing_zeros() as usize * 2);
                assert!(depth(label, count) <= count.ilog2() as usize);
            }
            let below: usize = (1..=count).map(|label| children(label, count).count()).sum();
            assert_eq!(below, count - 1);
        }
    }

    #[test]
    fn who_is_inner_in_one_tree_is_a_leaf_in_the_other() {
        for world_size in 2..=65 {
            let inner = |edges: &Vec<Edge>| edges.iter().any(|edge| !edge.upward);
            let trees = Trees { count: world_size, feeder: None };
            assert!((1..=world_size).all(|place| !trees.edges(place).iter().all(inner)), "{world_size}");
        }
    }
}
