//! Trials: the programs that neighbours are measured by. Each is a program of the generators, or less of it, so that what
//! an act costs is the difference between two of them.

use crate::one_sided::{Act, OneSided, Place, Program, Store, Sum};
use gradus_memory::Span;

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
    /// Everybody stages everything.
    Stage,
    /// And then combines what all others have staged.
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
        match self {
            Self::Meets(hops) => meets(hops, (1..world_size).map(|away| (rank + away) % world_size)),
            Self::Pairs(hops) => meets(hops, Some(rank ^ 1).filter(|peer| *peer < world_size).into_iter()),
            Self::Stage | Self::StageAndCombine => self.staging(rank, world_size, len),
            Self::Staged => of(OneSided::Staged),
            Self::ReachRegistered => without(of(OneSided::Push), |from, to| from.or(to).is_some()),
            Self::Push => of(OneSided::Push),
            Self::ReachPrivate => without(of(OneSided::Pull), |from, _| from.is_some()),
            Self::Pull => of(OneSided::Pull),
        }
    }

    /// What all ranks do, by rank.
    pub(super) fn programs(self, world_size: usize, len: usize) -> Vec<Program> {
        (0..world_size).map(|rank| self.program(rank, world_size, len)).collect()
    }

    fn staging(self, rank: usize, world_size: usize, len: usize) -> Program {
        let (all, output) = (Span::new(0, len), Place::own(Store::Output, Span::new(0, len)));
        let mut program = Program::default();
        let others = (1..world_size).map(|away| (rank + away) % world_size);
        program.copy(output, Place::own(Store::Staging, all));
        program.meet(others.clone());
        for peer in others {
            let staged = Place::of(peer, Store::Staging, all);
            if self == Self::StageAndCombine {
                program.combine(staged, output);
            }
        }
        program
    }
}

fn meets(hops: usize, others: impl Iterator<Item = usize> + Clone) -> Program {
    let mut program = Program::default();
    (0..hops).for_each(|_| program.meet(others.clone()));
    program
}

/// A program without the copies between such ranks.
fn without(program: Program, is_left_out: impl Fn(Option<usize>, Option<usize>) -> bool) -> Program {
    let stays = |act: &Act| !matches!(act, Act::Copy { from, to } if is_left_out(from.peer, to.peer));
    Program { acts: program.acts.into_iter().filter(stays).collect() }
}
