//! All-to-all in one hop (pairwise exchange: Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication
//! Operations in MPICH", IJHPCA 2005, section 4.2): everybody sends everybody the part that is meant for it.
//!
//! All sends stand before all receives: in place, what arrives follows what leaves, element by element, so partners
//! exchange their parts without memory for a second one.

use super::{after, before};
use crate::parts::Parts;
use crate::plan::{Part, Step};

/// The steps of `rank`, which gives away the parts of `to` and gets those of `from`; in place, both are the same.
/// Messages are sent even where they are empty.
pub fn pairwise_all_to_all(rank: usize, to: &Parts, from: &Parts, in_place: bool) -> Vec<Step> {
    let world_size = to.world_size();
    let given = |peer| if in_place { Part::output(to.span(peer)) } else { Part::input(to.span(peer)) };
    let sends = (1..world_size).map(|distance| {
        let peer = after(rank, distance, world_size);
        Step::send_from(peer, given(peer))
    });
    let receives = (1..world_size).map(|distance| {
        let peer = before(rank, distance, world_size);
        Step::receive(peer, from.span(peer))
    });
    let own = (!in_place).then(|| Step::copy(given(rank), Part::output(from.span(rank))));
    own.into_iter().chain(sends).chain(receives).collect()
}
