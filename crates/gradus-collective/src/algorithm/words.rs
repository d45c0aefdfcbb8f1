//! Algorithms as people call them.

use super::{Algorithm, AllReduce, Barrier, Spread};
use std::fmt;

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Binomial => f.write_str("binomial tree"),
            Self::Chain => f.write_str("chain"),
            Self::DoubleTree { .. } => f.write_str("double binary tree"),
            Self::TwoLevel { inside, across, .. } => write!(f, "{inside} inside nodes, {across} across"),
        }
    }
}

impl fmt::Display for AllReduce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RecursiveDoubling => f.write_str("recursive doubling"),
            Self::Direct => f.write_str("direct"),
            Self::HalvingDoubling => f.write_str("halving-doubling"),
            Self::Ring { block } => write!(f, "ring of {block}-element blocks"),
            Self::DoubleTree { .. } => f.write_str("double binary tree"),
            Self::ThereAndBack(spread) => write!(f, "{spread}, there and back"),
            Self::TwoLevel { lanes: 1, inside, across, .. } => {
                write!(f, "{inside} inside nodes, {across} across")
            }
            Self::TwoLevel { lanes, inside, across, .. } => {
                write!(f, "{inside} inside nodes, {across} across in {lanes} lanes")
            }
        }
    }
}

impl fmt::Display for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dissemination => f.write_str("dissemination"),
            Self::Sum(all_reduce) => all_reduce.fmt(f),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllReduce(all_reduce) => all_reduce.fmt(f),
            Self::Reduce { spread, .. } | Self::Broadcast { spread, .. } => spread.fmt(f),
            Self::Barrier(barrier) => barrier.fmt(f),
        }
    }
}
