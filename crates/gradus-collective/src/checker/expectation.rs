//! What ranks bring to a collective and what they are to take away.
//!
//! What a collective works on is one *whole* of numbered elements, in the caller's mind if not in any memory. A rank
//! brings some of them, in parts of its input (its output, in place), and wants some, in parts of its output.

use crate::parts::Parts;
use crate::plan::{Part, Region};
use gradus_memory::Span;

/// What a part of an output is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// What this rank brought.
    From(usize),
    /// What all ranks brought, each once, combined in the same order wherever it is wanted.
    Combined,
    /// What depends on all ranks, each once or more often.
    Heard,
}

/// One rank's side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Duty {
    /// Elements of its input.
    pub input: usize,
    /// Elements of its output.
    pub output: usize,
    /// Where it brings what: a part of its memory, and the element of the whole that the part begins with.
    pub brings: Vec<(Part, usize)>,
    /// Where it wants what: a span of its output, the element of the whole that it begins with, and what of it.
    pub wants: Vec<(Span, usize, Want)>,
}

/// What a plan is to achieve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// Elements of the whole.
    pub whole: usize,
    /// Each rank's side.
    pub ranks: Vec<Duty>,
    /// By how much what is combined is divided in the end, once.
    pub divisor: usize,
}

/// Where ranks find what they bring, and where it lies in the output when that is the same memory.
fn own(in_place: bool, own: Span) -> Part {
    if in_place { Part::output(own) } else { Part::input(Span::new(0, own.len)) }
}

impl Expectation {
    fn of(world_size: usize, whole: usize, duty: impl Fn(usize) -> Duty) -> Self {
        let complete = |mut duty: Duty| {
            let end = |region| {
                let parts = duty.brings.iter().filter(move |(part, _)| part.region == region);
                parts.map(|(part, _)| part.span.end()).max().unwrap_or(0)
            };
            let wanted = duty.wants.iter().map(|(span, ..)| span.end()).max().unwrap_or(0);
            (duty.input, duty.output) =
                (end(Region::Input), duty.output.max(end(Region::Output)).max(wanted));
            duty
        };
        Self { whole, ranks: (0..world_size).map(duty).map(complete).collect(), divisor: 1 }
    }

    /// The same, but the mean of what is combined is wanted.
    #[must_use]
    pub fn mean(self) -> Self {
        Self { divisor: self.ranks.len(), ..self }
    }

    /// Everybody brings a whole of `len` elements and wants all contributions combined.
    pub fn all_reduce(world_size: usize, len: usize, in_place: bool) -> Self {
        let all = Span::new(0, len);
        Self::of(world_size, len, |_| Duty {
            brings: vec![(own(in_place, all), 0)],
            wants: vec![(all, 0, Want::Combined)],
            ..Duty::default()
        })
    }

    /// Everybody brings a whole of `len` elements, `root` alone wants all contributions combined. In place, what others
    /// hold afterwards is nothing to rely on.
    pub fn reduce(world_size: usize, len: usize, root: usize, in_place: bool) -> Self {
        let mut all = Self::all_reduce(world_size, len, in_place);
        for (_, duty) in all.ranks.iter_mut().enumerate().filter(|(rank, _)| *rank != root) {
            duty.wants.clear();
            duty.output = if in_place { len } else { 0 };
        }
        all
    }

    /// `root` brings a whole, everybody wants it.
    pub fn broadcast(world_size: usize, len: usize, root: usize, in_place: bool) -> Self {
        let all = Span::new(0, len);
        Self::of(world_size, len, |rank| Duty {
            brings: (rank == root).then(|| (own(in_place, all), 0)).into_iter().collect(),
            wants: vec![(all, 0, Want::From(root))],
            ..Duty::default()
        })
    }

