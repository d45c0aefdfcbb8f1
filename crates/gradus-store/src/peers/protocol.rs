//! What keepers say to each other about blocks.
//!
//! A connection begins with one message of JSON from either side, [`Hello`] from the caller and [`Welcome`] from the one who
//! is called; then the caller says asks, and the other side replies, in whatever order replies are ready:
//!
//! | frame | bytes |
//! |---|---|
//! | ask | kind 1, id 8, object 16, number 8, length 4, position 8, patience in milliseconds 4 |
//! | reply | kind 1, id 8, length 4, CRC-32C 4, then the block's bytes where there are some |
//!
//! (Numbers are little endian.) An id is chosen by the caller, and used once on a connection. *Patience* is how long the
//! caller still waits: who replies later sends no bytes. Invariant: nothing is longer than what was asked for, nor than
//! [`MOST_BYTES`]; what is of no known kind is refused, and ends the connection.

use crate::blocks::BlockKey;
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Versions that differ cannot meet.
pub(super) const VERSION: u32 = 1;

/// Bytes of the largest block.
pub(super) const MOST_BYTES: u32 = 64 << 20;

/// Bytes of an ask, and of a reply without its block.
pub(super) const ASK_BYTES: usize = 49;
pub(super) const REPLY_BYTES: usize = 17;

/// Characters of a name of a node, rack or dataset.
const MOST_NAME: usize = 256;

const ASK: u8 = 1;

/// Who calls, and about what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) node: String,
    pub(super) rack: String,
    pub(super) capacity_blocks: u64,
    /// What the dataset is known by: keepers of different ones have nothing for each other.
    pub(super) dataset: String,
}

impl Hello {
    /// Why nobody with this is to be served, if so; `ours` is what this keeper would say itself.
    pub(super) fn objection(&self, ours: &Self) -> Option<String> {
        if self.version != VERSION {
            return Some(format!(
                "it speaks version {}, this node {VERSION}: start the same everywhere",
                self.version
            ));
        }
        if [&self.node, &self.rack, &self.dataset].iter().any(|name| name.len() > MOST_NAME) {
            return Some(format!("a name is longer than {MOST_NAME} bytes"));
        }
        let same = self.dataset == ours.dataset;
        (!same).then(|| "it reads another dataset, or another state of it, than this node".to_owned())
    }
}

/// What the other side says to a [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Welcome {
    /// Ask away.
    Come {
        /// The one who was called.
        node: String,
    },
    /// There is nothing here for you.
    Refused {
        /// Why.
        reason: String,
    },
}

/// One block is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) id: u64,
    pub(super) key: BlockKey,
    /// Bytes of the block: another length is another block.
    pub(super) length: u32,
    /// Where in the order of samples it is used.
    pub(super) position: u64,
    pub(super) patience_ms: u32,
}

impl Ask {
    pub(super) fn encode(&self) -> [u8; ASK_BYTES] {
        let mut bytes = [0; ASK_BYTES];
        let mut writer = Writer { bytes: &mut bytes };
        writer.put(&[ASK]);
        writer.put(&self.id.to_le_bytes());
        writer.put(&self.key.object);
        writer.put(&self.key.number.to_le_bytes());
        writer.put(&self.length.to_le_bytes());
        writer.put(&self.position.to_le_bytes());
        writer.put(&self.patience_ms.to_le_bytes());
        bytes
    }

    /// # Errors
    /// `Corrupt` when this is no ask, or for more than a block.
    pub(super) fn decode(bytes: &[u8; ASK_BYTES]) -> Result<Self> {
        let mut reader = Reader { bytes };
        let kind = reader.byte();
        let (id, object, number) = (reader.u64(), reader.take(), reader.u64());
        let (length, position, patience_ms) = (reader.u32(), reader.u64(), reader.u32());
        if kind != ASK || !(1..=MOST_BYTES).contains(&length) {
            return Err(Error::corrupt(format!("an ask of kind {kind} for {length} bytes is none")));
        }
        Ok(Self { id, key: BlockKey { object, number }, length, position, patience_ms })
    }

    /// How long the asker waits.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(u64::from(self.patience_ms))
    }
}

/// What comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The block: its bytes follow.
    Block,
    /// It is not to be had here.
    NotHere,
    /// Not now: there is too much to do.
    Busy,
    /// Not for you.
    Refused,
}

