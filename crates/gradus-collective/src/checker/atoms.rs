//! Where memory must be cut so that every span is a number of whole atoms, and what is moved is cut alike at both ends.

use super::expectation::Expectation;
use crate::plan::{Part, Region};
use gradus_memory::Span;
use std::collections::{BTreeMap, BTreeSet};

/// A memory: a region of a rank, or the whole that is in nobody's memory.
pub(super) type Place = Option<(usize, Region)>;

/// Ranges of two memories that hold the same, element by element.
pub(super) struct Link {
    places: [Place; 2],
    starts: [usize; 2],
    len: usize,
}

/// A part of a rank's memory.
pub(super) fn place(rank: usize, part: Part) -> (Place, Span) {
    (Some((rank, part.region)), part.span)
}

impl Link {
    pub(super) fn new(a: (Place, Span), b: (Place, Span)) -> Self {
        Self { places: [a.0, b.0], starts: [a.1.start, b.1.start], len: a.1.len.min(b.1.len) }
    }

    /// What ranks bring and want, and where in the whole that is.
    pub(super) fn of_expectation(expectation: &Expectation) -> Vec<Self> {
        let whole = |start: usize, len: usize| (None, Span::new(start, len));
        let ranks = expectation.ranks.iter().enumerate();
        ranks
            .flat_map(|(rank, duty)| {
                let brings = duty.brings.iter().map(move |(part, start)| (*part, *start));
                let wants = duty.wants.iter().map(|(span, start, _)| (Part::output(*span), *start));
                let link = move |(part, start): (Part, usize)| {
                    Self::new(place(rank, part), whole(start, part.span.len))
                };
                brings.chain(wants).map(link)
            })
            .collect()
    }
}

/// Edges of atoms, by memory.
pub(super) struct Atoms(BTreeMap<Place, BTreeSet<usize>>);

impl Atoms {
    /// Cuts memories at the ends of `spans`, and then wherever what they are linked to is cut.
    pub(super) fn new(spans: impl Iterator<Item = (Place, Span)>, links: &[Link]) -> Self {
        let mut atoms = Self(BTreeMap::new());
        for (place, span) in spans {
            atoms.0.entry(place).or_insert_with(|| BTreeSet::from([0])).extend([span.start, span.end()]);
        }
        for link in links {
            for (place, start) in link.places.iter().zip(link.starts) {
                atoms.0.entry(*place).or_default().extend([start, start + link.len]);
            }
        }
        while links.iter().map(|link| usize::from(atoms.cut_alike(link))).sum::<usize>() > 0 {}
        atoms
    }

    /// Cuts both ends of a link where one is cut; whether that was news.
    fn cut_alike(&mut self, link: &Link) -> bool {
        let mut news = false;
        for (from, to) in [(0, 1), (1, 0)] {
            let cuts = self.cuts(link.places[from], Span::new(link.starts[from], link.len));
            let edges = self.0.entry(link.places[to]).or_default();
            for cut in cuts {
                news |= edges.insert(link.starts[to] + cut);
            }
        }
        news
    }

    /// Where the atoms of a span begin, counted from its start.
    pub(super) fn cuts(&self, place: Place, span: Span) -> Vec<usize> {
        let edges = self.0.get(&place).into_iter().flat_map(|edges| edges.range(span.start..span.end()));
        edges.map(|edge| edge - span.start).collect()
    }

    /// The edges of a memory: starts of its atoms, and the end of the last.
    pub(super) fn edges(&self, place: Place) -> Vec<usize> {
        self.0.get(&place).map_or_else(|| vec![0], |edges| edges.iter().copied().collect())
    }
}
