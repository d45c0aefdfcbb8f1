//! What was accessed for others and waits until they ask.
//!
//! Invariant: bounded by what the walk lets wait, and by time: what nobody will ask for any more is let go.

use super::unit::What;
use crate::blocks::Block;
use std::collections::BTreeMap;
use std::ops::Range;

/// Blocks by the position that they were accessed for.
#[derive(Default)]
pub(super) struct Awaited {
    blocks: BTreeMap<(u64, Block), One>,
    bytes: u64,
}

struct One {
    what: What,
    /// Nodes that may still ask.
    left: usize,
    /// Bytes of it that the sample needs; none once this node's readers are beyond it.
    bytes: u64,
}

impl Awaited {
    /// Keeps a block until `left` nodes have asked for it.
    pub fn add(&mut self, at: (u64, Block), what: What, left: usize, bytes: u64) {
        self.bytes += bytes;
        if let Some(before) = self.blocks.insert(at, One { what, left, bytes }) {
            self.bytes -= before.bytes;
        }
    }

    /// One node asks.
    pub fn take(&mut self, at: (u64, Block)) -> Option<What> {
        let one = self.blocks.get_mut(&at)?;
        one.left -= 1;
        let (what, bytes, is_last) = (one.what.clone(), one.bytes, one.left == 0);
        if is_last {
            self.bytes -= bytes;
            self.blocks.remove(&at);
        }
        Some(what)
    }

    /// What is for these positions waits behind the readers: it counts no more as waiting ahead of them.
    pub fn leave_behind(&mut self, positions: Range<u64>) {
        for one in self.blocks.range_mut((positions.start, Block(0))..(positions.end, Block(0))) {
            self.bytes -= std::mem::take(&mut one.1.bytes);
        }
    }

    /// Lets go of what is for positions before this one.
    pub fn forget_before(&mut self, position: u64) {
        while self.blocks.first_key_value().is_some_and(|((at, _), _)| *at < position) {
            self.forget_first();
        }
    }

    /// Lets go of what was to be asked for first; whether there was something.
    pub fn forget_first(&mut self) -> bool {
        let first = self.blocks.pop_first();
        self.bytes -= first.as_ref().map_or(0, |(_, one)| one.bytes);
        first.is_some()
    }

    /// Bytes that others need of what waits ahead.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectInfo;
    use crate::blocks::BlockMap;
    use crate::cache::{Access, CacheSettings, Tier0};
    use crate::feed::stalls::Cause;
    use std::sync::Arc;

    fn tier() -> Tier0 {
        let object = ObjectInfo { address: "s3://b/o".into(), bytes: 9 * 4096, etag: "1".into() };
        let map = Arc::new(BlockMap::new(vec![object], 4096).unwrap());
        let settings =
            CacheSettings { block_bytes: 4096, memory_bytes: 4 * 4096, ..CacheSettings::default() };
        Tier0::open(map, &settings, 4).unwrap()
    }

    fn what(tier: &Tier0, block: u64) -> What {
        match tier.pass(Block(block)) {
            Access::Missing(fill) => What::Coming(fill.held(), Cause::Bucket),
            _ => panic!("block {block} is there already, or there is no page"),
        }
    }

    #[test]
    fn what_waits_is_held_until_all_have_asked_or_none_will() {
        let (tier, mut awaited) = (tier(), Awaited::default());
        for position in 0..4 {
            awaited.add((position, Block(position)), what(&tier, position), 2, 100);
        }
        assert_eq!(tier.counters().free_pages, 0);
        assert!(awaited.take((1, Block(1))).is_some() && awaited.take((2, Block(1))).is_none());
        assert_eq!(awaited.bytes(), 400);
        assert!(awaited.take((1, Block(1))).is_some() && awaited.take((1, Block(1))).is_none());
        assert_eq!((awaited.bytes(), tier.counters().free_pages), (300, 1));
        awaited.leave_behind(0..3);
        assert_eq!((awaited.bytes(), tier.counters().free_pages), (100, 1));
        awaited.forget_before(3);
        assert_eq!((awaited.bytes(), tier.counters().free_pages), (100, 3));
        assert!(awaited.forget_first() && !awaited.forget_first());
        assert_eq!((awaited.bytes(), tier.counters().free_pages), (0, 4));
    }
}
