//! Scatter down a binomial tree: [`binomial_gather`](super::binomial_gather) run backwards, with the same source. The
//! farthest child is served first: it has the most descendants.

use super::after;
use super::binomial_gather::{Place, pieces};
use crate::parts::Parts;
use crate::plan::{Part, Region, Step};
use gradus_memory::Span;

/// The steps of `rank`. Messages are sent even where they are empty.
pub fn binomial_scatter(rank: usize, parts: &Parts, root: usize, in_place: bool) -> Vec<Step> {
    let world_size = parts.world_size();
    let place = Place::of(rank, world_size, root);
    let rotated = parts.rotated(rank);
    let own = Part::output(Span::new(0, parts.count(rank)));
    let mut steps = Vec::new();
    let region = match place.parent {
        None if in_place => Region::Output,
        None => {
            steps.push(Step::copy(Part::input(parts.span(rank)), own));
            Region::Input
        }
        Some(parent) if place.subtree == 1 => return vec![Step::receive_to(parent, own)],
        Some(parent) => {
            let spans = pieces(parts, rank, place.subtree, Some(0)).into_iter();
            steps.extend(spans.map(|span| Step::receive_to(parent, Part::scratch(span))));
            steps.push(Step::copy(Part::scratch(rotated.span(0)), own));
            Region::Scratch
        }
    };
    for (distance, ranks) in place.children.into_iter().rev() {
        let child = after(rank, distance, world_size);
        let start = (region == Region::Scratch).then(|| rotated.span(distance).start);
        let spans = pieces(parts, child, ranks, start).into_iter();
        steps.extend(spans.map(|span| Step::send_from(child, Part { region, span })));
    }
    steps
}
