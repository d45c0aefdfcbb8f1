//! Which generator serves which collective.

use crate::choose::{Links, Size, choose_all_reduce, choose_among_neighbours};
use crate::generate::{
    binomial_broadcast, binomial_gather, binomial_reduce, binomial_scatter, bruck_all_gather,
    bruck_all_to_all, direct_all_gather, direct_gather, direct_reduce_scatter, direct_scatter,
    dissemination_barrier, pairwise_all_to_all, ring_all_gather, ring_reduce_scatter,
};
use crate::header::Operation;
use crate::one_sided::{Agenda, MOST_AT_ONCE, OneSided, Program, Reach, Sum};
use crate::operation::Prepared;
use crate::parts::Parts;
use crate::plan::{Part, Region, Step};
use crate::shape::{Shape, Work};
use crate::tuner::Choice;
use gradus_memory::Span;
use std::sync::Arc;

/// A hop of shared memory costs about as much as moving this many bytes (a microsecond at some 6 GB/s): up to here it is
/// the number of hops that counts.
const HOP_BYTES: usize = 6 << 10;

/// What ranks of one host know of each other's memory: the same on all of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neighbourhood {
    /// Whether they read each other's private memory.
    pub(crate) reads_private: bool,
    /// Processors that they share, as this one may use them; none: each has its own.
    pub(crate) processors: Option<usize>,
}

/// How a collective is carried out.
#[derive(Clone)]
pub(crate) enum Way {
    /// Steps over streams.
    Streams(Arc<Prepared>),
    /// Acts among neighbours.
    Meeting(Arc<Agenda>),
}

/// The way for a shape: the same on every rank but for its place.
pub(crate) fn way(shape: &Shape, neighbourhood: Option<Neighbourhood>, links: &Links) -> Way {
    match neighbourhood.and_then(|neighbourhood| one_sided(shape, neighbourhood, links)) {
        Some(kind) => Way::Meeting(Arc::new(Agenda::new(program(kind, shape)))),
        None => Way::Streams(Arc::new(Prepared::new(steps(shape, links)))),
    }
}

/// What this rank does among neighbours.
fn program(kind: OneSided, shape: &Shape) -> Program {
    let Shape { rank, world_size, mean, in_place, element_bytes, .. } = *shape;
    kind.program(rank, world_size, Sum { len: shape.total(), element_bytes, in_place, mean })
}

/// Whether it makes a difference that a collective's memory is registered.
pub(crate) fn may_use_registered(shape: &Shape) -> bool {
    shape.operation == Operation::AllReduce
        && OneSided::may_use_registered(shape.total() * shape.element_bytes)
}

/// What neighbours do, where that serves better than streams: the cheapest by figures, if there are any.
fn one_sided(shape: &Shape, neighbourhood: Neighbourhood, links: &Links) -> Option<OneSided> {
    let (world_size, bytes) = (shape.world_size, shape.total() * shape.element_bytes);
    let reach = neighbourhood.reach(shape);
    match shape.operation {
        Operation::Barrier if (2..=MOST_AT_ONCE).contains(&world_size) => Some(OneSided::Barrier),
        Operation::AllReduce => match choice(shape, Some(neighbourhood), links) {
            None => OneSided::by_size(world_size, bytes, reach),
            Some(choice) => choice.chosen.algorithm.one_sided(),
        },
        _ => None,
    }
}

/// The choice for an all-reduce by price; `None` where neighbours go from memory to memory by size, because nobody has
/// measured what that costs.
pub(crate) fn choice(shape: &Shape, neighbourhood: Option<Neighbourhood>, links: &Links) -> Option<Choice> {
    let reach = neighbourhood.map(|neighbourhood| neighbourhood.reach(shape));
    let size = Size { world_size: shape.world_size, len: shape.total(), element_bytes: shape.element_bytes };
    let by_size = reach.and_then(|reach| OneSided::by_size(size.world_size, size.bytes(), reach));
    let choice = choose_among_neighbours(links, size, reach);
    let is_priced = choice.candidates.iter().any(|candidate| candidate.algorithm.one_sided().is_some());
    (by_size.is_none() || is_priced).then_some(choice)
}

impl Neighbourhood {
    fn reach(self, shape: &Shape) -> Reach {
        Reach { registered: shape.registered, reads_private: self.reads_private }
    }
}

