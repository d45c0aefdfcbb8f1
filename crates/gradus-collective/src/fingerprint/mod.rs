//! Checks plans of thousands of ranks, by fingerprints of what elements hold.
//!
//! The [`checker`](crate::checker) keeps for each sum who is in it, which for thousands of ranks is more than memory
//! holds. Here an element holds 128 bits: a *content*, which adds up as the elements do, and a *bracketing*.
//!
//! # Why this is sound enough
//!
//! Each rank's contribution to each element has a key, drawn by a hash that knows nothing of plans. The content of a sum
//! is the sum of its keys modulo the prime `p = 2^61 - 1`. A wrong sum (some contribution missing, twice, or of another
//! element) differs from the right one by a combination of keys whose factors, all below `p`, are not all zero, and such
//! a combination is zero by chance once in `p`. The bracketing of a sum is a hash of those of its two parts, the lesser
//! first, since additions commute; two that are put together differently collide once in `2^64`, for each of the fewer
//! than `2^13` sums within a sum of 4096. A plan of 4096 ranks and 4096 parts of the buffer has `2^24` places to be
//! wrong in; all chances together are below one in `2^26`, and the keys are fixed: what passes passes always.
//!
//! # Order
//!
//! Streams hold one element, as in the [`checker`](crate::checker), whose model this shares: what ends here ends on every
//! transport, and ends the same whatever the order (Kahn). Every step is taken up as soon as it may go on, the latest that
//! may first and the earliest first, one run each. Unlike there, a message must write the range that it read.
//!
//! # Samples
//!
//! A plan with too many steps to hold (a ring of 4096 has 67 million) is made rank by rank and followed at a few
//! elements: [`check_all_reduce_at`].

mod run;
mod sampled;
mod symbols;

pub use sampled::check_all_reduce_at;

use crate::checker::Fault;
use crate::plan::Plan;
use run::Run;
use symbols::{Fingerprint, Ranks, Symbol};

/// Every element of every rank holds every contribution once, bracketed alike on all ranks.
///
/// # Errors
/// The first fault that was found.
pub fn check_all_reduce(plan: &Plan) -> Result<(), Fault> {
    check(plan, |run: &Run<'_, Fingerprint>| {
        for atom in 0..run.atoms() {
            let (whole, first) = (run.whole(atom), run.held(0, atom));
            for rank in 0..run.ranks() {
                let held = run.held(rank, atom);
                let element = run.element(atom);
                if !held.has_content_of(&whole) {
                    return Err(Fault::WrongResult { rank, element });
                }
                if held != first {
                    return Err(Fault::OtherOrder { rank, element });
                }
            }
        }
        Ok(())
    })
}

/// Every element of `root` holds every contribution once.
///
/// # Errors
/// The first fault that was found.
pub fn check_reduce(plan: &Plan, root: usize) -> Result<(), Fault> {
    check(plan, |run: &Run<'_, Fingerprint>| {
        let wrong = |atom: &usize| !run.held(root, *atom).has_content_of(&run.whole(*atom));
        let found = (0..run.atoms()).find(wrong);
        found.map_or(Ok(()), |atom| Err(Fault::WrongResult { rank: root, element: run.element(atom) }))
    })
}

/// Every element of every rank holds what that of `root` held.
///
/// # Errors
/// The first fault that was found.
pub fn check_broadcast(plan: &Plan, root: usize) -> Result<(), Fault> {
    check(plan, |run: &Run<'_, Fingerprint>| {
        for rank in 0..run.ranks() {
            let wrong =
                |atom: &usize| *run.held(rank, *atom) != Fingerprint::brought(root, *atom, run.ranks());
            if let Some(atom) = (0..run.atoms()).find(wrong) {
                return Err(Fault::WrongResult { rank, element: run.element(atom) });
            }
        }
        Ok(())
    })
}

/// Every rank has heard of every rank. Here sets of ranks are kept, not fingerprints: a barrier moves one element.
///
/// # Errors
/// The first fault that was found.
pub fn check_barrier(plan: &Plan) -> Result<(), Fault> {
    check(plan, |run: &Run<'_, Ranks>| {
        let deaf = |rank: &usize| (0..run.atoms()).any(|atom| !run.held(*rank, atom).is_everybody());
        let found = (0..run.ranks()).find(deaf);
        found.map_or(Ok(()), |rank| Err(Fault::WrongResult { rank, element: 0 }))
    })
}

fn check<S: Symbol>(plan: &Plan, judge: impl Fn(&Run<'_, S>) -> Result<(), Fault>) -> Result<(), Fault> {
    for latest_first in [false, true] {
        let mut run = Run::new(plan)?;
        run.finish(latest_first)?;
        judge(&run)?;
    }
    Ok(())
}
