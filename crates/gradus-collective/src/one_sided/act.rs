//! What a rank does in a collective among neighbours, as data.

use gradus_memory::Span;

/// Memory of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Store {
    /// What the rank brings. Never written. Its own where that lies apart from the output; of a peer wherever it lies,
    /// since one rank may work in place and another not.
    Input,
    /// Where the result goes; also what the rank brings when it works in place.
    Output,
    /// Memory that nobody else sees, with undefined content at the start.
    Scratch,
    /// Memory that others read, with undefined content at the start.
    Staging,
}

/// A range of a rank's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Whose it is: a peer, or this rank.
    pub peer: Option<usize>,
    /// Which memory.
    pub store: Store,
    /// Which elements of it.
    pub span: Span,
}

impl Place {
    /// Of this rank.
    pub const fn own(store: Store, span: Span) -> Self {
        Self { peer: None, store, span }
    }

    /// Of another.
    pub const fn of(peer: usize, store: Store, span: Span) -> Self {
        Self { peer: Some(peer), store, span }
    }

    /// Whether the two share an element.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.peer == other.peer && self.store == other.store && self.span.overlaps(&other.span)
    }
}

/// One act. Places count elements; places of peers are read from any store but scratch, and written in their output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Shows a peer that all acts before are done; a few elements may go along.
    Signal {
        /// The other rank.
        peer: usize,
        /// What goes along: elements of this rank's, [`INLINE_BYTES`](super::act::INLINE_BYTES) at most.
        carries: Option<Place>,
    },
    /// Waits for a peer's next signal.
    Hear {
        /// The other rank.
        peer: usize,
        /// Where what came along goes, if anything did.
        to: Option<Place>,
    },
    /// Copies a place to another one of as many elements, which must be apart.
    Copy {
        /// What is read.
        from: Place,
        /// What is written.
        to: Place,
    },
    /// Combines a place with another one of as many elements, by the collective's reduction.
    Combine {
        /// What is read.
        from: Place,
        /// What is combined and overwritten.
        to: Place,
    },
    /// Divides a place of this rank's: the end of a mean.
    Divide {
        /// What is divided.
        place: Place,
        /// By how much.
        by: usize,
    },
}

/// Bytes that a signal can carry.
pub const INLINE_BYTES: usize = 40;

/// One rank's acts, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Program {
    /// The acts.
    pub acts: Vec<Act>,
}

impl Program {
    /// Signals all others, then hears all of them.
    pub fn meet(&mut self, others: impl Iterator<Item = usize> + Clone) {
        self.signal(others.clone());
        self.hear(others);
    }

    /// Signals all others.
    pub fn signal(&mut self, others: impl Iterator<Item = usize>) {
        self.acts.extend(others.map(|peer| Act::Signal { peer, carries: None }));
    }

    /// Hears all others.
    pub fn hear(&mut self, others: impl Iterator<Item = usize>) {
        self.acts.extend(others.map(|peer| Act::Hear { peer, to: None }));
    }

    /// Copies a place to another one.
    pub fn copy(&mut self, from: Place, to: Place) {
        self.acts.push(Act::Copy { from, to });
    }

    /// Combines a place with another one.
    pub fn combine(&mut self, from: Place, to: Place) {
        self.acts.push(Act::Combine { from, to });
    }

    /// Divides what this rank has there by the number of ranks, if a mean is wanted.
    pub fn divide(&mut self, mean: bool, span: Span, world_size: usize) {
        if mean && world_size > 1 {
            self.acts.push(Act::Divide { place: Place::own(Store::Output, span), by: world_size });
        }
    }

    /// Places that acts name, and whether they write them.
    pub fn accesses(act: &Act) -> impl Iterator<Item = (Place, bool)> + use<> {
        let pair = match act {
            Act::Signal { carries, .. } => [carries.map(|place| (place, false)), None],
            Act::Hear { to, .. } => [to.map(|place| (place, true)), None],
            Act::Copy { from, to } | Act::Combine { from, to } => [Some((*from, false)), Some((*to, true))],
            Act::Divide { place, .. } => [Some((*place, true)), None],
        };
        pair.into_iter().flatten()
    }

    /// Elements that it needs of one of this rank's own stores.
    pub fn extent(&self, store: Store) -> usize {
        let places = self.acts.iter().flat_map(Self::accesses).map(|(place, _)| place);
        let own = places.filter(|place| place.peer.is_none() && place.store == store);
        own.map(|place| place.span.end()).max().unwrap_or(0)
    }
}
