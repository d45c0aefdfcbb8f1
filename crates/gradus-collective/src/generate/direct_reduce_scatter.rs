//! Reduce-scatter in one hop (pairwise exchange: Thakur, Rabenseifner and Gropp, "Optimization of Collective
//! Communication Operations in MPICH", IJHPCA 2005, section 4.3): everybody sends everybody its part of what it brings.
//! Every rank sends `(W - 1) / W` of the whole, the least possible, and adds in the order of distance, as it comes in.

use super::{after, before};
use crate::parts::Parts;
use crate::plan::{Part, Step};
use gradus_memory::Span;

/// The steps of `rank`. Messages are sent even where they are empty.
pub fn direct_reduce_scatter(rank: usize, parts: &Parts, in_place: bool) -> Vec<Step> {
    let world_size = parts.world_size();
    let whole = |rank| if in_place { Part::output(parts.span(rank)) } else { Part::input(parts.span(rank)) };
    let result = if in_place { parts.span(rank) } else { Span::new(0, parts.count(rank)) };
    let exchange = |distance: usize| {
        let to = after(rank, distance, world_size);
        [Step::send_from(to, whole(to)), Step::receive_reduce(before(rank, distance, world_size), result)]
    };
    let own = (!in_place).then(|| Step::copy(whole(rank), Part::output(result)));
    own.into_iter().chain((1..world_size).flat_map(exchange)).collect()
}
