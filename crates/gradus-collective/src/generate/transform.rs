//! Plans made of plans.

use crate::plan::Step;
use gradus_memory::Span;

/// Time run backwards: who sent receives and adds, who received sends. A broadcast, in which every rank receives each
/// element once before it passes it on, becomes a reduce to its root, in which every rank has added each element of
/// those below it before it passes on the sum. Orders of streams agree backwards if they agree forwards.
pub(crate) fn mirrored(steps: Vec<Step>) -> Vec<Step> {
    let mirror = |step: &Step| {
        let (peer, span) = (step.peer(), step.span());
        if step.sends() { Step::receive_reduce(peer, span) } else { Step::send(peer, span) }
    };
    steps.iter().rev().map(mirror).collect()
}

/// The steps of a member of a group, as steps of the world: `group` names the world's rank for each of the group's, and
/// the group's buffer begins at element `start` of the world's.
pub(crate) fn embedded(steps: Vec<Step>, group: &[usize], start: usize) -> impl Iterator<Item = Step> {
    steps.into_iter().map(move |step| {
        let (peer, span) = (group[step.peer()], step.span());
        like(&step, peer, Span::new(span.start + start, span.len))
    })
}

/// The same step on another range.
pub(crate) fn with_span(step: &Step, span: Span) -> Step {
    like(step, step.peer(), span)
}

fn like(step: &Step, peer: usize, span: Span) -> Step {
    match step {
        _ if step.sends() => Step::send(peer, span),
        _ if adds(step) => Step::receive_reduce(peer, span),
        _ => Step::receive(peer, span),
    }
}

/// Whether a step adds what it receives to what is there.
pub(crate) const fn adds(step: &Step) -> bool {
    matches!(step, Step::ReceiveReduce { .. })
}
