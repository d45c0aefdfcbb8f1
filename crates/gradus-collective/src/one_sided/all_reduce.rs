//! All-reduce among neighbours.
//!
//! | | what ranks read | hops | for |
//! |---|---|---|---|
//! | [`flat_all_reduce`] | everything that all others staged, or that came along with their signals | 1 | few bytes; two ranks |
//! | [`staged_all_reduce`] | of what all others staged their own share, then all others' shares of the sum | 2 | more among three or more |
//! | [`pull_all_reduce`] | of all others' buffers their own share, then all others' shares of the sum | 3 | buffers that others may read |
//! | [`push_all_reduce`] | of all others' buffers their own share; the sum they write to all | 2 | buffers that others may write |

use super::act::{Act, INLINE_BYTES, Place, Program, Store};
use crate::generate::share;
use gradus_fabric::STAGING_BYTES;
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

    fn elements(&self, block_bytes: usize) -> usize {
        (block_bytes / self.element_bytes).max(1)
    }

    /// Where a block begins among what is staged.
    fn shelf(&self, number: usize, block_bytes: usize) -> usize {
        number % SHELVES * self.elements(block_bytes)
    }

    /// Blocks of a span, of `block_bytes` at most.
    fn blocks(&self, span: Span, block_bytes: usize) -> impl Iterator<Item = Span> + use<> {
        let block = self.elements(block_bytes);
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
    if world_size > 2 && rank > 0 {
        // What this rank brings may lie where the sum begins.
        program.copy(source, shelf(rank));
    }
    add_up(program, rank, world_size, source, shelf);
}

/// Block by block, through three places in turns. The next block is staged before the peers' is waited for, which hides how
/// long signals take; who hears of a block knows that all have summed the one before the last.
fn staged(program: &mut Program, rank: usize, world_size: usize, sum: Sum) {
    let blocks: Vec<Span> = sum.blocks(sum.all(), FLAT_BLOCK_BYTES).collect();
    let source = |number: usize| Place::own(sum.source(), blocks[number]);
    let shelf = |number: usize| Span::new(sum.shelf(number, FLAT_BLOCK_BYTES), blocks[number].len);
    let show = |program: &mut Program, number: usize| {
        program.copy(source(number), Place::own(Store::Staging, shelf(number)));
    };
    for number in 0..blocks.len() {
        if number == 0 {
            show(program, number);
        }
        program.signal(others(rank, world_size));
        if number + 1 < blocks.len() {
            show(program, number + 1);
        }
        program.hear(others(rank, world_size));
        add_up(program, rank, world_size, source(number), |peer| staged_by(peer, rank, shelf(number)));
    }
}

/// What a rank has staged, as rank `rank` names it.
fn staged_by(peer: usize, rank: usize, span: Span) -> Place {
    Place { peer: (peer != rank).then_some(peer), store: Store::Staging, span }
}

/// Sums what all have shown into the output: that of rank 0 first, which two ranks need not mind, for a + b = b + a.
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
    program.copy(shown(first), output);
    (1..world_size).for_each(|peer| program.combine(shown(peer), output));
}

/// Everybody stages the others' shares, sums its own share of what all have staged, stages that too, and takes the others' shares:
/// block by block, each through one of three places. The next block is staged together with the sums of this one, so that
/// ranks meet once for each; who hears of it knows that all have taken the sums of the block before.
pub fn staged_all_reduce(rank: usize, world_size: usize, sum: Sum) -> Program {
    let mut program = Program::default();
    let blocks: Vec<Staged> = Staged::all(rank, world_size, sum).collect();
    for (number, block) in blocks.iter().enumerate() {
        if number == 0 {
            block.show(&mut program);
            program.meet(others(rank, world_size));
        }
        block.add_up(&mut program);
        if let Some(next) = blocks.get(number + 1) {
            next.show(&mut program);
        }
        program.meet(others(rank, world_size));
        block.take(&mut program);
    }
    program
}

/// A block of a [`staged_all_reduce`], as one rank sees it.
struct Staged {
    rank: usize,
    world_size: usize,
    sum: Sum,
    span: Span,
    /// Where it begins among what is staged.
    shelf: usize,
}

impl Staged {
    fn all(rank: usize, world_size: usize, sum: Sum) -> impl Iterator<Item = Self> {
        let blocks = sum.blocks(sum.all(), SHARED_BLOCK_BYTES).enumerate();
        blocks.map(move |(number, span)| Self {
            rank,
            world_size,
            sum,
            span,
            shelf: sum.shelf(number, SHARED_BLOCK_BYTES),
        })
    }

    fn share(&self, rank: usize) -> Span {
        share(self.span, self.world_size, rank)
    }

    /// Where elements of it are staged, by one of the ranks.
    fn staged_by(&self, rank: usize, span: Span) -> Place {
        staged_by(rank, self.rank, Span::new(self.shelf + span.start - self.span.start, span.len))
    }

    /// Shows all but its own share, which nobody reads before it is summed.
    fn show(&self, program: &mut Program) {
        let (all, own) = (self.span, self.share(self.rank));
        for span in [Span::new(all.start, own.start - all.start), Span::new(own.end(), all.end() - own.end())]
        {
            program.copy(Place::own(self.sum.source(), span), self.staged_by(self.rank, span));
        }
    }

    /// Sums its own share, and shows that.
    fn add_up(&self, program: &mut Program) {
        let own = self.share(self.rank);
        let output = Place::own(Store::Output, own);
        if !self.sum.in_place {
            program.copy(Place::own(Store::Input, own), output);
        }
        others(self.rank, self.world_size)
            .for_each(|peer| program.combine(self.staged_by(peer, own), output));
        program.divide(self.sum.mean, own, self.world_size);
        program.copy(output, self.staged_by(self.rank, own));
    }

    /// Takes the others' shares of the sum.
    fn take(&self, program: &mut Program) {
        for peer in others(self.rank, self.world_size) {
            let theirs = self.share(peer);
            program.copy(self.staged_by(peer, theirs), Place::own(Store::Output, theirs));
        }
    }
}

/// Places for blocks in a slot.
const SHELVES: usize = 3;

/// Bytes of a block that all sum: enough to pay for a signal, few enough to be near when they are wanted again.
const FLAT_BLOCK_BYTES: usize = 64 << 10;

/// Bytes of a block of which each rank sums its share: ranks that share processors change less often while they work on it.
const SHARED_BLOCK_BYTES: usize = 256 << 10;

const _: () =
    assert!(SHELVES * SHARED_BLOCK_BYTES <= STAGING_BYTES && FLAT_BLOCK_BYTES <= SHARED_BLOCK_BYTES);

/// Bytes that are combined with a peer's in place at a time: they are in the first-level cache when they are copied there.
const PUSH_BYTES: usize = 16 << 10;

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
            program.combine(Place::of(peer, Store::Input, block), output(block));
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
    for block in sum.blocks(share(sum.all(), world_size, rank), PUSH_BYTES) {
        let output = Place::own(Store::Output, block);
        if !sum.in_place {
            program.copy(Place::own(Store::Input, block), output);
        }
        for peer in others(rank, world_size) {
            program.combine(Place::of(peer, Store::Input, block), output);
        }
        program.divide(sum.mean, block, world_size);
        for peer in others(rank, world_size) {
            program.copy(output, Place::of(peer, Store::Output, block));
        }
    }
    program.meet(others(rank, world_size));
    program
}
