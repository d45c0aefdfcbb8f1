//! Exchanges: the plans that links are measured by.

use crate::algorithm::Nodes;
use crate::plan::Step;
use gradus_memory::Span;

/// Elements of a message of next to nothing: a cache line of f32.
pub(super) const SMALL: usize = 16;

/// Elements of a block: what a ring works on at a time where messages are dear.
const BLOCK: usize = 1 << 18;

/// Hops of an exchange of a buffer of so many bytes of f32.
pub(super) const fn hops_of(bytes: u64) -> u64 {
    (bytes / size_of::<f32>() as u64).div_ceil(BLOCK as u64)
}

/// Which ranks exchange with which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Those of a node, in a circle.
    Inside,
    /// Those of the same index in each node, in a circle.
    Across,
}

/// Whom a rank sends to, and from whom it takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Neighbours {
    pub(super) next: usize,
    pub(super) before: usize,
}

impl Level {
    /// The neighbours of a rank; `None` for one that is alone.
    pub(super) fn neighbours(self, nodes: &Nodes, rank: usize) -> Option<Neighbours> {
        let (node, index) = nodes.place(rank);
        let circle: Vec<usize> = match self {
            Self::Inside => nodes.members()[node].clone(),
            Self::Across => {
                nodes.members().iter().filter_map(|members| members.get(index)).copied().collect()
            }
        };
        let place = circle.iter().position(|other| *other == rank).expect("a rank is in its own circle");
        let at = |place: usize| circle[place % circle.len()];
        let neighbours = Neighbours { next: at(place + 1), before: at(place + circle.len() - 1) };
        (circle.len() > 1).then_some(neighbours)
    }
}

impl Neighbours {
    /// One after another: `hops` exchanges of the first elements.
    pub(super) fn hops(self, hops: usize) -> Vec<Step> {
        (0..hops).flat_map(|_| self.exchange(Span::new(0, SMALL), true)).collect()
    }

    /// Side by side: `messages` exchanges, each of elements of its own.
    pub(super) fn messages(self, messages: usize) -> Vec<Step> {
        let span = |message| Span::new(message * SMALL, SMALL);
        (0..messages).flat_map(|message| self.exchange(span(message), true)).collect()
    }

    /// An exchange of a whole buffer, block by block. As in a ring, nobody runs ahead: a block begins with the last element
    /// of the one before, so it does not go out before that one has come.
    pub(super) fn buffer(self, len: usize, adds: bool) -> Vec<Step> {
        let block = |start: usize| {
            let first = start.saturating_sub(1);
            self.exchange(Span::new(first, len.min(start + BLOCK) - first), adds)
        };
        (0..len).step_by(BLOCK).flat_map(block).collect()
    }

    /// What comes takes the place of what went, or is added to it.
    fn exchange(self, span: Span, adds: bool) -> [Step; 2] {
        let taken =
            if adds { Step::receive_reduce(self.before, span) } else { Step::receive(self.before, span) };
        [Step::send(self.next, span), taken]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_block_goes_out_before_the_one_before_has_come() {
        let steps = Neighbours { next: 1, before: 1 }.buffer(2 * BLOCK + 5, true);
        let spans: Vec<(usize, usize)> =
            steps.iter().map(|step| (step.span().start, step.span().end())).collect();
        let blocks = [(0, BLOCK), (BLOCK - 1, 2 * BLOCK), (2 * BLOCK - 1, 2 * BLOCK + 5)];
        assert_eq!(spans, blocks.map(|block| [block; 2]).concat());
        assert_eq!(hops_of(4 * (2 * BLOCK as u64 + 5)), 3);
    }

    #[test]
    fn circles_stay_inside_nodes_or_cross_them() {
        let nodes = Nodes::try_from(vec![vec![0, 2, 4], vec![1, 3], vec![5]]).unwrap();
        let of = |level: Level, rank| level.neighbours(&nodes, rank).map(|n| (n.next, n.before));
        assert_eq!([0, 1, 5].map(|rank| of(Level::Inside, rank)), [Some((2, 4)), Some((3, 3)), None]);
        assert_eq!(
            [0, 1, 2, 4].map(|rank| of(Level::Across, rank)),
            [Some((1, 5)), Some((5, 0)), Some((3, 3)), None]
        );
    }
}