/// A rank's steps, the same on every rank but for its place.
pub(crate) fn steps(shape: &Shape, links: &Links) -> Vec<Step> {
    let mut steps = match shape.operation {
        Operation::AllReduce | Operation::Reduce | Operation::Broadcast => on_whole(shape, links),
        Operation::Barrier => dissemination_barrier(shape.rank, shape.world_size),
        Operation::ReduceScatter => reduce_scatter(shape),
        Operation::AllGather => all_gather(shape),
        Operation::Gather | Operation::Scatter => gather_or_scatter(shape),
        Operation::AllToAll => all_to_all(shape),
        Operation::Message => message(shape),
    };
    steps.extend(mean(shape));
    steps
}

fn is_equal(shape: &Shape) -> bool {
    matches!(shape.work, Work::Equal(_))
}

/// Generators for these work on one buffer: apart, it is filled first. Where there is no output, it is scratch.
fn on_whole(shape: &Shape, links: &Links) -> Vec<Step> {
    let Shape { rank, world_size, root, .. } = *shape;
    let len = shape.total();
    let steps = match shape.operation {
        Operation::AllReduce => {
            let choice = choose_all_reduce(links, world_size, len, shape.element_bytes);
            choice.chosen.algorithm.steps(rank, world_size, len)
        }
        Operation::Reduce => binomial_reduce(rank, world_size, len, root),
        _ => binomial_broadcast(rank, world_size, len, root),
    };
    if shape.in_place {
        return steps;
    }
    let (all, is_root) = (Span::new(0, len), rank == root);
    let region =
        if shape.operation == Operation::Reduce && !is_root { Region::Scratch } else { Region::Output };
    let brings = shape.operation != Operation::Broadcast || is_root;
    let fill = brings.then(|| Step::copy(Part::input(all), Part { region, span: all }));
    fill.into_iter().chain(steps.into_iter().map(|step| step.moved(Region::Output, region))).collect()
}

/// The end of a mean: the result is divided where it is wanted, once nobody reads the sum any more.
fn mean(shape: &Shape) -> Option<Step> {
    let wanted = match shape.operation {
        Operation::Reduce if shape.rank != shape.root => return None,
        Operation::ReduceScatter if shape.in_place => shape.parts().span(shape.rank),
        Operation::ReduceScatter => Span::new(0, shape.parts().count(shape.rank)),
        _ => Span::new(0, shape.total()),
    };
    let part = Part::output(wanted);
    (shape.mean && shape.world_size > 1).then_some(Step::Divide { part, by: shape.world_size })
}

fn reduce_scatter(shape: &Shape) -> Vec<Step> {
    let parts = shape.parts();
    let small = shape.total() * shape.element_bytes <= HOP_BYTES * shape.world_size;
    if is_equal(shape) && !small {
        ring_reduce_scatter(shape.rank, &parts, shape.in_place)
    } else {
        direct_reduce_scatter(shape.rank, &parts, shape.in_place)
    }
}

fn all_gather(shape: &Shape) -> Vec<Step> {
    let parts = shape.parts();
    if shape.world_size > 2 && shape.total() * shape.element_bytes <= HOP_BYTES * shape.world_size {
        bruck_all_gather(shape.rank, &parts, shape.in_place)
    } else if is_equal(shape) {
        ring_all_gather(shape.rank, &parts, shape.in_place)
    } else {
        direct_all_gather(shape.rank, &parts, shape.in_place)
    }
}

fn gather_or_scatter(shape: &Shape) -> Vec<Step> {
    let small = shape.total() * shape.element_bytes <= HOP_BYTES * shape.world_size;
    let generate = match (shape.operation == Operation::Gather, is_equal(shape) && small) {
        (true, true) => binomial_gather,
        (true, false) => direct_gather,
        (false, true) => binomial_scatter,
        (false, false) => direct_scatter,
    };
    generate(shape.rank, &shape.parts(), shape.root, shape.in_place)
}

fn all_to_all(shape: &Shape) -> Vec<Step> {
    let Shape { rank, world_size, in_place, .. } = *shape;
    match &shape.work {
        Work::Exchange { to, from } => {
            pairwise_all_to_all(rank, &Parts::each(to), &Parts::each(from), in_place)
        }
        _ => {
            let count = shape.total() / world_size;
            // Bruck sends every byte log2(W) / 2 times to save W - 1 - log2(W) hops.
            if world_size > 4 && count * shape.element_bytes * world_size / 2 <= HOP_BYTES {
                return bruck_all_to_all(rank, world_size, count, in_place);
            }
            let parts = Parts::equal(world_size, count);
            pairwise_all_to_all(rank, &parts, &parts, in_place)
        }
    }
}

