//! What follows, for one rank, from what a caller says and the memory that it gives.

use crate::header::Operation;
use crate::memory::Memory;
use crate::parts::Parts;
use gradus_error::{Error, Result};

/// Lengths of what a collective was given, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lens {
    InPlace(usize),
    Apart { input: usize, output: usize },
}

impl std::fmt::Display for Lens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InPlace(len) => write!(f, "one buffer of {len} elements"),
            Self::Apart { input, output } => {
                write!(f, "an input of {input} and an output of {output} elements")
            }
        }
    }
}

impl Lens {
    pub(crate) fn of(memory: &Memory) -> Self {
        match memory {
            Memory::InPlace(buffer) => Self::InPlace(buffer.len),
            Memory::Apart { input, output } => Self::Apart { input: input.len, output: output.len },
        }
    }

    pub(crate) fn longest(self) -> usize {
        match self {
            Self::InPlace(len) => len,
            Self::Apart { input, output } => input.max(output),
        }
    }
}

/// The lengths that rank `rank` of `world_size` must give, in the kind of memory that it gave.
pub(crate) fn lens_of(
    operation: Operation,
    work: &Work,
    (rank, world_size): (usize, usize),
    (is_root, sends): (bool, bool),
    given: Lens,
) -> Lens {
    let total = work.total(world_size);
    let at_root = if is_root { total } else { 0 };
    let own = work.own(rank);
    let (input, output) = match operation {
        Operation::AllReduce | Operation::Barrier => (total, total),
        Operation::Reduce => (total, at_root),
        Operation::Broadcast => (at_root, total),
        Operation::ReduceScatter => (total, own),
        Operation::AllGather => (own, total),
        Operation::Gather => (own, at_root),
        Operation::Scatter => (at_root, own),
        Operation::AllToAll => match work {
            Work::Exchange { to, from } => (to.iter().sum(), from.iter().sum()),
            _ => (total, total),
        },
        Operation::Message if sends => (total, 0),
        Operation::Message => (0, total),
    };
    match given {
        Lens::InPlace(_) => Lens::InPlace(input.max(output)),
        Lens::Apart { .. } => Lens::Apart { input, output },
    }
}

/// How much there is to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    /// All ranks work on as many elements.
    Whole(usize),
    /// A part of as many elements for each rank.
    Equal(usize),
    /// A part for each rank.
    Each(Vec<usize>),
    /// A part for each rank, and another from it.
    Exchange { to: Vec<usize>, from: Vec<usize> },
}

impl Work {
    pub(crate) fn check(&self, world_size: usize) -> Result<()> {
        let lists = match self {
            Self::Each(counts) => vec![counts],
            Self::Exchange { to, from } => vec![to, from],
            Self::Whole(_) | Self::Equal(_) => vec![],
        };
        for counts in lists {
            if counts.len() != world_size {
                let given = counts.len();
                return Err(Error::invalid(format!(
                    "{given} counts for {world_size} ranks: give one for each"
                )));
            }
            let total = counts.iter().try_fold(0usize, |sum, count| sum.checked_add(*count));
            if total.is_none_or(|total| total > isize::MAX as usize) {
                return Err(Error::invalid("counts whose sum is more than any memory holds"));
            }
        }
        Ok(())
    }

    /// Elements of the whole; 0 where every rank has another.
    pub(crate) fn total(&self, world_size: usize) -> usize {
        match self {
            Self::Whole(len) => *len,
            Self::Equal(count) => count.saturating_mul(world_size),
            Self::Each(counts) => counts.iter().sum(),
            Self::Exchange { .. } => 0,
        }
    }

    fn own(&self, rank: usize) -> usize {
        match self {
            Self::Whole(len) => *len,
            Self::Equal(count) => *count,
            Self::Each(counts) => counts[rank],
            Self::Exchange { .. } => 0,
        }
    }

    /// FNV-1a (Fowler, Noll and Vo) of unequal counts. Those of an exchange differ from rank to rank: its messages'
    /// lengths are held against each other one by one.
    pub(crate) fn digest(&self) -> u64 {
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        match self {
            Self::Whole(_) | Self::Equal(_) => 0,
            Self::Each(counts) => fnv(BASIS, counts),
            Self::Exchange { .. } => BASIS,
        }
    }
}

/// Goes on with a digest.
pub(crate) fn fnv(basis: u64, numbers: &[usize]) -> u64 {
    let bytes = numbers.iter().flat_map(|number| (*number as u64).to_le_bytes());
    bytes.fold(basis, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// All that one rank's steps depend on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
    pub(crate) operation: Operation,
    pub(crate) mean: bool,
    pub(crate) element_bytes: usize,
    /// The sender of a message.
    pub(crate) root: usize,
    /// The other side of a message.
    pub(crate) peer: usize,
    pub(crate) work: Work,
    pub(crate) in_place: bool,
    /// Whether its memory is registered, so that peers reach it.
    pub(crate) registered: bool,
    /// Which of the layouts over nodes that are known its ranks have; 0 for one node.
    pub(crate) layout: usize,
}

impl Shape {
    /// Elements of the whole.
    pub(crate) fn total(&self) -> usize {
        self.work.total(self.world_size)
    }

    /// Each rank's part.
    pub(crate) fn parts(&self) -> Parts {
        match &self.work {
            Work::Whole(len) => Parts::equal(self.world_size, *len),
            Work::Equal(count) => Parts::equal(self.world_size, *count),
            Work::Each(counts) => Parts::each(counts),
            Work::Exchange { to, .. } => Parts::each(to),
        }
    }
}
