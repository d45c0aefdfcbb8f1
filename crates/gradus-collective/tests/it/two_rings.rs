use gradus_collective::generate::ring_all_reduce;
use gradus_collective::plan::Step;
use gradus_memory::Span;

/// All-reduce around two rings: the first half of the buffer goes up the ranks, the second half down, so that links which
/// carry both ways at once are busy both ways.
pub fn two_rings_all_reduce(rank: usize, world_size: usize, len: usize) -> Vec<Step> {
    let half = len / 2;
    let turned = |rank: usize| world_size - 1 - rank;
    let mut steps = ring_all_reduce(rank, world_size, half, half.max(1));
    let down = ring_all_reduce(turned(rank), world_size, len - half, (len - half).max(1));
    steps.extend(down.iter().map(|step| {
        let (peer, span) = (turned(step.peer()), Span::new(half + step.span().start, step.span().len));
        match step {
            _ if step.sends() => Step::send(peer, span),
            Step::ReceiveReduce { .. } => Step::receive_reduce(peer, span),
            _ => Step::receive(peer, span),
        }
    }));
    steps
}
