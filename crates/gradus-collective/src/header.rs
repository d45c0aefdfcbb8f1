//! What stands before every message: enough to tell that both ranks are at the same place of the same collective.

use crate::element::{Element, Reduction};
use gradus_error::{Error, Result};
use gradus_fabric::{HEADER_WORDS, MOST_LEVELS};
use std::fmt;

/// Bytes of a header: a cache line, so that what follows it in a ring in shared memory is aligned as the ring is.
pub(crate) const HEADER_BYTES: usize = 8 * HEADER_WORDS;

const MAGIC: u32 = u32::from_le_bytes(*b"GrdC");

/// What ranks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Operation {
    AllReduce = 1,
    Broadcast = 2,
    Barrier = 3,
    Reduce = 4,
    ReduceScatter = 5,
    AllGather = 6,
    Gather = 7,
    Scatter = 8,
    AllToAll = 9,
    Message = 10,
}

impl Operation {
    const ALL: [Self; 10] = [
        Self::AllReduce,
        Self::Broadcast,
        Self::Barrier,
        Self::Reduce,
        Self::ReduceScatter,
        Self::AllGather,
        Self::Gather,
        Self::Scatter,
        Self::AllToAll,
        Self::Message,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all-reduce",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
            Self::Reduce => "reduce",
            Self::ReduceScatter => "reduce-scatter",
            Self::AllGather => "all-gather",
            Self::Gather => "gather",
            Self::Scatter => "scatter",
            Self::AllToAll => "all-to-all",
            Self::Message => "message",
        }
    }

    /// How the root comes into the description, for operations that have one.
    const fn root_word(self) -> Option<&'static str> {
        match self {
            Self::Broadcast | Self::Scatter | Self::Message => Some("from"),
            Self::Reduce | Self::Gather => Some("to"),
            _ => None,
        }
    }
}

/// A collective, as all its ranks must see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// 0 for the group of all ranks.
    pub(crate) group: u64,
    /// Its place among the collectives of its group, or among the messages from one rank to another.
    pub(crate) sequence: u64,
    pub(crate) operation: Operation,
    pub(crate) element: Element,
    pub(crate) reduction: Option<Reduction>,
    /// By its number in the group; 0 if there is none. The sender of a message.
    pub(crate) root: u32,
    /// Elements of the whole.
    pub(crate) len: u64,
    /// What tells unequal counts apart; 0 for equal ones.
    pub(crate) counts: u64,
    /// Whether it works on memory that peers reach in place.
    pub(crate) registered: bool,
    /// Its priority, from 0, the lowest, on.
    pub(crate) level: u8,
}

impl Identity {
    /// Its priority, as lanes count.
    pub(crate) const fn level(&self) -> usize {
        self.level as usize
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, sequence, operation, element, reduction, root, len, counts, registered, level } =
            self;
        write!(f, "{} number {sequence}", operation.name())?;
        if *operation != Operation::Barrier {
            write!(f, " of {len} {element}")?;
        }
        if let Some(reduction) = reduction {
            write!(f, " ({reduction})")?;
        }
        if let Some(word) = operation.root_word() {
            write!(f, " {word} rank {root}")?;
        }
        if *counts != 0 {
            write!(f, " with unequal counts {counts:016x}")?;
        }
        if *group != 0 {
            write!(f, " in group {group:016x}")?;
        }
        if *registered {
            f.write_str(" in registered memory")?;
        }
        if *level != 0 {
            write!(f, " at priority {level}")?;
        }
        Ok(())
    }
}

/// One message of a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) identity: Identity,
    /// Its place among those from this sender to this receiver.
    pub(crate) message: u32,
    /// Bytes that follow.
    pub(crate) bytes: u64,
    /// How many operations the sender has begun before with the receiver.
    pub(crate) order: u64,
}

impl Header {
    /// As it stands in memory of this host: mark and kinds (operation, element, reduction or 0, memory and twice the
    /// priority), root and message, group, sequence, length, bytes, counts, order.
    pub(crate) fn words(&self) -> [u64; HEADER_WORDS] {
        let Self { identity: i, message, bytes, order } = self;
        let reduction = i.reduction.map_or(0, |reduction| reduction as u8);
        let how = u8::from(i.registered) | i.level << 1;
        let kinds = u32::from_le_bytes([i.operation as u8, i.element as u8, reduction, how]);
        let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        [pair(MAGIC, kinds), pair(i.root, *message), i.group, i.sequence, i.len, *bytes, i.counts, *order]
    }

