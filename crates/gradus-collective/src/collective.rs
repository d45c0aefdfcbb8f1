//! Which collective: what a caller says.

use crate::element::{Element, Reduction};
use crate::group::Group;
use crate::header::{Identity, Operation};
use crate::memory::Memory;
use crate::shape::{Lens, Shape, Work, lens_of};
use gradus_error::{Error, Result};

/// What the ranks of a group do together: the same on all of them, but for what each brings and takes. Lengths follow
/// from the buffers that it is started with, in elements; `W` is the group's number of ranks.
///
/// | | input | output | in one buffer |
/// |---|---|---|---|
/// | all-reduce | n | n | n |
/// | reduce | n | n at the root, else 0 | n; undefined after but at the root |
/// | broadcast | n at the root, else 0 | n | n |
/// | reduce-scatter | W n | n | W n: the result is this rank's part, the rest is undefined after |
/// | all-gather | n | W n | W n: this rank's part is what it brings |
/// | gather | n | W n at the root, else 0 | W n at the root, else n |
/// | scatter | W n at the root, else 0 | n | W n at the root, else n |
/// | all-to-all | W n | W n | W n |
/// | send, receive | n, 0 | 0, n | n |
///
/// With unequal counts `counts[rank]` stands for each n, and their sum for W n; all ranks name all counts. Rank
/// numbers are those of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collective {
    operation: Operation,
    reduction: Option<Reduction>,
    /// The root; whoever a message goes to or comes from.
    root: usize,
    counts: Counts,
    /// Of a message: whether this rank sends it.
    sends: bool,
}

/// How a whole is shared out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Counts {
    Equal,
    Each(Vec<usize>),
    Exchange { to: Vec<usize>, from: Vec<usize> },
}

impl Collective {
    fn new(operation: Operation, root: usize, reduction: Option<Reduction>) -> Self {
        Self { operation, reduction, root, counts: Counts::Equal, sends: false }
    }

    /// Every rank gets all contributions combined, with the same bits.
    pub fn all_reduce(reduction: Reduction) -> Self {
        Self::new(Operation::AllReduce, 0, Some(reduction))
    }

    /// `root` gets all contributions combined.
    pub fn reduce(root: usize, reduction: Reduction) -> Self {
        Self::new(Operation::Reduce, root, Some(reduction))
    }

    /// Every rank gets what `root` brings.
    pub fn broadcast(root: usize) -> Self {
        Self::new(Operation::Broadcast, root, None)
    }

    /// Every rank gets its part of all contributions combined.
    pub fn reduce_scatter(reduction: Reduction) -> Self {
        Self::new(Operation::ReduceScatter, 0, Some(reduction))
    }

    /// Every rank gets what all bring, one after the other, by rank.
    pub fn all_gather() -> Self {
        Self::new(Operation::AllGather, 0, None)
    }

    /// `root` gets what all bring, one after the other, by rank.
    pub fn gather(root: usize) -> Self {
        Self::new(Operation::Gather, root, None)
    }

    /// Every rank gets its part of what `root` brings.
    pub fn scatter(root: usize) -> Self {
        Self::new(Operation::Scatter, root, None)
    }

    /// Every rank brings a part for every rank and gets a part from every rank, by rank.
    pub fn all_to_all() -> Self {
        Self::new(Operation::AllToAll, 0, None)
    }

    /// [`Collective::all_to_all`] with unequal counts: `to[rank]` elements for each rank, `from[rank]` from each. Each
    /// rank names its own, and one's `to` must be the other's `from`. In one buffer, both must be the same.
    pub fn all_to_all_counts(to: Vec<usize>, from: Vec<usize>) -> Self {
        Self { counts: Counts::Exchange { to, from }, ..Self::all_to_all() }
    }

    /// Nobody is over before everybody has started.
    pub fn barrier() -> Self {
        Self::new(Operation::Barrier, 0, None)
    }

    /// This rank's input goes to rank `to`, which [receives](Collective::receive) it. Messages between two ranks stand
    /// in one order with the collectives that both take part in.
    pub fn send(to: usize) -> Self {
        Self { sends: true, ..Self::new(Operation::Message, to, None) }
    }

    /// This rank's output is what rank `from` [sends](Collective::send).
    pub fn receive(from: usize) -> Self {
        Self::new(Operation::Message, from, None)
    }

    /// The same with `counts[rank]` elements for each rank: for reduce-scatter, all-gather, gather and scatter.
    #[must_use]
    pub fn with_counts(mut self, counts: Vec<usize>) -> Self {
        self.counts = Counts::Each(counts);
        self
    }

