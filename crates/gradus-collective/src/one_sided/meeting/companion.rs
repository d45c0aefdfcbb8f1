//! What is known of a rank that takes part.

use gradus_fabric::Location;

/// Where a peer's memory is, as it said when it came.
#[derive(Clone, Copy)]
pub(super) struct Shown {
    pub(super) input: Location,
    pub(super) output: Location,
    pub(super) slot: usize,
}

impl Shown {
    pub(super) const NOTHING: Self =
        Self { input: Location::Private(0), output: Location::Private(0), slot: 0 };

    pub(super) fn words(self) -> [u64; 3] {
        [self.input.to_word(), self.output.to_word(), self.slot as u64]
    }
}

/// What two ranks have begun with each other, as one of them counts it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Past {
    /// Operations.
    pub(crate) order: u64,
    /// Messages that this rank sends the other.
    pub(crate) sends: u32,
    /// Messages that it receives from the other.
    pub(crate) receives: u32,
}

impl Past {
    pub(super) fn word(self) -> u64 {
        u64::from(self.sends) << 32 | u64::from(self.receives)
    }

    /// What the other one must have counted.
    pub(super) fn mirrored(self) -> u64 {
        self.word().rotate_left(32)
    }
}

/// A rank that takes part.
pub(crate) struct Companion {
    /// Its number in the transport.
    pub(super) rank: usize,
    /// What there was before between it and this rank.
    pub(super) past: Past,
    pub(super) shown: Shown,
}

impl Companion {
    pub(crate) fn new(rank: usize, past: Past) -> Self {
        Self { rank, past, shown: Shown::NOTHING }
    }
}
