//! Trials: the programs that neighbours are measured by. Each is a program of the generators, or less of it, so that what
//! an act costs is the difference between two of them.

use crate::one_sided::{Act, OneSided, Program, Sum};

/// Hops of the trial that tells a hop from a collective as such.
pub(super) const HOPS: usize = 5;

/// Elements of a trial in which no bytes move.
pub(super) const FEW: usize = 16;

/// What all ranks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trial {
    /// So many meetings of all, one after another.
    Meets(usize),
    /// So many meetings of pairs; a rank that is left over does nothing.
    Pairs(usize),
    /// Everybody stages what others want: of [`OneSided::Flat`] where two sum, of [`OneSided::Staged`] where more do.
    Stage,
    /// And combines what others have staged.
    StageAndCombine,
    /// All of [`OneSided::Staged`], in which shares are copied that were just staged.
    Staged,
    /// Everybody combines its share of all others' registered memory.
    ReachRegistered,
    /// All of [`OneSided::Push`].
    Push,
    /// Everybody combines its share of all others' private memory.
    ReachPrivate,
    /// All of [`OneSided::Pull`].
    Pull,
}

impl Trial {
    /// What one rank does to `len` elements of f32.
    pub(super) fn program(self, rank: usize, world_size: usize, len: usize) -> Program {
        let sum = Sum { len, element_bytes: size_of::<f32>(), in_place: true, mean: false };
        let of = |kind: OneSided| kind.program(rank, world_size, sum);
        let summed = || of(if world_size == 2 { OneSided::Flat } else { OneSided::Staged });
        match self {
            Self::Meets(hops) => meets(hops, (1..world_size).map(|away| (rank + away) % world_size)),
            Self::Pairs(hops) => meets(hops, Some(rank ^ 1).filter(|peer| *peer < world_size).into_iter()),
            Self::Stage => without(without_copies(summed(), |from, _| from.is_some()), is_combined),
            Self::StageAndCombine => without_copies(summed(), |from, _| from.is_some()),
            Self::Staged => of(OneSided::Staged),
            Self::ReachRegistered => without_copies(of(OneSided::Push), |from, to| from.or(to).is_some()),
            Self::Push => of(OneSided::Push),
            Self::ReachPrivate => without_copies(of(OneSided::Pull), |from, _| from.is_some()),
            Self::Pull => of(OneSided::Pull),
        }
    }

    /// What all ranks do, by rank.
    pub(super) fn programs(self, world_size: usize, len: usize) -> Vec<Program> {
        (0..world_size).map(|rank| self.program(rank, world_size, len)).collect()
    }
}

fn meets(hops: usize, others: impl Iterator<Item = usize> + Clone) -> Program {
    let mut program = Program::default();
    (0..hops).for_each(|_| program.meet(others.clone()));
    program
}

/// A program without the copies between such ranks.
fn without_copies(program: Program, is_left_out: impl Fn(Option<usize>, Option<usize>) -> bool) -> Program {
    without(program, |act| matches!(act, Act::Copy { from, to } if is_left_out(from.peer, to.peer)))
}

fn without(program: Program, is_left_out: impl Fn(&Act) -> bool) -> Program {
    Program { acts: program.acts.into_iter().filter(|act| !is_left_out(act)).collect() }
}

fn is_combined(act: &Act) -> bool {
    matches!(act, Act::Combine { .. })
}
