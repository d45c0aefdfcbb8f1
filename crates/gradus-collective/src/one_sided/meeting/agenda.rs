//! What a rank will do, and what that takes.

use crate::one_sided::act::{Act, Program, Store};

/// A program, and what it needs: made once for a shape, used for many collectives.
pub(crate) struct Agenda {
    pub(super) acts: Vec<Act>,
    /// Elements of each of this rank's stores.
    extents: [usize; 4],
    /// Whether all that others see of this rank goes along with its signals.
    pub(super) carries: bool,
}

impl Agenda {
    pub(crate) fn new(program: Program) -> Self {
        let stores = [Store::Input, Store::Output, Store::Scratch, Store::Staging];
        let carries = program.acts.iter().any(|act| matches!(act, Act::Signal { carries: Some(_), .. }));
        Self { extents: stores.map(|store| program.extent(store)), carries, acts: program.acts }
    }

    pub(super) fn extent(&self, store: Store) -> usize {
        self.extents[store as usize]
    }

    /// Bytes of scratch that it needs.
    pub(crate) fn scratch_bytes(&self, element_bytes: usize) -> usize {
        self.extent(Store::Scratch) * element_bytes
    }

    /// Whether others may reach its input and output.
    pub(super) fn shows_memory(&self) -> bool {
        !self.carries && !self.stages()
    }

    pub(super) fn stages(&self) -> bool {
        self.extent(Store::Staging) > 0
    }
}
