//! A few elements of a plan that is too long to hold, followed through all ranks.

use super::check_all_reduce;
use super::symbols::mixed;
use crate::checker::Fault;
use crate::plan::{Plan, Step};
use gradus_memory::Span;
use std::collections::BTreeMap;

/// Every rank's element at each of `samples` holds every contribution once, bracketed alike on all ranks; and the two
/// ends of every stream of the whole plan name the same messages in the same order. Steps are made rank by rank and, but
/// for those that touch a sample, forgotten.
///
/// What a sample is made of is then certain: streams keep their order, both ends agree on it, and a message moves no
/// element but those that it names. That nobody waits for ever is shown for the samples only.
///
/// # Errors
/// The first fault that was found; elements are counted in the whole plan.
pub fn check_all_reduce_at(
    world_size: usize,
    len: usize,
    samples: &[usize],
    steps: impl Fn(usize) -> Vec<Step>,
) -> Result<(), Fault> {
    let mut samples: Vec<usize> = samples.iter().copied().filter(|sample| *sample < len).collect();
    samples.sort_unstable();
    samples.dedup();
    let mut streams = Streams::default();
    let mut ranks = Vec::with_capacity(world_size);
    for rank in 0..world_size {
        let steps = steps(rank);
        if let Some(step) = out_of_range(&steps, rank, world_size, len) {
            return Err(Fault::OutOfRange { rank, step });
        }
        steps.iter().for_each(|step| streams.note(rank, step));
        ranks.push(steps.iter().filter_map(|step| at_samples(step, &samples)).collect());
    }
    streams.agree()?;
    check_all_reduce(&Plan { len: samples.len(), ranks }).map_err(|fault| in_the_whole(fault, &samples))
}

/// The first step that names a peer outside the world, its own rank, or elements outside the buffer.
pub(super) fn out_of_range(steps: &[Step], rank: usize, world_size: usize, len: usize) -> Option<usize> {
    steps.iter().position(|step| step.peer() >= world_size || step.peer() == rank || step.span().end() > len)
}

/// What a step does to the samples, if anything; they are then all there is.
fn at_samples(step: &Step, samples: &[usize]) -> Option<Step> {
    let before = |element: usize| samples.partition_point(|sample| *sample < element);
    let (start, end) = (before(step.span().start), before(step.span().end()));
    (start < end).then(|| crate::generate::with_span(step, Span::new(start, end - start)))
}

fn in_the_whole(fault: Fault, samples: &[usize]) -> Fault {
    match fault {
        Fault::WrongResult { rank, element } => Fault::WrongResult { rank, element: samples[element] },
        Fault::OtherOrder { rank, element } => Fault::OtherOrder { rank, element: samples[element] },
        other => other,
    }
}

/// For each stream, a hash of its messages as the sender names them, and as the receiver does.
#[derive(Default)]
struct Streams(BTreeMap<(usize, usize), [u64; 2]>);

impl Streams {
    fn note(&mut self, rank: usize, step: &Step) {
        let (peer, span) = (step.peer(), step.span());
        let stream = if step.sends() { (rank, peer) } else { (peer, rank) };
        let hash = &mut self.0.entry(stream).or_default()[usize::from(!step.sends())];
        *hash = mixed(mixed(*hash ^ span.start as u64) ^ span.len as u64);
    }

    fn agree(&self) -> Result<(), Fault> {
        let differ = self.0.iter().find(|(_, [sent, awaited])| sent != awaited);
        differ.map_or(Ok(()), |((from, to), _)| Err(Fault::Unmatched { from: *from, to: *to }))
    }
}