    /// Everybody brings a whole and wants its own part of all contributions combined. In place, the whole lies in the
    /// output, and what it holds elsewhere afterwards is nothing to rely on.
    pub fn reduce_scatter(parts: &Parts, in_place: bool) -> Self {
        let all = Span::new(0, parts.total());
        Self::of(parts.world_size(), parts.total(), |rank| {
            let place = if in_place { parts.span(rank) } else { Span::new(0, parts.count(rank)) };
            let wants = vec![(place, parts.span(rank).start, Want::Combined)];
            Duty { brings: vec![(own(in_place, all), 0)], wants, ..Duty::default() }
        })
    }

    /// Everybody brings its own part and wants the whole.
    pub fn all_gather(parts: &Parts, in_place: bool) -> Self {
        let everybody = Self::gathered(parts);
        Self::of(parts.world_size(), parts.total(), |rank| Duty {
            brings: vec![(own(in_place, parts.span(rank)), parts.span(rank).start)],
            wants: everybody.clone(),
            ..Duty::default()
        })
    }

    fn gathered(parts: &Parts) -> Vec<(Span, usize, Want)> {
        let part = |rank| (parts.span(rank), parts.span(rank).start, Want::From(rank));
        (0..parts.world_size()).map(part).collect()
    }

    /// Everybody brings its own part, `root` wants the whole. In place, the root's own part lies in its output, and the
    /// outputs of the others are their parts.
    pub fn gather(parts: &Parts, root: usize, in_place: bool) -> Self {
        Self::of(parts.world_size(), parts.total(), |rank| {
            let place = if rank == root { parts.span(rank) } else { Span::new(0, parts.count(rank)) };
            let wants = if rank == root { Self::gathered(parts) } else { Vec::new() };
            Duty { brings: vec![(own(in_place, place), parts.span(rank).start)], wants, ..Duty::default() }
        })
    }

    /// `root` brings the whole, everybody wants its own part. In place, the root's output is the whole, and its own part
    /// stays where it lies.
    pub fn scatter(parts: &Parts, root: usize, in_place: bool) -> Self {
        let all = Span::new(0, parts.total());
        Self::of(parts.world_size(), parts.total(), |rank| {
            let whole = in_place && rank == root;
            let place = if whole { parts.span(rank) } else { Span::new(0, parts.count(rank)) };
            Duty {
                brings: (rank == root).then(|| (own(in_place, all), 0)).into_iter().collect(),
                wants: vec![(place, parts.span(rank).start, Want::From(root))],
                ..Duty::default()
            }
        })
    }

    /// Rank `a` brings `counts[a][b]` elements for rank `b`, by `b`, and wants what all brought for it, by rank. In
    /// place, `counts` must be symmetric: a part for a rank is replaced by the part from it.
    ///
    /// # Panics
    /// If `counts` is not square.
    pub fn all_to_all(counts: &[Vec<usize>], in_place: bool) -> Self {
        let world_size = counts.len();
        let blocks = Parts::each(&counts.concat());
        Self::of(world_size, blocks.total(), |rank| {
            let brought = Parts::each(&counts[rank]);
            let wanted = Parts::each(&counts.iter().map(|row| row[rank]).collect::<Vec<_>>());
            let region = if in_place { Region::Output } else { Region::Input };
            let start = |from: usize, to: usize| blocks.span(from * world_size + to).start;
            let brings = |peer| (Part { region, span: brought.span(peer) }, start(rank, peer));
            let wants = |peer| (wanted.span(peer), start(peer, rank), Want::From(peer));
            Duty {
                brings: (0..world_size).map(brings).collect(),
                wants: (0..world_size).map(wants).collect(),
                ..Duty::default()
            }
        })
    }

    /// Everybody brings a token in its output and wants to have heard of everybody.
    pub fn barrier(world_size: usize) -> Self {
        let mut all = Self::all_reduce(world_size, 1, true);
        all.ranks.iter_mut().for_each(|duty| duty.wants[0].2 = Want::Heard);
        all
    }
}
