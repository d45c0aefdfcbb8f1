//! What there is to choose from, the robust first.

use super::{Case, Purpose};
use crate::algorithm::{Algorithm, AllReduce, Barrier, Nodes, Spread};

/// Bytes that a ring works on at a time: what one rank holds of it, in and out, stays in the second-level cache; and what
/// is better where a message costs more than that saves.
const RING_BLOCK_BYTES: [usize; 2] = [256 << 10, 1 << 20];

/// In a wide world, a share of a block for each rank that is worth a message of its own.
const SHARE_BYTES: usize = 64 << 10;

/// Blocks of a double tree: enough that neither tree waits for the other, and few, for each is a message on every edge.
const TREE_BLOCKS: usize = 16;
const TREE_BLOCK_BYTES: usize = 64 << 10;

pub(super) fn of(case: &Case) -> Vec<Algorithm> {
    let sizes = Sizes { len: case.len, element_bytes: case.element_bytes };
    let spreads = || sizes.spreads(&case.nodes).into_iter();
    match case.purpose {
        Purpose::AllReduce => sizes.all_reduces(&case.nodes).into_iter().map(Algorithm::AllReduce).collect(),
        Purpose::Reduce { root } => spreads().map(|spread| Algorithm::Reduce { spread, root }).collect(),
        Purpose::Broadcast { root } => {
            spreads().map(|spread| Algorithm::Broadcast { spread, root }).collect()
        }
        Purpose::Barrier => barriers(&case.nodes).into_iter().map(Algorithm::Barrier).collect(),
    }
}

/// Rings for a world: of different blocks, where that makes a difference to so many elements.
pub(crate) fn rings(world_size: usize, len: usize, element_bytes: usize) -> Vec<AllReduce> {
    let mut blocks = RING_BLOCK_BYTES.map(|block_bytes| {
        let block_bytes = block_bytes.max(world_size.saturating_mul(SHARE_BYTES));
        (block_bytes / element_bytes).min(len).max(1)
    });
    blocks.sort_unstable();
    let mut blocks = blocks.to_vec();
    blocks.dedup();
    blocks.into_iter().map(|block| AllReduce::Ring { block }).collect()
}

/// Sums inside nodes and then across; none where there is no inside or no outside.
pub(crate) fn two_level(case: &Case) -> Vec<AllReduce> {
    Sizes { len: case.len, element_bytes: case.element_bytes }.two_level(&case.nodes)
}

struct Sizes {
    len: usize,
    element_bytes: usize,
}

impl Sizes {
    fn tree_block(&self) -> usize {
        (self.len / TREE_BLOCKS).max(TREE_BLOCK_BYTES / self.element_bytes).max(1)
    }

    fn flat_spreads(&self) -> [Spread; 4] {
        [Spread::Binomial, Spread::DoubleTree { block: self.tree_block() }, Spread::Chain, Spread::Direct]
    }

    fn spreads(&self, nodes: &Nodes) -> Vec<Spread> {
        let mut spreads = self.flat_spreads().to_vec();
        if has_levels(nodes) {
            for inside in [Spread::Direct, Spread::Binomial, Spread::Chain] {
                spreads.extend(self.flat_spreads().map(|across| Spread::TwoLevel {
                    nodes: nodes.clone(),
                    inside: Box::new(inside.clone()),
                    across: Box::new(across),
                }));
            }
        }
        spreads
    }

    /// Among ranks of one level.
    fn flat_all_reduces(&self, world_size: usize) -> Vec<AllReduce> {
        let mut all = vec![AllReduce::RecursiveDoubling];
        all.extend(rings(world_size, self.len, self.element_bytes));
        all.extend([
            AllReduce::HalvingDoubling,
            AllReduce::DoubleTree { block: self.tree_block() },
            AllReduce::Direct,
        ]);
        all
    }

    fn all_reduces(&self, nodes: &Nodes) -> Vec<AllReduce> {
        let mut all = self.flat_all_reduces(nodes.world_size());
        all.extend(self.two_level(nodes));
        all.extend([Spread::Binomial, Spread::Chain].map(AllReduce::ThereAndBack));
        all
    }

    fn two_level(&self, nodes: &Nodes) -> Vec<AllReduce> {
        let mut all = Vec::new();
        if has_levels(nodes) {
            for lanes in lanes(nodes) {
                for inside in [Spread::Direct, Spread::Binomial] {
                    all.extend(self.flat_all_reduces(nodes.members().len()).into_iter().map(|across| {
                        AllReduce::TwoLevel {
                            nodes: nodes.clone(),
                            lanes,
                            inside: inside.clone(),
                            across: Box::new(across),
                        }
                    }));
                }
            }
        }
        all
    }
}

fn barriers(nodes: &Nodes) -> Vec<Barrier> {
    let mut barriers = vec![
        Barrier::Dissemination,
        Barrier::Sum(AllReduce::RecursiveDoubling),
        Barrier::Sum(AllReduce::ThereAndBack(Spread::Binomial)),
    ];
    if has_levels(nodes) {
        barriers.extend([Spread::Direct, Spread::Binomial].map(|inside| {
            let across = Box::new(AllReduce::RecursiveDoubling);
            Barrier::Sum(AllReduce::TwoLevel { nodes: nodes.clone(), lanes: 1, inside, across })
        }));
    }
    barriers
}

/// Whether there is an inside and an outside.
fn has_levels(nodes: &Nodes) -> bool {
    nodes.members().len() > 1 && nodes.largest() > 1
}

/// One, and as many as every node has ranks.
fn lanes(nodes: &Nodes) -> Vec<usize> {
    let most = nodes.smallest();
    if most > 1 { vec![1, most] } else { vec![1] }
}
