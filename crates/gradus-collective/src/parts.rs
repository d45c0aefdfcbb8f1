//! How a whole buffer is shared out among ranks.

use gradus_memory::Span;

/// Each rank's part of a whole: one after the other, by rank, without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Where each part begins, and the end of the last.
    edges: Vec<usize>,
}

impl Parts {
    /// `count` elements for each rank.
    ///
    /// # Panics
    /// If they are more than memory can hold.
    pub fn equal(world_size: usize, count: usize) -> Self {
        Self::each(&vec![count; world_size])
    }

    /// `counts[rank]` elements for each rank.
    ///
    /// # Panics
    /// If they are more than memory can hold.
    pub fn each(counts: &[usize]) -> Self {
        let mut edges = vec![0];
        edges.extend(counts.iter().scan(0usize, |end, count| {
            *end = end.checked_add(*count).expect("all parts fit one memory");
            Some(*end)
        }));
        Self { edges }
    }

    /// Ranks that have a part.
    pub fn world_size(&self) -> usize {
        self.edges.len() - 1
    }

    /// Elements of the whole.
    pub fn total(&self) -> usize {
        self.edges[self.world_size()]
    }

    /// A rank's part of the whole.
    pub fn span(&self, rank: usize) -> Span {
        Span::new(self.edges[rank], self.edges[rank + 1] - self.edges[rank])
    }

    /// Elements of a rank's part.
    pub fn count(&self, rank: usize) -> usize {
        self.span(rank).len
    }

    /// The parts of `ranks` ranks from `first` on, which must not go past the last.
    pub fn run(&self, first: usize, ranks: usize) -> Span {
        Span::new(self.edges[first], self.edges[first + ranks] - self.edges[first])
    }

    /// The parts of `ranks` ranks from `first` on, in a circle: one span, or two where the circle closes.
    pub fn circle(&self, first: usize, ranks: usize) -> Vec<Span> {
        let before = ranks.min(self.world_size() - first);
        let wrapped = (ranks > before).then(|| self.run(0, ranks - before));
        std::iter::once(self.run(first, before)).chain(wrapped).collect()
    }

    /// The same parts laid out from those of rank `first` on, in a circle.
    #[must_use]
    pub fn rotated(&self, first: usize) -> Self {
        let world_size = self.world_size();
        let counts: Vec<usize> =
            (0..world_size).map(|rank| self.count((first + rank) % world_size)).collect();
        Self::each(&counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other() {
        let parts = Parts::each(&[3, 0, 2]);
        assert_eq!(
            [0, 1, 2].map(|rank| parts.span(rank)),
            [Span::new(0, 3), Span::new(3, 0), Span::new(3, 2)]
        );
        assert_eq!((parts.total(), parts.world_size()), (5, 3));
        assert_eq!(Parts::equal(2, 4), Parts::each(&[4, 4]));
    }

    #[test]
    fn a_circle_closes_once() {
        let parts = Parts::each(&[1, 2, 3]);
        assert_eq!(parts.circle(1, 2), [Span::new(1, 5)]);
        assert_eq!(parts.circle(2, 2), [Span::new(3, 3), Span::new(0, 1)]);
        assert_eq!(parts.circle(1, 3), [Span::new(1, 5), Span::new(0, 1)]);
        assert_eq!(parts.rotated(2), Parts::each(&[3, 1, 2]));
    }
}