/// A send reads the input and a receive writes the output, or each its one buffer.
fn message(shape: &Shape) -> Vec<Step> {
    let span = Span::new(0, shape.total());
    if shape.rank != shape.root {
        return vec![Step::receive(shape.peer, span)];
    }
    let region = if shape.in_place { Region::Output } else { Region::Input };
    vec![Step::send_from(shape.peer, Part { region, span })]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Expectation, verify};
    use crate::collective::Collective;
    use crate::element::Reduction;
    use crate::memory::{Buffer, Memory};
    use crate::plan::Plan;

    /// A whole world's plan, from what a caller would say; lengths are named, memory is not touched.
    fn plan(what: impl Fn(usize) -> Collective, expectation: &Expectation, in_place: bool) -> Plan {
        let buffer = |len| Buffer { len, ..Buffer::empty::<f32>() };
        let steps = |rank: usize| {
            let duty = &expectation.ranks[rank];
            let (input, output) = (buffer(duty.input), buffer(duty.output));
            let memory = if in_place { Memory::InPlace(output) } else { Memory::Apart { input, output } };
            let shape = what(rank).shape(rank, expectation.ranks.len(), &memory).unwrap();
            steps(&shape, &Links::default())
        };
        Plan::of_world(expectation.ranks.len(), 0, steps)
    }

    /// Counts for all ranks, of a few elements or of many.
    fn counts(world_size: usize, unit: usize) -> Vec<usize> {
        (0..world_size).map(|rank| (rank * 5 + 1) % 4 * unit).collect()
    }

    fn everything(world_size: usize, unit: usize, in_place: bool) -> Vec<(Collective, Expectation)> {
        let (root, mean) = (world_size / 2, Reduction::Mean);
        let parts = [Parts::equal(world_size, unit), Parts::each(&counts(world_size, unit))];
        let mut all = vec![
            (Collective::all_reduce(mean), Expectation::all_reduce(world_size, unit, in_place).mean()),
            (Collective::reduce(root, mean), Expectation::reduce(world_size, unit, root, in_place).mean()),
            (Collective::broadcast(root), Expectation::broadcast(world_size, unit, root, in_place)),
            (
                Collective::all_to_all(),
                Expectation::all_to_all(&vec![vec![unit; world_size]; world_size], in_place),
            ),
        ];
        for (parts, unequal) in parts.iter().zip([false, true]) {
            let of = |what: Collective| {
                if unequal { what.with_counts(counts(world_size, unit)) } else { what }
            };
            all.extend([
                (of(Collective::all_gather()), Expectation::all_gather(parts, in_place)),
                (of(Collective::reduce_scatter(mean)), Expectation::reduce_scatter(parts, in_place).mean()),
                (of(Collective::gather(root)), Expectation::gather(parts, root, in_place)),
                (of(Collective::scatter(root)), Expectation::scatter(parts, root, in_place)),
            ]);
        }
        all
    }

    #[test]
    fn every_collective_does_what_it_says_in_place_and_apart() {
        for world_size in (1..=9).chain([16, 17]) {
            for (unit, in_place) in
                [(0, true), (0, false), (1, true), (1, false), (50_000, true), (50_000, false)]
            {
                for (what, wanted) in everything(world_size, unit, in_place) {
                    let found = verify(&plan(|_| what.clone(), &wanted, in_place), &wanted);
                    assert_eq!(found, Ok(()), "{what:?} {world_size} {unit} {in_place}");
                }
            }
        }
    }

    #[test]
    fn unequal_exchanges_fit_each_other() {
        for world_size in 1..=9 {
            let matrix: Vec<Vec<usize>> =
                (0..world_size).map(|a| (0..world_size).map(|b| (a * 3 + b) % 5).collect()).collect();
            let wanted = Expectation::all_to_all(&matrix, false);
            let what = |rank: usize| {
                let from = matrix.iter().map(|row| row[rank]).collect();
                Collective::all_to_all_counts(matrix[rank].clone(), from)
            };
            assert_eq!(verify(&plan(what, &wanted, false), &wanted), Ok(()), "{world_size}");
        }
    }
}