    /// What follows for rank `rank` of `world_size`, with the memory that it works on.
    ///
    /// # Errors
    /// `Invalid` when there is no such root or no such mean, or lengths and counts do not fit each other.
    pub(crate) fn shape(&self, rank: usize, world_size: usize, memory: &Memory) -> Result<Shape> {
        self.check_kinds(rank, world_size, memory)?;
        let is_root = rank == self.root;
        let lens = Lens::of(memory);
        let work = self.work(world_size, is_root, lens)?;
        work.check(world_size)?;
        let wanted = lens_of(self.operation, &work, (rank, world_size), (is_root, self.sends), lens);
        if lens != wanted {
            return Err(self.misfit(lens, wanted));
        }
        if let (Work::Exchange { to, from }, Lens::InPlace(_)) = (&work, lens)
            && to != from
        {
            return Err(Error::invalid(
                "an all-to-all in one buffer gives each rank as much as it gets: use two buffers",
            ));
        }
        let message = self.operation == Operation::Message;
        Ok(Shape {
            rank,
            world_size,
            operation: self.operation,
            mean: self.reduction == Some(Reduction::Mean),
            element_bytes: memory.element().bytes(),
            root: if message && self.sends { rank } else { self.root },
            peer: if message { self.root } else { 0 },
            work,
            in_place: matches!(memory, Memory::InPlace(_)),
            registered: false,
            layout: 0,
        })
    }

    fn check_kinds(&self, rank: usize, world_size: usize, memory: &Memory) -> Result<()> {
        let name = self.operation.name();
        if self.root >= world_size {
            return Err(Error::invalid(format!(
                "rank {} has no part in a {name} among {world_size}",
                self.root
            )));
        }
        if self.operation == Operation::Message && self.root == rank {
            return Err(Error::invalid(format!("rank {rank} cannot send a message to itself: copy it")));
        }
        if let Memory::Apart { input, output } = memory
            && input.element != output.element
        {
            let (input, output) = (input.element, output.element);
            return Err(Error::invalid(format!(
                "a {name} cannot turn {input} into {output}: give both one type"
            )));
        }
        self.reduction.map_or(Ok(()), |reduction| reduction.check(memory.element()))
    }

    fn work(&self, world_size: usize, is_root: bool, lens: Lens) -> Result<Work> {
        let divided = |len: usize| match len % world_size {
            0 => Ok(Work::Equal(len / world_size)),
            _ => Err(Error::invalid(format!(
                "{len} elements cannot be shared out equally among {world_size} ranks: pad them, or give counts"
            ))),
        };
        match (&self.counts, self.operation) {
            (Counts::Exchange { to, from }, _) => Ok(Work::Exchange { to: to.clone(), from: from.clone() }),
            (
                Counts::Each(counts),
                Operation::ReduceScatter | Operation::AllGather | Operation::Gather | Operation::Scatter,
            ) => Ok(Work::Each(counts.clone())),
            (Counts::Each(_), operation) => {
                Err(Error::invalid(format!("a {} takes no counts, one for each rank", operation.name())))
            }
            (Counts::Equal, Operation::AllGather | Operation::ReduceScatter) => match lens {
                Lens::InPlace(len) => divided(len),
                Lens::Apart { input, output } => Ok(Work::Equal(input.min(output))),
            },
            (Counts::Equal, Operation::Gather | Operation::Scatter) => match lens {
                Lens::InPlace(len) if is_root => divided(len),
                Lens::InPlace(len) => Ok(Work::Equal(len)),
                Lens::Apart { input, .. } if self.operation == Operation::Gather => Ok(Work::Equal(input)),
                Lens::Apart { output, .. } => Ok(Work::Equal(output)),
            },
            (Counts::Equal, Operation::AllToAll) => divided(lens.longest()),
            (Counts::Equal, _) => Ok(Work::Whole(lens.longest())),
        }
    }

    fn misfit(&self, given: Lens, wanted: Lens) -> Error {
        let name = self.operation.name();
        Error::invalid(match (given, wanted) {
            (Lens::InPlace(given), Lens::InPlace(wanted)) => {
                format!("a {name} works on {wanted} elements here, and was given {given}")
            }
            _ => format!("a {name} wants {wanted} here, and was given {given}"),
        })
    }

    /// How it is told from others on the wire.
    pub(crate) fn identity(&self, group: &Group, sequence: u64, element: Element, shape: &Shape) -> Identity {
        Identity {
            group: group.id,
            level: group.level,
            sequence,
            operation: self.operation,
            element,
            reduction: self.reduction,
            root: shape.root as u32,
            len: shape.work.total(shape.world_size) as u64,
            counts: shape.work.digest(),
            registered: shape.registered,
        }
    }

    /// The rank that a message goes to or comes from; `None` for what all ranks do.
    pub(crate) fn message_peer(&self) -> Option<usize> {
        (self.operation == Operation::Message).then_some(self.root)
    }

    /// Whether it is a message that this rank sends.
    pub(crate) fn sends(&self) -> bool {
        self.sends
    }
}
