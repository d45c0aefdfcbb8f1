//! Gather and scatter in one hop: between each rank and the root, nothing twice. For large parts and unequal ones.

use super::{brought, keep};
use crate::parts::Parts;
use crate::plan::{Part, Step};
use gradus_memory::Span;

/// The steps of `rank`. Messages are sent even where they are empty.
pub fn direct_gather(rank: usize, parts: &Parts, root: usize, in_place: bool) -> Vec<Step> {
    if rank != root {
        return vec![Step::send_from(root, brought(Span::new(0, parts.count(rank)), in_place))];
    }
    let others = (0..parts.world_size()).filter(|peer| *peer != root);
    let receives = others.map(|peer| Step::receive(peer, parts.span(peer)));
    keep(parts.span(rank), in_place).into_iter().chain(receives).collect()
}

/// The steps of `rank`. Messages are sent even where they are empty.
pub fn direct_scatter(rank: usize, parts: &Parts, root: usize, in_place: bool) -> Vec<Step> {
    let own = Part::output(Span::new(0, parts.count(rank)));
    if rank != root {
        return vec![Step::receive_to(root, own)];
    }
    let whole = |peer| if in_place { Part::output(parts.span(peer)) } else { Part::input(parts.span(peer)) };
    let others = (0..parts.world_size()).filter(|peer| *peer != root);
    let sends = others.map(|peer| Step::send_from(peer, whole(peer)));
    let kept = (!in_place).then(|| Step::copy(whole(root), own));
    kept.into_iter().chain(sends).collect()
}
