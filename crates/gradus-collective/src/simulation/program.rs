//! What simulated ranks do together, and what must come of it: the sequential reference.

use crate::collective::Collective;
use crate::element::Reduction;
use gradus_host::random::Stream;
use std::time::Duration;

/// The most ranks of a world, collectives of a program, and elements that a rank brings for each other.
const MOST_RANKS: u64 = 8;
const MOST_TASKS: u64 = 14;
const MOST_ELEMENTS: u64 = 1500;

/// Levels of priority: as many programs have one as have more.
const LEVELS: [usize; 6] = [1, 1, 1, 2, 3, 4];

/// The most collectives that are in flight at once.
const MOST_AT_ONCE: u64 = 4;

/// The longest that a rank computes between collectives.
const LONGEST_PAUSE: Duration = Duration::from_millis(900);

/// What a collective does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    AllReduce(Reduction),
    Reduce(Reduction),
    ReduceScatter(Reduction),
    Broadcast,
    AllGather,
    Gather,
    Scatter,
    AllToAll,
    Barrier,
    /// From each even rank to the next odd one, if there is one.
    Message,
}

/// One collective.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) kind: Kind,
    root: usize,
    /// The n of [`Collective`]'s table.
    len: usize,
    /// What tells its elements from those of others.
    number: usize,
    /// Its priority.
    pub(super) level: usize,
}

/// A program: the same on all ranks, as ranks of a world have it.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) world_size: usize,
    /// Levels of priority.
    pub(super) levels: usize,
    pub(super) tasks: Vec<Task>,
    /// Collectives that are started before the first of them is waited for.
    pub(super) at_once: usize,
    /// What each rank computes before each collective, by task and rank.
    pub(super) pauses: Vec<Vec<Duration>>,
}

impl Program {
    pub(super) fn draw(chance: &mut Stream) -> Self {
        let world_size = 2 + chance.next_below(MOST_RANKS - 1) as usize;
        let count = 1 + chance.next_below(MOST_TASKS) as usize;
        let levels = LEVELS[chance.next_below(LEVELS.len() as u64) as usize];
        let tasks = (0..count).map(|number| Task::draw(number, (world_size, levels), chance)).collect();
        let mut pause = || LONGEST_PAUSE / 1000 * chance.next_below(1000) as u32;
        let pauses = (0..count).map(|_| (0..world_size).map(|_| pause()).collect()).collect();
        Self { world_size, levels, tasks, at_once: 1 + chance.next_below(MOST_AT_ONCE) as usize, pauses }
    }
}

impl Task {
    fn draw(number: usize, (world_size, levels): (usize, usize), chance: &mut Stream) -> Self {
        let reduction = [Reduction::Sum, Reduction::Min, Reduction::Max, Reduction::Product]
            [chance.next_below(4) as usize];
        let kinds = [
            Kind::AllReduce(reduction),
            Kind::Reduce(reduction),
            Kind::ReduceScatter(reduction),
            Kind::Broadcast,
            Kind::AllGather,
            Kind::Gather,
            Kind::Scatter,
            Kind::AllToAll,
            Kind::Barrier,
            Kind::Message,
        ];
        let kind = kinds[chance.next_below(kinds.len() as u64) as usize];
        // As many small ones as large ones.
        let most = 1 + chance.next_below(MOST_ELEMENTS);
        let bound = if chance.next_below(2) == 0 { 8 } else { most };
        let len = chance.next_below(bound) as usize;
        let root = chance.next_below(world_size as u64) as usize;
        Self { kind, root, len, number, level: chance.next_below(levels as u64) as usize }
    }

    /// What a rank asks for; `None` if it takes no part.
    pub(super) fn collective(&self, rank: usize, world_size: usize) -> Option<Collective> {
        let root = self.root;
        Some(match self.kind {
            Kind::AllReduce(reduction) => Collective::all_reduce(reduction),
            Kind::Reduce(reduction) => Collective::reduce(root, reduction),
            Kind::ReduceScatter(reduction) => Collective::reduce_scatter(reduction),
            Kind::Broadcast => Collective::broadcast(root),
            Kind::AllGather => Collective::all_gather(),
            Kind::Gather => Collective::gather(root),
            Kind::Scatter => Collective::scatter(root),
            Kind::AllToAll => Collective::all_to_all(),
            Kind::Barrier => Collective::barrier(),
            Kind::Message if rank % 2 == 1 => Collective::receive(rank - 1),
            Kind::Message if rank + 1 < world_size => Collective::send(rank + 1),
            Kind::Message => return None,
        })
    }

    /// What a rank brings.
    pub(super) fn input(&self, rank: usize, world_size: usize) -> Vec<i32> {
        let brings = match self.kind {
            Kind::AllReduce(_) | Kind::Reduce(_) | Kind::AllGather | Kind::Gather => self.len,
            Kind::ReduceScatter(_) | Kind::AllToAll => self.len * world_size,
            Kind::Broadcast if rank == self.root => self.len,
            Kind::Scatter if rank == self.root => self.len * world_size,
            Kind::Message if rank.is_multiple_of(2) => self.len,
            Kind::Broadcast | Kind::Scatter | Kind::Message | Kind::Barrier => 0,
        };
        (0..brings).map(|place| self.element(rank, place)).collect()
    }

    /// What must come out at a rank.
    pub(super) fn expected(&self, rank: usize, world_size: usize) -> Vec<i32> {
        let Self { len, root, .. } = *self;
        let own_part = rank * len..(rank + 1) * len;
        let of = |rank: usize| (0..len).map(move |place| self.element(rank, place));
        match self.kind {
            Kind::AllReduce(reduction) => self.combined(reduction, 0..len, world_size),
            Kind::Reduce(reduction) if rank == root => self.combined(reduction, 0..len, world_size),
            Kind::ReduceScatter(reduction) => self.combined(reduction, own_part, world_size),
            Kind::Broadcast => of(root).collect(),
            Kind::AllGather => (0..world_size).flat_map(of).collect(),
            Kind::Gather if rank == root => (0..world_size).flat_map(of).collect(),
            Kind::Scatter => own_part.map(|place| self.element(root, place)).collect(),
            Kind::AllToAll => (0..world_size)
                .flat_map(|from| own_part.clone().map(move |place| self.element(from, place)))
                .collect(),
            Kind::Message if rank % 2 == 1 => of(rank - 1).collect(),
            Kind::Reduce(_) | Kind::Gather | Kind::Message | Kind::Barrier => Vec::new(),
        }
    }

    /// Sums and products wrap, so that they are the same in any order.
    fn combined(&self, reduction: Reduction, places: std::ops::Range<usize>, world_size: usize) -> Vec<i32> {
        let combine = |a: i32, b: i32| match reduction {
            Reduction::Min => a.min(b),
            Reduction::Max => a.max(b),
            Reduction::Product => a.wrapping_mul(b),
            Reduction::Sum | Reduction::Mean => a.wrapping_add(b),
        };
        let all = |place: usize| (0..world_size).map(move |rank| self.element(rank, place));
        places.map(|place| all(place).reduce(combine).expect("a world has ranks")).collect()
    }

    fn element(&self, rank: usize, place: usize) -> i32 {
        let mixed = (self.number as u32 + 1)
            .wrapping_mul(0x9E37_79B9)
            .wrapping_add((rank as u32 + 1).wrapping_mul(0x85EB_CA6B))
            .wrapping_add((place as u32 + 1).wrapping_mul(0xC2B2_AE35));
        (mixed ^ mixed >> 15).cast_signed()
    }
}
