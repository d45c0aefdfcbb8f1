//! The block that was used least recently goes.

use super::queue::Queue;
use super::{Admission, Policy};
use crate::blocks::Block;

/// Residents in the order of their last use.
pub(in super::super) struct Lru {
    capacity: u64,
    residents: Queue,
}

impl Lru {
    pub(in super::super) fn new(capacity: u64) -> Self {
        Self { capacity, residents: Queue::default() }
    }
}

impl Policy for Lru {
    fn contains(&self, block: Block) -> bool {
        self.residents.contains(block)
    }

    fn len(&self) -> u64 {
        self.residents.len()
    }

    fn hit(&mut self, block: Block, _: Option<u64>) {
        self.residents.push(block);
    }

    fn miss(&mut self, block: Block, _: Option<u64>) -> Admission {
        if self.capacity == 0 {
            return Admission::BYPASSED;
        }
        let full = self.residents.len() >= self.capacity;
        let evicted = if full { self.residents.pop() } else { None };
        self.residents.push(block);
        Admission { admitted: true, evicted }
    }

    fn remove(&mut self, block: Block) {
        self.residents.remove(block);
    }
}