    /// As it travels: its words, little-endian.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        Self::bytes(&self.words())
    }

    /// Words as they travel.
    pub(crate) fn bytes(words: &[u64; HEADER_WORDS]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let u32_at =
            |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("all fields lie inside"));
        let u64_at =
            |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("all fields lie inside"));
        if u32_at(0) != MAGIC || usize::from(bytes[7] >> 1) >= MOST_LEVELS {
            return Err(corrupt("its mark is missing"));
        }
        let operation = Operation::ALL.into_iter().find(|operation| *operation as u8 == bytes[4]);
        let element = Element::ALL.into_iter().find(|element| *element as u8 == bytes[5]);
        let reduction = Reduction::ALL.into_iter().find(|reduction| *reduction as u8 == bytes[6]);
        if reduction.is_none() && bytes[6] != 0 {
            return Err(corrupt("reduction"));
        }
        let identity = Identity {
            group: u64_at(16),
            sequence: u64_at(24),
            operation: operation.ok_or_else(|| corrupt("operation"))?,
            element: element.ok_or_else(|| corrupt("element"))?,
            reduction,
            root: u32_at(8),
            len: u64_at(32),
            counts: u64_at(48),
            registered: bytes[7] & 1 == 1,
            level: bytes[7] >> 1,
        };
        Ok(Self { identity, message: u32_at(12), bytes: u64_at(40), order: u64_at(56) })
    }

    /// Holds a header that came from `peer` against the one that `rank` expects.
    ///
    /// # Errors
    /// `Invalid` naming both ranks and what each is doing.
    pub(crate) fn expect(&self, expected: &Self, rank: usize, peer: usize) -> Result<()> {
        if self == expected {
            return Ok(());
        }
        let (theirs, ours) = (self.identity, expected.identity);
        let detail = if theirs == ours {
            format!(
                ", message {} of {} bytes at place {} against message {} of {} bytes at place {}",
                self.message, self.bytes, self.order, expected.message, expected.bytes, expected.order
            )
        } else {
            String::new()
        };
        Err(Error::invalid(format!(
            "rank {peer} is at {theirs} while rank {rank} is at {ours}{detail}: all ranks must start the same \
             collectives, with the same lengths, in the same order"
        )))
    }
}

fn corrupt(what: &str) -> Error {
    Error::corrupt(format!("a message begins with no header of ours ({what})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn header() -> Header {
        let identity = Identity {
            group: 0,
            sequence: 1 << 40,
            operation: Operation::Reduce,
            element: Element::F64,
            reduction: Some(Reduction::Max),
            root: 3,
            len: 1 << 50,
            counts: 0,
            registered: false,
            level: 0,
        };
        Header { identity, message: 7, bytes: u64::MAX, order: 1 << 33 }
    }

    #[test]
    fn a_header_survives_the_wire() {
        assert_eq!(Header::decode(&header().encode()).unwrap(), header());
        let identity =
            Identity { group: 5, reduction: None, counts: u64::MAX, level: 3, ..header().identity };
        let other = Header { identity, message: u32::MAX, bytes: 0, order: u64::MAX };
        assert_eq!(Header::decode(&other.encode()).unwrap(), other);
    }

    /// Every field of an identity, changed.
    fn differences() -> Vec<(Identity, &'static str)> {
        let ours = header().identity;
        vec![
            (Identity { group: 0xabc, ..ours }, "in group 0000000000000abc"),
            (Identity { sequence: 41, ..ours }, "number 41"),
            (Identity { operation: Operation::AllReduce, ..ours }, "all-reduce"),
            (Identity { element: Element::Bf16, ..ours }, "bf16"),
            (Identity { reduction: Some(Reduction::Product), ..ours }, "(product)"),
            (Identity { root: 9, ..ours }, "to rank 9"),
            (Identity { len: 12, ..ours }, "of 12 f64"),
            (Identity { counts: 0xdef, ..ours }, "unequal counts 0000000000000def"),
            (Identity { registered: true, ..ours }, "in registered memory"),
            (Identity { level: 2, ..ours }, "at priority 2"),
        ]
    }

    #[test]
    fn any_difference_names_both_sides() {
        let ours = header();
        ours.expect(&ours, 0, 1).unwrap();
        for (identity, named) in differences() {
            let error = Header { identity, ..ours }.expect(&ours, 4, 5).unwrap_err();
            assert_eq!(*error.kind(), Kind::Invalid);
            let text = error.to_string();
            let ours = "reduce number 1099511627776 of 1125899906842624 f64 (max) to rank 3";
            assert!(
                ["rank 4 is at", "rank 5 is at", named, ours].iter().all(|part| text.contains(part)),
                "{text}"
            );
        }
        assert!(Header { message: 8, ..ours }.expect(&ours, 0, 1).is_err());
        assert!(Header { bytes: 8, ..ours }.expect(&ours, 0, 1).is_err());
        assert!(Header { order: 8, ..ours }.expect(&ours, 0, 1).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_are_refused_or_read_but_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), HEADER_BYTES), marked in any::<bool>()
        ) {
            if marked {
                let sound = header().encode();
                bytes[..4].copy_from_slice(&sound[..4]);
                bytes[4..8].iter_mut().for_each(|byte| *byte &= 3);
                bytes[7] &= 7;
            }
            let bytes: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
                prop_assert!(header.expect(&header, 0, 1).is_ok());
            }
        }
    }
}
