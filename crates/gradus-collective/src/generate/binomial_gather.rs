//! Gather up a binomial tree (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in
//! MPICH", IJHPCA 2005, section 4): `log2 W` hops, for small parts.
//!
//! Counted from the root, a rank's parent is itself without its lowest set bit, and its subtree are the ranks from
//! itself to the next one with that bit. A rank between puts its subtree together in scratch, by rank; where the circle
//! of ranks closes in a subtree, it travels in two messages, for the root puts them far apart.

use super::{after, before, brought, keep};
use crate::parts::Parts;
use crate::plan::{Part, Step};
use gradus_memory::Span;

/// A rank's place in the tree.
pub(super) struct Place {
    /// The parent; none at the root.
    pub(super) parent: Option<usize>,
    /// Ranks of its subtree, itself included.
    pub(super) subtree: usize,
    /// Distances to its children, and ranks of their subtrees; the nearest first.
    pub(super) children: Vec<(usize, usize)>,
}

impl Place {
    pub(super) fn of(rank: usize, world_size: usize, root: usize) -> Self {
        let distance = before(rank, root, world_size);
        let lowest_bit =
            if distance == 0 { world_size.next_power_of_two() } else { 1 << distance.trailing_zeros() };
        let left = world_size - distance;
        let bits = (0..lowest_bit.ilog2()).map(|bit| 1 << bit).filter(|bit| *bit < left);
        Self {
            parent: (distance > 0).then(|| before(rank, lowest_bit, world_size)),
            subtree: lowest_bit.min(left),
            children: bits.map(|bit| (bit, bit.min(left - bit))).collect(),
        }
    }
}

/// Where the messages of a subtree's parts lie: in the order of ranks, or one after the other from `start` of scratch.
pub(super) fn pieces(parts: &Parts, first: usize, ranks: usize, start: Option<usize>) -> Vec<Span> {
    let circle = parts.circle(first, ranks).into_iter();
    let packed = circle.scan(start, |next, span| {
        let at = next.unwrap_or(span.start);
        *next = next.map(|next| next + span.len);
        Some(Span::new(at, span.len))
    });
    packed.collect()
}

/// The steps of `rank`. Messages are sent even where they are empty.
pub fn binomial_gather(rank: usize, parts: &Parts, root: usize, in_place: bool) -> Vec<Step> {
    let world_size = parts.world_size();
    let place = Place::of(rank, world_size, root);
    let rotated = parts.rotated(rank);
    let Some(parent) = place.parent else {
        let from_child = |(distance, ranks): &(usize, usize)| {
            let child = after(rank, *distance, world_size);
            pieces(parts, child, *ranks, None).into_iter().map(move |span| Step::receive(child, span))
        };
        return keep(parts.span(rank), in_place)
            .into_iter()
            .chain(place.children.iter().flat_map(from_child))
            .collect();
    };
    let own = brought(Span::new(0, parts.count(rank)), in_place);
    if place.subtree == 1 {
        return vec![Step::send_from(parent, own)];
    }
    let mut steps = vec![Step::copy(own, Part::scratch(rotated.span(0)))];
    for (distance, ranks) in place.children {
        let child = after(rank, distance, world_size);
        let spans = pieces(parts, child, ranks, Some(rotated.span(distance).start));
        steps.extend(spans.into_iter().map(|span| Step::receive_to(child, Part::scratch(span))));
    }
    let spans = pieces(parts, rank, place.subtree, Some(0)).into_iter();
    steps.extend(spans.map(|span| Step::send_from(parent, Part::scratch(span))));
    steps
}
