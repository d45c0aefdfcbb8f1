//! Three queues: most blocks are used once, and leave through a small queue before they cost a place in the main one (Yang,
//! Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023, algorithm 1).

use super::queue::Queue;
use super::{Admission, Policy};
use crate::blocks::Block;
use std::collections::BTreeMap;

/// The small queue has a tenth of the capacity (section 4.1).
const SMALL_SHARE: u64 = 10;
/// Counters of uses have two bits.
const MOST_USES: u8 = 3;
/// Uses after which a block goes from the small queue to the main one.
const USES_FOR_MAIN: u8 = 2;

/// Residents in two queues, and a third of blocks that left not long ago.
pub(in super::super) struct S3Fifo {
    capacity: u64,
    small_capacity: u64,
    small: Queue,
    main: Queue,
    /// Blocks that left through the small queue: as many as the main one holds.
    ghost: Queue,
    /// How often each resident was used since it came.
    uses: BTreeMap<Block, u8>,
}

impl S3Fifo {
    pub(in super::super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            small_capacity: (capacity / SMALL_SHARE).max(1),
            small: Queue::default(),
            main: Queue::default(),
            ghost: Queue::default(),
            uses: BTreeMap::new(),
        }
    }

    /// At least one: each round moves a block out of the small queue, or takes a use from one in the main queue.
    fn evict(&mut self) -> Option<Block> {
        while self.len() > 0 {
            let small = self.small.len() >= self.small_capacity || self.main.len() == 0;
            let evicted = if small { self.leave_small() } else { self.leave_main() };
            if evicted.is_some() {
                return evicted;
            }
        }
        None
    }

    /// The oldest of the small queue is evicted, or goes to the main one and starts anew there.
    fn leave_small(&mut self) -> Option<Block> {
        let block = self.small.pop()?;
        if self.uses.get(&block).is_some_and(|uses| *uses >= USES_FOR_MAIN) {
            self.uses.insert(block, 0);
            self.main.push(block);
            return None;
        }
        self.uses.remove(&block);
        self.ghost.push(block);
        if self.ghost.len() > self.capacity - self.small_capacity {
            self.ghost.pop();
        }
        Some(block)
    }

    /// The oldest of the main queue is evicted, or goes to its end if it was used.
    fn leave_main(&mut self) -> Option<Block> {
        let block = self.main.pop()?;
        match self.uses.get_mut(&block).filter(|uses| **uses > 0) {
            Some(uses) => {
                *uses -= 1;
                self.main.push(block);
                None
            }
            None => {
                self.uses.remove(&block);
                Some(block)
            }
        }
    }
}

impl Policy for S3Fifo {
    fn contains(&self, block: Block) -> bool {
        self.uses.contains_key(&block)
    }

    fn len(&self) -> u64 {
        self.uses.len() as u64
    }

    fn hit(&mut self, block: Block, _: Option<u64>) {
        if let Some(uses) = self.uses.get_mut(&block) {
            *uses = (*uses + 1).min(MOST_USES);
        }
    }

    fn miss(&mut self, block: Block, _: Option<u64>) -> Admission {
        if self.capacity == 0 {
            return Admission::BYPASSED;
        }
        let evicted = if self.len() >= self.capacity { self.evict() } else { None };
        let queue = if self.ghost.remove(block) { &mut self.main } else { &mut self.small };
        queue.push(block);
        self.uses.insert(block, 0);
        Admission { admitted: true, evicted }
    }

    fn remove(&mut self, block: Block) {
        if self.uses.remove(&block).is_some() && !self.small.remove(block) {
            self.main.remove(block);
        }
    }
}
