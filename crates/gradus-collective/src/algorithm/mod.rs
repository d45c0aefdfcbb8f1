//! Algorithms with their parameters, as data: what the tuner chooses among, and what a run records.
//!
//! A record is read from a file, so it is held against the world that it is to serve ([`Algorithm::validate`]) before
//! steps are made of it.

mod nodes;
mod validate;
mod words;

pub use nodes::Nodes;

use crate::generate::{
    binomial_broadcast, chain_broadcast, direct_all_reduce, direct_broadcast, dissemination_barrier,
    double_tree_all_reduce, double_tree_broadcast, halving_doubling_all_reduce, mirrored,
    recursive_doubling_all_reduce, ring_all_reduce, two_level_all_reduce, two_level_broadcast,
};
use crate::plan::Step;
use serde::{Deserialize, Serialize};

/// A way from one rank to all others; run backwards, a way from all to one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// [`direct_broadcast`].
    Direct,
    /// [`binomial_broadcast`].
    Binomial,
    /// [`chain_broadcast`].
    Chain,
    /// [`double_tree_broadcast`].
    DoubleTree {
        /// Elements that travel together, one at least.
        block: usize,
    },
    /// [`two_level_broadcast`].
    TwoLevel {
        /// Which ranks share a node: those of the world, all of them.
        nodes: Nodes,
        /// From one rank of a node to the others.
        inside: Box<Self>,
        /// From one node to the others.
        across: Box<Self>,
    },
}

impl Spread {
    /// The steps of one rank: `len` elements of `root` to all.
    pub fn broadcast(&self, rank: usize, world_size: usize, len: usize, root: usize) -> Vec<Step> {
        match self {
            Self::Direct => direct_broadcast(rank, world_size, len, root),
            Self::Binomial => binomial_broadcast(rank, world_size, len, root),
            Self::Chain => chain_broadcast(rank, world_size, len, root),
            Self::DoubleTree { block } => double_tree_broadcast(rank, world_size, len, root, *block),
            Self::TwoLevel { nodes, inside, across } => {
                two_level_broadcast(rank, nodes, inside, across, len, root)
            }
        }
    }

    /// The steps of one rank: the sum of `len` elements over all ranks, to `root`. What the others hold after is part of
    /// the sum.
    pub fn reduce(&self, rank: usize, world_size: usize, len: usize, root: usize) -> Vec<Step> {
        mirrored(self.broadcast(rank, world_size, len, root))
    }
}

/// A way to give all ranks the sum of what all had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllReduce {
    /// [`recursive_doubling_all_reduce`].
    RecursiveDoubling,
    /// [`direct_all_reduce`].
    Direct,
    /// [`halving_doubling_all_reduce`].
    HalvingDoubling,
    /// [`ring_all_reduce`].
    Ring {
        /// Elements that are worked off at a time, one at least.
        block: usize,
    },
    /// [`double_tree_all_reduce`].
    DoubleTree {
        /// Elements that travel together, one at least.
        block: usize,
    },
    /// To rank 0 and back.
    ThereAndBack(Spread),
    /// [`two_level_all_reduce`].
    TwoLevel {
        /// Which ranks share a node: those of the world, all of them.
        nodes: Nodes,
        /// Shares that cross between nodes side by side.
        lanes: usize,
        /// Between one rank of a node and the others.
        inside: Spread,
        /// Among the nodes.
        across: Box<Self>,
    },
}

impl AllReduce {
    /// No fewer than the steps of any rank, without making them: a ring has as many as there are blocks in the buffer.
    pub(crate) fn most_steps(&self, world_size: usize, len: usize) -> usize {
        match self {
            Self::Ring { block } => world_size.saturating_mul(4).saturating_mul(len.div_ceil(*block)),
            Self::TwoLevel { nodes, lanes, across, .. } => {
                let (groups, share) = (nodes.members().len(), len.div_ceil(*lanes));
                let inside = nodes.largest().saturating_mul(4).saturating_mul(*lanes);
                lanes.saturating_mul(across.most_steps(groups, share)).saturating_add(inside)
            }
            // A few for each other rank, or for each of a bounded number of blocks.
            _ => world_size.saturating_mul(4),
        }
    }

    /// The steps of one rank.
    pub fn steps(&self, rank: usize, world_size: usize, len: usize) -> Vec<Step> {
        match self {
            Self::RecursiveDoubling => recursive_doubling_all_reduce(rank, world_size, len),
            Self::Direct => direct_all_reduce(rank, world_size, len),
            Self::HalvingDoubling => halving_doubling_all_reduce(rank, world_size, len),
            Self::Ring { block } => ring_all_reduce(rank, world_size, len, *block),
            Self::DoubleTree { block } => double_tree_all_reduce(rank, world_size, len, *block),
            Self::ThereAndBack(spread) => {
                let mut steps = spread.reduce(rank, world_size, len, 0);
                steps.extend(spread.broadcast(rank, world_size, len, 0));
                steps
            }
            Self::TwoLevel { nodes, lanes, inside, across } => {
                two_level_all_reduce(rank, nodes, *lanes, inside, across, len)
            }
        }
    }
}

/// A way to learn that all have come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Barrier {
    /// [`dissemination_barrier`].
    Dissemination,
    /// An all-reduce of one element: who holds a part of everybody has heard of everybody.
    Sum(AllReduce),
}

impl Barrier {
    /// The steps of one rank, over a buffer of one element.
    pub fn steps(&self, rank: usize, world_size: usize) -> Vec<Step> {
        match self {
            Self::Dissemination => dissemination_barrier(rank, world_size),
            Self::Sum(all_reduce) => all_reduce.steps(rank, world_size, 1),
        }
    }
}

/// A collective together with its algorithm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// The sum, to all.
    AllReduce(AllReduce),
    /// The sum, to one.
    Reduce {
        /// The way.
        spread: Spread,
        /// Who gets it.
        root: usize,
    },
    /// What one has, to all.
    Broadcast {
        /// The way.
        spread: Spread,
        /// Who has it.
        root: usize,
    },
    /// A meeting.
    Barrier(Barrier),
}

impl Algorithm {
    /// The steps of one rank, over a buffer of `len` elements (of one for a barrier).
    pub fn steps(&self, rank: usize, world_size: usize, len: usize) -> Vec<Step> {
        match self {
            Self::AllReduce(all_reduce) => all_reduce.steps(rank, world_size, len),
            Self::Reduce { spread, root } => spread.reduce(rank, world_size, len, *root),
            Self::Broadcast { spread, root } => spread.broadcast(rank, world_size, len, *root),
            Self::Barrier(barrier) => barrier.steps(rank, world_size),
        }
    }
}
