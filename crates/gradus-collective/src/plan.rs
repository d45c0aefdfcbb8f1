//! What a rank does in a collective, as data.
//!
//! A plan is a list of steps for each rank. Steps name *parts*: ranges of a *region*, which is what the rank brings
//! (input), where its result goes (output), or memory of the collective's own (scratch). Steps on the streams between
//! two ranks happen in the order of the list: the first send from `a` to `b` meets the first receive at `b` from `a`,
//! and both name as many elements. Otherwise steps run side by side, but for what they touch: a step that writes an
//! element waits for earlier steps that read or write it, one that reads it for earlier steps that write it, *element
//! by element* ([`dependencies`](crate::dependencies)). So a rank passes on the first elements of a range while the last
//! ones are still arriving, and no generator has to cut ranges small for that.
//!
//! A stream holds at least one element besides what its ends have taken; plans must not need more (the
//! [`checker`](crate::checker) grants exactly that).
//!
//! # In place
//!
//! Where a caller brings and takes in one buffer, that buffer is the *output*, and there is no input: what the rank
//! brings lies in the output, at the place that its [`Expectation`](crate::checker::Expectation) names. No plan names
//! one memory by two regions, so the rule above needs no exception; a generator makes two plans, one for each case, and
//! both are checked. Nothing ever writes the input.

use gradus_memory::Span;

/// Memory of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Region {
    /// What the rank brings, where that lies apart from the output. Never written.
    Input,
    /// Where the result goes; also what the rank brings when it works in place.
    Output,
    /// Memory that lives as long as the collective, with undefined content at the start.
    Scratch,
}

impl Region {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Input, Self::Output, Self::Scratch];
}

/// A range of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Part {
    /// Which memory.
    pub region: Region,
    /// Which elements of it.
    pub span: Span,
}

impl Part {
    /// Elements of the input.
    pub const fn input(span: Span) -> Self {
        Self { region: Region::Input, span }
    }

    /// Elements of the output.
    pub const fn output(span: Span) -> Self {
        Self { region: Region::Output, span }
    }

    /// Elements of the scratch memory.
    pub const fn scratch(span: Span) -> Self {
        Self { region: Region::Scratch, span }
    }

    /// Whether the two share an element.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.region == other.region && self.span.overlaps(&other.span)
    }
}

/// One step of one rank. Spans count elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Sends a part to a peer.
    Send {
        /// The other rank.
        peer: usize,
        /// What is read.
        from: Part,
    },
    /// Overwrites a part by what a peer sends.
    Receive {
        /// The other rank.
        peer: usize,
        /// What is written.
        to: Part,
    },
    /// Combines what a peer sends with a part, by the collective's reduction.
    ReceiveReduce {
        /// The other rank.
        peer: usize,
        /// What is combined and overwritten.
        to: Part,
    },
    /// Copies a part to another one of as many elements, which must be apart.
    Copy {
        /// What is read.
        from: Part,
        /// What is written.
        to: Part,
    },
    /// Divides a part: the end of a mean.
    Divide {
        /// What is divided.
        part: Part,
        /// By how much.
        by: usize,
    },
}

impl Step {
    /// Sends `span` of the output to `peer`.
    pub const fn send(peer: usize, span: Span) -> Self {
        Self::send_from(peer, Part::output(span))
    }

    /// Sends a part to `peer`.
    pub const fn send_from(peer: usize, from: Part) -> Self {
        Self::Send { peer, from }
    }

    /// Overwrites `span` of the output by what `peer` sends.
    pub const fn receive(peer: usize, span: Span) -> Self {
        Self::receive_to(peer, Part::output(span))
    }

    /// Overwrites a part by what `peer` sends.
    pub const fn receive_to(peer: usize, to: Part) -> Self {
        Self::Receive { peer, to }
    }

    /// Combines what `peer` sends with `span` of the output.
    pub const fn receive_reduce(peer: usize, span: Span) -> Self {
        Self::receive_reduce_to(peer, Part::output(span))
    }

    /// Combines what `peer` sends with a part.
    pub const fn receive_reduce_to(peer: usize, to: Part) -> Self {
        Self::ReceiveReduce { peer, to }
    }

    /// Copies a part.
    ///
    /// # Panics
    /// If the two differ in length.
    pub const fn copy(from: Part, to: Part) -> Self {
        assert!(from.span.len == to.span.len, "a copy has as many elements as what it copies");
        Self::Copy { from, to }
    }

    /// Whether no other rank has a part in it.
    pub const fn is_local(&self) -> bool {
        matches!(self, Self::Copy { .. } | Self::Divide { .. })
    }

    /// The other rank.
    ///
    /// # Panics
    /// If the step [is local](Step::is_local).
    pub const fn peer(&self) -> usize {
        match self {
            Self::Send { peer, .. } | Self::Receive { peer, .. } | Self::ReceiveReduce { peer, .. } => *peer,
            Self::Copy { .. } | Self::Divide { .. } => panic!("a local step has no peer"),
        }
    }

    /// What is sent, or what is written by the others.
    pub const fn part(&self) -> Part {
        match self {
            Self::Send { from, .. } => *from,
            Self::Receive { to, .. } | Self::ReceiveReduce { to, .. } | Self::Copy { to, .. } => *to,
            Self::Divide { part, .. } => *part,
        }
    }

    /// The elements of [`Step::part`].
    pub const fn span(&self) -> Span {
        self.part().span
    }

    /// Whether it sends to a peer.
    pub const fn sends(&self) -> bool {
        matches!(self, Self::Send { .. })
    }

    /// What it touches, and whether it writes that.
    pub fn accesses(&self) -> impl Iterator<Item = (Part, bool)> + use<> {
        let (first, second) = match self {
            Self::Copy { from, to } => ((*from, false), Some((*to, true))),
            _ => ((self.part(), !self.sends()), None),
        };
        std::iter::once(first).chain(second)
    }

    /// The same step with what was `from` in region `to` instead, at the same place.
    #[must_use]
    pub fn moved(self, from: Region, to: Region) -> Self {
        let place = |part: Part| if part.region == from { Part { region: to, ..part } } else { part };
        match self {
            Self::Send { peer, from } => Self::Send { peer, from: place(from) },
            Self::Receive { peer, to } => Self::Receive { peer, to: place(to) },
            Self::ReceiveReduce { peer, to } => Self::ReceiveReduce { peer, to: place(to) },
            Self::Copy { from, to } => Self::Copy { from: place(from), to: place(to) },
            Self::Divide { part, by } => Self::Divide { part: place(part), by },
        }
    }
}

/// Elements that `steps` need of a region.
pub fn extent(steps: &[Step], region: Region) -> usize {
    let parts = steps.iter().flat_map(Step::accesses).filter(|(part, _)| part.region == region);
    parts.map(|(part, _)| part.span.end()).max().unwrap_or(0)
}

/// The steps of every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Elements of the longest output.
    pub len: usize,
    /// Steps, by rank.
    pub ranks: Vec<Vec<Step>>,
}

impl Plan {
    /// The plan of a whole world, from a generator of each rank's steps.
    pub fn of_world(world_size: usize, len: usize, steps: impl Fn(usize) -> Vec<Step>) -> Self {
        Self { len, ranks: (0..world_size).map(steps).collect() }
    }
}
