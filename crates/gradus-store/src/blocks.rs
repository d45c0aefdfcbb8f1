//! Objects cut into blocks of a fixed size, which is what caches keep and peers exchange.
//!
//! Inside a process a block is a number: blocks are numbered through all objects of a dataset. On disk and between nodes
//! it is named by what it holds ([`BlockKey`]): the object's address, ETag and size, and its place in it. So a block that
//! outlives a run is found again, and an object that has changed is another object.
//!
//! Invariant: no block reaches over the end of its object, and every byte of an object is in exactly one block.

use gradus_error::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;

/// Sizes of blocks that can be chosen, in bytes: powers of two between them.
pub(crate) const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 4 << 10..=64 << 20;

/// Most blocks of one dataset: a petabyte in blocks of 4 KiB, and numbers that leave room for arithmetic.
const MOST_BLOCKS: u64 = 1 << 40;

/// A block's number among those of a [`BlockMap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(pub u64);

/// An object as it was when it was described.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ObjectInfo {
    /// Where it is: `s3://BUCKET/KEY` or `file:///PATH`.
    pub address: String,
    /// Its size.
    pub bytes: u64,
    /// What the store calls this state of it. An object whose ETag differs is another one.
    pub etag: String,
}

impl ObjectInfo {
    /// The last part of its address.
    pub fn name(&self) -> &str {
        self.address.rsplit('/').next().unwrap_or_default()
    }
}

/// What a block is known by beyond one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// The first half of a SHA-256 over address, ETag and size of the object, and the size of its blocks.
    pub object: [u8; 16],
    /// Its place among the blocks of its object.
    pub number: u64,
}

/// The blocks of some objects.
#[derive(Debug, Clone)]
pub struct BlockMap {
    block_bytes: u64,
    objects: Vec<ObjectInfo>,
    names: Vec<[u8; 16]>,
    /// Where an object of a name stands among them.
    places: BTreeMap<[u8; 16], usize>,
    /// The first block of each object, and the number of all blocks.
    first: Vec<u64>,
}

impl BlockMap {
    /// Cuts `objects` into blocks of `block_bytes`.
    ///
    /// # Errors
    /// `Invalid` for a size that is no power of two from 4 KiB to 64 MiB, or more blocks than can be numbered.
    pub fn new(objects: Vec<ObjectInfo>, block_bytes: u64) -> Result<Self> {
        if !BLOCK_BYTES.contains(&block_bytes) || !block_bytes.is_power_of_two() {
            return Err(Error::invalid(format!(
                "blocks of {block_bytes} bytes: choose a power of two from 4 KiB to 64 MiB (cache.block_bytes)"
            )));
        }
        let mut first = vec![0];
        for object in &objects {
            let next = first[first.len() - 1] + object.bytes.div_ceil(block_bytes);
            if next > MOST_BLOCKS {
                return Err(Error::invalid(format!(
                    "the objects up to {} are more than {MOST_BLOCKS} blocks: choose larger ones (cache.block_bytes)",
                    object.address
                )));
            }
            first.push(next);
        }
        let names: Vec<_> = objects.iter().map(|object| name(object, block_bytes)).collect();
        let places = names.iter().enumerate().map(|(place, name)| (*name, place)).collect();
        Ok(Self { block_bytes, objects, names, places, first })
    }

    /// Bytes of every block but the last of an object.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Number of blocks of all objects.
    pub fn blocks(&self) -> u64 {
        self.first[self.objects.len()]
    }

