//! Exchanges: the plans that links are measured by.

use crate::algorithm::Nodes;
use crate::plan::Step;
use gradus_memory::Span;

/// Elements of a message of next to nothing: a cache line of f32.
pub(super) const SMALL: usize = 16;

/// Elements of a block: what a ring works on at a time where messages are dear.
const BLOCK: usize = 1 << 18;

/// Blocks of a buffer of so many bytes of f32.
pub(super) const fn blocks_of(bytes: u64) -> u64 {
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
struct Ends {
    next: usize,
    before: usize,
}

/// Whom a rank exchanges with, round by round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Neighbours {
    rounds: Vec<Ends>,
}

impl Level {
    /// Rounds of an exchange, each with peers of its own: among more than two ranks a collective has several hops, and its
    /// second finds ranks otherwise than its first.
    pub(super) fn rounds(self, nodes: &Nodes) -> usize {
        let largest = match self {
            Self::Inside => nodes.largest(),
            Self::Across => nodes.members().len(),
        };
        if largest > 2 { 2 } else { 1 }
    }

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
        (circle.len() > 1)
            .then(|| Neighbours { rounds: rounds(&circle, place)[..self.rounds(nodes)].to_vec() })
    }
}

/// Pairs where they come out even, for most algorithms exchange in pairs, and a stream that carries both ways is another
/// thing than two; else up the circle, and down.
fn rounds(circle: &[usize], place: usize) -> [Ends; 2] {
    let (ranks, at) = (circle.len(), |place: usize| circle[place % circle.len()]);
    if ranks.is_power_of_two() {
        return [1, if ranks > 2 { 2 } else { 1 }]
            .map(|bit| Ends { next: at(place ^ bit), before: at(place ^ bit) });
    }
    let (next, before) = (at(place + 1), at(place + ranks - 1));
    [Ends { next, before }, Ends { next: before, before: next }]
}

impl Neighbours {
    /// One after another: `hops` exchanges of the first elements.
    pub(super) fn hops(&self, hops: usize) -> Vec<Step> {
        (0..hops)
            .flat_map(|hop| self.rounds[hop % self.rounds.len()].exchange(Span::new(0, SMALL), true))
            .collect()
    }

    /// Side by side: `messages` exchanges, each of elements of its own.
    pub(super) fn messages(&self, messages: usize) -> Vec<Step> {
        let span = |message| Span::new(message * SMALL, SMALL);
        (0..messages).flat_map(|message| self.rounds[0].exchange(span(message), true)).collect()
    }

    /// Exchanges of a whole buffer, block by block, each in all rounds. As in a ring, nobody runs ahead: a block begins with the last element
    /// of the one before, so it does not go out before that one has come.
    pub(super) fn buffer(&self, len: usize, adds: bool) -> Vec<Step> {
        let block = |start: usize| {
            let first = start.saturating_sub(1);
            let span = Span::new(first, len.min(start + BLOCK) - first);
            self.rounds.iter().flat_map(move |ends| ends.exchange(span, adds))
        };
        (0..len).step_by(BLOCK).flat_map(block).collect()
    }
}

impl Ends {
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
        let steps = Neighbours { rounds: rounds(&[0, 1], 0).to_vec() }.buffer(2 * BLOCK + 5, true);
        let spans: Vec<(usize, usize)> =
            steps.iter().map(|step| (step.span().start, step.span().end())).collect();
        let blocks = [(0, BLOCK), (BLOCK - 1, 2 * BLOCK), (2 * BLOCK - 1, 2 * BLOCK + 5)];
        assert_eq!(spans, blocks.map(|block| [block; 4]).concat());
        assert_eq!(blocks_of(4 * (2 * BLOCK as u64 + 5)), 3);
    }

    #[test]
    fn circles_stay_inside_nodes_or_cross_them() {
        let nodes = Nodes::try_from(vec![vec![0, 2, 4], vec![1, 3], vec![5]]).unwrap();
        let of = |level: Level, rank| {
            level
                .neighbours(&nodes, rank)
                .map(|found| found.rounds.iter().map(|ends| (ends.next, ends.before)).collect::<Vec<_>>())
        };
        let inside = [0, 1, 5].map(|rank| of(Level::Inside, rank));
        assert_eq!(inside, [Some(vec![(2, 4), (4, 2)]), Some(vec![(3, 3); 2]), None]);
        let across = [0, 1, 2, 4].map(|rank| of(Level::Across, rank));
        assert_eq!(
            across,
            [Some(vec![(1, 5), (5, 1)]), Some(vec![(5, 0), (0, 5)]), Some(vec![(3, 3); 2]), None]
        );
        let four = Nodes::even(4, 4);
        let peers = |rank| {
            Level::Inside.neighbours(&four, rank).unwrap().rounds.iter().map(|ends| ends.next).collect()
        };
        let pairs: [Vec<usize>; 4] = [0, 1, 2, 3].map(peers);
        assert_eq!(pairs, [[1, 2], [0, 3], [3, 0], [2, 1]]);
        assert_eq!(Level::Inside.rounds(&Nodes::even(2, 2)), 1);
    }
}
