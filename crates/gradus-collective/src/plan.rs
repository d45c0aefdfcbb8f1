//! What a rank does in a collective, as data.
//!
//! A plan is a list of steps for each rank over the elements of one buffer. Steps on the streams between two ranks
//! happen in the order of the list: the first send from `a` to `b` meets the first receive at `b` from `a`, and both
//! name as many elements. Otherwise steps run side by side, but for what they touch: a step that writes an element
//! waits for earlier steps that read or write it, one that reads it for earlier steps that write it, *element by
//! element* ([`dependencies`](crate::dependencies)). So a rank passes on the first elements of a range while the last
//! ones are still arriving, and no generator has to cut ranges small for that.
//!
//! A stream holds at least one element besides what its ends have taken; plans must not need more (the
//! [`checker`](crate::checker) grants exactly that).

use gradus_memory::Span;

/// One step of one rank. Spans count elements of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Sends a range to a peer.
    Send {
        /// The other rank.
        peer: usize,
        /// What is read.
        span: Span,
    },
    /// Overwrites a range by what a peer sends.
    Receive {
        /// The other rank.
        peer: usize,
        /// What is written.
        span: Span,
    },
    /// Adds what a peer sends to a range.
    ReceiveReduce {
        /// The other rank.
        peer: usize,
        /// What is added to.
        span: Span,
    },
}

impl Step {
    /// Sends `span` to `peer`.
    pub const fn send(peer: usize, span: Span) -> Self {
        Self::Send { peer, span }
    }

    /// Overwrites `span` by what `peer` sends.
    pub const fn receive(peer: usize, span: Span) -> Self {
        Self::Receive { peer, span }
    }

    /// Adds what `peer` sends to `span`.
    pub const fn receive_reduce(peer: usize, span: Span) -> Self {
        Self::ReceiveReduce { peer, span }
    }

    /// The other rank.
    pub const fn peer(&self) -> usize {
        match self {
            Self::Send { peer, .. } | Self::Receive { peer, .. } | Self::ReceiveReduce { peer, .. } => *peer,
        }
    }

    /// The elements that it reads or writes.
    pub const fn span(&self) -> Span {
        match self {
            Self::Send { span, .. } | Self::Receive { span, .. } | Self::ReceiveReduce { span, .. } => *span,
        }
    }

    /// Whether it sends; otherwise it receives.
    pub const fn sends(&self) -> bool {
        matches!(self, Self::Send { .. })
    }
}

/// The steps of every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Elements of the buffer.
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
