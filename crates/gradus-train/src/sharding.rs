//! Which rank owns what of a layout that several shard: a pure function.
//!
//! A layout is sharded unit by unit, for a unit is what is gathered and scattered at once. Each rank owns one range of
//! each unit, in the order of the ranks, so that a collective with counts works in place; a range may be empty. Ranges begin
//! on cache lines, and matrices that an optimizer needs whole stay so.

use crate::settings::OptimizerKind;
use gradus_memory::{Layout, Span};

/// How the units of a layout are cut among ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharding {
    units: Vec<Span>,
    /// Of each unit, where each rank's range begins, and the end; counted from the unit's start.
    cuts: Vec<Vec<usize>>,
    ranks: usize,
}

impl Sharding {
    /// Cuts `units`, ranges of `layout` in its order, so that the largest range of each is as small as it can be. Where
    /// matrices leave less to own than there are ranks, those go without that own most so far.
    ///
    /// # Panics
    /// Without ranks.
    pub fn new(layout: &Layout, units: &[Span], ranks: usize, kind: OptimizerKind) -> Self {
        assert!(ranks > 0, "somebody owns what there is");
        let mut owned = vec![0; ranks];
        let cut = |unit: &Span| {
            let unit = Unit::new(layout, *unit, kind);
            let shares = unit.shares(ranks);
            if unit.atoms.is_empty() {
                // Who owns what of other units depends on matrices only: a table that two stages have is cut alike, and
                // matrices are, however tensor ranks cut a vocabulary.
                return cuts(&shares, &mut vec![0; ranks]);
            }
            cuts(&shares, &mut owned)
        };
        Self { units: units.to_vec(), cuts: units.iter().map(cut).collect(), ranks }
    }

    /// Ranks that it is for.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The units, as ranges of the layout.
    pub fn units(&self) -> &[Span] {
        &self.units
    }

    /// Where each rank's range of a unit begins, and the unit's length; counted from its start.
    pub fn cuts(&self, unit: usize) -> &[usize] {
        &self.cuts[unit]
    }

    /// Elements of a unit that each rank owns: what a collective with counts is given.
    pub fn counts(&self, unit: usize) -> Vec<usize> {
        self.cuts[unit].windows(2).map(|cut| cut[1] - cut[0]).collect()
    }

    /// The range of the layout that a rank owns of a unit.
    pub fn own(&self, unit: usize, rank: usize) -> Span {
        let cuts = &self.cuts[unit];
        self.units[unit].part(cuts[rank], cuts[rank + 1] - cuts[rank])
    }

    /// All that a rank owns, unit by unit; of a unit of which it owns nothing there is no range.
    pub fn owned(&self, rank: usize) -> Vec<Span> {
        let own = (0..self.units.len()).map(|unit| self.own(unit, rank));
        own.filter(|span| span.len > 0).collect()
    }

    /// Elements of the largest range that a rank owns of a unit.
    pub fn largest(&self, unit: usize) -> usize {
        self.counts(unit).into_iter().max().unwrap_or(0)
    }
}

/// A unit that is to be cut.
struct Unit {
    len: usize,
    /// Ranges that stay whole, by growing start, counted from the unit's: each ends on a cache line or where the next begins.
    atoms: Vec<Span>,
}

impl Unit {
    fn new(layout: &Layout, unit: Span, kind: OptimizerKind) -> Self {
        let matrices = layout.tensors().iter().filter(|_| kind == OptimizerKind::Muon).flat_map(|tensor| {
            // What fills the cache line after a tensor goes with it.
            let last = tensor.span().end();
            let padded = last.next_multiple_of(Layout::ALIGNMENT);
            tensor
                .each_matrix()
                .map(move |(span, _)| (span.start, if span.end() == last { padded } else { span.end() }))
        });
        let inside = matrices.filter(|(start, end)| *start < unit.end() && *end > unit.start);
        let atoms = inside.map(|(start, end)| {
            let start = start.saturating_sub(unit.start);
            Span::new(start, (end - unit.start).min(unit.len) - start)
        });
        Self { len: unit.len, atoms: atoms.collect() }
    }

    /// The last place up to `position` where the unit may be cut.
    fn last_cut(&self, position: usize) -> usize {
        if position >= self.len {
            return self.len;
        }
        let line = position / Layout::ALIGNMENT * Layout::ALIGNMENT;
        let before = self.atoms.partition_point(|atom| atom.start < position);
        match self.atoms[..before].last() {
            Some(atom) if position < atom.end() => atom.start,
            Some(atom) => line.max(atom.end()),
            None => line,
        }
    }

    /// From the start, ranges as large as can be, none above `most`; `None` where there would be more than `ranks`.
    fn shares_up_to(&self, most: usize, ranks: usize) -> Option<Vec<usize>> {
        let (mut shares, mut start) = (Vec::new(), 0);
        while start < self.len {
            let end = self.last_cut(start + most);
            if end == start || shares.len() == ranks {
                return None;
            }
            shares.push(end - start);
            start = end;
        }
        Some(shares)
    }

    /// Lengths of the ranges, the largest of which is as small as can be: `ranks` at most.
    fn shares(&self, ranks: usize) -> Vec<usize> {
        let (mut low, mut high) = (self.len.div_ceil(ranks), self.len);
        while low < high {
            let middle = low.midpoint(high);
            match self.shares_up_to(middle, ranks) {
                Some(_) => high = middle,
                None => low = middle + 1,
            }
        }
        self.shares_up_to(high, ranks).expect("one range can be as long as the unit")
    }
}

/// Gives ranges to ranks in order, to those that have less in `owned`, and adds them there; where each rank's begins, and
/// the end.
fn cuts(shares: &[usize], owned: &mut [usize]) -> Vec<usize> {
    let takes = takers(shares, owned);
    let mut left = shares.iter();
    let mut cuts = vec![0];
    for (owned, takes) in owned.iter_mut().zip(takes) {
        let share = if takes { left.next().copied().unwrap_or(0) } else { 0 };
        *owned += share;
        cuts.push(cuts[cuts.len() - 1] + share);
    }
    cuts
}

/// Whether each rank takes a range: so that the sum of squares of what ranks own, ranges included, grows least.
fn takers(shares: &[usize], owned: &[usize]) -> Vec<bool> {
    let (ranks, most) = (owned.len(), shares.len());
    if most == ranks {
        // There is nothing to choose.
        return vec![true; ranks];
    }
    // For the ranks from one on and the ranges from one on: by how much the sum grows, what is the same for all left out.
    let mut growth = vec![vec![u128::MAX; most + 1]; ranks + 1];
    growth[ranks][most] = 0;
    let taken = |growth: &[Vec<u128>], rank: usize, range: usize| match shares.get(range) {
        Some(share) => growth[rank + 1][range + 1].saturating_add(*share as u128 * owned[rank] as u128),
        None => u128::MAX,
    };
    for rank in (0..ranks).rev() {
        for range in 0..=most {
            growth[rank][range] = growth[rank + 1][range].min(taken(&growth, rank, range));
        }
    }
    let mut range = 0;
    let takes = |rank: usize| {
        let takes = range < most && growth[rank][range] == taken(&growth, rank, range);
        range += usize::from(takes);
        takes
    };
    (0..ranks).map(takes).collect()
}

#[cfg(test)]
mod tests;
