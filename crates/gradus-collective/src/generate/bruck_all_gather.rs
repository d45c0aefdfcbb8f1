//! All-gather in `log2 W` hops, in any world (Bruck, Ho, Kipnis, Upfal and Weathersby, "Efficient Algorithms for
//! All-to-All Communications in Multiport Message-Passing Systems", TPDS 1997, section 3): in each round a rank sends all
//! that it has to the rank as far back as it has parts, and gets as much from as far ahead.
//!
//! Parts are gathered in scratch, this rank's own first, so that what is sent is one range; two copies put them in order.

use super::{after, before, brought, keep};
use crate::parts::Parts;
use crate::plan::{Part, Step};
use gradus_memory::Span;

/// The steps of `rank`. Messages are sent even where they are empty.
pub fn bruck_all_gather(rank: usize, parts: &Parts, in_place: bool) -> Vec<Step> {
    let world_size = parts.world_size();
    let own = parts.span(rank);
    if world_size == 1 {
        return keep(own, in_place).into_iter().collect();
    }
    let rotated = parts.rotated(rank);
    let mut steps = vec![Step::copy(brought(own, in_place), Part::scratch(rotated.span(0)))];
    let mut held = 1;
    while held < world_size {
        let count = held.min(world_size - held);
        let run = |first| Part::scratch(rotated.run(first, count));
        steps.push(Step::send_from(before(rank, held, world_size), run(0)));
        steps.push(Step::receive_to(after(rank, held, world_size), run(held)));
        held += count;
    }
    steps.extend(in_order(rank, parts));
    steps
}

/// From the circle that begins with `rank` to the order of ranks.
fn in_order(rank: usize, parts: &Parts) -> impl Iterator<Item = Step> {
    let mut start = 0;
    parts.circle(rank, parts.world_size()).into_iter().map(move |span| {
        let from = Part::scratch(Span::new(start, span.len));
        start += span.len;
        Step::copy(from, Part::output(span))
    })
}