/// The beginning of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) id: u64,
    pub(super) kind: Kind,
    /// Bytes that follow, 0 where there is no block.
    pub(super) length: u32,
    pub(super) crc32c: u32,
}

impl Reply {
    pub(super) fn without_block(id: u64, kind: Kind) -> Self {
        Self { id, kind, length: 0, crc32c: 0 }
    }

    pub(super) fn encode(&self) -> [u8; REPLY_BYTES] {
        let mut bytes = [0; REPLY_BYTES];
        let mut writer = Writer { bytes: &mut bytes };
        let kind = match self.kind {
            Kind::Block => 2,
            Kind::NotHere => 3,
            Kind::Busy => 4,
            Kind::Refused => 5,
        };
        writer.put(&[kind]);
        writer.put(&self.id.to_le_bytes());
        writer.put(&self.length.to_le_bytes());
        writer.put(&self.crc32c.to_le_bytes());
        bytes
    }

    /// # Errors
    /// `Corrupt` when this is no reply, or announces what no reply has.
    pub(super) fn decode(bytes: &[u8; REPLY_BYTES]) -> Result<Self> {
        let mut reader = Reader { bytes };
        let byte = reader.byte();
        let (id, length, crc32c) = (reader.u64(), reader.u32(), reader.u32());
        let kind = match byte {
            2 if (1..=MOST_BYTES).contains(&length) => Kind::Block,
            3 if length == 0 => Kind::NotHere,
            4 if length == 0 => Kind::Busy,
            5 if length == 0 => Kind::Refused,
            _ => return Err(Error::corrupt(format!("a reply of kind {byte} with {length} bytes is none"))),
        };
        Ok(Self { id, kind, length, crc32c })
    }
}

struct Writer<'a> {
    bytes: &'a mut [u8],
}

impl Writer<'_> {
    fn put(&mut self, part: &[u8]) {
        let (place, rest) = std::mem::take(&mut self.bytes).split_at_mut(part.len());
        place.copy_from_slice(part);
        self.bytes = rest;
    }
}

/// Takes parts off a frame, whose length its type says.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (part, rest) = self.bytes.split_first_chunk().expect("a frame has all of its parts");
        self.bytes = rest;
        *part
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_reads_something_else_or_speaks_otherwise_is_refused() {
        let ours = Hello {
            version: VERSION,
            node: "a".into(),
            rack: String::new(),
            capacity_blocks: 1,
            dataset: "d".into(),
        };
        assert_eq!(ours.objection(&ours), None);
        let others = [
            Hello { version: VERSION + 1, ..ours.clone() },
            Hello { dataset: "e".into(), ..ours.clone() },
            Hello { rack: "r".repeat(MOST_NAME + 1), ..ours.clone() },
        ];
        assert!(others.iter().all(|other| other.objection(&ours).is_some()));
    }

    proptest! {
        #[test]
        fn asks_and_replies_come_back_as_they_were(id: u64, object: [u8; 16], number: u64, position: u64, crc32c: u32,
            length in 1..=MOST_BYTES, patience_ms: u32) {
            let ask = Ask { id, key: BlockKey { object, number }, length, position, patience_ms };
            prop_assert_eq!(Ask::decode(&ask.encode()).unwrap(), ask);
            let block = Reply { id, kind: Kind::Block, length, crc32c };
            let replies = [block, Reply::without_block(id, Kind::NotHere), Reply::without_block(id, Kind::Busy),
                Reply::without_block(id, Kind::Refused)];
            for reply in replies {
                prop_assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
            }
        }

        #[test]
        fn whatever_comes_is_refused_or_bounded(ask: [[u8; 7]; 7], reply: [u8; REPLY_BYTES]) {
            let ask: [u8; ASK_BYTES] = ask.concat().try_into().unwrap();
            prop_assert!(Ask::decode(&ask).is_ok_and(|ask| (1..=MOST_BYTES).contains(&ask.length)) || ask[0] != ASK
                || !(1..=MOST_BYTES).contains(&u32::from_le_bytes(*ask[33..].first_chunk().unwrap())));
            if let Ok(taken) = Reply::decode(&reply) {
                prop_assert!(taken.length <= MOST_BYTES && (taken.length > 0) == (taken.kind == Kind::Block));
            }
        }
    }
}