    /// The objects, in the order in which their blocks are numbered.
    pub fn objects(&self) -> &[ObjectInfo] {
        &self.objects
    }

    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.bytes).sum()
    }

    /// Which object a block is of.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn object_of(&self, block: Block) -> usize {
        assert!(block.0 < self.blocks(), "{block:?} of {}", self.blocks());
        // An object without bytes has no block: the last that begins at or before this one is meant.
        self.first.partition_point(|first| *first <= block.0) - 1
    }

    /// The bytes of its object that a block holds.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn range_of(&self, block: Block) -> Range<u64> {
        let object = self.object_of(block);
        let start = (block.0 - self.first[object]) * self.block_bytes;
        start..(start + self.block_bytes).min(self.objects[object].bytes)
    }

    /// A name for all blocks that nodes can exchange, and their numbers: where it is the same, so are they. Of files, which
    /// no node has of another, the sizes count: each host may have its own copies, of other times.
    pub fn name(&self) -> String {
        let mut hasher = Sha256::new();
        for (object, name) in self.objects.iter().zip(&self.names) {
            match object.address.starts_with("file:") {
                true => hasher.update(object.bytes.to_le_bytes()),
                false => hasher.update(name),
            }
        }
        hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The blocks that hold a range of an object, in order; none for an empty range.
    ///
    /// # Panics
    /// If the range is not within the object.
    pub fn covering(&self, object: usize, range: Range<u64>) -> impl ExactSizeIterator<Item = Block> + use<> {
        assert!(range.end <= self.objects[object].bytes, "{range:?} of {:?}", self.objects[object]);
        let first = self.first[object];
        // Widths of 64 bits are those of usize here, and ranges of the latter know their length.
        let end = if range.is_empty() { 0 } else { range.end.div_ceil(self.block_bytes) as usize };
        let start = if range.is_empty() { 0 } else { (range.start / self.block_bytes) as usize };
        (start..end).map(move |number| Block(first + number as u64))
    }

    /// What a block is known by beyond this process.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn key_of(&self, block: Block) -> BlockKey {
        let object = self.object_of(block);
        BlockKey { object: self.names[object], number: block.0 - self.first[object] }
    }

    /// The block that is known by `key`, if it is one of these.
    pub fn find(&self, key: BlockKey) -> Option<Block> {
        let object = *self.places.get(&key.object)?;
        let block = self.first[object].checked_add(key.number)?;
        (block < self.first[object + 1]).then_some(Block(block))
    }
}

fn name(object: &ObjectInfo, block_bytes: u64) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for text in [&object.address, &object.etag] {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    hasher.update(object.bytes.to_le_bytes());
    hasher.update(block_bytes.to_le_bytes());
    let mut name = [0; 16];
    name.copy_from_slice(&hasher.finalize()[..16]);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn objects(sizes: &[u64]) -> Vec<ObjectInfo> {
        let one = |(index, bytes): (usize, &u64)| ObjectInfo {
            address: format!("s3://b/{index}"),
            bytes: *bytes,
            etag: "1".to_owned(),
        };
        sizes.iter().enumerate().map(one).collect()
    }

    #[test]
    fn odd_sizes_are_refused() {
        for bytes in [0, 1, 4095, 5000, 128 << 20] {
            assert_eq!(BlockMap::new(Vec::new(), bytes).unwrap_err().kind(), &Kind::Invalid);
        }
        assert_eq!(BlockMap::new(objects(&[u64::MAX]), 4096).unwrap_err().kind(), &Kind::Invalid);
    }

    #[test]
    fn another_state_of_an_object_has_other_keys() {
        let key = |etag: &str, block_bytes| {
            let object = ObjectInfo { etag: etag.to_owned(), ..objects(&[9000])[0].clone() };
            BlockMap::new(vec![object], block_bytes).unwrap().key_of(Block(1))
        };
        assert_eq!(key("1", 4096), key("1", 4096));
        assert_ne!(key("1", 4096), key("2", 4096));
        assert_ne!(key("1", 4096), key("1", 8192));
    }

    proptest! {
        #[test]
        fn every_byte_is_in_one_block(sizes in prop::collection::vec(0u64..40_000, 1..6)) {
            let map = BlockMap::new(objects(&sizes), 4096).unwrap();
            let mut seen = vec![0u64; sizes.len()];
            for number in 0..map.blocks() {
                let block = Block(number);
                let (object, range) = (map.object_of(block), map.range_of(block));
                prop_assert_eq!(range.start, seen[object]);
                prop_assert!(!range.is_empty());
                seen[object] = range.end;
                prop_assert!(map.covering(object, range).eq([block]));
                prop_assert_eq!(map.find(map.key_of(block)), Some(block));
            }
            prop_assert_eq!(seen, sizes);
        }

        #[test]
        fn a_range_is_covered_by_the_blocks_that_meet_it(bytes in 1u64..40_000, from in 0u64..40_000, to in 0u64..40_000) {
            let map = BlockMap::new(objects(&[17, bytes]), 4096).unwrap();
            let range = from.min(to).min(bytes)..from.max(to).min(bytes);
            let meets = |block: &Block| {
                let held = map.range_of(*block);
                map.object_of(*block) == 1 && held.start < range.end && range.start < held.end
            };
            let expected: Vec<Block> = (0..map.blocks()).map(Block).filter(meets).collect();
            prop_assert_eq!(map.covering(1, range.clone()).collect::<Vec<_>>(), if range.is_empty() { Vec::new() } else { expected });
        }
    }
}
