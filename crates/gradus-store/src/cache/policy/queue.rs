//! A queue of blocks out of whose middle one can be taken.

use crate::blocks::Block;
use std::collections::BTreeMap;

/// Blocks in the order in which they came.
#[derive(Default)]
pub(super) struct Queue {
    order: BTreeMap<u64, Block>,
    tickets: BTreeMap<Block, u64>,
    next_ticket: u64,
}

impl Queue {
    pub(super) fn len(&self) -> u64 {
        self.order.len() as u64
    }

    pub(super) fn contains(&self, block: Block) -> bool {
        self.tickets.contains_key(&block)
    }

    /// Puts a block at the end, wherever it was before.
    pub(super) fn push(&mut self, block: Block) {
        self.remove(block);
        self.order.insert(self.next_ticket, block);
        self.tickets.insert(block, self.next_ticket);
        self.next_ticket += 1;
    }

    /// Takes the one that has been there longest.
    pub(super) fn pop(&mut self) -> Option<Block> {
        let (_, block) = self.order.pop_first()?;
        self.tickets.remove(&block);
        Some(block)
    }

    /// Takes a block out; says whether it was there.
    pub(super) fn remove(&mut self, block: Block) -> bool {
        self.tickets.remove(&block).is_some_and(|ticket| self.order.remove(&ticket).is_some())
    }
}
