//! All-reduce among neighbours.
//!
//! | | what ranks read | hops | for |
//! |---|---|---|---|
//! | [`flat_all_reduce`] | everything that all others staged, or that came along with their signals | 1 | few bytes |
//! | [`pull_all_reduce`] | of all others' buffers their own share, then all others' shares of the sum | 3 | buffers that others may read |
//! | [`push_all_reduce`] | of all others' buffers their own share; the sum they write to all | 2 | buffers that others may write |

use super::act::{Act, INLINE_BYTES, Place, Program, Store};
use crate::generate::share;
use gradus_memory::Span;

/// What is to be summed.
#[derive(Debug, Clone, Copy)]
pub struct Sum {
    /// Elements.
    pub len: usize,
    /// Bytes of one.
    pub element_bytes: usize,
    /// Whether what a rank brings lies in its output.
    pub in_place: bool,
    /// Whether the sum is divided by the number of ranks.
    pub mean: bool,
}

impl Sum {
    fn all(&self) -> Span {
        Span::new(0, self.len)
    }

    /// Where a rank has what it brings.
    fn source(&self) -> Store {
        if self.in_place { Store::Output } else { Store::Input }
    }

    fn bytes(&self) -> usize {
        self.len * self.element_bytes
    }

    /// Blocks of a span, of `block_bytes` at most.
    fn blocks(&self, span: Span, block_bytes: usize) -> impl Iterator<Item = Span> + use<> {
        let block = (block_bytes / self.element_bytes).max(1);
        (0..span.len.div_ceil(block)).map(move |i| span.part(i * block, block.min(span.len - i * block)))
    }
}

fn others(rank: usize, world_size: usize) -> impl Iterator<Item = usize> + Clone {
    (1..world_size).map(move |distance| (rank + distance) % world_size)
}

/// One hop: everybody shows everything and sums everything, from rank 0's on, so that all come to the same bits.
pub fn flat_all_reduce(rank: usize, world_size: usize, sum: Sum) -> Program {
    let mut program = Program::default();
    if world_size > 1 && sum.bytes() <= INLINE_BYTES {
        carried(&mut program, rank, world_size, sum);
    } else if world_size > 1 {
        staged(&mut program, rank, world_size, sum);
    } else if !sum.in_place {
        program.copy(Place::own(Store::Input, sum.all()), Place::own(Store::Output, sum.all()));
    }
    program.divide(sum.mean, sum.all(), world_size);
    program
}

fn carried(program: &mut Program, rank: usize, world_size: usize, sum: Sum) {
    let source = Place::own(sum.source(), sum.all());
    let shelf = |peer: usize| Place::own(Store::Scratch, Span::new(peer * sum.len, sum.len));
    let signal = |peer| Act::Signal { peer, carries: Some(source) };
    program.acts.extend(others(rank, world_size).map(signal));
    program.acts.extend(others(rank, world_size).map(|peer| Act::Hear { peer, to: Some(shelf(peer)) }));
    add_up(program, rank, world_size, source, shelf);
}

fn staged(program: &mut Program, rank: usize, world_size: usize, sum: Sum) {
    let source = Place::own(sum.source(), sum.all());
    program.copy(source, Place::own(Store::Staging, sum.all()));
    program.meet(others(rank, world_size));
    let shown = |peer| Place::of(peer, Store::Staging, sum.all());
    add_up(program, rank, world_size, source, shown);
}

/// Sums what all brought into the output: that of rank 0 first, which two ranks need not mind, for a + b = b + a.
fn add_up(
    program: &mut Program,
    rank: usize,
    world_size: usize,
    source: Place,
    shown: impl Fn(usize) -> Place,
) {
    let output = Place::own(Store::Output, source.span);
    let first = if world_size == 2 { rank } else { 0 };
    if first == rank {
        if source.store != Store::Output {
            program.copy(source, output);
        }
        others(rank, world_size).for_each(|peer| program.combine(shown(peer), output));
        return;
    }
    // What this rank brings may lie where the sum goes: it waits aside.
    let aside = Place::own(Store::Scratch, Span::new(world_size * source.span.len, source.span.len));
    let ours = if source.store == Store::Output { aside } else { source };
    if ours == aside {
        program.copy(source, aside);
    }
    program.copy(shown(first), output);
    (1..world_size).for_each(|peer| {
        program.combine(if peer == rank { ours } else { shown(peer) }, output);
    });
}

/// Bytes that are combined, or copied out of a peer, at a time: they are in the first-level cache when they are wanted again.
const BLOCK_BYTES: usize = 16 << 10;

/// Everybody sums its own share, reading from all others, then reads their shares. Nothing of another rank is written.
pub fn pull_all_reduce(rank: usize, world_size: usize, sum: Sum) -> Program {
    let mut program = Program::default();
    let (own, output) = (share(sum.all(), world_size, rank), |span| Place::own(Store::Output, span));
    program.meet(others(rank, world_size));
    for block in sum.blocks(own, PULL_BYTES) {
        if !sum.in_place {
            program.copy(Place::own(Store::Input, block), output(block));
        }
        for peer in others(rank, world_size) {
            program.combine(Place::of(peer, sum.source(), block), output(block));
        }
        program.divide(sum.mean, block, world_size);
    }
    program.meet(others(rank, world_size));
    for peer in others(rank, world_size) {
        let theirs = share(sum.all(), world_size, peer);
        for block in sum.blocks(theirs, PULL_BYTES) {
            program.copy(Place::of(peer, Store::Output, block), output(block));
        }
    }
    // They are done with ours.
    program.meet(others(rank, world_size));
    program
}

/// Bytes that are read from a peer through the system at a time: enough to pay for the call, few enough to stay in the
/// second-level cache.
const PULL_BYTES: usize = 128 << 10;

/// Everybody sums its own share, reading from all others, and writes it to all others, block by block.
pub fn push_all_reduce(rank: usize, world_size: usize, sum: Sum) -> Program {
    let mut program = Program::default();
    program.meet(others(rank, world_size));
    for block in sum.blocks(share(sum.all(), world_size, rank), BLOCK_BYTES) {
        let output = Place::own(Store::Output, block);
        if !sum.in_place {
            program.copy(Place::own(Store::Input, block), output);
        }
        for peer in others(rank, world_size) {
            program.combine(Place::of(peer, sum.source(), block), output);
        }
        program.divide(sum.mean, block, world_size);
        for peer in others(rank, world_size) {
            program.copy(output, Place::of(peer, Store::Output, block));
        }
    }
    program.meet(others(rank, world_size));
    program
}
